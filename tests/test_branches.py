"""Rows of trunks and branches, against one plain row per answer."""

import functools
from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_lm, tiny_tokenizer
from tiny_runs import distinct_catalog
from torch.nn.attention.flex_attention import flex_attention
from transformers import CONFIG_MAPPING

from hf_gr.branches import IGNORED, Packed, Row, additive_mask, fit, separate, share_prompts
from hf_gr.dataset import Histories
from hf_gr.errors import HfGrError
from hf_gr.models import TREE_MODEL_TYPES
from hf_gr.packing import pack
from hf_gr.sft.tasks import next_item
from hf_gr.vocabulary import add_vocabulary


CATALOG = distinct_catalog()
VOCABULARY = add_vocabulary(tiny_tokenizer(), tiny_lm(), CATALOG, max_history=4)
THINK = VOCABULARY.think_ids
SIZE = VOCABULARY.token_ids[-1] + 1


@functools.cache
def model_of(architecture: str = "llama"):
    return tiny_lm(CONFIG_MAPPING[architecture], vocab_size=SIZE)


def random_row(random: np.random.Generator, trunk: int = 9, answers: int = 5) -> Row:
    """Answers of 1 to 4 tokens, anywhere on the trunk, some of them not predicted, some repeating the trunk."""
    ids = random.integers(3, SIZE, int(random.integers(1, trunk + 1))).tolist()
    row = Row(input_ids=ids, attach=[], answers=[], labels=[], weights=[])
    for _ in range(int(random.integers(1, answers + 1))):
        attach, length = int(random.integers(1, len(ids) + 1)), int(random.integers(1, 5))
        tokens = random.integers(3, SIZE, length).tolist()
        if random.random() < 0.3:
            tokens = ids[attach : attach + length] or tokens
        labels = [token if random.random() < 0.7 else IGNORED for token in tokens]
        row["attach"].append(attach)
        row["answers"].append(tokens)
        row["labels"].append(labels)
        row["weights"].append(float(random.uniform(0.1, 2)))
    return row


@functools.cache
def rows_of(case: str) -> list[Row]:
    """`random`, or rows of next_item as `form steps`."""
    if case == "random":
        random = np.random.default_rng(1)
        return [random_row(random) for _ in range(6)]
    form, steps = case.split()
    lengths = [1, 3, 7, 2]
    histories = Histories(
        np.array([f"u{user}" for user in range(len(lengths))], dtype=object),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.random.default_rng(0).integers(0, len(CATALOG), sum(lengths)),
        np.arange(sum(lengths)),
    )
    return next_item(histories, CATALOG, replace(VOCABULARY, form=form), steps=int(steps)).to_list()


CASES = ["flat 1", "flat 3", "stepwise 1", "stepwise 3", "upfront 1", "random"]


def answers_of(rows: list[Row]) -> list[tuple[list[int], list[int], list[int], float]]:
    """What is read before each answer, its tokens, labels and weight."""
    return [
        (row["input_ids"][:attach], tokens, labels, weight)
        for row in rows
        for attach, tokens, labels, weight in zip(
            row["attach"], row["answers"], row["labels"], row["weights"], strict=True
        )
    ]


def hashed(answer) -> tuple:
    return tuple(map(tuple, answer[:3])) + answer[3:]


def plain_log_probs(model, rows: list[Row]) -> list[torch.Tensor]:
    """Reference: log-probabilities of every answer's predicted tokens, each answer in a row of its own."""
    found = []
    for read, tokens, labels, _ in answers_of(rows):
        logits = model(input_ids=torch.tensor([read + tokens]), use_cache=False).logits[0, len(read) - 1 : -1]
        wanted = torch.tensor(labels) != IGNORED
        found.append(torch.log_softmax(logits, -1).gather(1, torch.tensor(tokens)[:, None])[wanted, 0])
    return found


def packed_log_probs(model, packed: Packed, attention: str = "sdpa") -> list[torch.Tensor]:
    model.set_attn_implementation(attention)
    try:
        logits = model(**packed.inputs(attention, model.dtype), use_cache=False).logits.flatten(0, 1)
    finally:
        model.set_attn_implementation("sdpa")
    log_probs = torch.log_softmax(logits[packed.predictors], -1)
    wanted = packed.labels != IGNORED
    found = log_probs.gather(2, packed.labels.where(wanted, 0)[..., None])[..., 0]
    return [row[mask] for row, mask in zip(found, wanted, strict=True)]


def gradients(model, log_probs: list[torch.Tensor], weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of the weighted sum of all log-probabilities."""
    model.zero_grad()
    sum(weight * values.sum() for weight, values in zip(weights, log_probs, strict=True)).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@functools.cache
def expected_of(architecture: str, case: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model, rows = model_of(architecture), rows_of(case)
    log_probs = plain_log_probs(model, rows)
    weights = torch.tensor([weight for *_, weight in answers_of(rows)])
    return torch.cat(log_probs).detach(), gradients(model, log_probs, weights)


def crowded(rows: list[Row]) -> Packed:
    """Several rows that hold several trunks, and padding."""
    packed = pack(rows, think_ids=THINK, max_columns=4 + max(pack([row]).input_ids.shape[1] for row in rows))
    trunks = [len(line[line >= 0].unique()) for line in packed.trunk]
    assert 1 < len(trunks) < sum(trunks) == len(rows) and (packed.trunk == -1).any() and not packed.simple
    return packed


def assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float, name: str = "") -> None:
    """Relative to the size of all of it, since single entries may be nearly 0."""
    error = (found - expected).norm() / expected.norm().clamp(min=1e-12)
    assert error < tolerance, (name, error)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", TREE_MODEL_TYPES)
def test_log_probabilities_and_gradients_equal_those_of_plain_rows(architecture, attention, case):
    model, (expected, expected_gradients) = model_of(architecture), expected_of(architecture, case)
    assert any(gradient.abs().max() > 0.1 for gradient in expected_gradients.values())
    for packed in (pack(rows_of(case)), crowded(rows_of(case))):
        found = packed_log_probs(model, packed, attention)
        assert_close(torch.cat(found), expected, 1e-4)
        one = gradients(model, found, packed.weights)
        for name, gradient in expected_gradients.items():
            assert_close(one[name], gradient, 1e-4, name)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("architecture", TREE_MODEL_TYPES)
def test_double_precision(architecture, case):
    model = tiny_lm(CONFIG_MAPPING[architecture], vocab_size=SIZE).double()
    rows = rows_of(case)
    found, expected = packed_log_probs(model, crowded(rows)), plain_log_probs(model, rows)
    assert torch.allclose(torch.cat(found), torch.cat(expected), atol=1e-10, rtol=0)


def test_double_gradients():
    """Norms of these models count in float32 whatever the weights are; the rest is exact."""
    model = tiny_lm(vocab_size=SIZE).double()
    rows = rows_of("stepwise 3")
    packed = crowded(rows)
    one = gradients(model, packed_log_probs(model, packed), packed.weights)
    for name, other in gradients(model, plain_log_probs(model, rows), packed.weights).items():
        assert_close(one[name], other, 1e-6, name)


# what is seen


row_lists = st.integers(0, 10**6).flatmap(
    lambda seed: st.integers(1, 6).map(
        lambda size: [random_row(np.random.default_rng([seed, number])) for number in range(size)]
    )
)


def seen_by(packed: Packed, visible: torch.Tensor, column: int) -> tuple[list[int], list[int]]:
    """Tokens and positions that a column (counted through all rows) sees, in the order of positions."""
    row, place = divmod(column, packed.input_ids.shape[1])
    columns = visible[row, place].nonzero()[:, 0]
    order = columns[packed.position_ids[row, columns].argsort()]
    return packed.input_ids[row, order].tolist(), packed.position_ids[row, order].tolist()


def assert_sees(packed: Packed, rows: list[Row], think_ids=()) -> None:
    """Every predictor sees what a plain row of its answer would hold before the predicted token, and nothing else."""
    visible = packed.visible
    assert visible.shape == (*packed.input_ids.shape, packed.input_ids.shape[1]) and visible.dtype == torch.bool
    for number, (read, tokens, labels, weight) in enumerate(answers_of(rows)):
        predicted = [place for place, label in enumerate(labels) if label != IGNORED]
        wanted = packed.labels[number] != IGNORED
        assert packed.labels[number][wanted].tolist() == [tokens[place] for place in predicted]
        assert not wanted[len(predicted) :].any() and not packed.predictors[number][~wanted].any()
        for place, column in zip(predicted, packed.predictors[number].tolist(), strict=False):
            before = read + tokens[:place]
            assert seen_by(packed, visible, column) == (before, list(range(len(before))))
        assert seen_by(packed, visible, int(packed.anchors[number]))[0] == read
        assert packed.weights[number].item() == pytest.approx(weight)
        for think, column in zip(think_ids, packed.thoughts[number].tolist(), strict=True):
            if think not in tokens:
                assert column == -1
                continue
            assert seen_by(packed, visible, column)[0] == read + tokens[: tokens.index(think) + 1]
    for trunk, branch in zip(packed.trunk, packed.branch, strict=True):  # numbered through the row
        owners = torch.stack([trunk, branch])[:, branch > 0].unique(dim=1)
        assert len(owners[1].unique()) == owners.shape[1]
    padding = packed.trunk == -1
    assert not (visible & (padding[:, :, None] != padding[:, None])).any()


@settings(max_examples=60, deadline=None)
@given(row_lists, st.sampled_from([0, 20, 64]))
def test_every_predictor_sees_its_trunk_and_its_branch_alone(rows, max_columns):
    packed = pack(rows, max_columns=max_columns)
    assert_sees(packed, rows)
    columns = [len(pack([row]).input_ids[0]) for row in rows]
    widest = max(max_columns, *columns)
    assert packed.input_ids.shape[1] <= widest
    used = (packed.trunk >= 0).sum(1).tolist()
    assert sum(used) == sum(columns)
    whole = [number for line in packed.trunk for number in line[line >= 0].unique().tolist()]
    assert sorted(whole) == list(range(len(rows)))  # each in one row only
    if not packed.simple:
        assert columns[int(packed.trunk[0, 0])] == max(columns)  # the longest first
        assert all(one + other > widest for n, one in enumerate(used) for other in used[:n])  # none could be joined


@pytest.mark.parametrize("case", CASES)
def test_every_predictor_of_next_items_sees_its_history(case):
    for packed in (pack(rows_of(case), think_ids=THINK), crowded(rows_of(case))):
        assert_sees(packed, rows_of(case), THINK)


def test_columns_are_as_few_as_can_be():
    """Flat next items stand in the trunk; a stepwise one takes 2 L − 1 columns of its own; the last item's codes are
    read by nobody."""
    [row] = [row for row in rows_of("flat 1") if len(row["answers"]) == 5]
    assert pack([row]).input_ids.shape == (1, 1 + 5 * 3 - 1)
    [row] = [row for row in rows_of("stepwise 1") if len(row["answers"]) == 5]
    packed = pack([row], think_ids=THINK)
    assert packed.input_ids.shape == (1, 1 + 4 * 3 + 5 * 5)
    assert packed.thoughts.shape == (5, 3) and (packed.thoughts >= 0).all()
    assert torch.equal(packed.thoughts, packed.predictors)  # each code is predicted by its thought
    assert torch.equal(packed.anchors, torch.arange(5) * 3)


def test_rows_without_branches_are_simple():
    flat = pack(rows_of("flat 1"))
    assert flat.simple and len(flat.input_ids) == len(rows_of("flat 1"))
    assert set(flat.inputs("sdpa", torch.float32)) == {"input_ids", "attention_mask"}
    assert flat.inputs("any", torch.float32)["attention_mask"].sum(1).tolist() == (flat.trunk >= 0).sum(1).tolist()
    assert not pack(rows_of("flat 1"), max_columns=90).simple
    assert not pack(rows_of("stepwise 1")[:1]).simple
    masked = pack(rows_of("stepwise 1")).inputs("sdpa", torch.float32)
    assert set(masked) == {"input_ids", "position_ids", "attention_mask"}
    assert masked["attention_mask"].shape == (len(masked["input_ids"]), 1, *[masked["input_ids"].shape[1]] * 2)


def test_a_batch_and_back():
    packed = pack(rows_of("stepwise 3"), think_ids=THINK)
    batch = packed.as_batch()
    assert (batch["labels"][:, 0] == IGNORED).all() and torch.equal(batch["labels"][:, 1:], packed.labels)
    again = Packed.of_batch(batch | {"other": 1}).to("cpu")
    for field in fields(Packed):
        one, other = vars(packed)[field.name], vars(again)[field.name]
        assert torch.equal(one, other) and one.dtype == other.dtype
        assert one.dtype == (torch.float32 if field.name == "weights" else torch.int64)


# fit and separate


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40))
def test_fit_splits_and_keeps_every_answer(seed, max_columns):
    row = random_row(np.random.default_rng(seed), trunk=15, answers=12)
    alone = max(pack([part]).input_ids.shape[1] for part in separate(row))
    if alone > max_columns:
        with pytest.raises(HfGrError, match=r"takes \d+ tokens, but rows have at most") as error:
            fit(row, max_columns)
        assert "\n" not in str(error.value)
        return
    parts = fit(row, max_columns)
    assert sorted(answers_of(parts)) == sorted(answers_of([row]))
    assert all(pack([part]).input_ids.shape[1] <= max_columns for part in parts)
    assert (parts == [row]) == (pack([row]).input_ids.shape[1] <= max_columns)
    if len(parts) > 1:  # short trunks first, each part as full as can be
        assert [attach for part in parts for attach in part["attach"]] == sorted(row["attach"])
        assert all(len(part["input_ids"]) <= max_columns for part in parts)
        for part, after in pairwise(parts):
            more = {name: part[name] + after[name][:1] for name in ("attach", "answers", "labels", "weights")}
            assert pack([Row(input_ids=row["input_ids"], **more)]).input_ids.shape[1] > max_columns
    assert_sees(pack(parts, max_columns=max_columns), parts)


def test_fit_fills_rows():
    """Of 5 stepwise targets of a history, at 5 columns each, as many as go beside the history they need."""
    [row] = [row for row in rows_of("stepwise 1") if len(row["answers"]) == 5]
    assert [len(part["answers"]) for part in fit(row, 38)] == [5]
    assert [len(part["answers"]) for part in fit(row, 37)] == [4, 1]
    assert [len(part["answers"]) for part in fit(row, 18)] == [2, 1, 1, 1]
    with pytest.raises(HfGrError, match="takes 18 tokens, but rows have at most 17; raise max_length"):
        fit(row, 17)


@pytest.mark.parametrize("case", CASES)
def test_fitted_and_separate_rows_give_the_same(case):
    model, expected = model_of(), expected_of("llama", case)[0]
    rows = rows_of(case)
    single = [part for row in rows for part in separate(row)]
    packed = pack(single)
    assert packed.simple and [len(row["answers"]) for row in single] == [1] * len(single)
    assert_close(torch.cat(packed_log_probs(model, packed)), expected, 1e-4)
    parts = [part for row in rows for part in fit(row, packed.input_ids.shape[1])]
    assert len(parts) > len(rows) or case == "flat 1"
    found = packed_log_probs(model, crowded(parts))
    by_answer = dict(zip(map(hashed, answers_of(parts)), found, strict=True))
    again = [by_answer[key] for key in map(hashed, answers_of(rows))]
    assert_close(torch.cat(again), expected, 1e-4)


# FlexAttention


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("case", ["flat 1", "stepwise 3", "random"])
def test_the_block_mask_is_the_mask(case):
    packed = crowded(rows_of(case))
    rows, columns = packed.input_ids.shape
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, rows, 2, columns, 16, generator=generator)
    found = flex_attention(query, key, value, block_mask=packed.block_mask())
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=packed.mask(torch.float32))
    real = (packed.trunk >= 0)[:, None, :, None].expand_as(found)
    assert not packed.simple and torch.allclose(found[real], expected[real], atol=1e-5)
    causal = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    assert not torch.allclose(found[real], causal[real], atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_mask_is_finite_even_as_bf16(dtype):
    visible = torch.tensor([[[True, False], [False, False]]])
    mask = additive_mask(visible, dtype)
    assert mask.shape == (1, 1, 2, 2) and mask.dtype == dtype
    assert mask[0, 0, 0, 0] == 0 and (mask[0, 0][~visible[0]] < -6e4).all()
    assert mask.isfinite().all() and mask.to(torch.bfloat16).isfinite().all()
    assert not torch.softmax(mask, -1).isnan().any()


# rollouts of shared prompts


TOKENS = 3
PROMPTS = {"a": [5, 6, 7, 8, 9, 10, 11], "b": [5, 6], "c": [12], "d": [6, 7, 8, 9, 10, 11]}  # d is a's end
NAMES = ["b", "a", "c", "a", "d", "b", "a", "c", "a"]  # shuffled, groups of different sizes


def batch_of(names: list[str], tokens: int = TOKENS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Left-padded prompts (with rubbish in the padding), their mask, and an answer of each."""
    generator = torch.Generator().manual_seed(0)
    longest = max(len(PROMPTS[name]) for name in names) + 2  # one column of padding in every row
    prompts = torch.randint(3, SIZE, (len(names), longest), generator=generator)
    mask = torch.zeros_like(prompts)
    for row, name in enumerate(names):
        length = len(PROMPTS[name])
        prompts[row, -length:] = torch.tensor(PROMPTS[name])
        mask[row, -length:] = 1
    return prompts, mask, torch.randint(3, SIZE, (len(names), tokens), generator=generator)


def plain_rows(names: list[str], answers: torch.Tensor) -> list[Row]:
    """One row for each answer."""
    return [
        Row(input_ids=PROMPTS[name], attach=[len(PROMPTS[name])], answers=[answer], labels=[answer], weights=[1.0])
        for name, answer in zip(names, answers.tolist(), strict=True)
    ]


@pytest.mark.parametrize("names", [NAMES, ["c"], ["a"] * 4, ["a", "b", "c", "d"]])
@pytest.mark.parametrize("architecture", TREE_MODEL_TYPES)
def test_shared_prompts_equal_plain_rows(architecture, names):
    prompts, mask, answers = batch_of(names)
    shared, rows, model = share_prompts(prompts, mask, answers), plain_rows(names, answers), model_of(architecture)
    found, expected = packed_log_probs(model, shared), plain_log_probs(model, rows)
    assert_close(torch.cat(found), torch.cat(expected), 1e-5)
    one, other = gradients(model, found, shared.weights), gradients(model, expected, shared.weights)
    for name, gradient in other.items():
        assert_close(one[name], gradient, 1e-4, name)
    exact = tiny_lm(CONFIG_MAPPING[architecture], vocab_size=SIZE).double()
    found, expected = packed_log_probs(exact, shared), plain_log_probs(exact, rows)
    assert torch.allclose(torch.cat(found), torch.cat(expected), atol=1e-10, rtol=0)


@pytest.mark.parametrize("tokens", [1, TOKENS])
def test_every_prompt_stands_once(tokens):
    prompts, mask, answers = batch_of(NAMES, tokens)
    shared = share_prompts(prompts, mask, answers)
    assert shared.input_ids.shape == (4, prompts.shape[1] + 4 * (tokens - 1))  # "a" has four answers
    assert torch.equal(shared.labels, answers) and not shared.simple and shared.thoughts.shape == (len(NAMES), 0)
    assert_sees(shared, plain_rows(NAMES, answers))
    row = shared.anchors // shared.input_ids.shape[1]
    assert len({(name, number) for name, number in zip(NAMES, row.tolist(), strict=True)}) == 4
    trunks = shared.input_ids.where((shared.trunk >= 0) & (shared.branch == 0), -1)
    held = [[token for token in trunk if token >= 0] for trunk in trunks.tolist()]
    assert sorted(held) == sorted(PROMPTS.values())


def test_rows_that_would_be_half_padding_share_them():
    """The packed form is the one that is compared with plain rows above; here, when it is taken."""
    long, short = (Row(input_ids=[7] * n, attach=[n], answers=[[9]], labels=[[9]], weights=[1.0]) for n in (40, 4))
    rows = [long, *[short] * 10]
    assert pack(rows).input_ids.shape == (11, 40) and pack(rows).simple
    packed = pack(rows, crowd=True)
    assert packed.input_ids.shape == (2, 40) and not packed.simple
    assert_sees(packed, rows)
    even = pack([long, long, short], crowd=True)  # 120 columns for 84 tokens
    assert even.simple and even.input_ids.shape == (3, 40)
