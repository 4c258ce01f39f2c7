"""Suites: what they say, what they refuse, and that those that are shipped name recipes that are there."""

from pathlib import Path

import pytest
import yaml
from bench.suites import write_suite

from hf_gr.bench import Places, load_suite
from hf_gr.bench.steps import steps_of
from hf_gr.bench.suite import shipped_suites
from hf_gr.errors import HfGrError


ROOT = Path(__file__).parents[2]


def test_seeds_come_after_methods_and_data_sets_may_have_their_own(tmp_path):
    suite = load_suite(write_suite(tmp_path, seeds=[3, 5]))
    assert [cell.name for cell in suite.cells()] == [
        "circle/flat-s3",
        "circle/wide-s3",
        "circle/flat-s5",
        "circle/wide-s5",
    ]
    assert [cell.name for cell in suite.chosen(["*/wide-s*"])] == ["circle/wide-s3", "circle/wide-s5"]
    data = yaml.safe_load(suite.file.read_text())["datasets"]["circle"] | {"seeds": [7]}
    assert [cell.seed for cell in load_suite(write_suite(tmp_path, datasets={"circle": data})).cells()] == [7, 7]
    methods = {"flat": {"lists": "ease", "seeds": [0]}, "wide": {"lists": "sasrec"}}
    one = load_suite(write_suite(tmp_path, methods=methods, seeds=[0, 1]))
    assert [cell.name for cell in one.cells()] == ["circle/flat-s0", "circle/wide-s0", "circle/wide-s1"]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"methods": {"flat": {"sft": "sft-flat", "epochs": 3}}}, "has no key 'epochs'"),
        ({"methods": {"flat": {"quantize": "quantize"}}}, "does nothing"),
        ({"methods": {"flat": {"from": "other"}}}, "no method of the suite"),
        ({"against": "nobody"}, "against is 'nobody'"),
        ({"seeds": []}, "names no seeds"),
        ({"colour": "red"}, "has no key 'colour'"),
        ({"seeds": 3}, "seeds is 3; give a list"),
        ({"methods": ["flat"]}, "methods is .*; give names"),
        ({"datasets": {"circle": {"recipes": "circle", "prepare": "table log.csv"}}}, "a list of words as prepare"),
        ({"methods": {"flat": {"from": "wide"}, "wide": {"from": "flat"}}}, "from itself .flat from wide from flat"),
        ({"evaluate": {"split": "temporal"}}, "one case a user"),
        ({"evaluate": {"exclude_seen": True}}, "exclude_seen is a key of the suite"),
    ],
)
def test_bad_suites_are_refused_in_a_line(tmp_path, changes, line):
    with pytest.raises(HfGrError, match=line):
        load_suite(write_suite(tmp_path, **changes))


def test_a_suite_without_settings_of_evaluate_has_none(tmp_path):
    assert load_suite(write_suite(tmp_path, evaluate=None)).evaluate == {}


def test_unknown_names_are_refused_in_a_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HfGrError, match="there is no suite 'nothing'"):
        load_suite("nothing")
    suite = load_suite(write_suite(tmp_path))
    with pytest.raises(HfGrError, match=r"no cell 'circle/nobody-s0'"):
        suite.chosen(["circle/nobody-s0"])
    with pytest.raises(HfGrError, match="name their folder with --data"):
        steps_of(suite, suite.cells()[0], Places(tmp_path / "out"))
    (tmp_path / "circle" / "sft-flat.yaml").unlink()
    with pytest.raises(HfGrError, match=r"needs .*sft-flat.yaml, which is not there"):
        steps_of(suite, suite.cells()[0], Places(tmp_path / "out", tmp_path))


def test_recipes_stand_beside_a_suite_or_ship_with_the_package(tmp_path, monkeypatch):
    data = {"prepare": ["table", "log.csv"]}
    sets = {"own": data | {"recipes": "circle"}, "known": data | {"recipes": "amazon-beauty"}}
    methods = {"flat": {"quantize": "quantize", "sft": {"recipe": "sft-flat", "max_steps": 2}}}
    suite = load_suite(write_suite(tmp_path, datasets=sets, methods=methods))
    monkeypatch.chdir(tmp_path / "circle")  # where nothing is called recipes
    own, known = (steps_of(suite, cell, Places(tmp_path / "out")) for cell in suite.cells())
    assert own[3].command[5] == str(tmp_path / "circle" / "sft-flat.yaml")
    assert known[3].command[5] == "amazon-beauty/sft-flat" and known[3].told.startswith("hf-gr sft --config amazon-")
    with pytest.raises(HfGrError, match="data set own needs recipes and prepare"):
        load_suite(write_suite(tmp_path, datasets={"own": {"recipes": "circle"}}))


def test_baselines_are_refused_where_there_is_no_checkout(tmp_path, monkeypatch):
    suite = load_suite(write_suite(tmp_path, methods={"ease": {"lists": "ease"}}, against=""))
    monkeypatch.chdir(ROOT)
    assert [step.stage for step in steps_of(suite, suite.cells()[0], Places(tmp_path, tmp_path))][1] == "lists"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HfGrError, match=r"method ease is computed by .* run the suite in a checkout"):
        steps_of(suite, suite.cells()[0], Places(tmp_path, tmp_path))


@pytest.mark.parametrize("name", shipped_suites())
def test_shipped_suites_find_their_recipes(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    suite = load_suite(name)
    assert set(suite.against) <= set(suite.methods)
    for cell in suite.cells():
        steps = steps_of(suite, cell, Places(tmp_path, tmp_path))
        assert steps[0].stage == "prepare" and steps[-1].stage == "evaluate"
