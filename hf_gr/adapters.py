"""Adapters: the LoRA a training puts on a model, and the plain model it ends with."""

import copy
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.utils import is_bitsandbytes_available

from .artifacts import writing
from .decoding import check_model
from .errors import HfGrError, first_line
from .models import check_window, fixed_parts, is_tied, new_parts, window_of
from .training import LmConfig, is_sharded
from .vocabulary import SidVocabulary


def tuned(
    model: PreTrainedModel, vocabulary: SidVocabulary, config: LmConfig, base: Path
) -> tuple[PreTrainedModel, LoraConfig | None]:
    """The model that a run starts from and, unless all weights are tuned, the adapter its trainer puts on it.

    `base` is a scratch folder in the run: a 4-bit model is loaded from the full-precision one saved there, which is
    also what the adapter is merged into at the end.

    Raises:
        HfGrError: If the model cannot be trained and searched by one distribution ([`check_model`]), reads too few
            positions for the longest history, or cannot have the adapter.
    """
    check_model(model, vocabulary.token_ids)
    _check_histories(model, vocabulary)
    if config.finetune == "full":
        return model, None
    adapter = lora_config(model, vocabulary, config)
    _try_adapter(model, adapter)
    with PartialState().main_process_first():
        if not base.is_dir():
            with writing(base, "base") as folder:
                model.save_pretrained(folder)
    if config.finetune == "qlora":
        if not is_bitsandbytes_available():
            raise HfGrError(
                "finetune is 'qlora', but bitsandbytes is not installed; install hf-gr[quant], or use lora."
            )
        apart = new_parts(model)
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=["lm_head", *fixed_parts(model), *apart] if apart else None,
        )
        model = AutoModelForCausalLM.from_pretrained(
            base, quantization_config=quantization, dtype=torch.float32, attn_implementation=config.attention
        )
    return model, adapter


def _check_histories(model: PreTrainedModel, vocabulary: SidVocabulary) -> None:
    """Raises [`HfGrError`] if a model cannot read a history of `max_history` events with an answer."""
    event, answer = vocabulary.widths
    other = len(vocabulary.opening) + answer
    check_window(
        model,
        other + vocabulary.max_history * event,
        f"a history of {vocabulary.max_history} events with an answer",
        f"lower max_history, to {max(0, ((window_of(model) or 0) - other) // event)} at most",
    )


def lora_config(model: PreTrainedModel, vocabulary: SidVocabulary, config: LmConfig) -> LoraConfig:
    """LoRA on the chosen modules, with the new token rows (and those of an untied head) trained in full.

    Raises:
        HfGrError: On a rank below 1, and on modules that train otherwise.
    """
    if config.lora_r < 1:
        raise HfGrError(f"lora_r is {config.lora_r}; give a rank of at least 1.")
    ends = [model.get_input_embeddings(), *([] if is_tied(model) else [model.get_output_embeddings()])]
    rows = {name: vocabulary.token_ids for name, module in model.named_modules() if any(module is end for end in ends)}
    modules: str | list[str] = config.lora_target_modules
    if modules != "all-linear":
        modules = [name.strip() for name in config.lora_target_modules.split(",")]
        if clash := [name for name in modules if any(f".{row}".endswith(f".{name}") for row in rows)]:
            raise HfGrError(
                f"lora_target_modules names {clash[0]!r}, whose rows of the new tokens are trained in full; leave it "
                "out."
            )
    return LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=modules,
        trainable_token_indices=rows,
        task_type="CAUSAL_LM",
        **_own_parts(model),
    )


def _try_adapter(model: PreTrainedModel, adapter: LoraConfig) -> None:
    """Puts the adapter on a model of the same config without weights. Raises [`HfGrError`] where that fails."""
    with torch.device("meta"):
        empty = type(model)(copy.deepcopy(model.config))
        try:
            get_peft_model(empty, copy.deepcopy(adapter))
        except (ValueError, TypeError, NotImplementedError) as error:
            raise HfGrError(
                f"{model.config.model_type} cannot have the adapter ({first_line(error)}); name other "
                "lora_target_modules, or set finetune: full."
            ) from None


def _own_parts(model: PreTrainedModel) -> dict[str, Any]:
    """What stands beside a pretrained backbone is new, and trained in full: no adapter goes there."""
    new = new_parts(model)
    if not new:
        return {}
    apart = "|".join(part.replace(".", r"\.") for part in (*new, *fixed_parts(model)))
    return {"modules_to_save": new, "exclude_modules": rf"(.*\.)?({apart})\..*"}


def merge_adapter(model: PreTrainedModel, base: Path) -> PreTrainedModel:
    """A plain model: adapters merged into the full-precision weights they were started from."""
    if not isinstance(model, PeftModel):
        return model
    adapter = base.with_name("adapter")
    model.save_pretrained(adapter)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(plain, adapter).merge_and_unload()


def plain_lm(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The LM itself, adapters in it or not, out of what PEFT wraps it in."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def check_sharding(accelerator: Accelerator, model: torch.nn.Module) -> None:
    """Raises [`HfGrError`] for adapters on sharded weights, which could not be merged at the end."""
    if isinstance(model, PeftModel) and is_sharded(accelerator):
        raise HfGrError(
            f"the model has adapters, but {accelerator.distributed_type.value} shards the weights; set finetune: "
            "full, or train the adapters on one device or with DDP."
        )
