"""Every command of every suite that is shipped is one that its stage takes."""

from pathlib import Path

import pytest
from stages import STAGES

from hf_gr.arguments import parse_config
from hf_gr.bench import Places, Results, load_suite
from hf_gr.bench.page import write_page
from hf_gr.bench.results import METRICS, per_user
from hf_gr.bench.steps import PROGRAM, steps_of
from hf_gr.bench.suite import shipped_suites
from hf_gr.embedding import stage as embed
from hf_gr.interests import labelling, mining
from hf_gr.quantizers import stage as quantize


CHECKS = {"embed": embed._check, "mine": mining._check, "label": labelling._check, "quantize": quantize._check}
ROOT = Path(__file__).parents[2]
SHIPPED = shipped_suites()


@pytest.mark.parametrize("name", SHIPPED)
def test_every_command_of_a_suite_is_read_by_its_stage(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    suite = load_suite(name)
    read = set()
    for cell in suite.cells():
        if cell.seed != min(suite.seeds):
            continue
        for step in steps_of(suite, cell, Places(tmp_path, tmp_path)):
            if step.stage in STAGES and step.key not in read:
                config = parse_config(STAGES[step.stage], step.command[len(PROGRAM) + 1 :])
                if step.stage in CHECKS:
                    CHECKS[step.stage](config)
                read.add(step.key)
    assert read


@pytest.mark.parametrize("name", SHIPPED)
def test_positions_are_not_read_as_times(name):
    """As times they would be of 1970, and a temporal split would mix users instead of being refused."""
    for data in load_suite(name).datasets.values():
        assert "timestamp=position" not in data.prepare


def test_suites_of_one_folder_never_share_a_cell_with_other_settings(tmp_path, monkeypatch):
    """`--out` is the same by default, and a cell whose settings differ from its row's runs again in its place."""
    monkeypatch.chdir(ROOT)
    made: dict[str, str] = {}
    for name in SHIPPED:
        suite = load_suite(name)
        for cell in suite.cells():
            key = steps_of(suite, cell, Places(tmp_path, tmp_path))[-1].key
            assert made.setdefault(cell.name, key) == key, (
                f"{name}: {cell.name} is another suite's, with other settings"
            )


def test_the_committed_page_is_that_of_the_committed_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    suites = [load_suite(name) for name in SHIPPED]
    found = [(suite, Results.load(ROOT / "benchmarks" / "results", suite.name)) for suite in suites]
    write_page(tmp_path / "RESULTS.md", [(suite, results) for suite, results in found if results.rows])
    assert (tmp_path / "RESULTS.md").read_text() == (ROOT / "benchmarks" / "RESULTS.md").read_text()


def test_committed_rows_are_those_of_the_committed_ranks():
    for name in SHIPPED:
        results = Results.load(ROOT / "benchmarks" / "results", name)
        for row in results.rows:
            ranks = results.ranks[row["data"], row["method"], row["seed"]]
            for metric in (known for known in METRICS if known in row):  # lists of a suite may be short
                assert row[metric] == pytest.approx(per_user(ranks, metric).mean()), (name, row["method"], metric)
