"""A memory against loops over pairs of events, and against memories that were built otherwise."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from hf_gr.dataset import Histories
from hf_gr.errors import HfGrError
from hf_gr.evaluation.baselines import ItemKNN
from hf_gr.scorers import Memory, MemoryConfig
from hf_gr.scorers.memory import UNIT
from hf_gr.scoring import Requests


CONFIGS = st.builds(
    MemoryConfig,
    window=st.integers(1, 5),
    decay=st.sampled_from([0, 0.5, 1.5]),
    backward=st.sampled_from([0, 0.25, 1]),
    normalizer=st.sampled_from([0, 0.5, 1]),
    discount=st.sampled_from([0, 0.5, 1]),
    recency=st.sampled_from([0, 1, 2]),
    temperature=st.sampled_from([0.5, 1, 2]),
    popularity=st.sampled_from([0.001, 0.1, 1]),
    latest=st.integers(1, 6),
)
LOGS = st.lists(st.lists(st.integers(0, 6), max_size=8), min_size=1, max_size=6)


def histories_of(log, first=None):
    """Users' events at times 0, 1, … or from `first` on."""
    ptr = np.cumsum([0, *map(len, log)])
    users = np.array([f"u{user}" for user in range(len(log))], object)
    times = [np.arange(len(history)) + start for history, start in zip(log, first or [0] * len(log), strict=True)]
    items = np.array([item for history in log for item in history], np.int64)
    return Histories(users, ptr, items, np.concatenate(times))


def memory_of(log, config, num_items=7):
    return Memory.of(histories_of(log), num_items, config)


def listed(log, config, num_items=7):
    """Pairs and events by loops."""
    follows, events = np.zeros((num_items, num_items)), np.zeros(num_items)
    for history in log:
        for at, later in enumerate(history):
            events[later] += 1
            for distance in range(1, min(config.window, at) + 1):
                follows[history[at - distance], later] += round(UNIT * distance**-config.decay) / UNIT
    return follows, events


def listed_affinities(history, follows, events, config):
    scores = np.zeros(len(events))
    latest = history[-config.latest :]
    for age, item in enumerate(reversed(latest), start=1):
        row = follows[item] + config.backward * follows[:, item]
        scores += age**-config.recency * row / max(events[item], 1) ** config.normalizer
    return scores / np.maximum(events, 1) ** config.discount


def same(one, other):
    return (
        (one.follows != other.follows).nnz == 0
        and one.follows.dtype == other.follows.dtype == np.int64
        and (one.events == other.events).all()
        and one.config == other.config
    )


@settings(deadline=None, max_examples=50)
@given(LOGS, CONFIGS)
def test_pairs_are_counted_as_a_loop_counts_them(log, config):
    memory = memory_of(log, config)
    follows, events = listed(log, config)
    np.testing.assert_array_equal(memory.follows.toarray() / UNIT, follows)
    np.testing.assert_array_equal(memory.events, events)
    affinities = memory.affinities(list(histories_of(log))).toarray()
    for history, row in zip(log, affinities, strict=True):
        np.testing.assert_allclose(row, listed_affinities(history, follows, events, config), rtol=1e-12)


@settings(deadline=None, max_examples=50)
@given(LOGS, CONFIGS, st.data())
def test_what_a_user_did_is_left_out_as_if_they_had_not_been_there(log, config, data):
    memory = memory_of(log, config)
    ends = [data.draw(st.integers(0, len(history))) for history in log]
    prompts = [np.array(history[:end], np.int64) for history, end in zip(log, ends, strict=True)]
    own = [np.array(history, np.int64) for history in log]
    every = torch.ones(1, 7, dtype=torch.bool)
    affinities = memory.affinities(prompts, own).toarray()
    for user, prompt in enumerate(prompts):
        others = memory_of([history for other, history in enumerate(log) if other != user] or [[]], config)
        np.testing.assert_array_equal(affinities[user], others.affinities([prompt]).toarray()[0])
        assert (affinities[user] >= 0).all()
    log_probs = memory.log_probs(prompts, every, own)
    assert log_probs.isfinite().all()


@settings(deadline=None, max_examples=50)
@given(LOGS, CONFIGS, st.data())
def test_events_remembered_later_make_the_memory_that_has_seen_all(log, config, data):
    cuts = [data.draw(st.integers(0, len(history))) for history in log]
    first = memory_of([history[:cut] for history, cut in zip(log, cuts, strict=True)], config, num_items=7)
    later = [history[cut:] for history, cut in zip(log, cuts, strict=True)]
    grown, left_out = first.remember(histories_of(later, cuts), 9)
    assert left_out == 0
    assert same(grown, memory_of(log, config, num_items=9))
    assert same(first, memory_of([history[:cut] for history, cut in zip(log, cuts, strict=True)], config))


@settings(deadline=None, max_examples=50)
@given(LOGS, CONFIGS, st.sets(st.integers(0, 8), max_size=8))
def test_probabilities_are_those_of_the_formula(log, config, removed):
    memory = memory_of(log, config)
    follows, events = listed(log, config)
    every = torch.tensor([[item not in removed for item in range(9)]])  # two items came after the memory
    mask = every[0].numpy()
    prompts = list(histories_of(log))
    scores = memory.read(Requests([[0]] * len(log), prompts, None, every, every))
    items = torch.arange(9).expand(len(log), -1)
    found = scores.log_probs(items).exp().numpy()
    for history, row in zip(log, found, strict=True):
        popular = np.append(events + 1, [1, 1]) * mask
        p = popular / popular.sum()
        known = (
            np.append(listed_affinities(history, follows, events, config), [0, 0]) ** (1 / config.temperature) * mask
        )
        if known.sum() > 0:
            p = (1 - config.popularity) * known / known.sum() + config.popularity * p
        np.testing.assert_allclose(row, p, rtol=1e-4, atol=1e-9)


def test_cosines_of_item_neighbors_are_a_reading():
    """With α = ν = ½, β = 1, no decay and one event each, the item kNN's scores are the memory's (of one neighbor at
    most so far away, and all neighbors kept)."""
    random = np.random.default_rng(3)
    log = [random.permutation(7)[: random.integers(1, 7)].tolist() for _ in range(30)]
    config = MemoryConfig(window=2, decay=0, backward=1, normalizer=0.5, discount=0.5, latest=100)
    knn = ItemKNN(histories_of(log), 7, neighbors=7, window=2)
    asked = histories_of([[1, 2], [5], [0, 3, 4]])
    lists = knn.recommend(asked, 7)
    for history, row in zip(asked, lists, strict=True):
        scores = memory_of(log, config).affinities([history]).toarray()[0]
        assert (np.diff(scores[row]) <= 1e-6).all()


@pytest.mark.parametrize("temperature", [0.01, 100])
def test_temperatures_at_the_bounds_give_finite_numbers(temperature):
    memory = memory_of([[0, 1, 2, 3], [0, 1], [0, 1], [4, 5]], MemoryConfig(temperature=temperature))
    found = memory.log_probs([np.array([0, 1])], torch.ones(1, 7, dtype=torch.bool))
    assert found.isfinite().all()
    assert float(found.exp().sum()) == pytest.approx(1, abs=1e-5)


def test_histories_are_needed():
    memory, every = memory_of([[0, 1]], MemoryConfig()), torch.ones(1, 7, dtype=torch.bool)
    with pytest.raises(HfGrError, match="a memory reads histories"):
        memory.read(Requests([[0]], None, None, every, every))


def test_other_readings_share_the_counts():
    memory = memory_of([[0, 1, 2]], MemoryConfig())
    assert memory.read_as(recency=2.0).config == MemoryConfig(recency=2.0)
    assert memory.read_as(recency=2.0).follows is memory.follows
    with pytest.raises(HfGrError, match="window is of what is counted"):
        memory.read_as(window=3)


@pytest.mark.parametrize("settings", [{"window": 0}, {"decay": -1}, {"backward": 2}, {"popularity": 0.0}])
def test_settings_out_of_bounds_are_refused(settings):
    with pytest.raises(HfGrError, match=next(iter(settings))):
        MemoryConfig(**settings)


@settings(deadline=None, max_examples=50)
@given(LOGS, CONFIGS)
def test_files_hold_all_of_it(tmp_path_factory, log, config):
    folder, memory = tmp_path_factory.mktemp("memory"), memory_of(log, config)
    memory.save(folder)
    assert same(Memory.load(folder), memory)


def test_files_of_one_memory_are_the_same_bytes(tmp_path):
    log, config = [[0, 1, 2, 3], [3, 1], [5]], MemoryConfig(window=3)
    memory_of(log, config).save(tmp_path / "one")
    later = histories_of([[2, 3], [1], [5]], [2, 1, 0])
    memory_of([[0, 1], [3], []], config).remember(later, 7)[0].save(tmp_path / "two")
    for name in ("memory.json", "memory.safetensors", "tails.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_files_that_do_not_fit_are_refused_in_one_line(tmp_path):
    memory_of([[0, 1, 2]], MemoryConfig()).save(tmp_path)
    counts, config = tmp_path / "memory.safetensors", tmp_path / "memory.json"
    arrays, said = load_file(counts), json.loads(config.read_text())

    def refused(match):
        with pytest.raises(HfGrError, match=match) as error:
            Memory.load(tmp_path)
        assert "\n" not in str(error.value)

    for changed in (
        {"columns": arrays["columns"] + 100},
        {"rows": arrays["rows"][::-1].copy()},
        {"events": arrays["events"][:-1]},
        {"data": -arrays["data"]},
    ):
        save_file(arrays | changed, counts)
        refused("does not hold the counts")
    counts.write_bytes(b"nonsense")
    refused("does not hold the counts")
    save_file(arrays, counts)
    for changed in ({"format": 9}, {"unknown": 1}):
        config.write_text(json.dumps(said | changed))
        refused("not of a memory")
    config.write_text(json.dumps(said | {"window": 0}))
    refused("window")
