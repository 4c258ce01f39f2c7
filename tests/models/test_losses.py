"""The sampled softmax against a loop, and its expectation and gradient against the full softmax."""

import itertools
import math

import pytest
import torch

from hf_gr.models.losses import sampled_softmax, softmax


ITEMS, WIDTH = 5, 3


@pytest.fixture
def scores() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(1, WIDTH), torch.randn(ITEMS, WIDTH)


def estimate(users: torch.Tensor, vectors: torch.Tensor, target: int, draws: tuple[int, ...], q: torch.Tensor):
    """The loss on some draws with repeats, each weighed by how often it was expected."""
    items, times = torch.tensor(draws).unique(return_counts=True)
    weights = times.log() - (len(draws) * q[items]).log()
    targets = torch.tensor([target])
    return sampled_softmax(users, vectors[targets], targets, vectors[items], items, weights)


def test_the_estimated_sum_is_on_average_that_of_all_items(scores):
    """Every pair of draws, weighed by its probability."""
    users, vectors = scores
    q = torch.tensor([0.4, 0.1, 0.2, 0.25, 0.05])
    products = (users @ vectors.T)[0]
    for target in range(ITEMS):
        mean = 0.0
        for draws in itertools.product(range(ITEMS), repeat=2):
            loss = estimate(users, vectors, target, draws, q)
            mean += float(q[list(draws)].prod()) * math.exp(float(loss) + float(products[target]))
        assert mean == pytest.approx(float(products.exp().sum()), rel=1e-5)


@pytest.mark.parametrize("corrected", [True, False])
def test_loss_and_gradient_tend_to_the_full_softmaxs_with_the_correction_alone(scores, corrected):
    users, vectors = (part.requires_grad_() for part in scores)
    q = torch.tensor([0.4, 0.1, 0.2, 0.25, 0.05])
    full = softmax(users, torch.tensor([1]), vectors)
    expected = torch.autograd.grad(full, [users, vectors])
    draws = torch.multinomial(q, 200_000, replacement=True, generator=torch.Generator().manual_seed(1))
    items, times = draws.unique(return_counts=True)
    weights = times.log() - math.log(len(draws)) - (q[items].log() if corrected else -math.log(ITEMS))
    loss = sampled_softmax(users, vectors[[1]], torch.tensor([1]), vectors[items], items, weights)
    found = torch.autograd.grad(loss, [users, vectors])
    close = abs(float(loss - full)) < 0.01 and all(
        (a - b).abs().max() < 0.01 for a, b in zip(found, expected, strict=True)
    )
    assert close == corrected


def test_the_sampled_loss_is_that_of_a_plain_loop():
    torch.manual_seed(2)
    users, vectors, weights = torch.randn(4, WIDTH), torch.randn(ITEMS, WIDTH), torch.randn(3)
    targets, drawn = torch.tensor([0, 1, 3, 3]), torch.tensor([1, 3, 4])
    losses = []
    for user, target in zip(users, targets.tolist(), strict=True):
        total = math.exp(float(user @ vectors[target]))
        for item, weight in zip(drawn.tolist(), weights, strict=True):
            if item != target:
                total += math.exp(float(weight)) * math.exp(float(user @ vectors[item]))
        losses.append(math.log(total) - float(user @ vectors[target]))
    found = sampled_softmax(users, vectors[targets], targets, vectors[drawn], drawn, weights)
    assert float(found) == pytest.approx(sum(losses) / 4, rel=1e-5)


def test_without_weights_all_items_drawn_once_are_the_full_softmax(scores):
    users, vectors = scores
    targets = torch.tensor([2])
    every = torch.arange(ITEMS)
    found = sampled_softmax(users, vectors[targets], targets, vectors, every, torch.zeros(ITEMS))
    assert float(found) == pytest.approx(float(softmax(users, targets, vectors)), rel=1e-6)
    some = torch.tensor([1, 2, 4])
    among = softmax(users, targets, vectors[some], some)
    assert float(among) == pytest.approx(
        float(sampled_softmax(users, vectors[targets], targets, vectors[some], some, torch.zeros(3))), rel=1e-6
    )
