"""What the ways to merge sets are worth: the sum over all orders, and how near merging at every step comes to it."""

from dataclasses import replace
from math import factorial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from searching import Case, build, every_sid
from tiny import tiny_catalog, tiny_lm, tiny_tokenizer
from transformers import DynamicCache, LlamaConfig

from hf_gr.decoding import Beams, beam_search, tree_search
from hf_gr.vocabulary import add_vocabulary


class Bag:
    """Stands in for a backbone: a hidden state is made of all tokens seen, and a little of where they stand.

    A merged set goes on as its best order does; with `order` 0 no order says anything, as with a model that learned
    that sets have none.
    """

    def __init__(self, case: Case, seed: int, *, order: float, logits: float):
        random, width = torch.Generator().manual_seed(seed), case.model.config.hidden_size
        head = case.model.get_output_embeddings().weight
        self.embedding, self.order = torch.randn(head.shape, generator=random), order
        self.mixing = torch.randn(width, width, generator=random) / width**0.5
        head.data = logits * torch.randn(head.shape, generator=random) / width**0.5
        self.columns = torch.empty(0)
        case.model.base_model.forward = self

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: DynamicCache) -> SimpleNamespace:
        new = self.embedding[input_ids]
        begins = attention_mask.shape[-1] == input_ids.shape[1]
        self.columns = new if begins else torch.cat([self.columns, new], dim=1)
        seen = (attention_mask[:, 0] == 0).float() @ self.columns
        return SimpleNamespace(last_hidden_state=torch.tanh((seen + self.order * new) @ self.mixing))


def bagged(seed: int, num_items: int, sizes: tuple[int, ...], **settings: float) -> Case:
    catalog, model = tiny_catalog(num_items, sizes, seed), tiny_lm(seed=seed)
    vocabulary = add_vocabulary(tiny_tokenizer(), model, catalog, max_history=10)
    vocabulary = replace(vocabulary, form="unordered")
    case = Case(model, vocabulary.grammar(catalog), vocabulary, catalog)
    Bag(case, seed, **settings)
    return case


def all_orders(case: Case, prompts: list[list[int]]) -> Beams:
    paths = case.grammar.num_sids * factorial(case.grammar.num_codes)
    return tree_search(case.model, prompts, case.grammar, num_beams=paths, merge="end")


@pytest.mark.parametrize("sizes", [(3, 3, 3), (2, 3, 2, 2)])
def test_merged_at_the_end_is_the_sum_over_all_orders(sizes):
    case = build(LlamaConfig, "unordered", tiny_catalog(9, sizes))
    prompts = case.prompts()
    beams = all_orders(case, prompts)
    ranking = beam_search(case.model, prompts, case.grammar, num_beams=beams.scores.shape[1], top_k=9, merge="end")
    for row, prompt in enumerate(prompts):
        expected = every_sid(case, prompt)
        ranked = sorted(expected, key=lambda sid: -expected[sid])
        reached = torch.isfinite(beams.scores[row])
        assert list(map(tuple, case.grammar.codes(beams.tokens[row][reached]).tolist())) == ranked
        assert np.allclose(beams.scores[row][reached], [expected[sid] for sid in ranked], atol=1e-4)
        assert list(dict.fromkeys(map(tuple, ranking.sids[row].tolist()))) == ranked
        for sid, score in zip(ranking.sids[row].tolist(), ranking.scores[row].tolist(), strict=True):
            assert abs(score - expected[tuple(sid)]) < 1e-4


def test_where_orders_say_nothing_every_way_to_merge_is_exact():
    for seed in range(6):
        case = bagged(seed, 14, (3, 3, 3), order=0, logits=3)
        prompts = case.prompts(seed=seed)
        expected = all_orders(case, prompts)
        found = tree_search(case.model, prompts, case.grammar, num_beams=60)
        count = case.grammar.num_sids
        assert torch.allclose(found.scores[:, :count], expected.scores[:, :count], atol=1e-3)
        assert torch.equal(found.states[:, :count], expected.states[:, :count])


@pytest.mark.parametrize(("width", "least"), [(50, 0.95), (20, 0.9)])
def test_merging_at_every_step_keeps_the_top_ten(width, least):
    """The same ten SIDs as the exact sums have, in whatever order, in at least 95 % of random cases at 50 beams.

    A case is a random catalog, random codes' scores and a random history. Scores are about as far apart as those of
    trained models (the best item has half of the probability or more), and orders matter a little.
    """
    same, overlap, best = [], [], []
    for num_items, sizes in ((30, (4, 4, 4)), (30, (3, 3, 3, 3)), (200, (16, 16, 16))):
        for seed in range(6):
            case = bagged(seed, num_items, sizes, order=0.3, logits=8)
            prompts = case.prompts((5, 3, 0, 2, 1, 4), seed)
            exact = case.grammar.codes(all_orders(case, prompts).tokens[:, :10]).tolist()
            beams = tree_search(case.model, prompts, case.grammar, num_beams=width)
            for one, other in zip(exact, case.grammar.codes(beams.tokens[:, :10]).tolist(), strict=True):
                shared = set(map(tuple, one)) & set(map(tuple, other))
                same.append(len(shared) == 10)
                overlap.append(len(shared) / 10)
                best.append(one[0] == other[0])
    print(f"{width} beams, {len(same)} cases: {np.mean(same):.1%} same set, {np.mean(overlap):.1%} overlap,", end=" ")
    print(f"{np.mean(best):.1%} same best")
    assert len(same) >= 60 and np.mean(same) >= least and np.mean(overlap) >= 0.99
