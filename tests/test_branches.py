import pytest
import torch
from tiny import tiny_lm
from transformers import LlamaConfig, Qwen3Config

from hf_gr.branches import SharedPrompts, additive_mask, share_prompts


TOKENS = 3
PROMPTS = {"a": [5, 6, 7, 8, 9, 10, 11], "b": [5, 6], "c": [12], "d": [6, 7, 8, 9, 10, 11]}  # d is a's end
ROWS = ["b", "a", "c", "a", "d", "b", "a", "c", "a"]  # shuffled, groups of different sizes


def batch_of(names: list[str], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Left-padded prompts (with rubbish in the padding), their mask, and an answer of each."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(len(PROMPTS[name]) for name in names) + 2  # one column of padding in every row
    prompts = torch.randint(3, 259, (len(names), longest), generator=generator)
    mask = torch.zeros_like(prompts)
    for row, name in enumerate(names):
        length = len(PROMPTS[name])
        prompts[row, -length:] = torch.tensor(PROMPTS[name])
        mask[row, -length:] = 1
    return prompts, mask, torch.randint(3, 259, (len(names), TOKENS), generator=generator)


def shared_log_probs(model, shared: SharedPrompts, answers: torch.Tensor) -> torch.Tensor:
    hidden = model.base_model(
        input_ids=shared.input_ids,
        position_ids=shared.position_ids,
        attention_mask=shared.mask(model.dtype),
        use_cache=False,
    ).last_hidden_state
    logits = model.get_output_embeddings()(hidden[shared.row[:, None], shared.predictors])
    return torch.log_softmax(logits, -1).gather(2, answers[..., None])[..., 0]


def plain_log_probs(model, names: list[str], answers: torch.Tensor) -> torch.Tensor:
    """Reference: every answer in a row of its own, no padding, no mask."""
    rows = []
    for name, answer in zip(names, answers, strict=True):
        ids = torch.cat([torch.tensor(PROMPTS[name]), answer])[None]
        logits = model(input_ids=ids, use_cache=False).logits[0, len(PROMPTS[name]) - 1 : -1]
        rows.append(torch.log_softmax(logits, -1).gather(1, answer[:, None])[:, 0])
    return torch.stack(rows)


def gradients(model, log_probs: torch.Tensor) -> dict[str, torch.Tensor]:
    weights = torch.linspace(-1, 2, log_probs.numel(), dtype=log_probs.dtype).view_as(log_probs)
    model.zero_grad()
    (log_probs * weights).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("names", [ROWS, ["c"], ["a"] * 4, ["a", "b", "c", "d"]])
@pytest.mark.parametrize("config_class", [LlamaConfig, Qwen3Config])
def test_log_probabilities_and_gradients_equal_those_of_plain_rows(config_class, names):
    model = tiny_lm(config_class).double()
    prompts, mask, answers = batch_of(names)
    shared = share_prompts(prompts, mask, answers)
    found, expected = shared_log_probs(model, shared, answers), plain_log_probs(model, names, answers)
    assert torch.allclose(found, expected, atol=1e-10, rtol=0)
    one, other = gradients(model, found), gradients(model, expected)
    assert one.keys() == other.keys() and any(gradient.abs().max() > 0.1 for gradient in other.values())
    for name in one:  # the norms of these models count in float32 whatever the weights are
        assert torch.allclose(one[name], other[name], atol=1e-5, rtol=0), (name, (one[name] - other[name]).abs().max())


@pytest.mark.parametrize("config_class", [LlamaConfig, Qwen3Config])
def test_single_precision_is_as_good(config_class):
    model = tiny_lm(config_class)
    prompts, mask, answers = batch_of(ROWS)
    found = shared_log_probs(model, share_prompts(prompts, mask, answers), answers)
    assert torch.allclose(found, plain_log_probs(model, ROWS, answers), atol=1e-5, rtol=0)


def test_every_prompt_stands_once():
    prompts, mask, answers = batch_of(ROWS)
    shared = share_prompts(prompts, mask, answers)
    length = prompts.shape[1]
    assert shared.input_ids.shape == shared.position_ids.shape == (4, length + 4 * TOKENS)  # "a" has four answers
    assert shared.visible.shape == (4, length + 4 * TOKENS, length + 4 * TOKENS)
    assert shared.visible.dtype == torch.bool
    assert len({(name, row) for name, row in zip(ROWS, shared.row.tolist(), strict=True)}) == 4
    for row, name in enumerate(ROWS):
        trunk = shared.input_ids[shared.row[row], :length]
        assert trunk[mask[row].bool()].tolist() == PROMPTS[name]
        columns = [*shared.predictors[row, 1:].tolist(), int(shared.predictors[row, -1]) + 1]
        assert shared.predictors[row, 0] == length - 1
        assert shared.input_ids[shared.row[row], columns].tolist() == answers[row].tolist()
        positions = shared.position_ids[shared.row[row], columns].tolist()
        assert positions == [len(PROMPTS[name]) + step for step in range(TOKENS)]
        for step, column in enumerate(columns):  # a column sees the real prompt and its own branch so far
            seen = shared.visible[shared.row[row], column].nonzero()[:, 0].tolist()
            assert seen == [*range(length - len(PROMPTS[name]), length), *columns[: step + 1]]


def test_one_token_answers():
    model = tiny_lm().double()
    prompts, mask, answers = batch_of(ROWS)
    shared = share_prompts(prompts, mask, answers[:, :1])
    assert torch.equal(shared.predictors, torch.full((len(ROWS), 1), prompts.shape[1] - 1))
    found = shared_log_probs(model, shared, answers[:, :1])
    assert torch.allclose(found, plain_log_probs(model, ROWS, answers)[:, :1], atol=1e-10, rtol=0)


def test_an_answer_does_not_see_its_neighbours():
    model = tiny_lm().double()
    prompts, mask, answers = batch_of(["a", "a", "a"])
    before = shared_log_probs(model, share_prompts(prompts, mask, answers), answers)
    changed = answers.clone()
    changed[1] = 77
    after = shared_log_probs(model, share_prompts(prompts, mask, changed), answers)
    assert torch.equal(before[[0, 2]], after[[0, 2]]) and not torch.allclose(before[1], after[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_mask_is_finite_even_as_bf16(dtype):
    visible = torch.tensor([[[True, False], [False, False]]])
    mask = additive_mask(visible, dtype)
    assert mask.shape == (1, 1, 2, 2) and mask.dtype == dtype
    assert mask[0, 0, 0, 0] == 0 and (mask[0, 0][~visible[0]] < -6e4).all()
    assert mask.isfinite().all() and mask.to(torch.bfloat16).isfinite().all()
    assert not torch.softmax(mask, -1).isnan().any()
