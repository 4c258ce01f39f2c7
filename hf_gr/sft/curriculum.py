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


class RowsFirst(TrainerCallback):
    """For the first steps of a training only new token rows move, as newcomers to a pretrained LM would otherwise
    upset it (our choice of form; users of such recipes report that it is needed).

    What must not move has no gradient when the optimizer steps, so that neither weight decay nor moments touch it.

    Args:
        model: The plain LM, perhaps with adapters in it.
        vocabulary: Whose tokens are new.
        steps: Steps, or a share of all of them below 1.
    """

    def __init__(self, model: PreTrainedModel, vocabulary: SidVocabulary, steps: float):
        self.model, self.vocabulary, self.given = model, vocabulary, steps
        self.handles: list[torch.utils.hooks.RemovableHandle] = []

    def steps(self, state: TrainerState) -> int:
        return int(self.given if self.given >= 1 else self.given * state.max_steps)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step < self.steps(state):
            self.handles = mask_old_rows(self.model, self.vocabulary)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step >= self.steps(state):
            for handle in self.handles:
                handle.remove()
            self.handles = []
            return
        kept = {id(weight) for weight in row_weights(self.model)}
        for name, parameter in self.model.named_parameters():
            if id(parameter) not in kept and "trainable_tokens_delta" not in name:
                parameter.grad = None
