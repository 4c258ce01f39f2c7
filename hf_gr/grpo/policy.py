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
    if tree_support(plain, prompts.shape[1] + answers.shape[1])[0]:
        shared = share_prompts(prompts, prompt_mask, answers)
        predictors, inputs = shared.predictors, shared.inputs(plain.config._attn_implementation, plain.dtype)
    else:
        ids = torch.cat([prompts, answers], dim=1)
        inputs = {"input_ids": ids, "attention_mask": torch.cat([prompt_mask, torch.ones_like(answers)], dim=1)}
        columns = torch.arange(ids.numel(), device=ids.device).view_as(ids)
        predictors = columns[:, prompts.shape[1] - 1 : -1]
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
