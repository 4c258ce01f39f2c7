import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_gr.decoding import choose


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 12), st.integers(1, 5))
def test_merged_sets_add_up_at_their_best(seed, batch, count, kinds):
    generator = torch.Generator().manual_seed(seed)
    totals = torch.randn(batch, count, generator=generator)
    totals[torch.rand(batch, count, generator=generator) < 0.3] = -torch.inf
    keys = torch.randint(0, kinds, (batch, count), generator=generator)
    merged = choose.merge_sets(totals, keys)
    for row in range(batch):
        for key in set(keys[row].tolist()):
            mine = (keys[row] == key).nonzero()[:, 0]
            values = totals[row, mine]
            expected = torch.full_like(values, -torch.inf)
            if not values.isneginf().all():
                expected[values.argmax()] = values.logsumexp(0)
            assert torch.allclose(merged[row, mine], expected, atol=1e-5)


def test_the_largest_key_below_a_beam_is_the_beams_own():
    generator = torch.Generator().manual_seed(0)
    scores, keys = torch.tensor([[-1.0, -3.0]]), torch.tensor([[0.5, -2.0]])
    log_probs = torch.log_softmax(torch.randn(1, 2, 5, generator=generator), -1)
    log_probs[0, 0, 3] = -torch.inf
    for _ in range(200):
        below = choose.perturb(scores, keys, log_probs, generator)
        assert torch.allclose(below.max(2).values, keys)
        assert torch.isneginf(below[0, 0, 3]) and torch.isfinite(below).sum() == 9


def test_a_dead_beam_has_no_keys():
    scores, keys = torch.tensor([[0.0, -torch.inf]]), torch.tensor([[0.0, -torch.inf]])
    log_probs = torch.tensor([[[-0.7, -0.7], [-torch.inf, -torch.inf]]])
    below = choose.perturb(scores, keys, log_probs, None)
    assert torch.isfinite(below[0, 0]).all() and torch.isneginf(below[0, 1]).all()


def test_draws_come_from_each_beams_own_distribution():
    log_probs = torch.tensor([[[0.5, 0.5, 0.0], [0.0, 0.1, 0.9]]]).log()
    chosen = np.stack([choose.draw(log_probs, 2, None)[0].numpy() for _ in range(4000)])
    assert set(chosen[:, 0]) == {0, 1} and set(chosen[:, 1]) == {4, 5}
    assert abs((chosen[:, 1] == 5).mean() - 0.9) < 0.03
    first = choose.draw(log_probs[:, :1], 4000, None)[0]
    assert abs(float((first == 0).float().mean()) - 0.5) < 0.05


@pytest.mark.parametrize("method", ["draw", "perturb"])
def test_processes_that_share_draws_make_those_of_one(method):
    log_probs = torch.log_softmax(torch.randn(4, 1, 6, generator=torch.Generator().manual_seed(1)), -1)

    def drawn(rows: torch.Tensor, part: int, parts: int) -> torch.Tensor:
        source = choose.Draws(torch.Generator().manual_seed(0), part, parts)
        if method == "draw":
            return choose.draw(rows, 3, source)
        zero = torch.zeros(len(rows), 1)
        return choose.perturb(zero, zero, rows, source)

    one = drawn(log_probs, 0, 1)
    assert torch.equal(torch.cat([drawn(log_probs[:2], 0, 2), drawn(log_probs[2:], 1, 2)]), one)
    assert not torch.equal(one[:2], one[2:])


def test_what_is_not_allowed_is_never_drawn():
    log_probs = torch.full((1, 1, 40), -torch.inf)
    log_probs[0, 0, 7], log_probs[0, 0, 20] = np.log(0.25), np.log(0.75)
    drawn = choose.draw(log_probs, 100_000, torch.Generator().manual_seed(0))
    assert sorted(drawn.unique().tolist()) == [7, 20]
    assert abs(float((drawn == 20).float().mean()) - 0.75) < 0.01


@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_best_sets_are_those_of_merging_all_candidates(size, spread):
    """Beams over five codes of each of four codebooks, so that many sets are reached from several; some are dead."""
    random = torch.Generator().manual_seed(size)
    option_keys = torch.randint(1, 2**62, (20,), generator=random)
    for _ in range(20):
        sets = {tuple(sorted(torch.randperm(4, generator=random)[:size].tolist())) for _ in range(6)}
        pool = [tuple(5 * book + int(torch.randint(5, (), generator=random)) for book in own) for own in sets] * 3
        pool = [tuple(code // 5 * 5 + int(torch.randint(5, (), generator=random)) for code in one) for one in pool]
        beams = torch.tensor([*sorted(set(pool)), (-1,) * size])[None]
        alive = beams[..., 0] >= 0
        keys = torch.where(alive, option_keys[beams.clamp(min=0)].sum(2), 0)
        totals = spread * torch.randn(1, beams.shape[1], 20, generator=random)
        used = (beams[..., None] // 5 == torch.arange(20) // 5).any(2) | ~alive[..., None]
        totals = totals.masked_fill(used, -torch.inf).flatten(1)
        full = choose.merge_sets(totals, (keys[..., None] + option_keys).flatten(1))
        found = choose.merge_best(totals, keys, option_keys, beams, width=6)
        best = full.topk(6, dim=1)
        assert torch.equal(found.topk(6, dim=1).indices, best.indices)
        assert torch.allclose(found.gather(1, best.indices), best.values, atol=1e-5)
