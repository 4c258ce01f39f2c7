"""The benchmarks run, judge answers from the raw codes, and go on where they stopped."""

import importlib
import json
import shlex
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tiny import tiny_interactions, tiny_items
from tiny_runs import sft_configs, tiny_data

from hf_gr.dataset import InteractionDataset, write_dataset
from hf_gr.embedding import EmbedConfig, embed
from hf_gr.sft import sft


FOLDER = Path(__file__).parent.parent / "benchmarks"
SMALL = shlex.split("--model tiny --dtype fp32 --batch 2 --beams 3 --codes 16 --device cpu --repeats 1")
CELL = [*SMALL, "--context", "12", "--items", "200"]

if not Path("/proc/self/clear_refs").exists():
    pytest.skip("the benchmarks read peak memory from /proc", allow_module_level=True)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Imports a benchmark as a script sees itself: with its own folder on the path."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def module(name: str) -> ModuleType:
        return importlib.import_module(name)

    return module


def test_decode_measures_every_path_and_all_answers_are_items(load, tmp_path):
    file = tmp_path / "decode.json"
    load("decode").main([*CELL, "--padded", "--json", str(file)])
    result = json.loads(file.read_text())
    paths = {"engine", "engine_doubled", "engine_stepwise", "engine_denied", "engine_model", "generate", "prefix_fn"}
    assert set(result["seconds"]) == paths | {"prefill"} and all(value > 0 for value in result["seconds"].values())
    assert set(result["peak_memory_mb"]) == paths | {"prefill"}
    assert set(result["invalid_by_path"]) == paths
    assert result["invalid"] == result["missing"] == 0
    assert result["parity_top1"] == result["parity_set_overlap"] == 1
    seconds = result["seconds"]
    assert result["speedup_vs_prefix_fn"] == pytest.approx(seconds["prefix_fn"] / seconds["engine"])
    assert result["speedup_vs_generate"] == pytest.approx(seconds["generate"] / seconds["engine"])
    assert result["ratio_to_prefill"] == pytest.approx(seconds["engine"] / seconds["prefill"])
    assert result["ratio_to_prefill_stepwise"] == pytest.approx(seconds["engine_stepwise"] / seconds["prefill"])
    assert result["stepwise_ratio"] == pytest.approx(seconds["engine_stepwise"] / seconds["engine"])
    assert result["stepwise_tokens_ratio"] == pytest.approx((13 + 2 * 3 * 2) / (12 + 3 * 2))
    assert result["ratio_doubled_beams"] == pytest.approx(seconds["engine_doubled"] / seconds["engine"])
    assert 0 < result["constraint_share"] < 1
    assert {"settings", "hardware", "versions", "commit", "date", "command"} <= set(result)


def test_a_cell_too_big_for_generate_says_not_run(load, tmp_path, monkeypatch):
    decode, file = load("decode"), tmp_path / "decode.json"
    monkeypatch.setattr(decode, "SLOW_FLOPS", {"cpu": 0.0})
    decode.main([*CELL, "--json", str(file)])
    result = json.loads(file.read_text())
    for key in ("speedup_vs_prefix_fn", "speedup_vs_generate", "parity_top1", "parity_set_overlap"):
        assert result[key] is None
    assert result["seconds"]["generate"] is None and result["seconds"]["engine"] > 0


def test_wrong_answers_are_counted(load):
    decode = load("decode")
    bench = decode.Bench(decode.Cell("tiny", "fp32", 2, 12, 3, 200, 3, 16, "cpu", False))
    tokens = bench.engine(bench.flat, 3).tokens
    assert bench.wrong(tokens) == (0, 0)
    known = {tuple(row) for row in bench.codes.tolist()}
    stranger = next((0, 0, code) for code in range(16) if (0, 0, code) not in known)
    no_item, wrong_level, repeated, absent = (tokens.clone() for _ in range(4))
    no_item[0, 1] = torch.tensor([ids[code] for ids, code in zip(bench.token_ids, stranger, strict=True)])
    wrong_level[0, 0] = tokens[0, 0].flip(0)
    repeated[1, 2] = tokens[1, 0]
    absent[1, 2] = -1
    assert bench.wrong(no_item) == bench.wrong(wrong_level) == (1, 1)
    assert bench.wrong(repeated) == bench.wrong(absent) == (0, 1)
    answer = tokens[0, 0].tolist()
    codes = [ids.index(token) for ids, token in zip(bench.token_ids, answer, strict=True)]
    bench.deny[0] = (bench.codes == codes).all(1).nonzero()[0]
    bench.deny[1] = bench.deny[0][:0]
    assert bench.wrong(tokens, deny=True) == (1, 1)
    stepwise = bench.engine(bench.stepwise, 3).tokens
    assert bench.wrong(stepwise, thinking=True) == (0, 0)
    stepwise[0, 0, 0] = stepwise[0, 0, 2]
    assert bench.wrong(stepwise, thinking=True) == (1, 1)


def test_a_grid_changes_one_setting_at_a_time_and_resumes(load, tmp_path):
    decode, file = load("decode"), tmp_path / "grid.jsonl"
    decode.main([*CELL, "--grid", str(file), "--batch", "2", "1", "--beams", "3", "2"])
    first = file.read_text()
    settings = [json.loads(line)["settings"] for line in first.splitlines()]
    assert [(cell["batch"], cell["beams"]) for cell in settings] == [(2, 3), (1, 3), (2, 2)]
    decode.main([*CELL, "--grid", str(file), "--batch", "2", "1", "--beams", "3", "2"])
    assert file.read_text() == first
    decode.main([*CELL, "--grid", str(file), "--batch", "2", "1", "--beams", "3", "2", "--product"])
    assert [json.loads(line)["settings"] for line in file.read_text().splitlines()][3:] == [
        settings[0] | {"batch": 1, "beams": 2}
    ]


def test_constraint_measures_every_grammar_and_filter(load, tmp_path):
    file = tmp_path / "constraint.json"
    sizes = ["100", "200"]
    load("constraint").main([*SMALL, "--codebooks", "3", "--items", *sizes, "--json", str(file)])
    result = json.loads(file.read_text())
    for key in ("trie_build_s", "trie_bytes_per_item", "unordered_build_s", "unordered_bytes_per_item"):
        assert list(result[key]) == sizes and all(value > 0 for value in result[key].values())
    for kind in ("trie", "unordered"):
        for size in sizes:
            assert set(result["step_ms"][kind][size]) == {"none", "deny", "allow", "mask"}
            assert all(0 < share < 1 for share in result["constraint_share_of"][kind][size].values())
            assert len(result["level_ms"][kind][size]["none"]) == 3
    for kind in ("prefix_fn", "prefix_lookup", "processor"):
        assert all(result["step_ms"][kind][size]["none"] > 0 for size in sizes)
    assert result["constraint_share"] is None  # it is that of a million items
    assert result["step_ratio_10m_10k"]["none"] is None


def test_turns_alternate_and_slow_ones_stop_early(load):
    measure, calls = load("measure"), []
    contenders = {"fast": lambda: calls.append("fast"), "slow": lambda: calls.append("slow")}
    timed = measure.alternating(contenders, 3, fewer={"slow": 1})
    assert calls == ["fast", "fast", "slow", "fast", "fast", "fast"]  # the first is the warm-up, the last for memory
    assert [len(timed[name].seconds) for name in contenders] == [3, 1]


def test_peak_memory_is_that_of_the_run(load):
    measure = load("measure")
    timed = measure.alternating({"big": lambda: torch.ones(32 << 20), "none": lambda: None}, 1)
    assert 100 < timed["big"].peak_mb < 200  # 128 MiB
    assert timed["none"].peak_mb < 50


@pytest.fixture
def shop(tmp_path) -> tuple[str, str]:
    """A data set of 150 items, and vectors of them."""
    write_dataset(tmp_path / "dataset", tiny_interactions(200, 150), tiny_items(150), source="a test")
    config = EmbedConfig(str(tmp_path / "dataset"), str(tmp_path / "vectors"), sources=["behavior"], behavior_dim=8)
    return str(tmp_path / "dataset"), str(embed(config))


def test_codebooks_measures_every_method_on_the_same_vectors(load, shop, tmp_path):
    file = tmp_path / "codebooks.json"
    arguments = ["--dataset", shop[0], "--embeddings", shop[1], "--codebook-size", "8", "--json", str(file)]
    load("codebooks").main([*arguments, "--methods", "rq_kmeans,opq"])
    rows = json.loads(file.read_text())["rows"]
    assert [row["name"] for row in rows] == ["rq_kmeans", "opq"]
    for row in rows:
        assert row["fit_s"] > 0 and row["encode_items_per_s"] > 0 and row["peak_mb"] > 100
        assert {way["items_without_own_sid"] for way in row["after"].values()} == {0}
        assert row["report"]["items"] == 150 and len(row["report"]["error"]) == 3


@pytest.mark.slow
def test_the_study_correlates_finished_cells_and_runs_none_twice(load, shop, tmp_path, capfd):
    study, file = load("codebook_study"), tmp_path / "study.json"
    cells = ["rq_kmeans-8-s0", "rq_kmeans-12-s0", "opq-8-s0", "opq-12-s0"]
    arguments = ["--dataset", shop[0], "--embeddings", shop[1], "--out", str(tmp_path / "cells"), "--epochs", "1"]
    arguments += ["--cells", ",".join(cells), "--against", "opq-8", "--json", str(file)]
    study.main([*arguments, "--plot", str(tmp_path / "study.png")])
    result = json.loads(file.read_text())
    assert [row["cell"] for row in result["rows"]] == cells
    assert set(result["correlations"]) == {"all", "all but shuffled", "of size 12"}
    assert {row["codebooks"] for row in result["correlations"]["all"].values()} == {4}
    for found in result["correlations"].values():
        assert all(-1 <= row["low"] <= row["high"] <= 1 for row in found.values())
    assert set(result["differences"]) == {"rq_kmeans-8", "rq_kmeans-12", "opq-12"}
    recalls = {row["cell"]: row["recall@10"] for row in result["rows"]}
    expected = recalls["opq-12-s0"] - recalls["opq-8-s0"]
    assert result["differences"]["opq-12"]["value"] == pytest.approx(expected, abs=1e-9)
    assert (tmp_path / "study.png").stat().st_size > 10_000
    before = {row: (tmp_path / "cells" / row / "row.json").stat().st_mtime_ns for row in cells}
    study.main(arguments)
    assert before == {row: (tmp_path / "cells" / row / "row.json").stat().st_mtime_ns for row in cells}


@pytest.mark.slow
def test_cold_items_are_in_no_training_event_and_are_judged(load, shop, tmp_path):
    file = tmp_path / "cold.json"
    arguments = ["--dataset", shop[0], "--out", str(tmp_path / "cold"), "--share", "0.1", "--epochs", "1"]
    load("cold_items").main([*arguments, "--sources", "behavior", "--codebook-size", "8", "--json", str(file)])
    result = json.loads(file.read_text())
    assert 0 < result["cold_items"] < 40 and result["cold"]["cases"] > 0
    warm, whole = InteractionDataset.load(tmp_path / "cold" / "warm"), InteractionDataset.load(shop[0])
    assert warm.num_items == 150 - result["cold_items"]
    cold = set(whole.item_ids) - set(warm.item_ids)
    cases = InteractionDataset.load(tmp_path / "cold" / "cold_cases").split().test
    assert {whole.item_ids[row] for row in cases.targets} <= cold


def test_sft_counts_the_same_targets_in_every_arm(load, tmp_path, monkeypatch):
    data, file = tiny_data(tmp_path), tmp_path / "sft.json"
    benchmark = load("sft")
    shapes = [
        "--users",
        "12",
        "--batch",
        "4",
        "--layers",
        "1",
        "--width",
        "32",
        "--max-history",
        "10",
        "--repeats",
        "1",
    ]
    given = ["--dataset", str(data.dataset), "--catalog", str(data.catalog), *shapes, "--peak-tflops", "1"]
    benchmark.main([*given, "--arms", "plain stepwise,s2gr", "--micro-batch", "8", "--json", str(file)])
    result = json.loads(file.read_text())
    plain, ours = result["arms"]["plain stepwise"], result["arms"]["s2gr"]
    assert plain["accumulated"] > ours["accumulated"] == 1 and plain["batch"] <= 8
    assert plain["targets"] == ours["targets"] > 12 and plain["steps"] == ours["steps"] == 3
    assert plain["tokens"] > 1.5 * ours["tokens"]
    assert result["s2gr_ratio"] == pytest.approx(ours["targets_per_s"] / plain["targets_per_s"])
    assert result["memory_ratio"] == pytest.approx(ours["peak_mb"] / plain["peak_mb"])
    assert result["flat_ratio"] is None
    assert ours["mfu"] == pytest.approx(6 * ours["parameters"] * ours["tokens_per_s"] / 1e12)


@pytest.mark.slow
def test_intrr_is_measured_beside_flat(load, tmp_path, monkeypatch):
    """The training arms run apart as those of `sft.py` do; here their figures are given."""
    data, file = tiny_data(tmp_path), tmp_path / "intrr.json"
    benchmark = load("intrr")
    arms = {
        name: {"targets_per_s": speed} for name, speed in (("plain flat", 2.0), ("flat", 10.0), ("recursive", 25.0))
    }
    asked = []
    monkeypatch.setattr(benchmark.training, "main", lambda given: asked.extend(given) or {"arms": arms})
    given = ["--dataset", str(data.dataset), "--catalog", str(data.catalog), "--layers", "1", "--width", "32"]
    given += ["--max-history", "10", "--batch", "1", "2", "--beams", "5", "50", "--rounds", "2", "--table", "1000"]
    result = benchmark.main([*given, "--train-batch", "4", "--json", str(file)])
    assert "--arms=plain flat,flat,recursive" in asked and "--batch=4" in asked
    assert (result["train_ratio"], result["train_ratio_per_target"]) == (2.5, 12.5)
    assert 0 < result["memory_ratio"] < 0.7  # a third of the positions
    assert result["latency_ratio_50"] > 0 and len(result["latency"]) == 4
    assert result["table"]["whole"]["rows"] == 1000 and result["table"]["hashed"]["rows"] == 100
    assert json.loads(file.read_text())["memory_ratio"] == result["memory_ratio"]


@pytest.mark.slow
def test_grpo_measures_both_sides_alike_and_scores_agree(load, tmp_path, monkeypatch):
    """One arm as a process of its own, the others in this one, which has everything imported already."""
    benchmark, file = load("grpo"), tmp_path / "grpo.json"
    apart = benchmark.run_apart

    def run(arm: str, given: list[str]) -> dict:
        return apart(arm, given) if arm == "ours" else benchmark.main([*given, "--only", arm])

    monkeypatch.setattr(benchmark, "run_apart", run)
    sizes = shlex.split("--model tiny --dtype fp32 --generations 4 --prompt-length 12 --items 60 --codes 8 --steps 1")
    benchmark.main(["--quick", *sizes, "--device", "cpu", "--json", str(file)])
    result = json.loads(file.read_text())
    arms = result["arms"]
    assert list(arms) == ["stock", "ours", "stock_spg", "ours_spg"]
    assert {arm["rollouts_a_step"] for arm in arms.values()} == {2 * 4}
    assert [arm["steps"] for arm in arms.values()] == [2, 2, 4, 4]
    for arm in arms.values():
        seconds = arm["seconds"]
        assert all(value > 0 for value in seconds.values()) and arm["peak_mb"] > 100
        assert seconds["step"] == pytest.approx(sum(seconds.values()) - seconds["step"])  # the parts are the whole
    for part in ("step", "rollout", "score"):
        for suffix in ("", "_spg"):
            quotient = arms[f"stock{suffix}"]["seconds"][part] / arms[f"ours{suffix}"]["seconds"][part]
            assert result[f"{part}_speedup{suffix}"] == pytest.approx(quotient)
    assert result["peak_ratio"] == pytest.approx(arms["ours"]["peak_mb"] / arms["stock"]["peak_mb"])
    assert result["invalid"] == 0
    assert result["logp_maxdiff"] < 1e-5 and result["grad_reldiff"] < 1e-4 and result["masked_logp_maxdiff"] < 1e-5
    assert {"settings", "hardware", "versions", "commit", "date", "command"} <= set(result)


def test_filters_are_measured_against_the_whole_list(load, tmp_path, capfd):
    data, file, lists = tiny_data(tmp_path), tmp_path / "filters.json", tmp_path / "lists.npz"
    model = sft(*sft_configs(**data.sft(tmp_path / "sft", max_steps=2)))
    arguments = ["--model", str(model), "--dataset", str(data.dataset), "--users", "6", "--lists", str(lists)]
    load("filters").main([*arguments, "--json", str(file)])
    result = json.loads(file.read_text())
    for name in ("allow 100", "mask 50%", "mask 25%", "mask 10%"):
        assert result[name]["overlap"] == result[name]["first"] == 1 and result[name]["difference"] == 0
    before = lists.stat().st_mtime_ns
    load("filters").main(arguments)
    assert lists.stat().st_mtime_ns == before
    with pytest.raises(SystemExit, match="lists of other users"):
        load("filters").main([*arguments, "--seed", "1"])


def test_differences_over_seeds_are_those_of_the_studies(load):
    studies = (FOLDER / "STUDIES.md").read_text(encoding="utf-8")
    command = next(line for line in studies.splitlines() if line.startswith("python benchmarks/over_seeds.py "))
    module = load("over_seeds")
    lines = module.main(shlex.split(command)[2:])
    assert len(lines) == 5 and "\n".join(lines) in studies
    less = [-0.00446, -0.00086, -0.00299]  # REG4Rec less flat on CoBa, by seed; t of 2 degrees of freedom is 4.3027
    half = 4.3027 * float(torch.tensor(less).std()) / 3**0.5
    mean = sum(less) / 3
    assert f"| {mean:+.4f} | {mean - half:+.4f} to {mean + half:+.4f} |" in lines[1]
    with pytest.raises(SystemExit, match="item-knn and flat share 1 seeds"):
        module.main(["item-knn:flat"])


def test_remembering_ends_in_the_bytes_of_a_memory_made_anew(load, tmp_path):
    words = ["--items", "50", "--users", "40", "--events", "300", "--new", "20", "--json"]
    load("remember").main([*words, str(tmp_path / "remember.json")])
    result = json.loads((tmp_path / "remember.json").read_text())
    assert result["same_bytes"] and result["new_events"] == 20
    assert result["speedup"] == pytest.approx(result["anew"] / result["remember"])


def test_indexes_are_measured_and_new_items_are_added(load, tmp_path):
    file = tmp_path / "index.json"
    words = shlex.split("--items 3000 --dim 16 --clusters 20 --queries 60 --new 50 --threads 1")
    load("retrieval_index").main([*words, "--json", str(file)])
    result = json.loads(file.read_text())
    for kind in ("flat", "ivf", "hnsw"):
        assert result[kind]["queries_per_second"]["clock"] > 0 and result[kind]["recall@50"] > 0.9
        assert result[kind]["add"]["processors"] > 0
    assert result["flat"]["recall@100"] == 1 and "commit" in result
