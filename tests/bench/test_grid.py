"""Grids: finished cells are not run again, killed ones go on, two processes share one, and failures are named."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import yaml
from bench.suites import write_suite, write_table

from hf_gr.bench import Places, bench, load_suite
from hf_gr.bench.grid import _row as ROW
from hf_gr.bench.grid import row_of, run_grid
from hf_gr.bench.steps import locked, steps_of
from hf_gr.cli import main
from hf_gr.errors import HfGrError


STAND_IN = """
import json, sys, time
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq
words = sys.argv[1:]
output = Path(words[words.index("--output_dir" if "--output_dir" in words else "--out") + 1])
with open(LOG, "a") as log:
    log.write(" ".join(words[:1]) + " " + output.name + "\\n")
time.sleep(PAUSE)
folder = output / "model" if output.name in ("sft", "grpo") else output
folder.mkdir(parents=True, exist_ok=True)
(folder / "manifest.json").write_text("{}")
metrics = {f"{name}@{k}": {"value": 0.5} for name in ("HR",) for k in (5, 10, 50)}
metrics |= {f"NDCG@{k}": {"value": 0.5} for k in (5, 10, 50)}
(folder / "metrics.json").write_text(json.dumps({"systems": {"model": {"item": metrics}}, "seen_targets": 0.0}))
lists = {"user_id": ["a", "b"], "item_ids": [["x", "y"], ["y"]], "target": ["x", "x"]}
pq.write_table(pa.table(lists), folder / "predictions.parquet")
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Stages that only write what a grid reads, and a log of those that ran."""
    log, script = tmp_path / "ran.txt", tmp_path / "stage.py"

    def pause(seconds: float) -> None:
        script.write_text(f"LOG, PAUSE = {str(log)!r}, {seconds}\n{STAND_IN}")

    pause(0)
    monkeypatch.setattr("hf_gr.bench.steps.PROGRAM", [sys.executable, str(script)])
    log.touch()
    return log, pause


def ran(log: Path) -> list[str]:
    return log.read_text().splitlines()


def test_cells_share_artifacts_and_are_not_run_again(tmp_path, stand_in):
    log, _ = stand_in
    suite, places = load_suite(write_suite(tmp_path, exclude_seen=False)), Places(tmp_path / "out", tmp_path)
    outcomes = run_grid(suite, suite.cells(), places, jobs=2)
    assert [outcome.state for outcome in outcomes] == ["done", "done"]
    assert len(ran(log)) == 3 + 2 * 2 and len(set(ran(log)[:3])) == 3
    run_grid(suite, suite.cells(), places)
    assert len(ran(log)) == 7
    methods = yaml.safe_load(suite.file.read_text())["methods"]
    methods["wide"]["sft"]["max_steps"] = 3
    changed = load_suite(write_suite(tmp_path, exclude_seen=False, methods=methods))
    assert row_of(changed, changed.cells()[1], places) is None
    run_grid(changed, changed.cells(), places)
    assert len(ran(log)) == 9  # its training and its test alone


def test_an_interrupted_grid_ends_what_runs_and_begins_nothing_more(tmp_path, stand_in):
    log, pause = stand_in
    pause(30)
    suite, places = load_suite(write_suite(tmp_path, exclude_seen=False)), Places(tmp_path / "out", tmp_path)
    child = os.fork()
    if not child:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            run_grid(suite, suite.cells(), places)
        except KeyboardInterrupt:
            os._exit(7)
        os._exit(0)
    while not ran(log):
        time.sleep(0.02)
    started = time.perf_counter()
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7 and time.perf_counter() - started < 10
    assert len(ran(log)) == 1
    steps = steps_of(suite, suite.cells()[0], places)
    first = json.loads(steps[0].cost_file.read_text())
    assert not first["finished"] and steps[0].cost() is None
    pause(0.3)
    assert run_grid(suite, suite.cells()[:1], places)[0].state == "done"
    cost = steps[0].cost()
    assert cost["seconds"] > first["seconds"] + 0.3  # both attempts


def test_a_killed_stage_is_run_again_and_finished_ones_are_not(tmp_path, stand_in):
    log, pause = stand_in
    file = write_suite(tmp_path, exclude_seen=False)
    suite, places = load_suite(file), Places(tmp_path / "out", tmp_path)
    cell = suite.cells()[0]
    child = os.fork()
    if not child:
        pause(0.2)
        run_grid(suite, [cell], places)
        os._exit(0)
    while len(ran(log)) < 3:
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    time.sleep(0.4)  # what it had started ends by itself
    pause(0)
    before = len(ran(log))
    assert run_grid(suite, [cell], places)[0].state == "done"
    assert len(ran(log)) - before <= 3 and row_of(suite, cell, places) is not None


def test_two_processes_never_run_a_cell_at_a_time(tmp_path, stand_in):
    suite, places = load_suite(write_suite(tmp_path, exclude_seen=False)), Places(tmp_path / "out", tmp_path)
    with locked(tmp_path / "out/circle/flat-s0/cell") as free:
        assert free
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            states = [outcome.state for outcome in run_grid(suite, suite.cells(), places)]
            os.write(writer, json.dumps(states).encode())
            os._exit(0)
        assert json.loads(os.read(reader, 100)) == ["busy", "done"]
        os.waitpid(child, 0)  # it holds what it inherited, the lock too
    assert run_grid(suite, suite.cells(), places)[0].state == "done"


def test_rows_stand_on_the_page_at_once_and_another_machine_runs_what_is_missing(tmp_path, stand_in, monkeypatch):
    log, _ = stand_in
    file, page = write_suite(tmp_path, exclude_seen=False), tmp_path / "RESULTS.md"
    write_table(tmp_path)
    there = {"data": tmp_path, "report": page}

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # before the second of two cells
        patch.setattr(
            "hf_gr.bench.grid._row",
            lambda suite, cell, *rest: stop() if cell.method == "wide" else ROW(suite, cell, *rest),
        )
        bench(file, out=tmp_path / "one", **there)
    assert "| flat | 1 |" in page.read_text() and "twice as wide | 1 |" not in page.read_text()
    before = len(ran(log))
    bench(file, out=tmp_path / "two", missing=True, **there)
    assert not [line for line in ran(log)[before:] if "flat" in line]
    assert "twice as wide | 1 |" in page.read_text()
    before = len(ran(log))
    bench(file, out=tmp_path / "three", missing=True, **there)
    assert len(ran(log)) == before
    (tmp_path / "log.csv").write_text((tmp_path / "log.csv").read_text() + "u0,i9,99\n")
    bench(file, out=tmp_path / "four", missing=True, **there)
    assert len(ran(log)) == before + 3 + 2 * 2  # other raw data: no row is of them
    with pytest.raises(HfGrError, match="take one of them"):
        bench(file, out=tmp_path / "five", missing=True, check=True, **there)


def test_a_cell_that_fails_is_named_and_the_others_go_on(tmp_path):
    recipe = {"recipe": "sft-flat", "form": "sideways"}
    methods = {"flat": {"quantize": "quantize", "sft": recipe}, "wide": {"lists": "nothing"}}
    file = write_suite(tmp_path, methods=methods, against="")
    with pytest.raises(HfGrError, match="name their folder"):
        bench(file, out=tmp_path / "out")
    write_table(tmp_path)
    with pytest.raises(HfGrError, match=r"2 of 2 cells failed, the first is circle/flat-s0"):
        bench(file, out=tmp_path / "out", data=tmp_path)


def test_the_row_of_item_knn_says_what_was_chosen(tmp_path):
    write_table(tmp_path)
    methods = {
        "knn": {"title": "kNN", "evaluate": {"baselines": True}},
        "flat": {"quantize": "quantize", "sft": "sft-flat"},
    }
    file, out = write_suite(tmp_path, methods=methods), tmp_path / "out"
    bench(file, out=out, data=tmp_path, cells=["circle/knn-s0"])
    suite = load_suite(file)
    row = row_of(suite, suite.cells()[0], Places(out, tmp_path))
    knn = json.loads((out / "circle/knn-s0/test/metrics.json").read_text())
    assert row["chosen"] == f"window {knn['item kNN']['window']}, {knn['item kNN']['neighbours']} neighbours"
    assert row["HR@10"] == knn["systems"]["item kNN"]["item"]["HR@10"]["value"] and row["train_cpu_seconds"] > 0
    page = (out / "RESULTS.md").read_text()
    assert f"| kNN ({row['chosen']}) | 1 |" in page
    assert page.index("Items of the history removed") < page.index("Items of the history kept")  # nobody repeats
    unseen = json.loads((out / "circle/knn-s0/test-unseen/metrics.json").read_text())
    assert (
        unseen["settings"]["exclude_seen"]
        and row["unseen_HR@10"] == unseen["systems"]["item kNN"]["item"]["HR@10"]["value"]
    )


@pytest.mark.slow
def test_from_raw_data_to_the_page(tmp_path, capsys):
    write_table(tmp_path)
    file, out = write_suite(tmp_path), tmp_path / "out"
    words = ["bench", str(file), "--data", str(tmp_path), "--out", str(out), "--cells", "circle/flat-s0"]
    main(words)
    suite = load_suite(file)
    row = row_of(suite, suite.cells()[0], Places(out, tmp_path))
    assert row["train_cpu_seconds"] > 0 and row["peak_bytes"] > 1e7 and 0 <= row["HR@10"] <= row["unseen_HR@10"] <= 1
    assert "hf-gr sft --config" in row["commands"]
    assert "| flat | 1 |" in (out / "RESULTS.md").read_text()
    main([*words, "--list"])
    assert "done" in capsys.readouterr().out
    assert [step.cost() is not None for step in steps_of(suite, suite.cells()[0], Places(out, tmp_path))] == [True] * 6
    started = time.perf_counter()
    main(words)
    assert time.perf_counter() - started < 5
    with pytest.raises(SystemExit):
        main([*words, "--check"])
    assert "nothing to compare" in capsys.readouterr().err
