"""Rows and ranks through files, differences and intervals against NumPy, and rows that contradict themselves."""

from pathlib import Path

import numpy as np
import pytest
from bench.suites import write_suite
from hypothesis import given
from hypothesis import strategies as st

from hf_gr.bench import Results, _write, check_consistent, load_suite
from hf_gr.bench.page import write_page
from hf_gr.bench.results import outside, per_user
from hf_gr.bench.suite import shipped_suites
from hf_gr.cli import main
from hf_gr.errors import HfGrError
from hf_gr.evaluation.metrics import MISS, hit_rate, ndcg


KS = (1, 3, 5, 10, 20, 50)
USERS = [f"u{number}" for number in range(400)]


def made(data: str, method: str, seed: int, chance: float = 0.3) -> tuple[dict, list[str], np.ndarray]:
    random = np.random.default_rng([seed, int(100 * chance)])
    ranks = np.where(random.random(400) < chance, random.integers(0, 50, 400), MISS)
    row = {"suite": "tiny", "data": data, "method": method, "seed": seed, "key": "k", "commands": "hf-gr sft"}
    row |= {f"HR@{k}": float(hit_rate(ranks, k).mean()) for k in KS}
    row |= {f"NDCG@{k}": float(ndcg(ranks, k).mean()) for k in KS}
    row |= {"train_seconds": 60.0, "train_cpu_seconds": 90.0, "test_seconds": 5.0, "all_cpu_seconds": 120.0}
    row |= {
        "peak_bytes": 2_000_000_000,
        "hardware": "a machine",
        "date": "2026-01-01",
        "commit": "abc",
        "versions": "x 1",
    }
    return row, USERS, ranks


def some() -> Results:
    results = Results()
    for seed in range(3):
        results.add(*made("circle", "flat", seed))
        results.add(*made("circle", "wide", seed, 0.6))
    return results


def test_rows_and_ranks_through_files(tmp_path):
    results = some()
    results.save(tmp_path, "tiny")
    again = Results.load(tmp_path, "tiny")
    assert sorted(again.rows, key=str) == sorted(results.rows, key=str) and again.users == results.users
    assert all((again.ranks[key] == ranks).all() for key, ranks in results.ranks.items())
    assert Results.load(tmp_path, "other").rows == []


def test_a_row_takes_the_place_of_its_cells_earlier_one():
    results = some()
    row, users, ranks = made("circle", "flat", 1, 0.1)
    results.add(row, users, ranks)
    assert len(results.rows) == 6 and results.of("circle", "flat")[1]["HR@10"] == row["HR@10"]
    with pytest.raises(HfGrError, match="other users"):
        results.add(row, users[:-1], ranks[:-1])


def test_figures_are_numpys():
    results = some()
    values = [row["NDCG@10"] for row in results.of("circle", "flat")]
    figure = results.figure("circle", "flat", "NDCG@10")
    assert figure.mean == pytest.approx(np.mean(values)) and figure.std == pytest.approx(np.std(values, ddof=1))
    reach = 4.302652729911275 * np.std(values, ddof=1) * (4 / 3) ** 0.5  # t of two degrees of freedom
    assert figure.next_run == pytest.approx((np.mean(values) - reach, np.mean(values) + reach))
    found = results.difference("circle", "wide", "flat", "HR@10")
    ours, theirs = (np.mean([row["HR@10"] for row in results.of("circle", name)]) for name in ("wide", "flat"))
    assert found.value == pytest.approx(ours - theirs) and found.low < found.value < found.high
    assert found.relative == pytest.approx((ours - theirs) / theirs)
    assert results.best("circle", "HR@10") == "wide"


def test_nothing_is_best_where_intervals_touch_zero():
    results = Results()
    results.add(*made("circle", "flat", 0))
    row, users, ranks = made("circle", "flat", 0)
    results.add(row | {"method": "twin"}, users, ranks)
    assert results.best("circle", "HR@10") is None


@given(st.lists(st.one_of(st.integers(0, 60), st.just(MISS)), min_size=1, max_size=80))
def test_figures_of_real_lists_are_consistent(ranks):
    ranks = np.array(ranks, np.int64)
    check_consistent({f"{name}@{k}": per_user(ranks, f"{name}@{k}").mean() for name in ("HR", "NDCG") for k in KS})


def test_figures_that_cannot_be_of_the_same_lists_are_refused():
    with pytest.raises(HfGrError, match="NDCG@10 less NDCG@5"):
        check_consistent({"HR@5": 0.04, "NDCG@5": 0.03, "HR@10": 0.06, "NDCG@10": 0.05})
    check_consistent({"HR@5": 0.0454, "HR@10": 0.0648, "NDCG@5": 0.0321, "NDCG@10": 0.0384}, tolerance=1e-4)


def test_fresh_rows_are_held_against_the_interval_of_known_ones():
    known, fresh = some(), Results()
    fresh.add(*made("circle", "flat", 9))
    fresh.add(*made("circle", "wide", 9, 0.01))
    found = {one["name"]: one["inside"] for one in outside(fresh, known)}
    assert found["circle/flat-s9 HR@10"] and not found["circle/wide-s9 HR@10"]


def test_the_page_tells_what_was_measured_and_what_was_not(tmp_path):
    suite = load_suite(
        write_suite(tmp_path, seeds=[0, 1, 2, 3], prediction=True, notes="Of a circle.", price_per_hour=3)
    )
    results = some()
    write_page(tmp_path / "RESULTS.md", [(suite, results)])
    page = Path(tmp_path / "RESULTS.md").read_text()
    line = next(line for line in page.splitlines() if line.startswith("| twice as wide | 3 |"))
    figure = results.figure("circle", "wide", "HR@10")
    assert f"**{figure.mean:.4f} ± {figure.std:.4f}**" in line and "| 1.5 | 2.0 | 0.100 |" in line
    assert "Of a circle." in page and "hf-gr bench tiny.yaml --data DATA --cells 'circle/flat-s*'" in page
    assert "| circle, flat | 3 |" in page and "{:.4f} to {:.4f}".format(*figure.next_run) in page


def test_the_page_holds_the_suites_that_have_rows(tmp_path, capsys):
    """Other YAML files may stand beside a suite, and a suite may have another ending."""
    file = write_suite(tmp_path, title="A circle").rename(tmp_path / "tiny.yml")
    (tmp_path / "notes.yaml").write_text("no: suite")
    fresh = Results()
    fresh.add(*made("circle", "flat", 0))
    known, page = Results(), tmp_path / "report" / "RESULTS.md"
    row, users, ranks = made("quick", "flat", 0)
    known.add(row | {"suite": "quick"}, users, ranks)
    known.save(page.parent / "results", "quick")
    known.save(page.parent / "results", "elsewhere")
    _write(page, load_suite(file), fresh)
    out = capsys.readouterr().out
    assert "has rows of elsewhere, but" in out and "elsewhere.yaml is missing: the page is without them" in out
    assert out.count("has rows of") == 1
    assert "## A circle" in page.read_text() and "## Quick" in page.read_text() and "## Amazon" not in page.read_text()


def test_shipped_suites_are_listed(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    main(["bench"])
    out = capsys.readouterr().out
    assert all(name in out for name in shipped_suites()) and "12" in out
