"""Packing in whole arrays against loops over lists, which the benchmark keeps."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from test_branches import CASES, THINK, random_row, rows_of
from transformers.trainer_pt_utils import LengthGroupedSampler

from hf_gr.branches import Row
from hf_gr.packing import pack
from hf_gr.sft.rows import FEATURES, RowBatches


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("packing")


def drawn_rows(random: np.random.Generator) -> list[Row]:
    """Rows of text and codes: answers in the trunk, on branches and of no token, thinking tokens among them."""
    rows = [random_row(random) for _ in range(random.integers(1, 9))]
    for row in rows:
        if random.random() < 0.2:
            row["answers"] = [[] for _ in row["answers"]]
        for answer in row["answers"]:
            if len(answer) > 1 and random.random() < 0.3:
                answer[int(random.integers(len(answer)))] = int(random.choice(THINK))
    return rows


def same(ours, theirs) -> None:
    for name, expected in vars(theirs).items():
        value = vars(ours)[name]
        assert value.dtype == expected.dtype and value.shape == expected.shape and torch.equal(value, expected), name


@pytest.mark.parametrize("seed", range(8))
def test_arrays_are_packed_as_lists_are(benchmark, seed):
    """Bit for bit, from lists and from a data set's columns, in any order of its rows."""
    random = np.random.default_rng(seed)
    for _ in range(25):
        rows = drawn_rows(random)
        options = {"think_ids": THINK if random.random() < 0.7 else (), "crowd": bool(random.random() < 0.5)}
        options["max_columns"] = int(random.choice([0, 0, 40]))
        expected = benchmark.listed_pack(rows, **options)
        same(pack(rows, **options), expected)
    whole = Dataset.from_list(rows, features=FEATURES)
    order = random.permutation(len(rows)).tolist()
    picked = RowBatches(whole).__getitems__(order)
    same(pack(picked, **options), benchmark.listed_pack([rows[number] for number in order], **options))
    same(pack(RowBatches(whole).__getitems__([0]), **options), benchmark.listed_pack(rows[:1], **options))


def test_rows_are_grouped_by_length_as_those_of_a_data_set_are():
    random = np.random.default_rng(0)
    whole = Dataset.from_list([row for _ in range(5) for row in drawn_rows(random)], features=FEATURES)

    def order(rows: Dataset | RowBatches) -> list[int]:
        return list(LengthGroupedSampler(4, rows, generator=torch.Generator().manual_seed(0)))

    assert order(RowBatches(whole)) == order(whole)


@pytest.mark.parametrize("case", CASES)
def test_rows_of_tasks_are_packed_as_lists_are(benchmark, case):
    same(pack(rows_of(case), think_ids=THINK), benchmark.listed_pack(rows_of(case), think_ids=THINK))


def test_the_benchmark_measures_both_sides(benchmark, tmp_path, capsys):
    result = benchmark.main(["--users", "200", "--items", "300", "--repeats", "1", "--json", str(tmp_path / "a.json")])
    assert set(result) == {"flat", "stepwise", "unordered", "recursive"}
    assert all(side["ratio"] == pytest.approx(side["arrays"] / side["lists"]) for side in result.values())
    assert capsys.readouterr().out.count("events/s") == 4 and (tmp_path / "a.json").is_file()
