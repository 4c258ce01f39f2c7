"""New token rows first, then all weights."""

from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..vocabulary import SidVocabulary


def mask_old_rows(model: PreTrainedModel, vocabulary: SidVocabulary) -> list[torch.utils.hooks.RemovableHandle]:
    """Lets only the new rows of the embedding (and of an untied head) get a gradient."""
    handles = []
    for weight in row_weights(model):
        if weight.requires_grad:
            mask = torch.zeros(len(weight), 1, device=weight.device)
            mask[vocabulary.token_ids] = 1
            handles.append(weight.register_hook(lambda gradient, mask=mask: gradient * mask.to(gradient)))
    return handles


def row_weights(model: PreTrainedModel) -> list[torch.nn.Parameter]:
    """The weights that hold a row for every token."""
    weights = {id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    return list(weights.values())


class OldRows(TrainerCallback):
    """Keeps the old rows of the embedding (and of an untied head) as they are, to the bit, while new ones train.

    They have no gradient ([`mask_old_rows`]), but an optimizer decays all rows of a weight that has one: after every
    step the old ones are put back.

    Args:
        model: The plain LM, perhaps with adapters in it.
        vocabulary: Whose tokens are new.
    """

    def __init__(self, model: PreTrainedModel, vocabulary: SidVocabulary):
        self.model, self.vocabulary = model, vocabulary
        self.handles: list[torch.utils.hooks.RemovableHandle] = []
        self.kept: list[
            tuple[torch.nn.Parameter, torch.Tensor, torch.Tensor]
        ] = []  # weight, its old rows, their values

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.handles = mask_old_rows(self.model, self.vocabulary)
        for weight in row_weights(self.model) if args.weight_decay else ():
            if weight.requires_grad:
                old = torch.ones(len(weight), dtype=torch.bool)
                old[self.vocabulary.token_ids] = False
                rows = old.nonzero()[:, 0].to(weight.device)
                self.kept.append((weight, rows, weight.detach()[rows].clone()))

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        for weight, rows, values in self.kept:
            weight.detach()[rows] = values

    def release(self) -> None:
        """From here on the old rows train too."""
        for handle in self.handles:
            handle.remove()
        self.handles, self.kept = [], []


class RowsFirst(OldRows):
    """For the first steps of a training only new token rows move: drawn at random, they would otherwise upset a
    pretrained LM (our choice of form; users of such recipes report that it is needed).

    What must not move has no gradient when the optimizer steps, so that no moments touch it, and old rows are put back
    after weight decay.

    Args:
        model: The plain LM, perhaps with adapters in it.
        vocabulary: Whose tokens are new.
        steps: Steps, or a share of all of them below 1.
    """

    def __init__(self, model: PreTrainedModel, vocabulary: SidVocabulary, steps: float):
        super().__init__(model, vocabulary)
        self.given = steps

    def steps(self, state: TrainerState) -> int:
        return int(self.given if self.given >= 1 else self.given * state.max_steps)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step < self.steps(state):
            super().on_train_begin(args, state, control)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step >= self.steps(state):
            self.release()
            return
        kept = {id(weight) for weight in row_weights(self.model)}
        for name, parameter in self.model.named_parameters():
            if id(parameter) not in kept and "trainable_tokens_delta" not in name:
                parameter.grad = None
