"""Samplers: what they draw comes as often as they say."""

import numpy as np
import pytest
import torch

from hf_gr.retrieval.negatives import InBatch, Mixed, Popularity, Sampler, Uniform, negatives, sampler_of


EVENTS = np.array([6, 3, 0, 1, 10])
ITEMS, BATCH, COUNT = len(EVENTS), 8, 5


def targets_at_random(batch: int = BATCH) -> torch.Tensor:
    return torch.multinomial(torch.tensor(EVENTS, dtype=torch.float32), batch, replacement=True)


@pytest.mark.parametrize("kind", ["uniform", "popularity", "in_batch", "mixed"])
def test_items_are_drawn_as_often_as_is_said(kind):
    """Mean counts over many batches, those of the other rows' targets for what is drawn in the batch."""
    torch.manual_seed(0)
    sampler, rounds = sampler_of(kind, EVENTS, COUNT), 4000
    counts = torch.zeros(ITEMS)
    for _ in range(rounds):
        targets = targets_at_random()
        counts += torch.bincount(sampler.draw(targets), minlength=ITEMS)
        if kind in ("in_batch", "mixed"):  # a row's own target is no negative of it
            counts -= torch.bincount(targets[:1], minlength=ITEMS)
    expected = sampler.log_counts(torch.arange(ITEMS), BATCH).exp()
    assert torch.allclose(counts / rounds, expected, atol=0.08)


@pytest.mark.parametrize(
    ("sampler", "shares", "count"),
    [
        (Uniform(ITEMS, COUNT), np.full(ITEMS, 1 / ITEMS), COUNT),
        (Popularity(EVENTS, COUNT), (EVENTS + 1) / 25, COUNT),
        (InBatch(EVENTS), EVENTS / 20, BATCH - 1),
        (Mixed(EVENTS, COUNT), (COUNT / ITEMS + (BATCH - 1) * EVENTS / 20) / (COUNT + BATCH - 1), COUNT + BATCH - 1),
    ],
)
def test_log_probabilities_by_hand(sampler: Sampler, shares, count):
    found = sampler.log_counts(torch.arange(ITEMS), BATCH).exp()
    assert np.allclose(found, shares * count, rtol=1e-5) and float(found.sum()) == pytest.approx(count, rel=1e-5)


def test_uniform_draws_are_those_of_torchs_generator():
    """So that a seed gives the draws that it gave in earlier releases."""
    torch.manual_seed(3)
    expected = torch.randint(ITEMS, (COUNT,))
    torch.manual_seed(3)
    targets = torch.tensor([1, 2])
    assert Mixed(EVENTS, COUNT).draw(targets).tolist() == [1, 2, *expected.tolist()]


def test_repeats_become_weights():
    drawn = negatives(InBatch(EVENTS), torch.tensor([4, 0, 4, 4]), log_q=True)
    assert drawn.items.tolist() == [0, 4]
    assert np.allclose(drawn.log_weights.exp(), [1 / (3 * 0.3), 3 / (3 * 0.5)], rtol=1e-5)
    plain = negatives(InBatch(EVENTS), torch.tensor([4, 0, 4, 4]), log_q=False)
    assert plain.items.tolist() == [0, 4] and plain.log_weights.tolist() == [0, 0]
