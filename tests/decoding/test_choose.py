import numpy as np
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
