"""Every recipe is one that its stage takes, and the recipes of a data set fit together."""

import pytest
import yaml
from stages import STAGES

from hf_gr.arguments import RECIPES, parse_config
from hf_gr.embedding import EmbedConfig
from hf_gr.errors import HfGrError
from hf_gr.sft.config import check_together


FILES = sorted(RECIPES.glob("*/*.yaml"))
SETS = sorted({file.parent for file in FILES if file.stem == "sft-flat"})
UNORDERED = sorted({file.parent for file in FILES if file.stem == "sft-reg4rec"})
MINED = sorted({file.parent for file in FILES if file.stem == "mine"})


def test_a_recipe_is_named_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = parse_config(EmbedConfig, ["--config", "amazon-beauty/embed"])
    assert shipped == parse_config(EmbedConfig, ["--config", str(RECIPES / "amazon-beauty" / "embed.yaml")])
    for name in ("amazon-beauty/embeds", "amazon-beauty/embed.yaml", "../recipes/amazon-beauty/embed", "shop/embed"):
        with pytest.raises(HfGrError, match=rf"{name} cannot be read .* \(data sets: amazon-beauty, .*movielens-100k"):
            parse_config(EmbedConfig, ["--config", name])
    (tmp_path / "amazon-beauty").mkdir()
    (tmp_path / "amazon-beauty" / "embed").write_text("dataset: mine\noutput_dir: vectors\n")
    assert parse_config(EmbedConfig, ["--config", "amazon-beauty/embed"]).dataset == "mine"


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_a_recipe_is_read_by_its_stage(file):
    given = yaml.safe_load(file.read_text())
    parsed = parse_config(STAGES[file.stem.split("-")[0]], ["--config", str(file)])
    configs = parsed if isinstance(parsed, tuple) else (parsed,)
    settings = {key: value for config in configs for key, value in vars(config).items()}
    for key, value in given.items():
        assert settings[key] == value, key
    if file.stem.startswith("sft"):
        check_together(*configs)
        config = configs[1]
        assert (config.heads is not None) == (config.form == "stepwise") == ("s2gr" in file.stem)
        assert (config.form == "unordered") == ("reg4rec" in file.stem)
        assert (config.form == "recursive") == ("intrr" in file.stem or "hybrid" in file.stem)


@pytest.mark.parametrize("folder", SETS, ids=lambda folder: folder.name)
def test_the_recipes_of_a_data_set_fit_together(folder):
    given = {file.stem: yaml.safe_load(file.read_text()) for file in folder.glob("*.yaml")}
    assert {
        "sft-flat",
        "sft-flat-small",
        "sft-s2gr",
        "sft-s2gr-small",
        "embed",
        "quantize",
        "evaluate",
    } <= given.keys()
    for name in ("grpo", "grpo-small", "grpo-s2gr", "grpo-s2gr-small") if folder.name != "amazon-sports" else ():
        sft = given[name.replace("grpo", "sft") if "s2gr" in name else name.replace("grpo", "sft-flat")]
        assert given[name]["model"] == f"{sft['output_dir']}/model"
    assert len({recipe["dataset"] for recipe in given.values()}) == 1
    for name, recipe in given.items():
        if name.startswith("sft"):
            kind = "-interests" if "interests" in name else "-mpq" if "reg4rec" in name else ""
            assert recipe["catalog"] == given[f"quantize{kind}"]["output_dir"]
    for size in ("", "-small"):  # what is compared differs in the thinking alone
        flat, thinking = given[f"sft-flat{size}"], given[f"sft-s2gr{size}"]
        differing = {key for key in flat | thinking if flat.get(key) != thinking.get(key)}
        assert differing == {"form", "thinking", "output_dir"}


@pytest.mark.parametrize("folder", UNORDERED, ids=lambda folder: folder.name)
def test_the_recipes_of_sets_fit_together(folder):
    given = {file.stem: yaml.safe_load(file.read_text()) for file in folder.glob("*.yaml")}
    assert given["quantize-mpq"]["embeddings"] == given["embed"]["output_dir"]
    for size in ("", "-small"):
        flat, sets = given[f"sft-flat{size}"], given[f"sft-reg4rec{size}"]
        differing = {key for key in flat | sets if flat.get(key) != sets.get(key)}
        assert differing == {"form", "confident_orders", "set_credit", "catalog", "output_dir"}
        assert given[f"grpo-reg4rec{size}"]["model"] == f"{sets['output_dir']}/model"


@pytest.mark.parametrize("folder", MINED, ids=lambda folder: folder.name)
def test_the_recipes_with_interests_fit_together(folder):
    given = {file.stem: yaml.safe_load(file.read_text()) for file in folder.glob("*.yaml")}
    assert given["label"]["interests"] == given["mine"]["output_dir"]
    stages = ("embed-interests", "sft-interests", "sft-interests-small", "grpo-interests", "grpo-interests-small")
    assert {given[name]["interests"] for name in stages} == {given["label"]["output_dir"]}
    assert given["quantize-interests"]["embeddings"] == given["embed-interests"]["output_dir"]
    for size in ("", "-small"):
        sft, grpo = given[f"sft-interests{size}"], given[f"grpo-interests{size}"]
        assert sft["catalog"] == given["quantize-interests"]["output_dir"]
        assert grpo["model"] == f"{sft['output_dir']}/model"
    assert len({recipe["dataset"] for recipe in given.values()}) == 1
