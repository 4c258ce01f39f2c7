"""TRL's trainer for answers on branches."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import load_model, save_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTTrainer
from trl.models import unwrap_model_for_generation

from ..adapters import check_sharding, plain_lm
from ..branches import Packed
from ..catalog import SidCatalog
from ..dataset import Cases, Histories
from ..decoding import tree_support
from ..errors import HfGrError
from ..grammar import SidGrammar
from ..interests import Interests
from ..models import (
    ThinkingHeads,
    add_dropout,
    add_inner_call,
    confident_orders,
    last_hidden,
    side_losses,
)
from ..models.feedback import read_thoughts
from ..packing import Rows, pack
from ..references import resolved
from ..training import is_sharded, without_router_loss
from ..validation import ValidatedTrainer, Validation, drawn_cases, endings
from ..vocabulary import SidVocabulary
from .config import SidSFTConfig
from .curriculum import OldRows, RowsFirst, row_weights
from .fitting import fitting
from .loss import SidOutput, answer_loss, dense_pairs, sids_among
from .moving import Moves, MovingTokenizer, with_own_rate
from .rows import RowBatches
from .tasks import held_out
from .training_rows import training_rows
from .writing import RowVocabulary


HEADS_FILE = "thinking_heads.safetensors"  # in checkpoints
CATALOG_FOLDER = "catalog"  # in checkpoints of other codes than the training began with


@dataclass(frozen=True)
class Collator:
    """Rows to a batch of tensors ([`Packed`]).

    Attributes:
        think_ids: Token ids of the thinking tokens.
        max_columns, crowd: As for [`pack`].
    """

    think_ids: Sequence[int]
    max_columns: int = 0
    crowd: bool = False

    def __call__(self, rows: Rows) -> dict[str, torch.Tensor]:
        packed = pack(rows, think_ids=self.think_ids, max_columns=self.max_columns, crowd=self.crowd)
        return packed.as_batch()


class SidSFTTrainer(ValidatedTrainer, SFTTrainer):
    """TRL's trainer, with many answers to a history in one pass and losses over semantic IDs.

    The rows that it makes of histories hold items, and a batch gets their tokens when it is read: `trainer.catalog =
    other` gives all items other codes, from the next batch on.

    Args:
        model: Causal LM with the SID tokens, not yet wrapped by PEFT.
        args: Settings; they stay as they are.
        catalog: The items and their SIDs.
        vocabulary: Of the model.
        processing_class: The model's tokenizer.
        train_dataset: Training histories in rows of the catalog, of which the rows of `args.tasks` are made; or rows
            that are made already, in the columns of [`~hf_gr.branches.Row`]; their codes stay.
        eval_dataset: Validation cases in rows of the catalog; `args.eval_users` of them are measured.
        heads: Thinking heads; they train along and are given back by [`take_heads`].
        interests: For the tasks on them.
        moving: A tokenizer that trains along; `moving.detach` gives it back.
    """

    args: SidSFTConfig

    def __init__(
        self,
        model: PreTrainedModel,
        args: SidSFTConfig,
        *,
        catalog: SidCatalog,
        vocabulary: SidVocabulary,
        processing_class: PreTrainedTokenizerBase,
        train_dataset: Histories | Dataset,
        eval_dataset: Cases | None = None,
        heads: ThinkingHeads | None = None,
        interests: Interests | None = None,
        moving: MovingTokenizer | None = None,
        **kwargs: Any,
    ):
        vocabulary.sid_form.check_training(vocabulary.form, args)
        of_items, self._rows_of_items = RowVocabulary.of(vocabulary), isinstance(train_dataset, Histories)
        if isinstance(train_dataset, Histories):
            train_dataset = training_rows(args, train_dataset, catalog, of_items, processing_class, interests)
        users = None if eval_dataset is None else drawn_cases(eval_dataset, args.eval_users, args.seed)
        self._measured = users if args.measures_lists else None
        add_inner_call(model)
        if args.hidden_dropout:
            add_dropout(model, args.hidden_dropout)
        args = copy.copy(args)  # the caller's stays as it is
        assert args.max_length is not None
        args.dataset_kwargs = {"skip_prepare_dataset": True}  # rows are tokenised already
        rows = fitting(train_dataset, model, args)
        eval_rows = None if users is None else fitting(held_out(users, catalog, of_items), model, args)
        with without_router_loss(model):
            super().__init__(
                model,
                args=args,
                data_collator=Collator(
                    vocabulary.think_ids,
                    max_columns=args.max_length if args.fill_rows else 0,
                    crowd=tree_support(model, args.max_length, training=True)[0],
                ),
                train_dataset=rows,
                eval_dataset=eval_rows,
                processing_class=processing_class,
                **kwargs,
            )
        self.train_dataset = RowBatches(rows)
        self.eval_dataset = None if eval_rows is None else RowBatches(eval_rows)
        check_sharding(self.accelerator, self.model)
        self.heads, self.first_catalog, self.moving = heads, catalog, moving
        self._take(catalog, vocabulary)
        self._check_orders(self.grammar)
        if heads is not None:
            if is_sharded(self.accelerator):
                raise HfGrError("thinking heads do not train on sharded weights; use one device or DDP.")
            self._plain.add_module("thinking", heads.to(self._plain.device))  # so that DDP synchronises them
        if moving is not None:
            self._check_exchange()
            if is_sharded(self.accelerator):
                raise HfGrError("tokenizer: trainable does not work on sharded weights; use one device or DDP.")
            moving.attach(self._plain)
            self.add_callback(Moves(self, moving, args.tokenizer_until))
        for name in ("train_rows_only", "rows_first"):
            if vars(args)[name] and is_sharded(
                self.accelerator
            ):  # the weights that hooks and rows are of get replaced
                raise HfGrError(f"{name} does not work on sharded weights; use one device or DDP.")
        if args.train_rows_only:
            weights = {id(weight) for weight in row_weights(self._plain)}
            for parameter in self.model.parameters():
                parameter.requires_grad_(id(parameter) in weights)
            self.add_callback(OldRows(self._plain, vocabulary))
        if args.rows_first:
            self.add_callback(RowsFirst(self._plain, vocabulary, args.rows_first))
        for callback in endings(args):
            self.add_callback(callback)

    @property
    def _plain(self) -> PreTrainedModel:
        """The LM itself, out of what DDP and PEFT wrap it in."""
        return plain_lm(self.accelerator.unwrap_model(self.model))

    @property
    def catalog(self) -> SidCatalog:
        """The items and the SIDs that they have now.

        Another one may take its place at any time, on all processes alike: tokens of rows, the grammar, the validation
        users' prompts and `vocabulary` follow. Checkpoints keep it; a run that goes on from one, or ends with the best
        one, has the catalog that it was written with.

        Raises [`HfGrError`] unless it has the same items in the same order, the same of them live, and codebooks of
        the same sizes; and where something that does not follow holds codes: rows that were made already, thinking
        heads, an item table.
        """
        return self._catalog

    @catalog.setter
    def catalog(self, catalog: SidCatalog) -> None:
        self._check_exchange()
        now = self._catalog
        same = {
            "items": catalog.item_ids == now.item_ids,
            "live items": np.array_equal(catalog.live, now.live),
            "codebook_sizes": tuple(catalog.codebook_sizes) == tuple(now.codebook_sizes),
        }
        for name in (name for name, equal in same.items() if not equal):
            raise HfGrError(f"the other catalog has other {name} than the training's; only codes may differ.")
        self._take(catalog, self.vocabulary)

    def _check_exchange(self) -> None:
        """Raises [`HfGrError`] where something that does not follow holds codes."""
        holders = {
            "train_dataset holds rows that were made already; give it histories": not self._rows_of_items,
            "thinking heads hold the vectors of the codes; train without them": self.heads is not None,
            f"form {self.vocabulary.form} keeps the codes in the model; use another": (
                self.vocabulary.sid_form.item_table
            ),
        }
        for reason in (reason for reason, holds in holders.items() if holds):
            raise HfGrError(f"the catalog of this training cannot be exchanged: {reason}.")

    def _take(self, catalog: SidCatalog, vocabulary: SidVocabulary) -> None:
        """Makes what depends on the codes, all of it before any is put in place."""
        vocabulary = replace(vocabulary, catalog_fingerprint=catalog.fingerprint)
        grammar, validation = vocabulary.grammar(catalog), None
        if self._measured is not None:
            validation = Validation.of_args(self._measured, catalog, vocabulary, self.args)
        self.item_tokens = torch.from_numpy(vocabulary.item_tokens(catalog)).to(self.accelerator.device)
        self._catalog, self.vocabulary, self.grammar, self.validation = catalog, vocabulary, grammar, validation

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.moving is not None:
            with_own_rate(optimizer, self.moving.quantizer, self.args.tokenizer_learning_rate)
        return optimizer

    def take_heads(self) -> ThinkingHeads | None:
        """The thinking heads, taken from the model, which is a plain one again."""
        if self.heads is not None:
            del self._plain.thinking
        return self.heads

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        packed, plain = Packed.of_batch(inputs), self._plain
        grammar = self.grammar.to(packed.input_ids.device)
        training = self.model.training

        def inner() -> SidOutput:
            nonlocal packed
            packed, references = resolved(packed, self.item_tokens), packed
            moved: torch.Tensor | None = None
            if grammar.any_order:
                packed = self._ordered(packed, grammar)
            if self.heads is not None and self.heads.feed is not None:
                hidden = read_thoughts(plain, packed, self.heads.feed)
            else:
                read = packed.inputs(plain.config._attn_implementation, plain.dtype)
                if self.moving is not None and training:
                    read, moved = self.moving.read(plain, references, read, self.vocabulary.code_ids)
                hidden = last_hidden(plain, **read)
            output = answer_loss(plain, hidden, packed, grammar, self.args.loss, self.heads, self.args.set_credit)
            if moved is not None:
                output.side = moved * packed.weights.sum()
                output.terms = {"tokenizer/loss": moved.detach()}
                return output
            return self._with_sides(output, hidden, packed, grammar)

        output = model(inner=inner)
        total = output.loss if output.side is None or not training else output.loss + output.side
        tokens = output.count if num_items_in_batch is None else num_items_in_batch
        loss = total / torch.as_tensor(tokens, device=total.device).clamp(min=1)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        self._note(output, packed, "train" if training else "eval")
        return (loss, output) if return_outputs else loss

    def _with_sides(self, output: SidOutput, hidden: torch.Tensor, packed: Packed, grammar: SidGrammar) -> SidOutput:
        """With the other parts of the loss where codes come by recursion: IntRR's input side, for which every distinct
        item that was read counts once, all together as much as the batch's answers; and the dense output's."""
        if not self.model.training:
            return output
        losses = side_losses(self._plain, packed.input_ids, lambda: dense_pairs(hidden, packed, grammar))
        if losses is None:
            return output
        output.side = 0 * output.loss
        for name, (weight, loss) in losses.items():
            if name == "recursion/dense":  # one for each answer that is an item
                total = (loss * packed.weights[sids_among(packed, grammar)]).sum()
            else:
                total = loss.mean() * packed.weights.sum()
            output.side = output.side + weight * total
        output.terms = {name: loss.mean() for name, (_, loss) in losses.items()} or None
        return output

    def _check_orders(self, grammar: SidGrammar) -> None:
        if not grammar.any_order or not self.args.confident_orders:
            return
        supported, reason = tree_support(self._plain, self.args.max_length or 0)
        if not supported or is_sharded(self.accelerator):
            why = "weights are sharded" if supported else reason
            raise HfGrError(f"confident_orders is not to be had here: {why}; set confident_orders: 0.")

    def _ordered(self, packed: Packed, grammar: SidGrammar) -> Packed:
        """Sets written most confident code first, always in evaluation; else as chance has it, the same after a
        restart."""
        sets, share = sids_among(packed, grammar) & packed.branched, self.args.confident_orders
        step = [self.args.seed, self.state.global_step, int(self.model.training)]
        draws = np.random.default_rng(step)  # on all processes alike: they wait for each other
        if share and (not self.model.training or draws.random() < share) and sets.any():
            orders = confident_orders(self._plain, packed, sets, grammar)
        else:
            own = np.random.default_rng([*step, self.accelerator.process_index])
            drawn = own.random((int(sets.sum()), grammar.num_codes)).argsort(1)
            orders = torch.from_numpy(drawn).to(packed.labels.device)
        return packed.reordered(sets, orders)

    def lists(self) -> dict[str, float]:
        assert self.validation is not None
        feed = None if self.heads is None else self.heads.feed
        with unwrap_model_for_generation(self.model_wrapped, self.accelerator) as model, self.accelerator.autocast():
            return self.validation.measure(plain_lm(model), self.grammar, self.accelerator, feed)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """The loss and, where they are measured, HR@k and NDCG@k on the validation users, in one line of the log."""
        training = self.model.training
        found = {} if self.validation is None else self.measured_lists()
        self._metrics["eval"] |= {name: [value] for name, value in found.items()}
        metrics = SFTTrainer.evaluate(self, eval_dataset, ignore_keys, metric_key_prefix)
        self.model.train(training)
        metrics |= {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.note_start(metrics)
        return metrics

    def _note(self, output: SidOutput, packed: Packed, mode: str) -> None:
        """Means for the log; TRL averages them between two lines of it."""
        means = {"code_accuracy": output.hits / output.codes.clamp(min=1)}
        if output.terms is not None:
            means |= {"code_loss": output.loss.detach() / output.count.clamp(min=1)}
            means |= {name: term.detach() for name, term in output.terms.items()}
        for name, value in means.items():
            mean = self.accelerator.gather_for_metrics(value).nanmean().item()
            if not math.isnan(mean):  # a batch without a semantic ID has no such figure
                self._metrics[mode][name].append(mean)
        if mode == "train":
            self._total_train_tokens += int(self.accelerator.gather_for_metrics((packed.trunk >= 0).sum()).sum())
            self._metrics[mode]["num_tokens"] = [self._total_train_tokens]

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Checkpoints hold the heads as well, also where only an adapter is saved, and an exchanged catalog."""
        super()._save(output_dir, state_dict)
        folder = Path(output_dir or self.args.output_dir)
        if self.heads is not None and self.args.should_save:
            save_model(self.heads, str(folder / HEADS_FILE))
        if self.moving is not None and self.args.should_save:
            self.moving.save(folder)
        if self.catalog is not self.first_catalog and self.args.should_save:
            self.catalog.save(folder / CATALOG_FOLDER)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_own(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.state.best_model_checkpoint is not None:
            self._load_own(self.state.best_model_checkpoint)

    def _load_own(self, checkpoint: str) -> None:
        """Reads what [`_save`] adds to a checkpoint; one without a catalog has the one that training began with."""
        if self.heads is not None:
            load_model(self.heads, Path(checkpoint) / HEADS_FILE)
        if self.moving is not None:
            self.moving.load(Path(checkpoint))
        folder = Path(checkpoint) / CATALOG_FOLDER
        if folder.is_dir():
            self.catalog = SidCatalog.load(folder)
        elif self.catalog is not self.first_catalog:
            self.catalog = self.first_catalog
