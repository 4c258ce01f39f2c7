"""Validation by what users get: HR and NDCG of lists while a model trains, the best checkpoint, and when to stop.

A loss may fall while lists get worse, and rewards of rollouts rise while lists of 50 do: both are known failures.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from .catalog import SidCatalog
from .dataset import Cases
from .decoding import beam_search
from .errors import HfGrError
from .evaluation.metrics import MISSING, check_finite, hit_rate, ndcg, target_ranks
from .grammar import SidGrammar
from .options import default_of
from .safeguards import FiniteTrainer
from .training import LmTrainerDefaults
from .vocabulary import SidVocabulary


VALIDATION_KS = (1, 10, 50)


def metric_names(width: int = VALIDATION_KS[-1]) -> list[str]:
    """Names of what is measured on lists of `width` items: `HR@1` to `NDCG@50`."""
    return [f"{name}@{k}" for name in ("HR", "NDCG") for k in VALIDATION_KS if k <= width]


def check_metric(name: str | None, known: Sequence[str]) -> None:
    """Raises [`HfGrError`] where `metric_for_best_model`, if it is set, is not among what is measured."""
    if name is not None and not {name.removeprefix("eval_"), f"eval_{name.removeprefix('eval_')}"} & {*known}:
        raise HfGrError(f"metric_for_best_model is {name}; there are {', '.join(known)}.")


def align_saving(config: TrainingArguments) -> None:
    """Makes a config that keeps the best checkpoint save one with every evaluation: else the best may be none.

    Raises [`HfGrError`] where it asks for checkpoints at other times.
    """
    default = next(default_of(item) for item in dataclasses.fields(config) if item.name == "save_steps")
    if config.save_steps == default and config.eval_steps is not None:
        config.save_steps = config.eval_steps
    evaluates, saves = IntervalStrategy(config.eval_strategy), SaveStrategy(config.save_strategy)
    if evaluates.value != saves.value or (evaluates == "steps" and config.eval_steps != config.save_steps):
        raise HfGrError(
            f"the best checkpoint is taken, but eval_strategy is {evaluates.value} (eval_steps {config.eval_steps}) "
            f"and save_strategy {saves.value} (save_steps {config.save_steps}); set them alike, or patience: 0."
        )


def mean_metrics(ranks: np.ndarray, accelerator: Accelerator, width: int = VALIDATION_KS[-1]) -> dict[str, float]:
    """HR@k and NDCG@k, means over the cases of all processes.

    Args:
        ranks: int64 [cases], of this process, counted from 0.
        accelerator: Of the training.
        width: Length of the lists.
    """
    ks = [k for k in VALIDATION_KS if k <= width]
    sums = [measure(ranks, k).sum() for measure in (hit_rate, ndcg) for k in ks]
    totals = torch.tensor([*sums, len(ranks)], dtype=torch.float32, device=accelerator.device)
    *sums, count = accelerator.reduce(totals, reduction="sum").tolist()
    return {name: total / count for name, total in zip(metric_names(width), sums, strict=True)}


def drawn_cases(cases: Cases, users: int, seed: int) -> Cases:
    """At most `users` cases, drawn at random. Raises [`HfGrError`] where there is none."""
    if not len(cases.targets):
        raise HfGrError("the validation part has no case to measure on; use another split, or no eval_strategy.")
    return cases.take(np.random.default_rng(seed).permutation(len(cases.targets))[:users])


@dataclass(frozen=True, eq=False)
class Validation:
    """Prompts, and the item each of them was followed by.

    Attributes:
        prompts: Token ids of each case's history.
        targets: int64 [cases], catalog rows.
        num_beams: Width of the search; lists are as long as it, at most 50.
        batch_size: Cases a device searches at a time.
    """

    prompts: list[list[int]]
    targets: np.ndarray
    num_beams: int = 50
    batch_size: int = 128

    @classmethod
    def of(cls, cases: Cases, catalog: SidCatalog, vocabulary: SidVocabulary, **settings: int) -> "Validation":
        """Of cases in rows of the catalog; `settings` are the attributes after the first two."""
        return cls(vocabulary.prompts(cases.latest(vocabulary.max_history), catalog), cases.targets, **settings)

    @classmethod
    def of_args(
        cls, cases: Cases, catalog: SidCatalog, vocabulary: SidVocabulary, args: LmTrainerDefaults
    ) -> "Validation":
        """Of cases in rows of the catalog, as a trainer's arguments say."""
        batch: int = vars(args)["per_device_eval_batch_size"]
        return cls.of(cases, catalog, vocabulary, num_beams=args.eval_beams, batch_size=batch)

    def measure(
        self, model: PreTrainedModel, grammar: SidGrammar, accelerator: Accelerator, feed: nn.Linear | None = None
    ) -> dict[str, float]:
        """HR@k and NDCG@k of the model's beams, means over all cases; each process searches its share of them.

        Args:
            model: Plain LM in evaluation mode.
            grammar: What may follow.
            accelerator: Of the training.
            feed: Of thinking heads with hidden feedback.
        """
        order = sorted(range(len(self.prompts)), key=lambda case: len(self.prompts[case]))
        share = -(-len(order) // accelerator.num_processes)  # the same on all, so that sharded weights meet
        first = share * accelerator.process_index
        mine = [order[place % len(order)] for place in range(first, first + share)]
        ranks = []
        for start in range(0, share, self.batch_size):
            cases = mine[start : start + self.batch_size]
            with _searchable(model):
                lists = beam_search(
                    model,
                    [self.prompts[case] for case in cases],
                    grammar,
                    num_beams=self.num_beams,
                    top_k=min(self.num_beams, VALIDATION_KS[-1]),
                    feed=feed,
                )
            items = lists.items.cpu().numpy()
            check_finite(lists.scores.float().cpu().numpy()[items != MISSING])
            ranks.append(target_ranks(items, self.targets[cases]))
        counted = min(share, max(0, len(order) - first))  # the last process repeats cases to fill its share
        return mean_metrics(np.concatenate(ranks)[:counted], accelerator, self.num_beams)


@contextlib.contextmanager
def _searchable(model: PreTrainedModel) -> Iterator[None]:
    """FlexAttention trains with a block mask, but beams need an additive one: they are searched under `sdpa`."""
    if model.config.get_text_config()._attn_implementation != "flex_attention":
        yield
        return
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation("flex_attention")


class Patience(TrainerCallback):
    """Stops a training after so many evaluations without a better one, the start's among them if it was measured.

    Unlike transformers' own it counts in the trainer's log, so that a run that goes on from a checkpoint stops where
    it would have stopped.

    Args:
        evaluations: Those to wait for.
    """

    def __init__(self, evaluations: int):
        self.evaluations = evaluations

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        values = np.array([entry[name] for entry in state.log_history if (name := metric_of(args)) in entry])
        best = values.argmax() if args.greater_is_better else values.argmin()
        if len(values) - 1 - best >= self.evaluations:
            control.should_training_stop = True


class CpuBudget(TrainerCallback):
    """Ends a training after so many CPU minutes of this process, with an evaluation and a checkpoint if it makes any.

    What earlier attempts took stands in the trainer's log, beside every entry.

    Args:
        minutes: The budget.
    """

    def __init__(self, minutes: float):
        self.minutes, self.before, self.began = minutes, 0.0, 0.0

    @property
    def used(self) -> float:
        """CPU minutes of this training so far."""
        return self.before + (time.process_time() - self.began) / 60

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.before = max((entry.get("cpu_minutes", 0.0) for entry in state.log_history), default=0.0)
        self.began = time.process_time()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        state.log_history[-1]["cpu_minutes"] = round(self.used, 3)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.used < self.minutes or control.should_training_stop:
            return
        state.log_history.append({"cpu_minutes_stop": self.minutes, "epoch": state.epoch, "step": state.global_step})
        control.should_training_stop = True
        control.should_evaluate = control.should_evaluate or args.eval_strategy != IntervalStrategy.NO
        control.should_save = control.should_save or args.save_strategy != SaveStrategy.NO


def endings(args: Any) -> list[TrainerCallback]:
    """What may end a training before its last step: `patience`, and `cpu_minutes`."""
    patience = [Patience(args.patience)] if args.patience else []
    return [*patience, *([CpuBudget(args.cpu_minutes)] if args.cpu_minutes else [])]


def metric_of(args: TrainingArguments) -> str:
    """The metric that chooses the checkpoint, as evaluations and logs name it."""
    return f"eval_{(args.metric_for_best_model or '').removeprefix('eval_')}"


class ValidatedTrainer(FiniteTrainer):
    """A trainer that is measured by the lists that users get. A start that is measured is a candidate.

    Stands first among the bases. Its arguments are its own, not the caller's.
    """

    def lists(self) -> dict[str, float]:
        """HR and NDCG on the validation users, which all processes measure together; the model is in evaluation
        mode."""
        raise NotImplementedError

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the parent's; a run that goes on from a checkpoint has measured its start already."""
        if resume_from_checkpoint:
            self.args.eval_on_start = False
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def measured_lists(self) -> dict[str, float]:
        """[`lists`] of the model in evaluation mode, in which it stays, and the seconds they took: `users_runtime`."""
        start = time.perf_counter()
        self.model.eval()
        return self.lists() | {"users_runtime": round(time.perf_counter() - start, 3)}

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """HR@k and NDCG@k on the validation users, in place of the parent's loss."""
        training = self.model.training
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.measured_lists().items()}
        self.log(metrics)  # in evaluation mode, which TRL keeps apart
        self.model.train(training)
        control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)  # type: ignore[has-type]
        self.control = control
        self.note_start(metrics)
        return metrics

    def note_start(self, metrics: dict[str, float]) -> None:
        """Makes the start what checkpoints have to beat, if these are its metrics."""
        if self.state.global_step == 0 and self.args.load_best_model_at_end:
            self.state.best_metric = metrics[metric_of(self.args)]

    def start_is_best(self, stage: str, remedies: str) -> bool:
        """Whether a training found no checkpoint better than its start, which was measured; says so."""
        if self.state.best_metric is None or self.state.best_global_step is not None:
            return False
        if self.accelerator.is_main_process:
            name = metric_of(self.args).removeprefix("eval_")
            print(
                f"[{stage}] no checkpoint was better than the start ({name} {self.state.best_metric:.4f}): the "
                f"model written is the one that training began with. Try {remedies}.",
                flush=True,
            )
        return True
