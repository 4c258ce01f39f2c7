import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_catalog, tiny_lm, tiny_tokenizer
from transformers import LogitsProcessorList

from hf_gr.decoding import SidLogitsProcessor
from hf_gr.decoding.logits_process import allowed_next
from hf_gr.errors import HfGrError
from hf_gr.vocabulary import add_vocabulary


EOS = 1
SIZES = (3, 4, 2)
CATALOG = tiny_catalog(sizes=SIZES)  # 40 items on 24 SIDs: collisions, and few SIDs left free
TOKENIZER, MODEL = tiny_tokenizer(), tiny_lm()
VOCABULARY = add_vocabulary(TOKENIZER, MODEL, CATALOG, max_history=10)
GRAMMAR = CATALOG.removed([f"i{row:03d}" for row in range(0, 40, 3)]).grammar()
LIVE = {row for row in range(40) if row % 3}
WIDTH = len(TOKENIZER)


def tokens_of(prefix: list[int]) -> list[int]:
    return [VOCABULARY.code_ids[level][code] for level, code in enumerate(prefix)]


def following(prefix: list[int], items: set[int]) -> set[int]:
    """Brute force: tokens that continue a SID of `items` that begins so."""
    level = len(prefix)
    found = [CATALOG.codes[item].tolist() for item in items]
    return {VOCABULARY.code_ids[level][sid[level]] for sid in found if sid[:level] == prefix}


prefixes = st.integers(0, 2).flatmap(
    lambda level: st.lists(st.tuples(*[st.integers(0, size - 1) for size in SIZES[:level]]), min_size=1, max_size=4)
)


@settings(max_examples=60, deadline=None)
@given(prefixes, st.data())
def test_what_may_follow_equals_the_listing(rows, data):
    rows = [list(row) for row in rows]
    deny = [data.draw(st.none() | st.lists(st.integers(0, 39), max_size=30).map(np.array)) for _ in rows]
    live = [LIVE - set([] if one is None else one.tolist()) for one in deny]
    item_filter = GRAMMAR.filter(deny)
    answer = torch.tensor([tokens_of(row) for row in rows], dtype=torch.int64).reshape(len(rows), -1)
    tokens, allowed = allowed_next(GRAMMAR, VOCABULARY, answer, item_filter)
    expected = [following(*row) for row in zip(rows, live, strict=True)]
    assert [set(t[a].tolist()) for t, a in zip(tokens, allowed, strict=True)] == expected

    prompt = torch.full((len(rows), 2), VOCABULARY.start_id)
    scores = torch.randn(len(rows), WIDTH)
    processor = SidLogitsProcessor(GRAMMAR, VOCABULARY, 2, EOS, item_filter, raise_on_dead=False)
    found = processor(torch.cat([prompt, answer], 1), scores)
    for row, wanted in enumerate(expected):
        kept = torch.isfinite(found[row]).nonzero()[:, 0]
        assert set(kept.tolist()) == wanted
        assert torch.equal(found[row, kept], scores[row, kept]), "what may follow keeps its score"


def test_a_prompt_may_end_in_sids():
    """Ids cannot tell prompt from answer; the prompt's length does."""
    sid = tokens_of(CATALOG.codes[1].tolist())
    ids = torch.tensor([[VOCABULARY.start_id, *sid]])
    scores = torch.zeros(1, WIDTH)
    first = SidLogitsProcessor(GRAMMAR, VOCABULARY, 4, EOS)(ids, scores)
    assert set(torch.isfinite(first[0]).nonzero()[:, 0].tolist()) == following([], LIVE)
    last = SidLogitsProcessor(GRAMMAR, VOCABULARY, 1, EOS)(ids, scores)
    assert torch.isfinite(last[0]).nonzero()[:, 0].tolist() == [EOS]


def test_each_prompt_has_its_filter_whatever_the_number_of_beams():
    item_filter = GRAMMAR.filter([np.array(sorted(LIVE - {1})), np.array(sorted(LIVE - {2}))])
    processor = SidLogitsProcessor(GRAMMAR, VOCABULARY, 1, EOS, item_filter)
    for beams in (1, 3):
        ids = torch.full((2 * beams, 1), VOCABULARY.start_id)
        found = torch.isfinite(processor(ids, torch.zeros(len(ids), WIDTH)))
        for row in range(len(ids)):
            item = 1 if row < beams else 2
            assert found[row].nonzero()[:, 0].tolist() == [VOCABULARY.code_ids[0][CATALOG.codes[item, 0]]]


def test_dead_ends_raise_unless_asked_not_to():
    nothing = GRAMMAR.filter([None, np.arange(40)])
    ids = torch.full((2, 1), VOCABULARY.start_id)
    with pytest.raises(HfGrError, match=r"row 1: no live item continues the answer \[\]; the filter leaves nothing"):
        SidLogitsProcessor(GRAMMAR, VOCABULARY, 1, EOS, nothing)(ids, torch.zeros(2, WIDTH))
    found = SidLogitsProcessor(GRAMMAR, VOCABULARY, 1, EOS, nothing, raise_on_dead=False)(ids, torch.zeros(2, WIDTH))
    assert torch.isfinite(found[0]).any() and torch.isneginf(found[1]).all()
    second_level = VOCABULARY.code_ids[1][0]
    for foreign in (5, EOS, second_level, VOCABULARY.think_ids[0], VOCABULARY.start_id):
        with pytest.raises(HfGrError, match=rf"row 0: no live item continues the answer \[{foreign}\]"):
            SidLogitsProcessor(GRAMMAR, VOCABULARY, 1, EOS)(torch.tensor([[7, foreign]]), torch.zeros(1, WIDTH))


def test_generate_answers_with_what_the_filter_leaves():
    prompts = torch.tensor([[VOCABULARY.start_id] * 2, [VOCABULARY.start_id, 9]])
    keep = [{4}, {10, 11}]
    item_filter = GRAMMAR.filter([None, None], [np.array(sorted(items)) for items in keep])
    processor = SidLogitsProcessor(GRAMMAR, VOCABULARY, 2, EOS, item_filter)
    options = {"max_new_tokens": 5, "do_sample": True, "num_return_sequences": 6}
    out = MODEL.generate(
        prompts, attention_mask=torch.ones_like(prompts), logits_processor=LogitsProcessorList([processor]), **options
    )
    sids = VOCABULARY.codes_of(out[:, 2:5])
    for row in range(12):
        assert sids[row].tolist() in [CATALOG.codes[item].tolist() for item in keep[row // 6]]
    assert (out[:, 5] == EOS).all()
