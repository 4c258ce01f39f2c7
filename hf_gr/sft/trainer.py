"""Supervised fine-tuning on TRL's trainer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput
from trl import SFTTrainer

from ..arguments import parse_config
from ..artifacts import is_current, report
from ..catalog import SidCatalog
from ..dataset import Histories, InteractionDataset
from ..errors import HfGrError
from ..grammar import SidGrammar
from ..models import add_inner_call, code_logits, from_scratch
from ..offline import resolve
from ..training import Run, check_sharding, load_lm, trained_model, tuned
from ..vocabulary import SidVocabulary, add_vocabulary
from .config import SidSFTConfig
from .data import IGNORED, held_out_rows, next_item_rows


@dataclass
class SidOutput(ModelOutput):
    """Summed cross-entropy over `count` codes, of which `hits` were the most likely one (scalars)."""

    loss: torch.Tensor | None = None
    count: torch.Tensor | None = None
    hits: torch.Tensor | None = None


def sid_loss(
    model: PreTrainedModel,
    hidden: torch.Tensor,
    labels: torch.Tensor,
    grammar: SidGrammar,
) -> SidOutput:
    """Cross-entropy of SID tokens over what the grammar allows after each prefix.

    Args:
        model: For its head.
        hidden: float [B, T, d], last hidden states.
        labels: int64 [B, T], SID tokens where an item is a target (all C of it, in the grammar's order), −100
            elsewhere: also on thinking tokens, which are forced and teach nothing.
        grammar: What may follow; of the form that the targets are written in.
    """
    grammar = grammar.to(hidden.device)
    wanted = labels != IGNORED
    row, column = (wanted & ((wanted.cumsum(1) - 1) % grammar.num_codes == 0)).nonzero(as_tuple=True)  # first codes
    answer = torch.arange(grammar.answer_length, device=labels.device) - grammar.code_columns[0]
    column = column[:, None] + answer
    index = grammar.step_index(labels[row[:, None], column])
    states = grammar.initial(len(index))
    losses, hits = [], []
    for step, place in enumerate(grammar.code_columns):
        options = grammar.successors(states, step)
        logits = options.masked(code_logits(model, hidden[row, column[:, place] - 1], grammar.step_tokens(step)))
        target = options.option_of(index[:, place])
        losses.append(torch.nn.functional.cross_entropy(logits, target, reduction="sum"))
        hits.append((logits.argmax(1) == target).sum())
        states = grammar.advance(states, step, target)
    return SidOutput(loss=torch.stack(losses).sum(), count=wanted.sum(), hits=torch.stack(hits).sum())


class SidSFTTrainer(SFTTrainer):
    """TRL's trainer; with `loss="constrained"` its loss runs over what the grammar allows."""

    args: SidSFTConfig

    def __init__(self, model: PreTrainedModel, grammar: SidGrammar, **kwargs: Any):
        add_inner_call(model)
        super().__init__(model, **kwargs)
        check_sharding(self.accelerator, self.args.finetune)
        self.grammar = grammar

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        if self.args.loss == "full":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        plain = self.accelerator.unwrap_model(model)

        def loss_of(hidden: torch.Tensor) -> SidOutput:
            return sid_loss(plain, hidden, inputs["labels"], self.grammar)

        output = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], inner=loss_of)
        codes = output.count if num_items_in_batch is None else num_items_in_batch
        loss = output.loss / torch.as_tensor(codes, device=output.loss.device).clamp(min=1)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        accuracy = self.accelerator.gather_for_metrics(output.hits / output.count.clamp(min=1)).mean()
        self._metrics["train" if self.model.training else "eval"]["code_accuracy"].append(accuracy.item())
        return (loss, output) if return_outputs else loss


def sft(config: SidSFTConfig) -> Path:
    """Fine-tunes an LM to write the next item's SID; the finished model is `output_dir/model`.

    Continues from the last checkpoint of the same settings, and does nothing when the model is up to date.
    """
    inputs: dict[str, str | Path] = {name: _given(vars(config)[name], name) for name in ("dataset", "catalog")}
    if config.continue_from and Path(config.continue_from).is_dir():
        inputs["model"] = config.continue_from
    run = Run.of("sft", config, inputs)
    main = PartialState().is_main_process
    if not config.force and is_current(run.model, "sft", run.settings, run.inputs):
        if main:
            report("sft", inputs, run.model, current=True)
        return run.model
    catalog = SidCatalog.load(config.catalog)
    split = InteractionDataset.load(config.dataset).aligned(catalog.item_ids).split(config.split)
    model, tokenizer, vocabulary = starting_model(config, catalog, split.train)
    model, adapter = tuned(model, vocabulary, config, run.base)
    trainer = SidSFTTrainer(
        model,
        vocabulary.grammar(catalog),
        args=_prepared(config),
        peft_config=adapter,
        train_dataset=next_item_rows(split.train, catalog, vocabulary),
        eval_dataset=held_out_rows(split.validation, catalog, vocabulary) if config.eval_strategy != "no" else None,
        processing_class=tokenizer,
    )
    if config.train_rows_only:
        _freeze_all_but_rows(trainer.model, vocabulary)
    trainer.train(resume_from_checkpoint=run.last_checkpoint())
    trained = trained_model(trainer)
    if main:
        base = config.continue_from or config.model_name_or_path
        run.finish(trained, tokenizer, catalog, vocabulary, trainer.state.log_history, base, config.catalog)
        report("sft", inputs, run.model)
    PartialState().wait_for_everyone()
    return run.model


def starting_model(
    config: SidSFTConfig, catalog: SidCatalog, train: Histories
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, SidVocabulary]:
    """The LM with the catalogue's tokens: a plain one that gets them now, or one of ours that is to go on."""
    if config.continue_from:
        model, tokenizer = load_lm(config.continue_from, config.attention)
        vocabulary = SidVocabulary.load(resolve(config.continue_from))
        vocabulary.check(catalog, tokenizer, config.continue_from)
        return model, tokenizer, vocabulary
    if config.model_name_or_path == "scratch":
        model, tokenizer = from_scratch(config.scratch_layers, config.scratch_width, config.seed)
    else:
        model, tokenizer = load_lm(config.model_name_or_path, config.attention)
    vocabulary = add_vocabulary(
        tokenizer,
        model,
        catalog,
        max_history=config.max_history,
        context=config.context,
        histories=train,
        row_start=config.row_start,
        seed=config.seed,
    )
    return model, tokenizer, vocabulary


def _given(path: str, name: str) -> str:
    if not path:
        raise HfGrError(f"{name} is not set; give --{name} FOLDER or name it in the YAML file.")
    return path


def _prepared(config: SidSFTConfig) -> SidSFTConfig:
    """Rows are tokenised already; nothing of TRL's own preparation is wanted."""
    config.dataset_kwargs = {"skip_prepare_dataset": True}
    return config


def _freeze_all_but_rows(model: PreTrainedModel, vocabulary: SidVocabulary) -> None:
    """Leaves only the new token rows trainable, by a gradient mask on the embedding (and an untied head)."""
    weights = {id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in weights)
    for weight in weights.values():
        mask = torch.zeros(len(weight), 1, device=weight.device)
        mask[vocabulary.token_ids] = 1
        weight.register_hook(lambda gradient, mask=mask: gradient * mask.to(gradient))


def main(arguments: list[str] | None = None) -> Path:
    """Entry of `recipes/sft.py` and `hf-gr sft`: TRL's parser over [`SidSFTConfig`], `--config FILE` included."""
    return sft(parse_config(SidSFTConfig, arguments))
