"""Nested settings: numbers, types and keys of every mapping that a stage takes."""

import math
from dataclasses import fields

import pytest
from transformers import PreTrainedConfig

from hf_gr.arguments import parse_config
from hf_gr.embedding.stage import EmbedConfig
from hf_gr.errors import HfGrError
from hf_gr.interests.mining import KINDS, MineConfig, _check
from hf_gr.models import RecursionConfig, ScratchConfig, ThinkingConfig
from hf_gr.quantizers.stage import METHODS, QuantizeConfig, new_quantizer
from hf_gr.rewards import parse_mix
from hf_gr.settings import mapping, nested, read_yaml, typed, types_of
from hf_gr.sft import SFT_CONFIGS, SidSFTConfig


def method_config(method: str, **given):
    config = QuantizeConfig("d", "e", "o", method=method, levels=6, codebook_size=4, method_config=given)
    return new_quantizer(config, 8, {"text": 5, "image": 3}).config


def method_keys(method: str) -> list[str]:
    inherited = {item.name for item in fields(PreTrainedConfig)} | {"dim", "codebook_sizes"}
    return [name for name in types_of(METHODS[method].config_class) if name not in inherited]


def miner(kind: str, **given):
    model = {} if kind == "keyphrase" else {"model": "m"}
    return _check(MineConfig("d", "o", miners={"one": {"kind": kind} | model | given}))


TAKERS = {
    **{f"method_config {name}": (lambda given, name=name: method_config(name, **given)) for name in METHODS},
    **{f"miner {kind}": (lambda given, kind=kind: miner(kind, **given)) for kind in KINDS},
    "thinking": ThinkingConfig.of_dict,
    "recursion": RecursionConfig.of_dict,
    "model": ScratchConfig.of,
    "tasks": lambda given: SidSFTConfig(output_dir="o", tasks=given),
    "rewards": parse_mix,
}
KEYS = {
    **{f"method_config {name}": method_keys(name) for name in METHODS},
    **{f"miner {kind}": [item.name for item in fields(settings)] for kind, settings in KINDS.items()},
    "thinking": [item.name for item in fields(ThinkingConfig)],
    "recursion": [item.name for item in fields(RecursionConfig)],
    "model": [item.name for item in fields(ScratchConfig)],
    "tasks": ["next_item", "title_to_sid"],
    "rewards": ["exact", "ranking"],
}


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.e-3", ".1e-2", "+1e-3", "0.001"])
def test_numbers_in_yaml_and_json_are_numbers(text):
    assert read_yaml(f"{{a: {text}}}") == {"a": 0.001}
    assert mapping("x", f'{{"a": {text}}}') == {"a": 0.001}


def test_words_in_yaml_stay_words():
    given = "{a: 1e, b: e5, c: no, d: off, e: i1e3, f: true, g: 12}"
    assert read_yaml(given) == {"a": "1e", "b": "e5", "c": "no", "d": "off", "e": "i1e3", "f": True, "g": 12}


@pytest.mark.parametrize("name", TAKERS)
def test_every_nested_setting_refuses_other_keys_and_types_by_name(name):
    with pytest.raises(HfGrError, match="no_such_key"):
        TAKERS[name]({"no_such_key": 1})
    for key in KEYS[name]:
        for value in ({"a": 1}, ["five", {}], 2.5j):  # no setting is any of these, but for fields of a request
            if key == "parameters" and isinstance(value, dict):
                continue
            with pytest.raises(HfGrError, match=key if key != "model" else "model"):
                TAKERS[name]({key: value})


@pytest.mark.parametrize("method", METHODS)
def test_every_number_of_a_quantizer_is_held_to_its_limits(method):
    types, values = types_of(METHODS[method].config_class), vars(METHODS[method].config_class())
    for key in method_keys(method):
        if types[key] not in (int, float):
            continue
        for value in (-1, math.nan, math.inf, "five", True):
            with pytest.raises(HfGrError, match=rf"\b{key} is "):
                method_config(method, **{key: value})
        assert method_config(method, **{key: values[key]}) is not None


def test_what_was_unforeseen_is_told_in_a_line():
    for method, given, told in [
        ("rq_vae", {"epochs": "five"}, r"epochs is 'five'; give a whole number"),
        ("rq_vae", {"hidden_sizes": 64}, r"hidden_sizes is 64; give a list of a whole number each"),
        ("rq_vae", {"hidden_sizes": [64, 0]}, r"hidden_sizes is \[64, 0\]; it must be at least 1"),
        ("rq_vae", {"batch_size": 0}, r"batch_size is 0; it must be at least 1"),
        ("rq_kmeans", {"n_iter": "x"}, r"n_iter is 'x'"),
        ("rq_kmeans", {"balance": "some"}, r"balance is 'some'; give one of none, last, all"),
        ("r3_vae", {"revive": 1}, r"revive is 1; give true or false"),
        ("coba", {"alpha": 1.5}, r"alpha is 1.5; it must be a number from 0 to 1"),
    ]:
        with pytest.raises(HfGrError, match=told):
            method_config(method, **given)
    assert method_config("rq_vae", epochs=1e2, learning_rate=1e-3).epochs == 100


def test_a_file_is_typed_as_the_options_are(tmp_path):
    file = tmp_path / "embed.yaml"
    file.write_text("dataset: d\noutput_dir: o\nsources: [text, behavior]\nweights: [1e-1, 2]\n")
    assert parse_config(EmbedConfig, ["--config", str(file)]).weights == [0.1, 2]
    for line, told in [
        ("weights: [1, two]", r"embed.yaml: weights is \[1, 'two'\]"),
        ("behavior_dim: 5.5", "embed.yaml: behavior_dim is 5.5; give a whole number"),
        ("behavior_dim: five", "behavior_dim"),
        ("no_such: 1", "embed.yaml: there is no setting 'no_such'"),
        ("- a", "not valid YAML"),
    ]:
        file.write_text(f"dataset: d\noutput_dir: o\n{line}\n")
        with pytest.raises(HfGrError, match=told):
            parse_config(EmbedConfig, ["--config", str(file)])
    sft = tmp_path / "sft.yaml"
    sft.write_text("output_dir: o\neval_strategy: no\nlearning_rate: 1e-3\ntasks: {next_item: 1e0}\n")
    _, _, config = parse_config(SFT_CONFIGS, ["--config", str(sft)])
    assert (config.eval_strategy, config.learning_rate, config.tasks) == ("no", 1e-3, {"next_item": 1.0})


def test_typed_reads_unions_and_lists():
    assert typed("x", None, float | None) is None and typed("x", 3, float | None) == 3
    assert typed("x", [1, 3.0], tuple[int, int]) == (1, 3)
    assert nested(ThinkingConfig, {"align": 1e-2}, "thinking").align == 0.01
    with pytest.raises(HfGrError, match="x is 'a'; give a finite number or null"):
        typed("x", "a", float | None)
