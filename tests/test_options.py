"""No option is ignored: every one that configs inherit acts, concerns the run alone, or is refused with the reason."""

from dataclasses import fields

import pytest
from tiny_runs import grpo_configs, rank_configs, retrieve_configs, sft_configs
from transformers import TrainingArguments
from trl import GRPOConfig, SFTConfig

from hf_gr import options
from hf_gr.errors import HfGrError
from hf_gr.grpo import SidGRPOConfig
from hf_gr.options import default_of
from hf_gr.ranking import RankConfig
from hf_gr.retrieval import RetrieveConfig
from hf_gr.runs import changed_settings
from hf_gr.sft import SidSFTConfig
from hf_gr.training import DataConfig


KINDS = {
    SidSFTConfig: (SFTConfig, options.USED_BY_SFT, options.REFUSED_BY_SFT),
    SidGRPOConfig: (GRPOConfig, options.USED_BY_GRPO, options.REFUSED_BY_GRPO),
    RetrieveConfig: (TrainingArguments, options.USED, options.REFUSED_BY_RETRIEVE),
    RankConfig: (TrainingArguments, options.USED, options.REFUSED_BY_RANK),
}
CASES = [(kind, name) for kind, (_, _, refused) in KINDS.items() for name in refused]


@pytest.mark.parametrize("kind", KINDS)
def test_every_inherited_option_is_classified(kind):
    """A release of TRL or transformers with a new option fails here, until somebody has looked at what it does."""
    inherited, used, refused = KINDS[kind]
    names = {item.name for item in fields(inherited)}
    assert not used & refused.keys()
    assert names == (names & (used | options.RUN_ONLY)) | refused.keys(), "neither used, run-only nor refused"


def other_than(value):
    """Some value that is not the default."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return "another" if not isinstance(value, list) else ["another"]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_an_option_without_meaning_is_refused_by_name(kind, name):
    default = next(default_of(item) for item in fields(kind) if item.name == name)
    with pytest.raises(HfGrError, match=f"{name} has no effect here: .+; leave it out"):
        kind(output_dir="x", **{name: other_than(default)})


def test_an_option_of_a_later_release_is_refused(monkeypatch):
    monkeypatch.setattr("hf_gr.retrieval.config.USED", options.USED - {"seed"})
    with pytest.raises(HfGrError, match="seed is new in transformers, and not used here"):
        RetrieveConfig(output_dir="x", seed=7)


IDLE = [
    (sft_configs, {"lora_r": 8}, "finetune: lora"),
    (sft_configs, {"target_decay": 0.9}, "target_steps above 1"),
    (sft_configs, {"trunk_weight": 1.0}, "answers on branches"),
    (sft_configs, {"set_credit": "next"}, "form: unordered"),
    (sft_configs, {"confident_orders": 0.5}, "form: unordered"),
    (sft_configs, {"eval_steps": 5}, "an eval_strategy"),
    (sft_configs, {"metric_for_best_model": "eval_loss"}, "patience"),
    (grpo_configs, {"max_refills": 3}, "zero_variance: refill"),
    (grpo_configs, {"eval_users": 5}, "an eval_strategy"),
    (grpo_configs, {"sapo_temperature_neg": 2.0}, "loss_type: sapo"),
    (grpo_configs, {"vespo_k_neg": 2.0}, "loss_type: vespo"),
    (grpo_configs, {"ref_model_sync_steps": 5}, "sync_ref_model"),
    (grpo_configs, {"sync_ref_model": True, "beta": 0.0}, "beta above 0"),
    (grpo_configs, {"entropy_target": 0.5}, "use_adaptive_entropy"),
    (grpo_configs, {"eval_strategy": "steps", "eval_steps": 5, "save_steps": 3}, "no eval_strategy"),
    (retrieve_configs, {"patience": 0, "metric_for_best_model": "HR@10"}, "patience"),
    (retrieve_configs, {"patience": 0, "eval_strategy": "no", "eval_steps": 7}, "an eval_strategy"),
    (rank_configs, {"labels": "ratings", "negatives": 7}, "labels: drawn"),
    (rank_configs, {"labels": "drawn", "positive_rating": 4.0}, "labels: ratings"),
    (rank_configs, {"item_as": "id", "sid_as": "codes"}, "item_as: sid or both"),
    (rank_configs, {"sid_as": "prefixes", "codes": "frozen"}, "codes among"),
    (rank_configs, {"sid_as": "codes", "buckets": 7}, "prefixes among"),
    (rank_configs, {"deep_sizes": [], "gates": True}, "deep_sizes"),
]


@pytest.mark.parametrize(("kind", "given", "needs"), IDLE)
def test_an_option_whose_condition_is_not_met_is_refused(kind, given, needs):
    with pytest.raises(HfGrError, match=f"acts only with .*{needs}"):
        kind(output_dir="x", **given)


NUMBERS = [
    *[(kind, {"learning_rate": value}) for kind in KINDS for value in (-1.0, float("nan"), float("inf"))],
    *[(kind, {"per_device_train_batch_size": 0}) for kind in KINDS],
    *[(kind, {"gradient_accumulation_steps": 0}) for kind in KINDS],
    *[(sft_configs, {"max_history": value}) for value in (0, -1)],
    (sft_configs, {"finetune": "lora", "lora_r": 0}),
    (sft_configs, {"tasks": {"next_item": -1}}),
    (sft_configs, {"tasks": {"next_item": "often"}}),
    (grpo_configs, {"num_generations": 0}),
    (grpo_configs, {"num_generations": 1}),
    (grpo_configs, {"num_generations": None}),
    (grpo_configs, {"temperature": 0}),
    (grpo_configs, {"prompts_per_user": 0}),
    (retrieve_configs, {"num_train_epochs": -1}),
]


@pytest.mark.parametrize(("kind", "given"), NUMBERS)
def test_numbers_that_no_training_can_have_are_refused_by_name(kind, given):
    with pytest.raises(HfGrError, match=list(given)[-1]):
        kind(output_dir="x", **given)


def test_metrics_that_are_not_measured_are_refused():
    with pytest.raises(HfGrError, match=r"there are HR@1, .*, NDCG@50, eval_loss"):
        SidSFTConfig(
            output_dir="x", eval_strategy="epoch", save_strategy="epoch", patience=2, metric_for_best_model="f1"
        )
    with pytest.raises(HfGrError, match="there are HR@1"):
        RetrieveConfig(output_dir="x", metric_for_best_model="loss")
    assert RetrieveConfig(output_dir="x", metric_for_best_model="HR@10").metric_for_best_model == "HR@10"


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_is_warned_of_what_nobody_has_set(kind, recwarn):
    kind(output_dir="x")
    assert not [warning for warning in recwarn if "checkpointing" in str(warning.message)]


def test_when_checkpoints_are_written_counts_where_the_best_is_taken():
    given = {"output_dir": "x", "save_strategy": "steps", "save_steps": 4}
    assert "save_steps" not in changed_settings(SidSFTConfig(**given))
    best = {"eval_strategy": "steps", "eval_steps": 4, "patience": 2}
    assert changed_settings(SidSFTConfig(**given, **best))["save_steps"] == 4
    assert changed_settings(DataConfig())["split"] == "leave_one_out"  # also where it is the default
