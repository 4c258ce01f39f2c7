"""transformers' trainer for dense retrievers, measured by ranking the whole catalog."""

from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from ..dataset import Cases
from ..models import RetrieverModel, TowersModel
from ..models.bsarec import PADDING
from ..validation import ValidatedTrainer, endings, mean_metrics
from .config import RetrieveConfig
from .data import AlikeLengths, TrainingRows, collate
from .negatives import negatives, sampler_of
from .retriever import target_places


class RetrieverTrainer(ValidatedTrainer):
    """Args:
    model: A new one.
    args: Settings.
    train_dataset: Rows of the training part.
    validation: Cases whose NDCG@10 decides when to stop, and which checkpoint is the best.
    """

    args: RetrieveConfig

    def __init__(self, model: RetrieverModel, *, args: RetrieveConfig, train_dataset: TrainingRows, validation: Cases):
        super().__init__(
            model,
            args=args,
            data_collator=collate,
            train_dataset=train_dataset,
            eval_dataset=train_dataset,  # evaluate() is ours
            callbacks=endings(args),
        )
        self.validation = validation
        events = np.bincount(np.concatenate(train_dataset.labels) + 1, minlength=train_dataset.num_items + 1)[1:]
        self.sampler = sampler_of(args.negatives_from, events, args.negatives)

    def get_train_dataloader(self) -> DataLoader:
        """Batches of rows about as long."""
        args = self.args
        lengths = [len(row) for row in self.train_dataset.inputs]
        size = args.train_batch_size
        loader = DataLoader(
            self.train_dataset,
            batch_size=size,
            sampler=AlikeLengths(lengths, size, args.seed),
            collate_fn=collate,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader)

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *rest: Any, **kwargs: Any) -> Any:
        """Cross-entropy over all items or, with `negatives`, over drawn ones and the batch's own targets."""
        args, num_items = self.args, self.train_dataset.num_items
        if args.negatives and (args.negatives < num_items or args.negatives_from == "in_batch"):
            targets = inputs["labels"][inputs["labels"] != PADDING]
            if args.negatives_from == "mixed" and not args.log_q:  # the targets of all rows stand in one softmax
                inputs = inputs | {"candidates": self.sampler.draw(targets).unique()}
            else:
                drawn = negatives(self.sampler, targets, args.log_q)
                inputs = inputs | {"candidates": drawn.items, "log_weights": drawn.log_weights}
        return super().compute_loss(model, inputs, *rest, **kwargs)

    def lists(self) -> dict[str, float]:
        """On all validation cases; every process ranks its share."""
        plain, accelerator = self.accelerator.unwrap_model(self.model), self.accelerator
        if isinstance(plain, TowersModel):
            plain.refresh()
        mine = np.arange(accelerator.process_index, len(self.validation), accelerator.num_processes)
        ranks = target_places(plain, self.validation.take(mine), self.args.per_device_eval_batch_size)
        return mean_metrics(ranks, accelerator)
