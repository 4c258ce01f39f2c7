"""The constrained policy: log-probabilities of answers under the grammar, each prompt read once."""

import torch
from transformers import PreTrainedModel

from ..branches import share_prompts
from ..decoding import tree_support
from ..grammar import SidGrammar
from ..models import answer_logits, last_hidden


def policy_log_probs(
    model: torch.nn.Module,
    plain: PreTrainedModel,
    prompts: torch.Tensor,
    prompt_mask: torch.Tensor,
    answers: torch.Tensor,
    grammar: SidGrammar,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability and entropy of every answer token under the grammar, float32 [R, L] each.

    Equal prompts are computed once where the architecture allows it ([`tree_support`]).

    Args:
        model: The (possibly wrapped) model to call; `plain` is the same one unwrapped.
        prompts: int64 [R, P], padded on the left; `prompt_mask` int64 [R, P].
        answers: int64 [R, L], complete SIDs.
        temperature: Divides the logits.
    """
    if tree_support(plain, prompts.shape[1] + answers.shape[1], training=True)[0]:
        shared = share_prompts(prompts, prompt_mask, answers)
        predictors, inputs = shared.predictors, shared.inputs(plain.config._attn_implementation, plain.dtype)
    else:
        predictors, inputs = _rows(prompts, prompt_mask, answers)
    places = list(grammar.code_columns)

    def score() -> tuple[torch.Tensor, torch.Tensor]:
        hidden = last_hidden(plain, **inputs)
        log_probs = torch.zeros(answers.shape, device=answers.device)  # a forced token has log-probability 0
        entropies = torch.zeros_like(log_probs)
        read, codes = hidden.flatten(0, 1)[predictors[:, places]], answers[:, places]
        for place, logits, option in zip(places, *answer_logits(plain, read, codes, grammar), strict=True):
            policy = torch.log_softmax(logits / temperature, dim=1)
            log_probs[:, place] = policy.gather(1, option[:, None])[:, 0]
            finite = policy.masked_fill(logits.isneginf(), 0.0)
            entropies[:, place] = -(finite.exp() * finite).sum(1)
        return log_probs, entropies

    return model(inner=score)


def _rows(
    prompts: torch.Tensor, prompt_mask: torch.Tensor, answers: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A row for each answer, padded on the right: no architecture needs to be told positions then. The columns int64
    [R, L] that predict its tokens, counted through all rows, and the arguments of a forward."""
    ids = torch.cat([prompts, answers], dim=1)
    columns = torch.arange(ids.shape[1], device=ids.device)
    lengths = prompt_mask.sum(1, keepdim=True)
    padding = prompts.shape[1] - lengths
    mask = (columns < lengths + answers.shape[1]).long()
    inputs = {"input_ids": ids.gather(1, (columns + padding) % ids.shape[1]) * mask, "attention_mask": mask}
    first = torch.arange(len(ids), device=ids.device)[:, None] * ids.shape[1] + lengths - 1
    return first + columns[: answers.shape[1]], inputs
