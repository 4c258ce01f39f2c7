"""How a search goes on: which options of which beams are kept."""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Draws:
    """Random numbers of a batch that several processes share: each makes those of all and takes its own rows', so that
    the draws are the same on one process and on many.

    Attributes:
        generator: In the same state on every process.
        part, parts: Which of how many equal shares of the batch's prompts are here.
    """

    generator: torch.Generator
    part: int = 0
    parts: int = 1

    def uniform(self, shape: tuple[int, ...]) -> torch.Tensor:
        """float32 of [0, 1), the first axis being the prompts that are here."""
        rows = shape[0]
        whole = torch.rand(rows * self.parts, *shape[1:], generator=self.generator, device=self.generator.device)
        return whole[rows * self.part : rows * (self.part + 1)]


Source = torch.Generator | Draws | None


def uniform(shape: tuple[int, ...], device: torch.device, source: Source) -> torch.Tensor:
    """float32 of [0, 1) from wherever random numbers are to come."""
    if isinstance(source, Draws):
        return source.uniform(shape).to(device)
    return torch.rand(shape, device=device, generator=source)


def gumbel(shape: tuple[int, ...], device: torch.device, source: Source) -> torch.Tensor:
    """Standard Gumbel noise, float32."""
    return -torch.log(-torch.log(uniform(shape, device, source).clamp(1e-20, 1 - 1e-7)))


def best(totals: torch.Tensor, width: int) -> torch.Tensor:
    """The `width` best of the candidates, int64 [B, width] into `totals` (float [B, candidates])."""
    return totals.topk(width, dim=1).indices


def renormalized(log_probs: torch.Tensor) -> torch.Tensor:
    """What draws under a filter come from: log-probabilities (float [..., D], −inf where filtered out) among what is
    left, −inf likewise."""
    return torch.log_softmax(log_probs, -1).masked_fill(log_probs.isneginf(), -torch.inf)


def draw(log_probs: torch.Tensor, width: int, source: Source) -> torch.Tensor:
    """One option for every beam, drawn from its distribution; `width` options where there is one beam yet.

    Args:
        log_probs: float [B, beams, D]; beams is 1 or `width`.

    Returns:
        int64 [B, width] into the candidates [B, beams · D].
    """
    batch, beams, options = log_probs.shape
    count = width // beams
    reached = log_probs.exp().cumsum(-1)
    # below 1, so that the place found is always one where `reached` grows
    wanted = uniform((batch, beams, count), log_probs.device, source).clamp(max=1 - 1e-6) * reached[..., -1:]
    option = torch.searchsorted(reached, wanted, right=True).clamp(max=options - 1)
    first = torch.arange(beams, device=log_probs.device).repeat_interleave(count) * options
    return option.view(batch, width) + first


def perturb(scores: torch.Tensor, keys: torch.Tensor, log_probs: torch.Tensor, source: Source) -> torch.Tensor:
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
    free = log_p + gumbel(log_p.shape, log_p.device, source)
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


def merge_best(
    totals: torch.Tensor, keys: torch.Tensor, option_keys: torch.Tensor, held: torch.Tensor, width: int
) -> torch.Tensor:
    """The W best of [`merge_sets`] of the candidates of one step, for most requests without looking at all of them.

    A set of t codes has at most t candidates: its beams lack one of its codes each. So each of the best 4·t·W
    candidates finds the others of its set by their keys. A set of which none is among those adds up to at most t times
    the least of them; where that would do for the W best, all candidates are merged after all.

    Args:
        totals: float [B, beams · D], log-probabilities, −inf where not allowed.
        keys: int64 [B, beams], of the sets that beams hold, no two alike but of dead beams.
        option_keys: int64 [D].
        held: int64 [B, beams, t − 1], the options that each beam took; −1 in dead ones.
        width: W.
    """
    options, size = len(option_keys), held.shape[2] + 1
    best = totals.topk(min(4 * size * width, totals.shape[1]), dim=1)
    parent, option = best.indices // options, best.indices % options
    key = keys.gather(1, parent) + option_keys[option]
    taken = held.gather(1, parent[..., None].expand(-1, -1, size - 1)).clamp(min=0)
    lacking = (key[..., None] - option_keys[taken]).flatten(1)  # of the beams that lack another code of the set
    ordered, order = keys.sort(dim=1)
    place = torch.searchsorted(ordered, lacking).clamp(max=keys.shape[1] - 1)
    other = order.gather(1, place) * options + taken.flatten(1)
    found = totals.gather(1, other).masked_fill(ordered.gather(1, place) != lacking, -torch.inf)
    merged = torch.cat([best.values[..., None], found.view_as(taken)], dim=2).logsumexp(2)
    key, order = key.sort(dim=1, stable=True)  # of equal sets the best comes first, as it did before
    again = torch.zeros_like(key, dtype=torch.bool)
    again[:, 1:] = key[:, 1:] == key[:, :-1]
    merged = merged.masked_fill(torch.zeros_like(again).scatter(1, order, again), -torch.inf)
    result = torch.full_like(totals, -torch.inf).scatter(1, best.indices, merged)
    if best.values.shape[1] < totals.shape[1]:
        least = merged.topk(width, dim=1).values[:, -1]
        flat = ((best.values[:, -1] > -torch.inf) & (best.values[:, -1] + math.log(size) > least)).nonzero()[:, 0]
        if len(flat):
            result[flat] = merge_sets(totals[flat], (keys[flat, :, None] + option_keys).flatten(1))
    return result
