"""transformers' trainer for dense retrievers, measured by ranking the whole catalogue."""

from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback

from ..dataset import Cases
from ..evaluation.metrics import hit_rate, ndcg
from ..models.bsarec import PADDING, BSARecModel
from ..safeguards import FiniteTrainer
from .config import VALIDATION_KS, RetrieveConfig
from .data import AlikeLengths, TrainingRows, collate
from .retriever import target_places


class RetrieverTrainer(FiniteTrainer):
    """Args:
    model: A new one.
    args: Settings.
    train_dataset: Rows of the training part.
    validation: Cases whose NDCG@10 decides when to stop, and which checkpoint is the best.
    """

    args: RetrieveConfig

    def __init__(self, model: BSARecModel, *, args: RetrieveConfig, train_dataset: TrainingRows, validation: Cases):
        callbacks = [EarlyStoppingCallback(args.patience)] if args.patience else None
        super().__init__(
            model,
            args=args,
            data_collator=collate,
            train_dataset=train_dataset,
            eval_dataset=train_dataset,  # evaluate() is ours
            callbacks=callbacks,
        )
        self.validation = validation

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

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Cross-entropy over all items or, with `negatives`, over so many drawn ones and the batch's own targets."""
        num_items = self.train_dataset.num_items
        if 0 < self.args.negatives < num_items:
            labels = inputs["labels"]
            drawn = torch.randint(num_items, (self.args.negatives,)).to(labels.device)
            inputs = inputs | {"candidates": torch.cat([labels[labels != PADDING], drawn]).unique()}
        return super().compute_loss(model, inputs, *args, **kwargs)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """HR@k and NDCG@k on the validation cases, means over all of them; every process ranks its share."""
        plain, accelerator = self.accelerator.unwrap_model(self.model), self.accelerator
        mine = np.arange(accelerator.process_index, len(self.validation), accelerator.num_processes)
        cases = self.validation.take(mine)
        was_training = plain.training
        plain.eval()
        ranks = target_places(plain, cases, self.args.per_device_eval_batch_size)
        plain.train(was_training)
        measures = {f"{name}@{k}": (m, k) for name, m in (("HR", hit_rate), ("NDCG", ndcg)) for k in VALIDATION_KS}
        sums = [measure(ranks, k).sum() for measure, k in measures.values()]
        totals = torch.tensor([*sums, len(ranks)], dtype=torch.float32, device=accelerator.device)
        *sums, count = accelerator.reduce(totals, reduction="sum").tolist()
        metrics = {f"{metric_key_prefix}_{name}": total / count for name, total in zip(measures, sums, strict=True)}
        self.log(metrics)
        control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)  # type: ignore[has-type]
        self.control = control
        return metrics
