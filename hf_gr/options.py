"""Options that configs inherit from TRL and transformers: which act here, which change no model, and which would do
nothing and are refused with the reason.

Every inherited option stands in exactly one of the sets below (`tests/test_options.py`), so that one which a later
release of TRL or transformers brings is refused until somebody has looked at what it does here.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from .errors import HfGrError


# They shape the model, in every training.
USED = frozenset({
    "per_device_train_batch_size", "num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type",
    "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args", "optim_target_modules", "weight_decay", "adam_beta1",
    "adam_beta2", "adam_epsilon", "gradient_accumulation_steps", "max_grad_norm", "bf16", "fp16", "tf32",
    "torch_compile", "torch_compile_backend", "torch_compile_mode", "eval_strategy", "eval_steps", "eval_delay",
    "per_device_eval_batch_size", "eval_on_start", "load_best_model_at_end", "metric_for_best_model",
    "ignore_data_skip", "restore_callback_states_from_checkpoint", "full_determinism", "seed",
    "accelerator_config", "fsdp", "fsdp_config", "deepspeed",
})  # fmt: skip
_USED_BY_LMS = {
    "activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing",
    "gradient_checkpointing_kwargs", "neftune_noise_alpha", "dataloader_drop_last",
}  # fmt: skip
USED_BY_SFT = USED | _USED_BY_LMS | {
    "average_tokens_across_devices", "auto_find_batch_size", "data_seed", "train_sampling_strategy", "max_length",
}  # fmt: skip
USED_BY_GRPO = USED - {"load_best_model_at_end", "eval_on_start"} | _USED_BY_LMS | {
    "disable_dropout", "num_generations", "shuffle_dataset", "generation_batch_size", "steps_per_generation",
    "temperature", "beta", "num_iterations", "epsilon", "delta", "epsilon_high", "sapo_temperature_neg",
    "sapo_temperature_pos", "vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg",
    "importance_sampling_level", "multi_objective_aggregation", "scale_rewards", "loss_type", "sync_ref_model",
    "ref_model_mixup_alpha", "ref_model_sync_steps", "top_entropy_quantile", "entropy_coef", "use_adaptive_entropy",
    "entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target", "off_policy_mask_threshold",
    "use_bias_correction_kl",
}  # fmt: skip

# They say where a run goes, how it is watched, stored and spread over a machine, and do not change the model.
RUN_ONLY = frozenset({
    "output_dir", "run_name", "report_to", "project", "trackio_space_id", "trackio_bucket_id",
    "trackio_static_space_id", "logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node",
    "log_level", "log_level_replica", "disable_tqdm", "include_num_input_tokens_seen", "save_strategy", "save_steps",
    "save_total_limit", "save_on_each_node", "enable_jit_checkpoint", "use_cpu", "local_rank",
    "torch_empty_cache_steps", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context", "dataloader_in_order", "ddp_find_unused_parameters", "ddp_bucket_cap_mb",
    "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend", "ddp_timeout", "debug", "skip_memory_metrics",
    "activation_offloading",
})  # fmt: skip

_PUSH = "a checkpoint is no model repo; push the finished model with `hf-gr push`"
_METRICS = "evaluation here computes no metrics from gathered predictions"
_COLUMNS = "rows have columns of their own, which all are read"
_EXAMPLE = "it is a flag of example scripts; a training trains, and eval_strategy says when it evaluates"
_LIGER = "the loss that Liger puts in a model's forward is not the one that is computed here"
_FULL_EVAL = "evaluations are part of a training, which keeps its arithmetic; set bf16 or fp16"
# Refused in every training, and why.
REFUSED = {
    "label_smoothing_factor": "the loss is the plain cross-entropy of answers",
    "bf16_full_eval": _FULL_EVAL,
    "fp16_full_eval": _FULL_EVAL,
    "use_liger_kernel": _LIGER,
    "liger_kernel_config": _LIGER,
    "use_cache": "training keeps no cache, and searches always do",
    "logging_nan_inf_filter": "a run stops at a loss that is not finite, which must not be hidden",
    "prediction_loss_only": _METRICS,
    "eval_do_concat_batches": _METRICS,
    "eval_use_gather_object": _METRICS,
    "eval_accumulation_steps": _METRICS,
    "include_for_metrics": _METRICS,
    "batch_eval_metrics": _METRICS,
    "label_names": _COLUMNS,
    "remove_unused_columns": _COLUMNS,
    "greater_is_better": "it follows from the metric: a loss is better the lower, HR and NDCG the higher they are",
    "length_column_name": "lengths are counted, not read from a column",
    "save_only_model": "checkpoints are there to go on from, which needs the optimizer's state",
    "push_to_hub": _PUSH,
    "hub_token": _PUSH,
    "hub_private_repo": _PUSH,
    "hub_model_id": _PUSH,
    "hub_strategy": _PUSH,
    "hub_always_push": _PUSH,
    "hub_revision": _PUSH,
    "parallelism_config": "training runs under DDP, FSDP or DeepSpeed; set those",
    "do_train": _EXAMPLE,
    "do_eval": _EXAMPLE,
    "do_predict": _EXAMPLE,
    "resume_from_checkpoint": "the same settings go on from their own last checkpoint by themselves",
}

_OF_LMS = {
    "model_init_kwargs": "the model is loaded with float32 weights; attention sets its attention",
    "trust_remote_code": "models with code of their own are not loaded",
    "router_aux_loss_coef": "the loss has no term that balances experts",
    "pad_to_multiple_of": "rows are padded to the longest of a batch",
}
_TEXTS = "rows are semantic IDs put together by id, not texts of a dataset"
_PACKING = "several answers share a row already; fill_rows puts several users on one"
REFUSED_BY_SFT = REFUSED | _OF_LMS | {
    "chat_template_path": _TEXTS,
    "dataset_text_field": _TEXTS,
    "dataset_kwargs": _TEXTS,
    "dataset_num_proc": _TEXTS,
    "eos_token": "texts end with the tokenizer's own eos_token; set it in the model's folder",
    "pad_token": "rows are padded outside of attention and loss, with any token",
    "truncation_mode": "a history that is too long is split, not cut",
    "shuffle_dataset": "batches are drawn at random already (train_sampling_strategy)",
    "packing": _PACKING,
    "packing_strategy": _PACKING,
    "padding_free": _PACKING,
    "eval_packing": _PACKING,
    "completion_only_loss": "only answers count in the loss, always",
    "assistant_only_loss": "only answers count in the loss, always",
    "loss_type": "the loss is `loss`: constrained or full",
}  # fmt: skip
_SEARCH = "rollouts are drawn by the constrained search, which takes temperature and rollout alone"
_LOGGED = "completions are semantic IDs, which TRL's table shows as empty texts; training_log.json has their figures"
_GROUPS = "prompts are drawn in groups by GRPO's own sampler"
_VLLM = "rollouts come from the constrained policy in the process, not from vLLM"
REFUSED_BY_GRPO = REFUSED | _OF_LMS | {
    "average_tokens_across_devices": "GRPO's loss counts the tokens of all devices by itself",
    "auto_find_batch_size": "a smaller batch would tear a prompt's rollouts apart",
    "data_seed": _GROUPS,
    "train_sampling_strategy": _GROUPS,
    "cast_lm_head_to_fp32": "weights are float32 already",
    "load_best_model_at_end": "with an eval_strategy the best of what was measured is kept, always",
    "eval_on_start": "with an eval_strategy the start is measured, always",
    "num_generations_eval": "evaluation is a search on validation users, not rollouts",
    "max_completion_length": "an answer is as long as a semantic ID",
    "ds3_gather_for_generation": "the search needs whole weights",
    "top_p": _SEARCH,
    "top_k": _SEARCH,
    "min_p": _SEARCH,
    "generation_kwargs": _SEARCH,
    "chat_template_kwargs": "prompts are token ids, not chats",
    "repetition_penalty": _SEARCH,
    "cache_implementation": _SEARCH,
    "reward_weights": "weights stand beside the rewards: {exact: 1, prefix: 0.3}",
    "mask_truncated_completions": "no semantic ID ends in an end-of-text token, so that all would count as truncated",
    "max_tool_calling_iterations": "a recommender calls no tools",
    "log_completions": _LOGGED,
    "log_multimodal": _LOGGED,
    "num_completions_to_print": _LOGGED,
    "log_unique_prompts": _LOGGED,
    "log_completions_hub_repo": _LOGGED,
    "use_transformers_continuous_batching": _SEARCH,
    "transformers_continuous_batching_config": _SEARCH,
    "use_transformers_paged": _SEARCH,
    "use_vllm": _VLLM,
    **dict.fromkeys((
        "vllm_mode", "vllm_model_impl", "vllm_enable_sleep_mode", "vllm_structured_outputs_regex",
        "vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout", "vllm_group_port",
        "vllm_gpu_memory_utilization", "vllm_max_model_length", "vllm_tensor_parallel_size",
        "vllm_importance_sampling_correction", "vllm_importance_sampling_mode", "vllm_importance_sampling_clip_max",
        "vllm_importance_sampling_clip_min", "vllm_importance_sampling_cap",
    ), _VLLM),
}  # fmt: skip
_ROWS = "rows of about the same length share a batch, in an order that `seed` gives"
_WORKERS = "rows are small arrays in memory; dataloader_num_workers is all there is to set"
_SMALL = "retrievers and click models are no language models, and small"
REFUSED_BY_RETRIEVE = REFUSED | {
    "average_tokens_across_devices": "the loss is the mean of each device's batch",
    "auto_find_batch_size": "batches are made by per_device_train_batch_size alone",
    "data_seed": _ROWS,
    "train_sampling_strategy": _ROWS,
    "dataloader_drop_last": _ROWS,
    "dataloader_persistent_workers": _WORKERS,
    "dataloader_prefetch_factor": _WORKERS,
    "dataloader_multiprocessing_context": _WORKERS,
    "dataloader_in_order": _WORKERS,
    "activation_checkpointing": _SMALL,
    "activation_checkpointing_kwargs": _SMALL,
    "gradient_checkpointing": _SMALL,
    "gradient_checkpointing_kwargs": _SMALL,
    "neftune_noise_alpha": _SMALL,
}
_DRAWN_ROWS = "rows of training come in an order that `seed` gives, all of them"
REFUSED_BY_RANK = REFUSED_BY_RETRIEVE | {
    "data_seed": _DRAWN_ROWS,
    "train_sampling_strategy": _DRAWN_ROWS,
    "dataloader_drop_last": _DRAWN_ROWS,
}


def check_inherited(config: Any, inherited: type, used: frozenset[str], refused: Mapping[str, str]) -> None:
    """Raises [`HfGrError`] on inherited options that would do nothing and differ from their default.

    Args:
        config: Dataclass as it was given, before the parents' own `__post_init__`.
        inherited: Class of TRL or transformers whose fields are looked at.
        used: Options that act.
        refused: Options that do not, and why; they count before [`RUN_ONLY`], which all trainings share.
    """
    names = {item.name for item in dataclasses.fields(inherited)}
    for item in dataclasses.fields(config):
        if item.name not in names or vars(config)[item.name] == default_of(item):
            continue
        if item.name in refused:
            raise HfGrError(f"{item.name} has no effect here: {refused[item.name]}; leave it out.")
        if item.name not in used | RUN_ONLY:
            raise HfGrError(
                f"{item.name} is new in {inherited.__module__.split('.')[0]}, and not used here; leave it out."
            )


def check_idle(config: Any, needs: Mapping[str, tuple[bool, str]]) -> None:
    """Raises [`HfGrError`] on options that differ from their default and whose condition is not met.

    Args:
        config: Dataclass.
        needs: Option → whether it acts, and what it needs in words: `"finetune: lora"`.
    """
    for item in dataclasses.fields(config):
        met, told = needs.get(item.name, (True, ""))
        value = vars(config)[item.name]
        if not met and value != default_of(item):
            raise HfGrError(f"{item.name} is {value!r}, but acts only with {told}; leave it out, or set that.")


def check_range(config: Any, limits: Mapping[str, tuple[float, float]]) -> None:
    """Raises [`HfGrError`] on numbers outside their limits (lowest, highest); `None` is in all of them."""
    for name, (low, high) in limits.items():
        value = vars(config)[name]
        if value is not None and not low <= value <= high:
            raise HfGrError(f"{name} is {value}; it lies between {low:,.10g} and {high:,.10g}.")


def default_of(item: dataclasses.Field) -> Any:
    """Default of a dataclass's field."""
    return item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
