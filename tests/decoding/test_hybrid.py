"""Answers by two outputs against a listing of all items, filters, sessions, and the loss against a plain softmax."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from searching import RECURSIVE, Case, build, every_sid, hybrid
from transformers import Qwen3Config

from hf_gr.decoding import beam_search
from hf_gr.errors import HfGrError
from hf_gr.models import RecursionConfig, dense_loss


@torch.no_grad()
def listed(case: Case, prompt: list[int], live: list[int], share: float) -> dict[int, float]:
    """{item: score} of the live items, each by itself, in softmaxes over all items."""
    model = case.model
    hidden = model.model(torch.tensor([prompt])).last_hidden_state[0, -1]
    rows = model.model.items.project.weight @ model.model.items.embedding.weight.T
    vectors = rows.T + model.model.token_rows[case.vocabulary.item_tokens(case.catalog)].sum(1)
    dense = torch.log_softmax(vectors @ hidden, 0)[live]
    sids = every_sid(case, prompt)
    generative = [sids[tuple(case.catalog.codes[item])] for item in live]
    return {item: (1 - share) * g + share * float(d) for item, g, d in zip(live, generative, dense, strict=True)}


@pytest.mark.parametrize("share", [0.4, 1.0])
@pytest.mark.parametrize("read", ["sum", "assigned"])
def test_with_enough_beams_the_ranking_is_that_of_all_items_listed(share, read):
    case = hybrid(share, read)
    everything = list(range(len(case.catalog)))
    found = beam_search(case.model, case.prompts(), case.grammar, num_beams=len(everything), top_k=12)
    for row, prompt in enumerate(case.prompts()):
        expected = listed(case, prompt, everything, share)
        best = sorted(expected, key=lambda item: -expected[item])[:12]
        assert found.scores[row].tolist() == pytest.approx([expected[item] for item in best], abs=2e-4)
        assert [expected[item] for item in found.items[row].tolist()] == pytest.approx(
            [expected[item] for item in best], abs=2e-4
        )
        assert found.sids[row].tolist() == case.catalog.codes[found.items[row]].tolist()


def test_filters_hold_for_both_outputs():
    case = hybrid()
    allow = [np.array([3, 8, 21]), np.arange(0, 30, 2), None]
    deny = [None, np.array([4, 6]), np.arange(5, len(case.catalog))]
    mask = case.grammar.mask(np.arange(len(case.catalog)) != 8)
    item_filter = case.grammar.filter(deny, allow, [mask, None, mask])
    live = [{3, 21}, set(range(0, 30, 2)) - {4, 6}, {0, 1, 2, 3, 4}]
    marked = case.grammar.live(item_filter)
    assert [set(row.nonzero()[:, 0].tolist()) for row in marked] == live
    assert case.grammar.live().all()
    found = beam_search(case.model, case.prompts(), case.grammar, num_beams=30, top_k=10, item_filter=item_filter)
    for row, prompt in enumerate(case.prompts()):
        expected = listed(case, prompt, sorted(live[row]), 0.4)
        items = found.items[row][found.items[row] >= 0].tolist()
        assert len(items) == min(10, len(live[row])) and set(items) <= live[row]
        assert found.scores[row][: len(items)].tolist() == pytest.approx(
            sorted(expected.values())[::-1][:10], abs=2e-4
        )


def test_few_beams_still_give_full_lists_of_distinct_items():
    case = hybrid()
    found = beam_search(case.model, case.prompts(), case.grammar, num_beams=2, top_k=20)
    assert all(len(set(row)) == 20 and min(row) >= 0 for row in found.items.tolist())
    assert (found.scores.diff(dim=1) <= 0).all()


@pytest.mark.parametrize("negatives", [0, 5])
def test_the_dense_loss_is_a_softmax_over_its_candidates(negatives):
    case = hybrid(negatives=negatives)
    hidden, targets = torch.randn(6, case.model.config.width), torch.tensor([1, 5, 5, 30, 2, 0])
    torch.manual_seed(3)
    found = dense_loss(case.model, hidden, targets)
    torch.manual_seed(3)
    drawn = torch.randint(len(case.catalog), (5,))
    items = sorted({*targets.tolist(), *(drawn.tolist() if negatives else range(len(case.catalog)))})
    logits = hidden @ case.model.model.vectors(torch.tensor(items)).T
    expected = F.cross_entropy(
        logits, torch.tensor([items.index(item) for item in targets.tolist()]), reduction="none"
    )
    assert torch.allclose(found, expected, atol=1e-5)


def test_without_a_share_the_search_is_that_of_semantic_ids():
    case, plain = hybrid(0.0), build(Qwen3Config, RECURSIVE)
    assert plain.model.config.dense == 0
    found = beam_search(case.model, case.prompts(), case.grammar, num_beams=40, top_k=5)
    exact = beam_search(case.model, case.prompts(), case.grammar, method="exhaustive", top_k=5)
    assert (found.items == exact.items).all()


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"read": "aloud"}, "read is 'aloud'"),
        ({"dense": -1}, "dense is -1"),
        ({"dense_share": 1.5}, "dense_share is 1.5"),
        ({"negatives": 1.5}, "negatives is 1.5"),
    ],
)
def test_bad_settings_are_refused_in_a_line(settings, line):
    with pytest.raises(HfGrError, match=line):
        RecursionConfig(**settings)
