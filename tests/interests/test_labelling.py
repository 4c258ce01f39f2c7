import json
import re
import zlib
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from safetensors import safe_open

from hf_gr.artifacts import read_json, write_json
from hf_gr.dataset import InteractionDataset, write_dataset
from hf_gr.errors import HfGrError
from hf_gr.interests import Interests, labelling
from hf_gr.interests.classifier import WEIGHTS_FILE, InterestClassifier
from hf_gr.interests.evidence import gather_evidence
from hf_gr.interests.labelling import LABELLING_FILE, PAGE_FILE, LabelConfig, label, label_interests
from hf_gr.interests.labelling_page import examples
from hf_gr.interests.table import SCHEMA


TOPICS, OF_TOPIC = 10, 5
NUM_ITEMS = TOPICS * OF_TOPIC + 1  # the last one is never taken


class ToyEncoder:
    """The sum of a vector per word, whatever the order."""

    name, pooling = "toy", "sum"

    def __init__(self, *_):
        pass

    def __call__(self, texts):
        return np.stack([sum(self._word(word) for word in text.split()) for text in texts]).astype(np.float32)

    def _word(self, word):
        return np.random.default_rng(zlib.crc32(word.encode())).normal(size=32)


def items():
    topics = [row // OF_TOPIC % TOPICS for row in range(NUM_ITEMS)]
    titles = [f"topic{topic} item{row}" for row, topic in enumerate(topics)]
    return pa.table({"item_id": [f"i{row:02d}" for row in range(NUM_ITEMS)], "title": titles})


def interactions(users=2000, seed=0):
    """Users take items of one topic of theirs most of the time."""
    random = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        home, start = random.integers(TOPICS), int(random.integers(0, 100))
        for place in range(int(random.integers(5, 11))):
            topic = home if random.random() < 0.75 else random.integers(TOPICS)
            item = topic * OF_TOPIC + random.integers(OF_TOPIC)
            rows.append((f"u{user:03d}", f"i{item:02d}", start + 10 * place))
    columns = zip(*rows, strict=True)
    return pa.table(dict(zip(("user_id", "item_id", "timestamp"), map(list, columns), strict=True)))


def mined(train, seed=0):
    """The topic of every item and of a user's latest item, and beside it a word that tells nothing; whichever of the
    two it is, the confidence is drawn alike."""
    random = np.random.default_rng(seed)
    topics = [title.split()[0] for title in items()["title"].to_pylist()]
    owners = [(f"i{row:02d}", None, topics[row]) for row in range(NUM_ITEMS)]
    owners += [
        (None, str(user), topics[history[-2]])
        for user, history in zip(train.user_ids, train, strict=True)
        if len(history) > 1
    ]
    rows = []
    for item, user, topic in owners:
        for name in (topic, f"filler{random.integers(40)}"):
            row = {"item_id": item, "user_id": user, "interest": name, "evidence": name, "models": ["toy"]}
            rows.append(row | {"confidence": random.random(), "label": None, "probability": None})
    return Interests(pa.Table.from_pylist(rows, SCHEMA))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelling") / "dataset"
    write_dataset(folder, interactions(), items(), source="Made for tests.")
    return InteractionDataset.load(folder)


@pytest.fixture(scope="module")
def labelled(data):
    train = data.split().train
    return label_interests(mined(train), data, train, ToyEncoder())


def test_the_classifier_finds_what_decides_and_the_confidence_does_not(labelled):
    figures = labelled.figures
    assert figures["auc"]["low"] > 0.6
    assert figures["auc_within"]["low"] > 0.6
    assert figures["auc_of_confidence"]["low"] < 0.5 < figures["auc_of_confidence"]["high"]
    assert figures["auc_gain"]["low"] > 0.1
    table = labelled.interests.items.table
    probability = table["probability"].to_numpy()
    topic = np.array([name.startswith("topic") for name in table["interest"].to_pylist()])
    assert probability[topic].min() > probability[~topic].mean()


def test_probabilities_are_calibrated_on_users_that_were_held_out(labelled):
    figures = labelled.figures
    assert figures["ece"] <= 0.05
    users = [figures["parts"][name]["users"] for name in ("training", "calibration", "held_out")]
    assert users == pytest.approx([1200, 400, 400], abs=20)  # a few have no example
    assert sum(figures["reliability"]["count"]) == figures["examples"] == figures["parts"]["held_out"]["examples"]
    assert figures["of_items"]["examples"] + figures["of_users"]["examples"] == figures["examples"]
    mean = np.average(figures["reliability"]["mean_probability"], weights=figures["reliability"]["count"])
    assert mean == pytest.approx(figures["positive"], abs=0.05)


def test_every_row_is_labelled_and_nothing_else_is_changed(data, labelled):
    before, after = mined(data.split().train).table, labelled.interests.table
    assert after.schema == SCHEMA and after.drop(["label", "probability"]) == before.drop(["label", "probability"])
    probability = after["probability"].to_numpy()
    assert ((probability > 0) & (probability < 1)).all()
    assert after["label"].to_pylist() == (probability >= 0.5).tolist()
    assert labelled.figures["interests"] == {"all": len(after), "accepted": int((probability >= 0.5).sum())}
    never = [row for row in after.to_pylist() if row["item_id"] == f"i{NUM_ITEMS - 1}"]
    assert len(never) == 2 and never[0]["probability"] > never[1]["probability"]  # its topic, its filler


def captured(monkeypatch, name):
    """What a function of the stage is called with, and what it returns, in the calls to come."""
    calls, inner = [], vars(labelling)[name]

    def outer(*given, **settings):
        calls.append((given, inner(*given, **settings)))
        return calls[-1][1]

    monkeypatch.setattr(labelling, name, outer)
    return calls


def test_labels_of_held_out_users_teach_nothing(data, labelled, monkeypatch):
    """Turned round, they change figures, but neither the classifier nor a probability."""
    train = data.split().train
    calls = captured(monkeypatch, "_parts")
    label_interests(mined(train), data, train, ToyEncoder())
    held_out = np.unique(calls[0][1]["held_out"].users)

    def turned(*given, **settings):
        found = gather_evidence(*given, **settings)
        return replace(found, labels=found.labels ^ np.isin(found.users, held_out))

    monkeypatch.setattr(labelling, "gather_evidence", turned)
    other = label_interests(mined(train), data, train, ToyEncoder())
    assert other.interests.table == labelled.interests.table
    assert np.array_equal(other.classifier.weights, labelled.classifier.weights)
    assert other.figures["auc"]["value"] == pytest.approx(1 - labelled.figures["auc"]["value"])


def test_what_a_user_is_to_be_told_by_is_not_in_the_description(data, monkeypatch):
    train = data.split().train
    calls = captured(monkeypatch, "fit_classifier")
    label_interests(mined(train), data, train, ToyEncoder())
    (description, *_), _ = calls[0]
    texts = ToyEncoder()([f"title: {title}" for title in data.titles])
    vectors = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    users = {str(user): history for user, history in zip(train.user_ids, train, strict=True)}
    for row, user in enumerate(mined(train).table["user_id"].to_pylist()):
        if user is None:
            continue
        mean = vectors[users[user][:-1]].sum(axis=0)
        assert description.subjects[row] == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)
    assert np.array_equal(description.subjects[: 2 * NUM_ITEMS : 2], description.subjects[1 : 2 * NUM_ITEMS : 2])
    assert description.subjects[: 2 * NUM_ITEMS : 2] == pytest.approx(vectors, abs=1e-5)
    assert description.idf[0] == pytest.approx(np.log(NUM_ITEMS / (OF_TOPIC + 1)))  # topic 0 has one item more


def test_the_regression_is_right_on_average_where_it_learned(data, monkeypatch):
    """As every logistic regression with an intercept: mean probability = share of positive examples."""
    train = data.split().train
    calls = captured(monkeypatch, "fit_classifier")
    label_interests(mined(train), data, train, ToyEncoder())
    (description, training, _), classifier = calls[0]
    raw = description.features(np.arange(len(description))) @ classifier.weights + classifier.intercept
    assert (1 / (1 + np.exp(-raw)))[training.rows].mean() == pytest.approx(training.labels.mean(), abs=1e-3)


def test_a_saved_classifier_gives_the_same_probabilities(data, labelled, tmp_path, monkeypatch):
    labelled.classifier.save(tmp_path)
    loaded = InterestClassifier.load(tmp_path)
    with safe_open(tmp_path / WEIGHTS_FILE, framework="np") as handle:
        assert list(handle.keys()) == ["weights"]
    assert sum(size for _, size in read_json(tmp_path / "classifier.json")["features"]) == len(loaded.weights)
    monkeypatch.setattr(labelling, "fit_classifier", lambda *_, **__: loaded)
    train = data.split().train
    assert label_interests(mined(train), data, train, ToyEncoder()).interests.table == labelled.interests.table
    (tmp_path / WEIGHTS_FILE).write_bytes(b"nothing")
    with pytest.raises(HfGrError, match=r"classifier\.safetensors cannot be read"):
        InterestClassifier.load(tmp_path)


def test_rows_beyond_the_limit_are_left_to_chance_of_the_seed(data, labelled, monkeypatch):
    monkeypatch.setattr("hf_gr.interests.classifier._MOST_ROWS", 300)
    train = data.split().train
    found = [label_interests(mined(train), data, train, ToyEncoder()) for _ in range(2)]
    assert found[0].interests.table == found[1].interests.table != labelled.interests.table
    assert found[0].figures["auc"]["low"] > 0.6


@pytest.fixture
def stage(data, tmp_path, monkeypatch):
    """Settings of the stage with the toy encoder in place of a model."""
    monkeypatch.setattr(labelling, "SentenceEncoder", ToyEncoder)
    folder = tmp_path / "mined"
    folder.mkdir()
    mined(data.split().train).save(folder)
    return {"dataset": str(data.path), "interests": str(folder), "output_dir": str(tmp_path / "labelled")}


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "manifest.json"}


def test_the_stage_writes_everything_once_and_prints_the_figures(stage, labelled, capsys):
    folder = label(LabelConfig(**stage))
    printed = capsys.readouterr().out
    assert f"{labelled.figures['auc']['value']:.3f}" in printed and "[label] wrote" in printed
    assert contents(folder).keys() == {
        "interests.parquet", "classifier.json", "classifier.safetensors", "training_data.json", LABELLING_FILE,
        PAGE_FILE,
    }  # fmt: skip
    assert Interests.load(folder).table == labelled.interests.table
    assert json.loads((folder / LABELLING_FILE).read_text()) == json.loads(json.dumps(labelled.figures))
    label(LabelConfig(**stage))
    assert "up to date" in capsys.readouterr().out
    assert not list(folder.parent.glob(".labelled*"))


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(stage):
    first = contents(label(LabelConfig(**stage)))
    assert contents(label(LabelConfig(**stage, force=True))) == first
    assert contents(label(LabelConfig(**stage, seed=1)))["interests.parquet"] != first["interests.parquet"]


def test_the_page_loads_nothing_and_escapes_names(data, stage):
    rows = mined(data.split().train).table.to_pylist()
    for row in rows:
        if row["interest"] == "topic1":
            row["interest"] = "<script>topic1</script>"
    Interests(pa.Table.from_pylist(rows, SCHEMA)).save(stage["interests"])
    text = (label(LabelConfig(**stage)) / PAGE_FILE).read_text()
    assert "<script" not in text and "&lt;script&gt;topic1" in text
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!#)""", text)
    assert text.count("<svg") == 2 and "calibration error" in text


def test_the_most_and_the_least_useful_names(data, labelled):
    most, least = examples(labelled.interests, data, shown=3)
    assert all(example.name.startswith("topic") for example in most)
    assert all(example.name.startswith("filler") for example in least)
    assert [example.probability for example in most] == sorted((e.probability for e in most), reverse=True)
    table = labelled.interests.items.table.to_pylist()
    own = {row["item_id"]: row["probability"] for row in table if row["interest"] == most[0].name}
    assert most[0].items == len(own) and most[0].probability == pytest.approx(np.mean(list(own.values())))
    nearest = min(own, key=lambda item: abs(own[item] - most[0].probability))
    assert most[0].titles[0] == data.titles[data.item_ids.index(nearest)]


@pytest.mark.parametrize("split", ["leave_one_out", "temporal"])
def test_held_out_events_do_not_reach_the_artifact(split, stage, tmp_path):
    table = interactions(300)
    users, times = np.array(table["user_id"].to_pylist()), table["timestamp"].to_numpy()
    mask = times >= np.sort(times)[int(0.8 * len(times))]
    if split == "leave_one_out":
        mask = np.array([(users[row:] == users[row]).sum() <= 2 for row in range(len(users))])
    numbers = np.array([int(item[1:]) for item in table["item_id"].to_pylist()])
    numbers[mask] = (numbers[mask] + 1 + np.random.default_rng(2).integers(0, NUM_ITEMS - 1, mask.sum())) % NUM_ITEMS
    other = table.set_column(1, "item_id", pa.array([f"i{item:02d}" for item in numbers]))
    found, trains = [], []
    for name, events in (("true", table), ("rewritten", other)):
        write_dataset(tmp_path / name, events, items(), source="Made for tests.")
        parts = InteractionDataset.load(tmp_path / name).split(split)
        trains.append(parts)
        mined(parts.train).save(stage["interests"])
        settings = stage | {"dataset": str(tmp_path / name), "output_dir": str(tmp_path / f"{name}-out")}
        found.append(contents(label(LabelConfig(**settings, split=split))))
    assert (trains[0].test.targets != trains[1].test.targets).all() and len(trains[0].test) > 20
    assert np.array_equal(trains[0].train.items, trains[1].train.items)
    assert found[0] == found[1]


def test_what_cannot_be_labelled_is_refused_in_one_line(data, stage, tmp_path):
    train = data.split().train

    def refused(interests=None, dataset=None, **settings):
        if interests is not None:
            interests.save(stage["interests"])
        given = stage | settings | ({"dataset": str(dataset)} if dataset else {})
        with pytest.raises(HfGrError) as error:
            label(LabelConfig(**given))
        assert "\n" not in str(error.value)
        return str(error.value)

    rows = mined(train).table.to_pylist()
    assert "horizon is 0" in refused(horizon=0)
    assert "threshold is 1.0" in refused(threshold=1.0)
    assert "unknown split 'weekly'" in refused(split="weekly")
    foreign = Interests(pa.Table.from_pylist([*rows, rows[0] | {"item_id": "x9"}], SCHEMA))
    assert "item 'x9'" in refused(foreign) and "not among its items" in refused(foreign)
    stranger = Interests(pa.Table.from_pylist([*rows, rows[-1] | {"user_id": "nobody"}], SCHEMA))
    assert "user 'nobody'" in refused(stranger)
    assert "no interests to label" in refused(Interests(SCHEMA.empty_table()))
    manifest = {"stage": "mine", "settings": {"split": "temporal"}, "inputs": {}}
    write_json(tmp_path / "mined" / "manifest.json", manifest)
    assert "has learned from the training part of the split temporal" in refused(mined(train))
    (tmp_path / "mined" / "manifest.json").unlink()
    write_dataset(tmp_path / "few", interactions(3), items(), source="Made for tests.")
    few = InteractionDataset.load(tmp_path / "few").split().train
    assert "both kinds are needed" in refused(mined(few), tmp_path / "few")


def test_reviews_of_the_training_part_may_stand_for_texts(tmp_path):
    events = interactions(300)
    said = [f"said{row}" for row in range(events.num_rows)]
    write_dataset(tmp_path / "data", events.append_column("review", pa.array(said)), items(), source="made up")
    dataset = InteractionDataset.load(tmp_path / "data")
    train, read = dataset.split().train, []

    class Listening(ToyEncoder):
        def __call__(self, texts):
            read.extend(word for text in texts for word in text.split())
            return super().__call__(texts)

    label_interests(mined(train), dataset, train, Listening())
    assert not set(read) & set(said)
    label_interests(mined(train), dataset, train, Listening(), reviews=2)
    told = set(read) & set(said)
    assert NUM_ITEMS < len(told) <= 2 * NUM_ITEMS and told <= set(train.reviews)
