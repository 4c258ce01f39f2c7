"""Rollouts: answers to a prompt from its own constrained policy, by the tree search."""

from dataclasses import dataclass

import numpy as np
import torch

from ..decoding import Draws, Method, search
from ..grammar import SidGrammar


@dataclass(frozen=True, eq=False)
class Completions:
    """G answers to each of P prompts.

    Attributes:
        tokens: int64 [P, G, T], as written.
        scores: float32 [P, G], log-probability under the policy; where a prompt has fewer SIDs than G, those of the
            repeated answers are −inf in `fresh_scores` and the answer's own here.
        fresh_scores: float32 [P, G], the same with −inf at repeated answers.
        thresholds: float32 [P], the (G+1)-th largest Gumbel key (`method="gumbel"`, else −inf).
    """

    tokens: torch.Tensor
    scores: torch.Tensor
    fresh_scores: torch.Tensor
    thresholds: torch.Tensor


def roll_out(
    model: torch.nn.Module,
    prompts: list[list[int]],
    grammar: SidGrammar,
    group: int,
    method: Method,
    temperature: float,
    draws: Draws | None = None,
) -> Completions:
    """`group` live items for every prompt, by [`search`]; where there are fewer SIDs than that, a prompt's first one
    is repeated: the best of beams, and with Gumbel keys a draw from the policy.

    Args:
        model: Plain LM in evaluation mode.
        prompts: Token ids of distinct prompts.
        method: `sample`, `beam` or `gumbel`.
        draws: Source of random numbers; the device's own if left out.
    """
    wanted = group + 1 if method == "gumbel" else group  # one more shows how far the draws reached
    beams = search(model, prompts, grammar, num_beams=wanted, method=method, temperature=temperature, generator=draws)
    scores, missing = beams.scores[:, :group], max(0, group - beams.scores.shape[1])
    scores = torch.nn.functional.pad(scores, (0, missing), value=-torch.inf)
    tokens = torch.nn.functional.pad(beams.tokens[:, :group], (0, 0, 0, missing))
    dead = scores.isneginf()
    thresholds = torch.full_like(scores[:, 0], -torch.inf)
    if beams.keys is not None and beams.keys.shape[1] > group:
        thresholds = beams.keys[:, group]
    return Completions(
        tokens=torch.where(dead[..., None], tokens[:, :1], tokens),
        scores=torch.where(dead, scores[:, :1], scores),
        fresh_scores=scores,
        thresholds=thresholds,
    )


def draws_of(seed: int, step: int, turn: int, device: torch.device, part: int, parts: int) -> Draws:
    """The random numbers of one generation: the same for one (seed, step, turn), whatever ran before, so that a run
    that was killed goes on as it would have."""
    state = int(np.random.SeedSequence([seed, step, turn]).generate_state(1, np.uint64)[0] >> 1)
    return Draws(torch.Generator(device=device).manual_seed(state), part, parts)
