"""Only training events teach: whatever held-out events say, every artifact stays the same, byte for byte."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tiny import NUM_ITEMS, tiny_interactions, tiny_items, tiny_lm, tiny_tokenizer
from tiny_runs import TinyData, grpo_configs, rank_configs, retrieve_configs, sft_configs

from hf_gr.catalog import SidCatalog
from hf_gr.dataset import InteractionDataset, write_dataset
from hf_gr.embedding import EmbedConfig, embed
from hf_gr.evaluation.baselines import ItemKNN, Popularity
from hf_gr.grpo import grpo, training_prompts
from hf_gr.quantizers import QuantizeConfig, quantize
from hf_gr.ranking import RowSettings, click_rows, rank
from hf_gr.retrieval import retrieve
from hf_gr.sft import sft
from hf_gr.sft.tasks import TASKS, build
from hf_gr.vocabulary import add_vocabulary


SPLITS = ["leave_one_out", "temporal", "temporal:1970-02-16T12:00,1970-02-19", "session", "column:part"]
SPLITS += ["leave_one_out@buy"]
TRAINED = {
    "leave_one_out",
    "temporal",
}  # of the others only the cheap artifacts are made: trainings take the same part
HOUR = 3_600 * 10**6
PARTS = ["train", "validation", "test"]


def interactions_on_a_clock() -> pa.Table:
    """Users start at different times, so that a temporal split cuts through them; some have one event or two, which
    leave-one-out does not hold out. Some events are purchases, two make a session, a column says the part of each."""
    table = tiny_interactions()
    few = table.slice(0, 9)
    short = pa.array(["a", "b", "b", "c", "d", "d", "e", "f", "f"])
    table = pa.concat_tables([few.set_column(0, "user_id", short), table])
    random = np.random.default_rng(1)
    start = {user: int(random.integers(0, 200)) for user in table["user_id"].to_pylist()}
    users = np.array(table["user_id"].to_pylist())
    times = np.array([start[user] for user in users]) + table["timestamp"].to_numpy()
    table = table.set_column(2, "timestamp", pa.array(times * HOUR))
    behaviors = np.where(random.random(len(users)) < 0.4, "buy", "view")
    table = table.set_column(table.column_names.index("behavior"), "behavior", pa.array(behaviors))
    sessions, parts = np.empty(len(users), object), np.empty(len(users), object)
    for user in np.unique(users):
        rows = np.flatnonzero(users == user)
        sessions[rows] = [f"{place // 2}" for place in range(len(rows))]
        parts[rows] = sorted(random.choice(PARTS, len(rows)), key=PARTS.index)
    return table.append_column("session_id", pa.array(sessions)).append_column("part", pa.array(parts))


def held_out_mask(table: pa.Table, split: str) -> np.ndarray:
    """Which events are validation or test, told without the code under test."""
    users, times = np.array(table["user_id"].to_pylist()), table["timestamp"].to_numpy()
    if split == "temporal":
        return times >= np.sort(times)[int(0.8 * len(times))]
    if split.startswith("temporal:"):
        return times >= int(np.datetime64("1970-02-16T12:00", "us").astype(int))
    if split == "column:part":
        return np.array(table["part"].to_pylist()) != "train"
    mask = np.zeros(len(users), bool)
    bought = np.array(table["behavior"].to_pylist()) == "buy"
    for user, count in zip(*np.unique(users, return_counts=True), strict=True):
        rows = np.flatnonzero(users == user)  # in order of time
        if split == "leave_one_out":
            mask[rows[-2 if count >= 3 else count :]] = True
        elif split == "leave_one_out@buy":
            buys = rows[bought[rows]]
            mask[rows[rows >= buys[-2]] if len(buys) >= 2 and buys[-2] > rows[0] else []] = True
        elif count > 4:  # three sessions of two events
            mask[rows[(count - 1) // 2 * 2 - 2 :]] = True
    return mask


def rewritten(table: pa.Table, mask: np.ndarray, split: str) -> pa.Table:
    """The table with other known items and ratings in every held-out event, and other behaviors where these do not say
    what is held out."""
    items = np.array([int(item[1:]) for item in table["item_id"].to_pylist()])
    items[mask] = (items[mask] + 1 + np.random.default_rng(2).integers(0, NUM_ITEMS - 1, mask.sum())) % NUM_ITEMS
    ratings, behaviors = table["rating"].to_numpy().copy(), np.array(table["behavior"].to_pylist(), dtype=object)
    ratings[mask] = 9.0
    behaviors[mask] = behaviors[mask] if "@" in split else "refund"
    columns = {"item_id": [f"i{item:03d}" for item in items], "rating": ratings, "behavior": behaviors.tolist()}
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    return table


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything in an artifact but what only describes how it was made."""
    left_out = {"manifest.json", "README.md"}
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in left_out]
    assert files
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def trained_steps(log: bytes) -> bytes:
    """A log without its clock."""
    return b"\n".join(line for line in log.splitlines() if not re.search(rb"_runtime|_per_second|_time", line))


@pytest.fixture(scope="module", params=SPLITS)
def worlds(request, tmp_path_factory):
    """The split, and for the true and for the rewritten held-out events: the data with vectors and catalog made."""
    table = interactions_on_a_clock()
    mask = held_out_mask(table, request.param)
    made = []
    for name, events in (("true", table), ("rewritten", rewritten(table, mask, request.param))):
        folder = tmp_path_factory.mktemp(f"{request.param.translate({ord(sign): '-' for sign in ':@,'})}-{name}")
        data = TinyData(folder / "dataset", folder / "catalog")
        write_dataset(data.dataset, events, tiny_items(), source="Made for tests.")
        given = {"dataset": str(data.dataset), "split": request.param}
        embed(
            EmbedConfig(
                **given, output_dir=str(folder / "vectors"), sources=["behavior"], weights=[1.0], behavior_dim=8
            )
        )
        vectors = {"embeddings": str(folder / "vectors"), "output_dir": str(data.catalog)}
        quantize(QuantizeConfig(**given, **vectors, codebook_size=4, collisions="keep"))
        made.append(data)
    return request.param, made


def splits_of(worlds):
    split, made = worlds
    return [InteractionDataset.load(data.dataset).split(split) for data in made]


def trained(worlds):
    if worlds[0] not in TRAINED:
        pytest.skip("trainings take the part that the cheap artifacts take")
    return worlds


def test_every_held_out_event_was_rewritten(worlds):
    """Else the tests below could not fail."""
    true, other = splits_of(worlds)
    assert len(true.test) == len(other.test) > 20 and len(true.validation) == len(other.validation) > 20
    assert (true.test.targets != other.test.targets).all()
    assert (true.validation.targets != other.validation.targets).all()
    for name in ("user_ids", "ptr", "items", "timestamps", "ratings", "behaviors", "sessions", "columns"):
        assert np.array_equal(getattr(true.train, name), getattr(other.train, name)), name
    assert worlds[0] == "leave_one_out" or true.train.lengths.min() < true.train.lengths.max()


def test_vectors_quantizer_and_catalog_do_not_see_held_out_events(worlds):
    true, other = worlds[1]
    for name in ("vectors", "catalog"):
        assert files_of(true.dataset.with_name(name)) == files_of(other.dataset.with_name(name))
    catalog = SidCatalog.load(true.catalog)
    counts = np.bincount(splits_of(worlds)[0].train.items, minlength=NUM_ITEMS)
    assert np.array_equal(catalog.popularity, counts)  # of training events alone
    everything = InteractionDataset.load(true.dataset).events.items
    assert not np.array_equal(counts, np.bincount(everything, minlength=NUM_ITEMS))


@pytest.mark.parametrize("context", ["none", "rating", "behavior"])
def test_tokens_rows_and_prompts_do_not_see_held_out_events(worlds, context):
    found = []
    for data, split in zip(worlds[1], splits_of(worlds), strict=True):
        catalog, tokenizer, model = SidCatalog.load(data.catalog), tiny_tokenizer(), tiny_lm()
        vocabulary = add_vocabulary(
            tokenizer, model, catalog, max_history=5, context=context, histories=split.train, row_start="codes"
        )
        rows = [build(task, split.train, catalog, vocabulary, tokenizer, steps=2).to_list() for task in TASKS]
        prompts = training_prompts(split.train, catalog, vocabulary, 2).to_list()
        assert rows and prompts
        weights = {name: weight.numpy().tobytes() for name, weight in model.state_dict().items()}
        found.append((vocabulary, tokenizer.get_vocab(), rows, prompts, weights))
    assert found[0] == found[1]


def test_models_do_not_see_held_out_events(worlds):
    split, made = trained(worlds)
    found = []
    for data in made:
        settings = {
            "split": split,
            "max_steps": 3,
            "context": "rating",
            "form": "stepwise",
            "thinking": {"clusters": 4},
        }
        model = sft(*sft_configs(**data.sft(data.dataset.with_name("sft"), **settings)))
        final = grpo(*grpo_configs(**data.grpo(data.dataset.with_name("grpo"), model, split=split, max_steps=2)))
        for folder in (model, final):
            files = files_of(folder)
            files["training_log.json"] = trained_steps(files["training_log.json"])
            found.append(files)
    assert found[0] == found[2] and found[1] == found[3]


def test_retrievers_do_not_see_held_out_events(worlds):
    """Trained to a fixed end: where validation decides when to stop, it must be seen."""
    split, made = trained(worlds)
    given = {"split": split, "max_steps": 5, "patience": 0, "eval_strategy": "no", "save_strategy": "no"}
    found = []
    for data in made:
        output = data.dataset.with_name("retrieve")
        files = files_of(retrieve(*retrieve_configs(dataset=str(data.dataset), output_dir=str(output), **given)))
        files["training_log.json"] = trained_steps(files["training_log.json"])
        found.append(files)
    assert found[0] == found[1]


@pytest.mark.parametrize("labels", ["drawn", "ratings"])
def test_rows_of_click_models_do_not_see_held_out_events(worlds, labels):
    found = []
    for data, split in zip(worlds[1], splits_of(worlds), strict=True):
        rows, features = click_rows(
            InteractionDataset.load(data.dataset), split, worlds[0], RowSettings(labels, max_history=5, clock=True)
        )
        train = rows["train"]
        batch = train.batch(np.arange(len(train)))
        assert len(train) and len(np.unique(train.labels)) == 2
        found.append((features, {name: tensor.numpy().tobytes() for name, tensor in batch.items()}))
    assert found[0] == found[1]


def test_click_models_do_not_see_held_out_events(worlds):
    """Trained to a fixed end, as above."""
    split, made = trained(worlds)
    given = {"split": split, "max_steps": 5, "patience": 0, "eval_strategy": "no", "save_strategy": "no"}
    found = []
    for data in made:
        paths = {"dataset": str(data.dataset), "catalog": str(data.catalog)}
        files = files_of(rank(*rank_configs(**paths, output_dir=str(data.dataset.with_name("rank")), **given)))
        files["training_log.json"] = trained_steps(files["training_log.json"])
        found.append(files)
    assert found[0] == found[1]


def test_baselines_do_not_see_held_out_events(worlds):
    true, other = splits_of(worlds)
    for kind in (Popularity, ItemKNN):
        lists = [kind(split.train, NUM_ITEMS).recommend(true.test.histories, 10) for split in (true, other)]
        assert np.array_equal(*lists)
