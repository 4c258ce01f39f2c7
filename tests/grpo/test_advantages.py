"""Advantages against the exact gradient of the expected reward, by listing every answer."""

import numpy as np
import pytest
import torch
from tiny import tiny_items, tiny_lm, tiny_tokenizer

from hf_gr.catalog import SidCatalog
from hf_gr.decoding import Draws, beam_search
from hf_gr.grpo.advantages import leave_one_out, uniform_groups, without_replacement
from hf_gr.grpo.rollouts import roll_out
from hf_gr.vocabulary import add_vocabulary


GROUP, GROUPS = 3, 20_000


@pytest.fixture(scope="module")
def policy():
    """A model's distribution over seven items, and rewards of them."""
    codes = np.array([[0, 0], [0, 1], [0, 2], [1, 0], [1, 2], [2, 1], [2, 2]])
    catalog = SidCatalog.from_codes(codes, tiny_items(7), (3, 3))
    model = tiny_lm(initializer_range=0.4)
    vocabulary = add_vocabulary(tiny_tokenizer(), model, catalog, max_history=5)
    grammar = vocabulary.grammar(catalog)
    prompt = [vocabulary.start_id, *vocabulary.item_tokens(catalog)[3].tolist()]
    every = beam_search(model, [prompt], grammar, num_beams=7, top_k=7)
    probs = torch.empty(7, dtype=torch.float64)
    probs[every.items[0]] = every.scores[0].double().exp()
    assert probs.sum() == pytest.approx(1, abs=1e-5) and probs.max() > 0.3 and probs.min() < 0.08
    rewards = torch.tensor([0.1, 1.0, 0.0, -0.5, 0.3, 2.0, 0.7], dtype=torch.float64)
    return model, prompt, grammar, probs, rewards


def drawn(policy, method: str, count: int = GROUPS, group: int = GROUP):
    """Items [count, G], their log-probabilities, the thresholds."""
    model, prompt, grammar, *_ = policy
    draws = Draws(torch.Generator().manual_seed(0))
    found = [roll_out(model, [prompt] * 1000, grammar, group, method, 1.0, draws) for _ in range(count // 1000)]
    tokens = torch.cat([part.tokens for part in found])
    items = grammar.items(grammar.walk(tokens.flatten(0, 1)), limit=1)[:, 0].view(-1, group)
    return items, *(torch.cat([getattr(part, name) for part in found]) for name in ("fresh_scores", "thresholds"))


def direction(items: torch.Tensor, advantages: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
    """d/dθ of the estimate as weights v of Σ_s v_s ∇log p(s), less what changes nothing (Σ_s p_s ∇log p(s) = 0)."""
    weights = torch.zeros(len(probs), dtype=torch.float64)
    weights.scatter_add_(0, items.flatten(), advantages.flatten().double())
    weights /= advantages.numel()
    return weights - probs * weights.sum()


def exact(probs: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
    return probs * (rewards - (probs * rewards).sum())


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_independent_draws_with_the_others_mean_estimate_the_gradient(policy):
    probs, rewards = policy[3:]
    items, _, _ = drawn(policy, "sample")
    centred = rewards[items] - rewards[items].mean(1, keepdim=True)
    assert error(direction(items, leave_one_out(centred), probs), exact(probs, rewards)) < 0.04
    assert error(direction(items, centred, probs), (1 - 1 / GROUP) * exact(probs, rewards)) < 0.04
    assert error(direction(items, centred, probs), exact(probs, rewards)) > 0.25
    by_hand = torch.stack([rewards[row] - (rewards[row].sum() - rewards[row]) / (GROUP - 1) for row in items[:50]])
    assert torch.allclose(leave_one_out(centred)[:50], by_hand)


def test_distinct_draws_with_importance_weights_estimate_the_gradient(policy):
    probs, rewards = policy[3:]
    items, scores, keys = drawn(policy, "gumbel")
    advantages = without_replacement(rewards[items].float(), scores, keys)
    assert error(direction(items, advantages, probs), exact(probs, rewards)) < 0.04
    centred = rewards[items] - rewards[items].mean(1, keepdim=True)
    assert error(direction(items, leave_one_out(centred), probs), exact(probs, rewards)) > 0.1  # as if independent


def test_drawing_every_answer_gives_the_gradient_itself(policy):
    probs, rewards = policy[3:]
    items, scores, keys = drawn(policy, "gumbel", 1000, group=9)  # there are seven
    assert keys.isneginf().all() and (scores.isneginf().sum(1) == 2).all()
    advantages = without_replacement(rewards[items].float(), scores, keys)
    assert (advantages[scores.isneginf()] == 0).all()
    for row in range(3):
        found = direction(items[row : row + 1], advantages[row : row + 1], probs)
        assert torch.allclose(found, exact(probs, rewards), atol=1e-5)


@pytest.mark.parametrize("biased", ["scaled", "beam"])
def test_what_is_biased(policy, biased):
    """Dividing by a group's deviation, and beams: neither estimates the gradient (docs/grpo.md has the figures)."""
    probs, rewards = policy[3:]
    items, _, _ = drawn(policy, "sample" if biased == "scaled" else "beam")
    centred = rewards[items] - rewards[items].mean(1, keepdim=True)
    if biased == "scaled":
        centred = centred / (rewards[items].std(1, keepdim=True) + 1e-4)
    found, wanted = direction(items, leave_one_out(centred), probs), exact(probs, rewards)
    assert error(found * (found @ wanted) / (found @ found), wanted) > 0.1  # at whatever length


def test_groups_of_one_reward():
    assert uniform_groups(torch.tensor([[1.0, 1.0], [0.0, 1.0], [-2.0, -2.0]])).tolist() == [True, False, True]
