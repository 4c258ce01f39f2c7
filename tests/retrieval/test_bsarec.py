"""The filter against a DFT by NumPy, what may look where, the loss against a loop, and saving."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModel

from hf_gr.models.bsarec import PADDING, FrequencyFilter, low_pass
from hf_gr.retrieval import BSARecConfig, BSARecModel


ITEMS = 20


def small_model(seed: int = 0, **settings: object) -> BSARecModel:
    torch.manual_seed(seed)
    given = {"hidden_size": 16, "num_attention_heads": 2, "max_history": 9, "initializer_range": 0.5}
    return BSARecModel(BSARecConfig(ITEMS, **(given | settings))).eval()


def dft_low(signal: np.ndarray, cutoff: int) -> np.ndarray:
    """The c lowest frequencies of signals [n, d], by the DFT."""
    spectrum = np.fft.fft(signal, axis=0)
    spectrum[np.abs(np.fft.fftfreq(len(signal), 1 / len(signal))) > (cutoff - 1) / 2 + 1e-9] = 0
    return np.fft.ifft(spectrum, axis=0).real


@given(st.integers(1, 12), st.integers(0, 5), st.integers(0, 2**16))
def test_low_pass_is_the_inverse_of_a_cut_dft(window, pairs, seed):
    cutoff = 2 * min(pairs, (window - 1) // 2) + 1
    signal = np.random.default_rng(seed).normal(size=(window, 3))
    found = low_pass(window, cutoff).double().numpy() @ signal
    assert np.allclose(found, dft_low(signal, cutoff), atol=1e-5)


def test_the_filter_by_hand():
    """On a full window, and on a short history, which is a window with zeros before it."""
    filtered = FrequencyFilter(BSARecConfig(ITEMS, 4, max_history=9, cutoff=5, causal=False)).eval()
    torch.nn.init.normal_(filtered.beta)
    x = torch.randn(1, 10, 4)
    beta = filtered.beta.detach().numpy()
    for length in (10, 6):
        short = x[:, :length].numpy()[0]
        whole = np.concatenate([np.zeros((10 - length, 4)), short])
        low = dft_low(whole, 5)[10 - length :]
        expected = short + low + beta**2 * (short - low)
        expected = (expected - expected.mean(1, keepdims=True)) / expected.std(1, keepdims=True)
        found = filtered(x[:, :length], torch.ones(1, length, 1))[0].detach().numpy()
        assert np.allclose(found, expected, atol=1e-5)


def test_a_causal_filter_takes_every_position_for_the_last():
    signal = np.random.default_rng(0).normal(size=(8, 3))
    found = low_pass(8, 5, causal=True).double().numpy() @ signal
    for end in range(1, 9):
        history = np.concatenate([np.zeros((8 - end, 3)), signal[:end]])
        assert np.allclose(found[end - 1], dft_low(history, 5)[-1], atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0])
def test_no_position_of_a_causal_model_sees_what_comes_later(alpha):
    model = small_model(alpha=alpha, causal=True)
    rows = torch.randint(ITEMS, (4, 10))
    changed = rows.clone()
    changed[:, 6:] = (rows[:, 6:] + 1) % ITEMS
    before, after = model(rows).last_hidden_state, model(changed).last_hidden_state
    assert torch.equal(before[:, :6], after[:, :6])
    assert (before[:, 6:] - after[:, 6:]).abs().max() > 1e-3


def test_the_published_filter_does():
    model = small_model(causal=False)
    rows = torch.randint(ITEMS, (4, 10))
    changed = rows.clone()
    changed[:, 9:] = (rows[:, 9:] + 1) % ITEMS
    difference = (model(rows).last_hidden_state - model(changed).last_hidden_state)[:, :9]
    assert difference.abs().amax(-1).min() > 1e-5


@pytest.mark.parametrize("causal", [True, False])
def test_padding_changes_nothing(causal):
    model = small_model(causal=causal)
    row = torch.randint(ITEMS, (1, 5))
    beside = torch.full((2, 9), PADDING)
    beside[0, :5], beside[1] = row[0], torch.randint(ITEMS, (9,))
    alone, padded = model(row).last_hidden_state, model(beside).last_hidden_state[:1, :5]
    assert torch.allclose(alone, padded, atol=1e-5)


def test_without_a_filter_or_without_attention_there_are_no_such_weights():
    names = {alpha: set(small_model(alpha=alpha).state_dict()) for alpha in (0.0, 0.5, 1.0)}
    assert not any("filter" in name for name in names[0.0]) and not any("attention" in name for name in names[1.0])
    assert names[0.0] | names[1.0] == names[0.5]
    assert not any(name.endswith("low") for name in names[0.5])


def test_the_loss_is_that_of_a_plain_loop():
    model = small_model()
    rows, labels = torch.randint(ITEMS, (3, 7)), torch.randint(ITEMS, (3, 7))
    labels[0, :3] = PADDING
    hidden = model(rows).last_hidden_state
    candidates = torch.cat([labels[labels != PADDING], torch.tensor([1, 5, 9])]).unique()
    for allowed in (None, candidates):
        losses = []
        for row in range(3):
            for place in range(7):
                if labels[row, place] == PADDING:
                    continue
                items = range(ITEMS) if allowed is None else allowed.tolist()
                scores = {item: float(hidden[row, place] @ model.items.weight[item]) for item in items}
                total = np.log(np.sum(np.exp(list(scores.values()))))
                losses.append(total - scores[int(labels[row, place])])
        found = model(rows, labels, candidates=allowed).loss
        assert found.item() == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_a_saved_model_is_the_same_one(tmp_path, causal):
    model = small_model(causal=causal)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    rows = torch.randint(ITEMS, (2, 8))
    assert isinstance(again, BSARecModel) and again.config.causal is causal
    assert torch.equal(again(rows).last_hidden_state, model(rows).last_hidden_state)
