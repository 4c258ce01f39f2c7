"""How a search goes on: which options of which beams are kept."""

import torch

from ..grammar import UnorderedGrammar


def best(totals: torch.Tensor, width: int) -> torch.Tensor:
    """The `width` best of the candidates, int64 [B, width] into `totals` (float [B, candidates])."""
    return totals.topk(width, dim=1).indices


def draw(log_probs: torch.Tensor, width: int, generator: torch.Generator | None) -> torch.Tensor:
    """One option for every beam, drawn from its distribution; `width` options where there is one beam yet.

    Args:
        log_probs: float [B, beams, D]; beams is 1 or `width`.

    Returns:
        int64 [B, width] into the candidates [B, beams · D].
    """
    batch, beams, options = log_probs.shape
    count = width // beams
    probabilities = log_probs.flatten(0, 1).exp()
    option = torch.multinomial(probabilities, count, replacement=True, generator=generator)
    first = torch.arange(beams, device=log_probs.device).repeat_interleave(count) * options
    return option.view(batch, width) + first


def perturb(
    scores: torch.Tensor, keys: torch.Tensor, log_probs: torch.Tensor, generator: torch.Generator | None
) -> torch.Tensor:
    """Gumbel keys of every candidate, given those of the beams they continue (Kool et al. 2019, algorithm 1).

    The key of a beam is the largest among the answers below it, so its options' keys are drawn under the condition
    that their maximum is that key. The answers with the W largest keys are a sample without replacement.

    Args:
        scores: float [B, beams], log-probability of each beam.
        keys: float [B, beams], its key.
        log_probs: float [B, beams, D] of the options, −inf where not allowed.

    Returns:
        float [B, beams, D], −inf likewise.
    """
    log_p = scores[..., None] + log_probs
    uniform = torch.rand(log_p.shape, device=log_p.device, generator=generator).clamp(1e-20, 1 - 1e-7)
    free = log_p - torch.log(-torch.log(uniform))
    largest = free.max(dim=-1, keepdim=True).values
    # log(exp(-key) - exp(-largest) + exp(-free)), negated, in the stable form of the paper's appendix B.3
    key = keys[..., None]
    v = key - free + torch.log1p(-torch.exp((free - largest).clamp(max=-1e-12)))
    conditioned = key - v.clamp(min=0) - torch.log1p(torch.exp(-v.abs()))
    conditioned = torch.where(free == largest, key, conditioned)
    return torch.where(torch.isneginf(log_p), -torch.inf, conditioned)


def merge_sets(totals: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Log-sum-exp of the candidates with equal keys, at the best of them; −inf at the others.

    Args:
        totals: float [B, n], log-probabilities.
        keys: int64 [B, n], equal where two candidates hold the same codes.
    """
    sorted_keys, order = keys.sort(dim=1, stable=True)
    values = totals.gather(1, order)
    group = torch.zeros_like(order)
    group[:, 1:] = (sorted_keys[:, 1:] != sorted_keys[:, :-1]).cumsum(1)
    lowest = torch.full_like(values, -torch.inf)
    largest = lowest.scatter_reduce(1, group, values, "amax").gather(1, group)
    weight = torch.where(torch.isneginf(largest), 0.0, torch.exp(values - largest))
    total = torch.zeros_like(values).scatter_add(1, group, weight).gather(1, group)
    place = torch.arange(values.shape[1], device=values.device).expand_as(order)
    candidate = torch.where(values == largest, place, values.shape[1])
    first = torch.full_like(order, values.shape[1]).scatter_reduce(1, group, candidate, "amin").gather(1, group)
    merged = torch.where((place == first) & ~torch.isneginf(largest), largest + total.log(), -torch.inf)
    return lowest.scatter(1, order, merged)


def set_keys(grammar: UnorderedGrammar, state: torch.Tensor) -> torch.Tensor:
    """Keys of partial sets, int64 [rows], from states int64 [rows, C]."""
    numbers = grammar.option_keys[(state + grammar.first_numbers).clamp(min=0)]
    return torch.where(state >= 0, numbers, 0).sum(1)
