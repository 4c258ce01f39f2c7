"""A model gets a memory, from the command line to the pipeline, and the memory takes new events in."""

import json
import shutil
import threading
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_runs import TinyData, sft_configs, tiny_data
from transformers import pipeline

from hf_gr.catalog import SidCatalog
from hf_gr.cli import main
from hf_gr.dataset import Histories, InteractionDataset
from hf_gr.decoding import Recommender
from hf_gr.errors import HfGrError
from hf_gr.evaluation.metrics import ndcg, target_ranks
from hf_gr.hub import repo_files
from hf_gr.provenance import TrainingData
from hf_gr.remember import fit_memory, remember
from hf_gr.scorers import Memory, Tails
from hf_gr.search_config import Mixture
from hf_gr.sft import sft


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TinyData:
    return tiny_data(tmp_path_factory.mktemp("remember"))


@pytest.fixture(scope="module")
def trained(data):
    return sft(*sft_configs(**data.sft(data.dataset.with_name("run"), memory=True, memory_users=40)))


@pytest.fixture
def model(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "model")


def split_of(data):
    return InteractionDataset.load(data.dataset).split()


def counts_of(folder):
    return [(folder / "memory" / name).read_bytes() for name in ("memory.json", "memory.safetensors")]


def log_of(data, path, rows):
    """A file with some of the data's events."""
    table = pq.read_table(data.dataset / "interactions.parquet")
    pq.write_table(table.filter(pa.array(rows)) if rows is not None else table, path)
    return path


def test_sft_leaves_a_memory_of_the_training_events_alone(data, trained):
    memory, train = Memory.load(trained / "memory"), split_of(data).train
    again = Memory.of(train, memory.num_items, memory.config)
    assert (memory.follows != again.follows).nnz == 0
    assert memory.events.tolist() == np.bincount(train.items, minlength=memory.num_items).tolist()
    mixture = json.loads((trained / "scorers.json").read_text())
    assert set(mixture["weights"]) == {"memory", "semantic_id"}
    tried = json.loads((trained / "memory" / "trials.json").read_text())
    best = max(tried["mixture"], key=lambda trial: trial["validation"])
    assert tried["mixture"][0]["validation"] == best["validation"]
    assert dict(best["mixture"]["weights"]) == {n: w for n, w in mixture["weights"].items() if w or len(best) > 1}


def test_a_held_out_event_leaves_no_trace(data, trained, tmp_path):
    dataset = shutil.copytree(data.dataset, tmp_path / "dataset")
    table = pq.read_table(dataset / "interactions.parquet").to_pandas()
    last = table.sort_values(["user_id", "timestamp"], kind="stable").groupby("user_id").tail(2).index
    table.loc[last, "item_id"] = np.random.default_rng(5).permutation(table.loc[last, "item_id"].to_numpy())
    schema = pq.read_schema(dataset / "interactions.parquet")
    pq.write_table(pa.Table.from_pandas(table, schema, preserve_index=False), dataset / "interactions.parquet")
    one, other = Memory.load(trained / "memory"), split_of(TinyData(dataset, data.catalog))
    again = Memory.of(other.train, one.num_items, one.config)
    again.save(tmp_path / "memory")
    assert counts_of(tmp_path) == counts_of(trained)


def test_a_memory_made_later_is_the_one_that_sft_makes(data, trained, tmp_path):
    bare = sft(*sft_configs(**data.sft(tmp_path / "bare")))
    assert not (bare / "memory").exists()
    assert main(["remember", str(bare), str(data.dataset), "--users", "40", "--seed", "42"]) in (None, 0)
    assert counts_of(bare) == counts_of(trained)
    assert (bare / "scorers.json").read_bytes() == (trained / "scorers.json").read_bytes()


def test_recommender_and_pipeline_rank_by_model_and_memory(data, trained):
    recommender = Recommender.from_pretrained(trained)
    mixture = Mixture({"semantic_id": 0.5, "memory": 0.5}, "probabilities")
    histories = split_of(data).train.cut(np.arange(6), np.full(6, 3))
    _, scores = recommender.recommend(histories, mixture=mixture, method="exhaustive", top_k=5)
    alone = Mixture({"semantic_id": 1.0}), Mixture({"memory": 1.0}, "probabilities")
    listed = []
    for one in alone:
        rows, values = recommender.recommend(
            histories, mixture=one, method="exhaustive", top_k=len(recommender.catalog)
        )
        scored = np.full((6, len(recommender.catalog)), -np.inf)
        np.put_along_axis(scored, rows, values, axis=1)
        listed.append(scored - np.log(np.exp(scored).sum(1, keepdims=True)))
    mixed = np.log(np.exp(listed[0]) / 2 + np.exp(listed[1]) / 2)
    np.testing.assert_allclose(scores, -np.sort(-mixed, axis=1)[:, :5], rtol=1e-4)
    answers = pipeline("generative-recommendation", model=str(trained))({"history": ["i001", "i002"]}, top_k=3)
    rows = np.array([recommender.catalog.row_of["i001"], recommender.catalog.row_of["i002"]])
    again, _ = recommender.recommend(Histories(np.array(["u"]), np.array([0, 2]), rows, np.arange(2)), top_k=3)
    assert [answer["item_id"] for answer in answers] == [recommender.catalog.item_ids[row] for row in again[0]]


def test_new_events_make_the_memory_of_the_whole_log(data, model, tmp_path):
    split, config = split_of(data), Memory.load(model / "memory").config
    whole = InteractionDataset.load(data.dataset).events
    before = (model / "scorers.json").read_bytes()
    assert main(["remember", str(model), str(log_of(data, tmp_path / "new.parquet", None))]) in (None, 0)
    memory = Memory.load(model / "memory")
    again = Memory.of(whole, memory.num_items, config)
    assert (memory.follows != again.follows).nnz == 0 and (memory.events == again.events).all()
    assert len(split.train.items) < len(whole.items) == memory.events.sum()
    assert (model / "scorers.json").read_bytes() == before
    assert len(TrainingData.of(model).events) == 2
    assert (model / "memory" / "trials.json").is_file()


def test_events_of_unknown_items_are_left_out_and_told(data, model, tmp_path, capsys):
    table = pa.table({"user_id": ["new", "new"], "item_id": ["i001", "nowhere"], "timestamp": [10**15, 10**15 + 1]})
    schema = pq.read_schema(data.dataset / "interactions.parquet")
    pq.write_table(table.replace_schema_metadata(schema.metadata), tmp_path / "new.parquet")
    before = Memory.load(model / "memory")
    remember(model, tmp_path / "new.parquet")
    assert "1 new, 0 known before, 1 of unknown items" in capsys.readouterr().out
    assert Memory.load(model / "memory").events.sum() == before.events.sum() + 1


@pytest.mark.parametrize("fault", ["another release", "cut short", "gone"])
def test_a_broken_memory_is_made_again(data, trained, model, fault):
    if fault == "another release":
        (model / "memory" / "memory.json").write_text('{"format": 0}')
    elif fault == "cut short":
        (model / "memory" / "memory.safetensors").write_bytes(b"cut")
    else:
        shutil.rmtree(model / "memory")
    with pytest.raises(HfGrError, match="hf-gr remember"):
        Recommender.from_pretrained(model)
    remember(model, data.dataset, users=40, seed=42)
    assert counts_of(model) == counts_of(trained)
    assert (model / "scorers.json").read_bytes() == (trained / "scorers.json").read_bytes()


def test_positions_that_are_counted_already_are_refused(data, model, tmp_path):
    """Their times do not tell that they were here before, but what was counted is on record."""
    table = pa.table({"user_id": ["a", "a"], "item_id": ["i001", "i002"], "timestamp": [0, 1]})
    table = table.replace_schema_metadata({"hf_gr.format": "2", "hf_gr.time": "position"})
    pq.write_table(table, tmp_path / "new.parquet")
    memory = Memory.load(model / "memory")
    replace(memory, tails=Tails(memory.tails.events, memory.tails.window, "position")).save(model / "memory")
    remember(model, tmp_path / "new.parquet")
    with pytest.raises(HfGrError, match="has counted these very events"):
        remember(model, tmp_path / "new.parquet")


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("exclude_seen", [False, True])
def test_what_a_trial_says_is_what_its_lists_have(data, tmp_path, shared, exclude_seen):
    """Of every rule, of the model alone and of the memory alone; also where items share their semantic IDs."""
    catalog = SidCatalog.load(data.catalog)
    if shared:
        catalog = replace(catalog, codes=catalog.codes // 2)
    catalog.save(tmp_path / "catalog")
    own = TinyData(data.dataset, tmp_path / "catalog")
    recommender = Recommender.from_pretrained(sft(*sft_configs(**own.sft(tmp_path / "run", max_steps=15))))
    cases = split_of(data).validation
    settings = {"users": len(cases), "num_beams": len(catalog), "exclude_seen": exclude_seen}
    fitted = fit_memory(recommender, split_of(data), "timestamp", **settings)
    by_rule = {trial.mixture.rule: trial for trial in reversed(fitted.mixtures)}
    alone = [trial for trial in fitted.mixtures if len([w for _, w in trial.mixture.weights if w]) == 1]
    assert len(by_rule) == 3 and len(alone) == 2
    exclude = list(cases) if exclude_seen else None
    for trial in [*by_rule.values(), *alone]:
        recommender.scorers = {"memory": fitted.memory.read_as(temperature=trial.temperature)}
        items, _ = recommender.recommend(
            cases.histories, exclude=exclude, mixture=trial.mixture, num_beams=len(catalog), top_k=10
        )
        measured = ndcg(target_ranks(items, cases.targets), 10).mean()
        assert measured == pytest.approx(trial.validation, abs=0.02)  # but for ties


def test_what_cannot_be_remembered_is_refused_in_one_line(data, model, tmp_path):
    def refused(source, match, folder=model):
        with pytest.raises(HfGrError, match=match) as error:
            remember(folder, source)
        assert "\n" not in str(error.value)

    file = tmp_path / "new.parquet"
    file.write_bytes(b"nonsense")
    refused(file, "cannot read")
    schema = pq.read_schema(data.dataset / "interactions.parquet")
    pq.write_table(pa.table({"user_id": ["a"]}).replace_schema_metadata(schema.metadata), file)
    refused(file, "item_id")
    table = pa.table({"user_id": ["a"], "item_id": ["nowhere"], "timestamp": [1]})
    pq.write_table(table.replace_schema_metadata(schema.metadata), file)
    refused(file, "no event of an item of the catalog")
    pq.write_table(table, file)
    refused(file, "does not say whether `timestamp`")
    refused(tmp_path / "nowhere", "nowhere")
    shutil.rmtree(model / "memory")
    (model / "scorers.json").unlink()
    refused(log_of(data, file, None), "has no memory")


def test_tails_of_users_are_never_pushed(trained):
    pushed = {file.relative_to(trained).as_posix() for file in repo_files(trained)}
    assert {"memory/memory.json", "memory/memory.safetensors", "scorers.json"} <= pushed
    assert not any(name.endswith("tails.parquet") for name in pushed)
    assert (trained / "memory" / "tails.parquet").is_file()


def test_threads_that_ask_while_it_remembers_see_one_state(data, trained):
    """Every answer is that of the memory before or after one of the batches, never of something between."""
    recommender = Recommender.from_pretrained(trained)
    recommender.mixture = Mixture({"memory": 1.0}, "probabilities")
    whole = InteractionDataset.load(data.dataset).events
    users, lengths = np.arange(len(whole)), whole.lengths
    batches = [whole.cut(users, lengths - 1, lengths - 2), whole.cut(users, lengths, lengths - 1)]
    asked = whole.cut(np.arange(5), np.full(5, 4))
    memories = [Memory.load(trained / "memory")]
    for batch in batches:
        memories.append(memories[-1].remember(batch, memories[-1].num_items)[0])
    states = []
    for memory in memories:
        recommender.scorers = {"memory": memory}
        states.append(recommender.recommend(asked, top_k=8)[1].tobytes())
    assert len(set(states)) == 3
    recommender.scorers = {"memory": memories[0]}
    seen, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            seen.append(recommender.recommend(asked, top_k=8)[1].tobytes())

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for batch in batches:
        assert recommender.remember(batch) == 0
    stop.set()
    for thread in threads:
        thread.join()
    assert set(seen) <= set(states)
    assert recommender.recommend(asked, top_k=8)[1].tobytes() == states[2]


def test_a_recommender_without_a_memory_remembers_nothing(data, tmp_path):
    recommender = Recommender.from_pretrained(sft(*sft_configs(**data.sft(tmp_path / "bare", max_steps=1))))
    with pytest.raises(HfGrError, match="has no memory"):
        recommender.remember(InteractionDataset.load(data.dataset).events)


def test_a_memory_from_the_hub_begins_with_users_it_does_not_know(trained, tmp_path):
    folder = shutil.copytree(trained / "memory", tmp_path / "memory")
    (folder / "tails.parquet").unlink()
    memory = Memory.load(folder)
    assert memory.tails is None
    new = Histories(np.array(["u0"], object), np.array([0, 2]), np.array([1, 2]), np.array([5, 6]))
    grown, left_out = memory.remember(new, memory.num_items)
    assert left_out == 0
    assert grown.follows[[1], [2]] > memory.follows[[1], [2]]


def test_cold_users_and_shared_sids_have_an_order(trained):
    recommender = Recommender.from_pretrained(trained)
    nobody = Histories(np.array(["u"]), np.array([0, 0]), np.empty(0, np.int64), np.empty(0, np.int64))
    items, scores = recommender.recommend(nobody, mixture=Mixture({"memory": 1.0}, "probabilities"), top_k=5)
    events = recommender.scorers["memory"].events
    assert events[items[0]].tolist() == sorted(events.tolist(), reverse=True)[:5]
    assert np.isfinite(scores).all()


def test_filters_and_removed_items_hold_for_the_memory(trained):
    recommender = Recommender.from_pretrained(trained)
    memory = recommender.scorers["memory"]
    popular = np.argsort(-memory.events)[:6]
    nobody = Histories(np.array(["u"]), np.array([0, 0]), np.empty(0, np.int64), np.empty(0, np.int64))
    mixture = Mixture({"memory": 0.9, "semantic_id": 0.1})
    items, _ = recommender.recommend(nobody, mixture=mixture, exclude=[popular], top_k=10)
    assert not set(items[0]) & set(popular)
    recommender.swap(recommender.catalog.removed([recommender.catalog.item_ids[row] for row in popular]))
    items, _ = recommender.recommend(nobody, mixture=mixture, top_k=10)
    assert not set(items[0]) & set(popular)
