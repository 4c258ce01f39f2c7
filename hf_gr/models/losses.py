"""Losses of a dense retriever: a softmax over all items, over some, or over items that were drawn."""

import torch
import torch.nn.functional as F


PADDING = -1  # in rows of items, and in labels


def softmax(
    users: torch.Tensor, targets: torch.Tensor, vectors: torch.Tensor, candidates: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean cross-entropy of a softmax over items, a number.

    Args:
        users: float [M, d].
        targets: int64 [M], items.
        vectors: float [C, d], of the candidates.
        candidates: int64 [C], distinct, in order, all targets among them; left out: item i is row i of `vectors`.
    """
    if candidates is not None:
        targets = torch.searchsorted(candidates, targets)
    return F.cross_entropy((users @ vectors.T).float(), targets)


def sampled_softmax(
    users: torch.Tensor,
    positives: torch.Tensor,
    targets: torch.Tensor,
    vectors: torch.Tensor,
    drawn: torch.Tensor,
    log_weights: torch.Tensor,
) -> torch.Tensor:
    """Mean over rows of log Ẑ − s(y), a number, where Ẑ estimates the softmax's sum over all items from drawn ones:

        Ẑ = exp s(y) + Σ over drawn j ≠ y of w(j) exp s(j),    w(j) = how often j was drawn / how often it is expected

    As E[Ẑ] = Σ over all items of exp s, the loss tends to that of the full softmax as more are drawn. The target is
    there anyway and not drawn, so it gets no correction: correcting it too, as is common for in-batch negatives (Yi et
    al., RecSys 2019), has another expectation (Khrylchenko et al., RecSys 2025). [form ours]

    Args:
        users: float [M, d].
        positives: float [M, d], vectors of the targets.
        targets: int64 [M], items.
        vectors: float [C, d], of the drawn items.
        drawn: int64 [C], these items, distinct.
        log_weights: float [C], log w of each of them; 0: no correction.
    """
    scores = (users @ vectors.T).float() + log_weights
    scores = scores.masked_fill(targets[:, None] == drawn, -torch.inf)
    own = (users * positives).sum(-1, keepdim=True).float()
    return (torch.cat([own, scores], dim=1).logsumexp(1) - own[:, 0]).mean()
