"""What a search gives: answers as written, with their scores."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Beams:
    """Answers to B prompts, W each.

    Attributes:
        tokens: int64 [B, W, T], the answers as written, thinking tokens included; −1 in beams that hold no answer
            (fewer SIDs than beams).
        states: int64 [B, W, S], the grammar's final states; negative likewise.
        scores: float32 [B, W], log-probability of the answer (its codes; forced tokens count 0), −inf likewise.
            Falling for `method="beam"`. Where equal sets were merged, the log-probability of all their orders.
        log_probs: float32 [B, W, C], log-probability of every code in the order written; empty ([B, W, 0]) from
            `generate_search`.
        keys: float32 [B, W], Gumbel keys, falling (`method="gumbel"` only): the answers with the largest of all keys,
            each being its log-probability (under a filter: renormalized at each code among what the filter leaves)
            plus standard Gumbel noise of its own.
        pruned: float32 [B], only with a reflection: of the paths that would have been kept without it, over all steps
            after the first, the share that it dropped.
    """

    tokens: torch.Tensor
    states: torch.Tensor
    scores: torch.Tensor
    log_probs: torch.Tensor
    keys: torch.Tensor | None = None
    pruned: torch.Tensor | None = None
