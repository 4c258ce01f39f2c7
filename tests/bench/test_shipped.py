"""Every command of every suite that is shipped is one that its station takes."""

from pathlib import Path

import pytest
from stations import STATIONS

from hf_gr.arguments import parse_config
from hf_gr.bench import Places, load_suite
from hf_gr.bench.steps import STATIONS as PROGRAM
from hf_gr.bench.steps import steps_of


ROOT = Path(__file__).parents[2]
SHIPPED = sorted(file.stem for file in (ROOT / "recipes" / "bench").glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_command_of_a_suite_is_read_by_its_station(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    suite = load_suite(name)
    read = set()
    for cell in suite.cells():
        if cell.seed != min(suite.seeds):
            continue
        for step in steps_of(suite, cell, Places(tmp_path, tmp_path)):
            if step.station in STATIONS and step.key not in read:
                parse_config(STATIONS[step.station], step.command[len(PROGRAM) + 1 :])
                read.add(step.key)
    assert read


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
