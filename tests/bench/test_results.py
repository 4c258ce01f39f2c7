"""Rows and ranks through files, differences and intervals against NumPy, and rows that contradict themselves."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from bench.suites import write_suite
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hf_gr.bench import Cell, Results, _write, check_consistent, load_suite
from hf_gr.bench.page import write_page
from hf_gr.bench.results import interval, outside, per_user
from hf_gr.bench.steps import settings_of
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
    assert found.trainings == 3 and results.best("circle", "HR@10") == "wide"


@pytest.mark.parametrize(("trainings", "noise"), [(1, 0.0), (2, 0.3), (2, 0.05), (5, 0.3), (5, 0.0)])
def test_an_interval_holds_the_truth_as_often_as_it_says(trainings, noise):
    """Over users and trainings drawn anew each time, as the two-way model has them."""
    random = np.random.default_rng(0)
    covered = []
    for _ in range(1000):
        users, noises = random.normal(size=60), noise * random.normal(size=(trainings, 1))
        low, high = interval(0.1 + users + noises + random.normal(size=(trainings, 60)))
        covered.append(low < 0.1 < high)
    assert 0.935 <= np.mean(covered) <= (0.97 if trainings in (1, 5) else 1.0)  # more, never less, of two trainings


def test_an_interval_of_one_training_is_students():
    values = np.random.default_rng(1).normal(size=(1, 50))
    expected = stats.t.interval(0.95, 49, values.mean(), stats.sem(values[0]))
    assert interval(values) == pytest.approx(expected)


def test_one_training_is_never_the_best_unless_nothing_is_left_to_chance():
    results = Results()
    results.add(*made("circle", "flat", 0))
    results.add(*made("circle", "wide", 0, 0.9))
    assert results.difference("circle", "wide", "flat", "HR@10").trainings == 1
    assert results.best("circle", "HR@10") is None
    assert results.best("circle", "HR@10", ["flat", "wide"]) == "wide"


def test_a_method_of_one_seed_counts_against_every_training_of_the_other():
    results = some()
    results.add(*made("circle", "knn", 0, 0.1))
    found = results.difference("circle", "wide", "knn", "HR@10")
    assert found.trainings == 3
    assert results.difference("circle", "knn", "wide", "HR@10").value == pytest.approx(-found.value)


def test_lists_without_seen_items_have_differences_of_their_own(tmp_path):
    results = Results()
    for method, chance in (("flat", 0.3), ("wide", 0.6)):
        row, users, ranks = made("circle", method, 0, chance)
        results.add(row, users, ranks, np.maximum(ranks - 1, 0))
    kept, unseen = (results.difference("circle", "wide", "flat", name) for name in ("NDCG@10", "unseen_NDCG@10"))
    assert unseen.value > kept.value > 0
    results.save(tmp_path, "tiny")
    again = Results.load(tmp_path, "tiny")
    assert again.difference("circle", "wide", "flat", "unseen_NDCG@10") == unseen
    results.add(*made("circle", "wide", 0, 0.6))
    assert results.difference("circle", "wide", "flat", "unseen_NDCG@10") is None


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
    results = Results()
    for seed, (method, chance) in product(range(3), (("flat", 0.3), ("wide", 0.6))):
        row, users, ranks = made("circle", method, seed, chance)
        results.add(row | {"settings": settings_of(suite, Cell("circle", method, seed))}, users, ranks)
    write_page(tmp_path / "RESULTS.md", [(suite, results)])
    page = Path(tmp_path / "RESULTS.md").read_text()
    line = next(line for line in page.splitlines() if line.startswith("| twice as wide | 3 |"))
    figure = results.figure("circle", "wide", "HR@10")
    assert f"**{figure.mean:.4f} ± {figure.std:.4f}**" in line and "| 1.5 | 2.0 | 0.100 |" in line
    assert "Of a circle." in page and "hf-gr bench tiny.yaml --data DATA --cells 'circle/flat-s*'" in page
    assert page.count("flat, removed") == 0 and "Rows of circle of other settings" not in page
    assert "| circle, flat | 3 |" in page and "{:.4f} to {:.4f}".format(*figure.next_run) in page


def test_rows_of_other_settings_are_said_and_not_compared(tmp_path):
    suite = load_suite(write_suite(tmp_path))
    results = Results()
    for method, settings in (("flat", settings_of(suite, Cell("circle", "flat", 0))), ("wide", "of before")):
        row, users, ranks = made("circle", method, 0)
        results.add(row | {"settings": settings}, users, ranks)
    write_page(tmp_path / "RESULTS.md", [(suite, results)])
    page = Path(tmp_path / "RESULTS.md").read_text()
    old = page.index("Rows of circle of other settings or versions:")
    assert page.index("| flat | 1 |") < old < page.index("| twice as wide | 1 |")
    assert "less flat" not in page and "| circle, twice as wide | 0 |" in page  # it is to be run anew


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
