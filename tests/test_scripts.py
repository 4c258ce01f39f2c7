"""Trainers in a script, on histories and a catalog, do what their stages do; settings stand apart and stay."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import TinyData, grpo_configs, sft_configs, tiny_data
from transformers import AutoModelForCausalLM

from hf_gr.arguments import configs_of, parse_config
from hf_gr.catalog import SidCatalog
from hf_gr.dataset import InteractionDataset
from hf_gr.errors import HfGrError
from hf_gr.grpo import SidGRPOTrainer, grpo, training_prompts
from hf_gr.hub import save_repo
from hf_gr.sft import SFT_CONFIGS, SidDataConfig, SidModelConfig, SidSFTConfig, SidSFTTrainer, sft, starting_model
from hf_gr.training import load_lm
from hf_gr.vocabulary import SidVocabulary


EVALUATED = {"eval_strategy": "steps", "eval_steps": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TinyData:
    return tiny_data(tmp_path_factory.mktemp("scripts"))


def settings_of(config) -> dict:
    return copy.deepcopy({name: value for name, value in vars(config).items() if name != "distributed_state"})


def same_weights(one, other) -> bool:
    ours, theirs = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_sft_in_a_script_is_that_of_the_stage(data, tmp_path):
    settings = data.sft(tmp_path / "stage", max_steps=8, tasks={"next_item": 1, "title_to_sid": 0.5}, **EVALUATED)
    stage = sft(*sft_configs(**settings))
    _, start, args = sft_configs(**settings | {"output_dir": str(tmp_path / "script")})
    catalog = SidCatalog.load(data.catalog)
    split = InteractionDataset.load(data.dataset).aligned(catalog.item_ids).split()
    model, tokenizer, vocabulary = starting_model(start, catalog, split.train, args.seed)
    before = settings_of(args)
    given = {"catalog": catalog, "vocabulary": vocabulary, "processing_class": tokenizer}
    trainer = SidSFTTrainer(model, args, **given, train_dataset=split.train, eval_dataset=split.validation)
    trainer.train()
    save_repo(tmp_path / "script" / "model", trainer.model, tokenizer, catalog, vocabulary)
    assert same_weights(tmp_path / "script" / "model", stage)
    assert settings_of(args) == before
    assert [entry["step"] for entry in trainer.state.log_history if "eval_NDCG@10" in entry] == [4, 8]


def test_grpo_in_a_script_is_that_of_the_stage(data, tmp_path):
    start = sft(*sft_configs(**data.sft(tmp_path / "sft", max_steps=20)))
    settings = data.grpo(tmp_path / "stage", start, learning_rate=1e-3, **EVALUATED)
    stage = grpo(*grpo_configs(**settings))
    *_, args = grpo_configs(**settings | {"output_dir": str(tmp_path / "script")})
    catalog, vocabulary = SidCatalog.load(start), SidVocabulary.load(start)
    split = InteractionDataset.load(data.dataset).aligned(catalog.item_ids).split()
    model, tokenizer = load_lm(str(start))
    before = settings_of(args)
    given = {"catalog": catalog, "vocabulary": vocabulary, "processing_class": tokenizer}
    trainer = SidGRPOTrainer(model, args, **given, train_dataset=split.train, eval_dataset=split.validation)
    trainer.train()
    folder = tmp_path / "script" / "model"
    save_repo(folder, trainer.model, tokenizer, catalog, vocabulary)
    assert settings_of(args) == before
    best = stage if trainer.state.best_global_step else start
    assert same_weights(folder if trainer.state.best_global_step else start, best)
    assert len([entry for entry in trainer.state.log_history if "eval_NDCG@10" in entry]) == 2
    with pytest.raises(HfGrError, match="train_dataset holds prompts, which say nothing of items; pass items="):
        prompts = training_prompts(split.train, catalog, vocabulary, 1)
        SidGRPOTrainer(AutoModelForCausalLM.from_pretrained(start), args, **given, train_dataset=prompts)


def test_the_trainers_settings_hold_nothing_but_how_to_train(tmp_path):
    """TRL's parser reads the three side by side, which only works while they share no name."""
    names = [set(vars(kind(**{"output_dir": "x"} if kind is SidSFTConfig else {}))) for kind in SFT_CONFIGS]
    assert not names[0] & names[1] and not (names[0] | names[1]) & names[2]
    assert {"dataset", "catalog", "split", "interests"} <= names[0]
    assert {"model", "form", "finetune", "lora_r", "max_history", "thinking"} <= names[1]
    file = tmp_path / "sft.yaml"
    file.write_text("dataset: d\nform: stepwise\nmodel: {architecture: qwen3}\nlearning_rate: 1e-4\noutput_dir: o\n")
    data, model, args = parse_config(SFT_CONFIGS, ["--config", str(file), "--split", "temporal", "--lora_r", "16"])
    assert (type(data), type(model), type(args)) == (SidDataConfig, SidModelConfig, SidSFTConfig)
    assert (data.dataset, data.split) == ("d", "temporal") and (model.form, model.model) == (
        "stepwise",
        {"architecture": "qwen3"},
    )
    assert (args.learning_rate, args.output_dir) == (1e-4, "o")
    file.write_text("no_such: 1\n")
    with pytest.raises(HfGrError, match="there is no setting 'no_such'"):
        parse_config(SFT_CONFIGS, ["--config", str(file)])
    with pytest.raises(HfGrError, match="there is no setting 'no_such'; SidDataConfig, SidModelConfig, SidSFTConfig"):
        configs_of(SFT_CONFIGS, output_dir="o", no_such=1)
