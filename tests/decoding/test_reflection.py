"""CORP: consistency against all pairs one by one, and reflected searches against all paths one by one."""

from itertools import combinations, permutations

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from searching import FORMS, build, feed_of
from tiny import tiny_catalog
from transformers import LlamaConfig, MistralConfig

from hf_gr.catalog import SidCatalog
from hf_gr.categories import code_categories, code_profiles
from hf_gr.decoding import Reflection, beam_search, search, tree_search
from hf_gr.errors import HfGrError


KINDS = ("tea", "soap", "toys", "books")


def catalog_of(num_items: int, sizes: tuple[int, ...], seed: int = 0, *, bare: float = 0.0) -> SidCatalog:
    """Random codes; items lean to the kind of their first code, and some have no category."""
    made, random = tiny_catalog(num_items, sizes, seed), np.random.default_rng(seed)
    kinds = np.where(random.random(num_items) < 0.6, made.codes[:, 0], random.integers(0, 4, num_items)) % 4
    names = [[] if random.random() < bare else [KINDS[kind]] for kind in kinds]
    items = made.items.set_column(2, "categories", pa.array(names, pa.list_(pa.string())))
    return SidCatalog.from_codes(made.codes, items, sizes, made.popularity, made.code_vectors)


def numbers_of(catalog: SidCatalog, sid: tuple[int, ...]) -> list[int]:
    return [code + sum(catalog.codebook_sizes[:level]) for level, code in enumerate(sid)]


def by_hand(vectors: np.ndarray, numbers: tuple[int, ...]) -> float:
    """Mean cosine of all pairs of codes that have a vector."""
    known = [vectors[number] for number in numbers if vectors[number].any()]
    pairs = [float(one @ other) for one, other in combinations(known, 2)]
    return float(np.mean(pairs)) if pairs else 1.0


# ---------------------------------------------------------------- consistency


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.sampled_from(["cosine", "agreement"]), st.sampled_from([0, 0.6]))
def test_consistency_is_the_mean_over_all_pairs(seed, length, by, bare):
    catalog = catalog_of(12, (3, 4, 2, 5, 3), seed, bare=bare)
    if not any(catalog.categories):
        return
    try:
        reflection = Reflection.of(catalog, 0.4, by)
    except HfGrError:  # one category on more than half of the items
        return
    vectors, random = reflection.vectors.double().numpy(), np.random.default_rng(seed)
    paths = np.stack([random.permutation(17)[:length] for _ in range(6)])
    expected = [by_hand(vectors, path) for path in paths.tolist()]
    assert np.allclose(reflection.consistency(torch.from_numpy(paths)), expected, atol=1e-5)
    padded = torch.cat([torch.from_numpy(paths), torch.full((6, 2), -1)], 1)
    assert np.allclose(reflection.consistency(padded), expected, atol=1e-5)
    options = torch.from_numpy(random.permutation(17)[:7])
    longer = [[by_hand(vectors, (*path, option)) for option in options.tolist()] for path in paths.tolist()]
    assert np.allclose(reflection.consistency_of_options(torch.from_numpy(paths), options), longer, atol=1e-5)
    kept = reflection.keeps(torch.from_numpy(paths), options).numpy()
    sure = np.abs(np.array(longer) - 0.4) > 1e-4
    assert (kept == (np.array(longer) >= 0.4))[sure].all()


def test_agreement_is_the_share_of_pairs_of_one_category():
    catalog = catalog_of(60, (4, 4, 4, 4), bare=0.3)
    kinds = np.concatenate(code_categories(catalog))
    reflection = Reflection.of(catalog, 0.5, "agreement")
    seen = set()
    for path in np.random.default_rng(0).integers(0, 4, (40, 4)) + np.arange(0, 16, 4):
        known = [kinds[number] for number in path if kinds[number] >= 0]
        pairs = list(combinations(known, 2))
        share = sum(a == b for a, b in pairs) / len(pairs)
        assert float(reflection.consistency(torch.from_numpy(path))) == pytest.approx(share)
        seen.add(share)
    assert len(seen) > 2


def test_cosines_are_of_the_codes_profiles():
    catalog = catalog_of(30, (3, 3))
    first, second = code_profiles(catalog)
    expected = float(first[2] @ second[1])
    assert float(Reflection.of(catalog, 0.5).consistency(torch.tensor([2, 4]))) == pytest.approx(expected, abs=1e-6)
    assert 0.01 < expected < 0.99


def test_a_path_at_the_threshold_stays():
    catalog = catalog_of(60, (4, 4, 4))
    kinds = np.concatenate(code_categories(catalog))
    one = [np.flatnonzero(kinds[level * 4 : level * 4 + 4] == 0)[0] + level * 4 for level in range(3)]
    other = np.flatnonzero(kinds[8:] != 0)[0] + 8
    for threshold, last, kept in ((1, one[2], True), (1 / 3, other, True), (0.34, other, False), (0, other, True)):
        reflection = Reflection.of(catalog, threshold, "agreement")
        assert bool(reflection.keeps(torch.tensor([one[:2]]), torch.tensor([last]))) == kept


def test_a_digit_level_says_nothing():
    made = catalog_of(40, (4, 4, 3))
    digits = SidCatalog.from_codes(
        made.codes, made.items, made.codebook_sizes, made.popularity, made.code_vectors, collisions="digit"
    )
    paths = torch.tensor([[0, 5, number] for number in (8, 9, 10)])
    plain, counted = Reflection.of(made, 0.5), Reflection.of(digits, 0.5)
    assert torch.allclose(counted.consistency(paths), counted.consistency(paths[:, :2]))
    assert not torch.allclose(plain.consistency(paths), plain.consistency(paths[:, :2]))


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan"), "high", True, None])
def test_thresholds_are_numbers_from_0_to_1(threshold):
    with pytest.raises(HfGrError, match="give a number between 0"):
        Reflection.of(catalog_of(20, (3, 3)), threshold)
    with pytest.raises(HfGrError, match="give a number between 0"):
        Reflection(torch.ones(6, 2), threshold)


def test_catalogs_without_telling_categories_are_refused():
    made = catalog_of(20, (3, 3))
    shared = made.items.set_column(2, "categories", pa.array([["Beauty"]] * 20))
    for items in (made.items.drop_columns("categories"), shared):
        with pytest.raises(HfGrError, match="items have no categories that tell them apart"):
            Reflection.of(SidCatalog.from_codes(made.codes, items, (3, 3)), 0.5)


# ---------------------------------------------------------------- searches


def paths_of(case, live: list[int]) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Every way to write the SIDs of the live items as numbers of codes, with the SID."""
    sids = {tuple(sid) for sid in case.catalog.codes[live].tolist()}
    orders = permutations(range(case.grammar.num_codes)) if case.vocabulary.form == "unordered" else None
    ways = [tuple(range(case.grammar.num_codes))] if orders is None else list(orders)
    return {tuple(numbers_of(case.catalog, sid)[level] for level in way): sid for sid in sorted(sids) for way in ways}


@torch.no_grad()
def log_probs_of(case, prompt: list[int], paths: list[tuple[int, ...]]) -> dict[tuple[int, ...], float]:
    """Log-probability of every path, by plain forward passes, renormalised over what some path goes on with."""
    tokens = [token for ids in case.vocabulary.code_ids for token in ids]
    think = case.vocabulary.think_ids if case.vocabulary.form == "stepwise" else None
    found = dict.fromkeys(paths, 0.0)
    for step in range(len(paths[0])):
        for prefix in sorted({path[:step] for path in paths}):
            ids = list(prompt)
            for place, number in enumerate(prefix):
                ids += [think[place], tokens[number]] if think else [tokens[number]]
            ids += [think[step]] if think else []
            follow = sorted({path[step] for path in paths if path[:step] == prefix})
            logits = case.model(torch.tensor([ids])).logits[0, -1].double()
            row = torch.log_softmax(logits[[tokens[number] for number in follow]], 0)
            for path in paths:
                if path[:step] == prefix:
                    found[path] += float(row[follow.index(path[step])])
    return found


def reflected_by_hand(
    scores: dict[tuple[int, ...], float], vectors: np.ndarray, threshold: float
) -> dict[tuple[int, ...], float]:
    """The paths that are left when, after the second code and each later one, inconsistent ones go (unless all do)."""
    left = dict(scores)
    for length in range(2, len(next(iter(scores))) + 1):
        kept = {path: score for path, score in left.items() if by_hand(vectors, path[:length]) >= threshold - 1e-5}
        left = kept or left
    return left


def by_sid(scores: dict[tuple[int, ...], float], paths: dict) -> list[tuple[tuple[int, ...], float]]:
    """SIDs with their paths' probabilities added up, best first."""
    sums: dict[tuple[int, ...], list[float]] = {}
    for path, score in scores.items():
        sums.setdefault(paths[path], []).append(score)
    added = [(sid, float(np.logaddexp.reduce(each))) for sid, each in sums.items()]
    return sorted(added, key=lambda pair: -pair[1])


FORMS_BUILT = {form: build(LlamaConfig, form, catalog_of(14, (4, 3, 3), 3)) for form in FORMS}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("by", ["cosine", "agreement"])
@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("merge", ["step", "end"])
def test_with_beams_for_all_consistent_items_come_first(form, by, filtered, merge):
    if merge == "end" and form != "unordered":
        return
    case = FORMS_BUILT[form]
    prompts, live = case.prompts((4, 2)), [list(range(14)), list(range(14))]
    item_filter = None
    if filtered:
        live = [list(range(5, 14)), [1, 3, 4, 8, 9]]
        item_filter = case.grammar.filter([np.arange(5), None], [None, np.array(live[1])])
    some_left = False
    for threshold in (0.3, 0.55, 0.8, 1.0):
        reflection = Reflection.of(case.catalog, threshold, by)
        vectors = reflection.vectors.double().numpy()
        beams = tree_search(
            case.model,
            prompts,
            case.grammar,
            num_beams=84,
            item_filter=item_filter,
            merge=merge,
            reflection=reflection,
        )
        ranking = beam_search(
            case.model,
            prompts,
            case.grammar,
            num_beams=84,
            top_k=14,
            item_filter=item_filter,
            merge=merge,
            reflection=reflection,
        )
        for row, prompt in enumerate(prompts):
            paths = paths_of(case, live[row])
            scores = log_probs_of(case, prompt, list(paths_of(case, list(range(14)))))  # a filter changes none
            scores = {path: scores[path] for path in paths}
            expected = by_sid(reflected_by_hand(scores, vectors, threshold), paths)
            found = dict(
                zip(map(tuple, case.grammar.codes(beams.tokens[row]).tolist()), beams.scores[row], strict=True)
            )
            found = {sid: float(score) for sid, score in found.items() if sid[0] >= 0}
            sids = list(dict.fromkeys(tuple(sid) for sid in ranking.sids[row].tolist() if sid[0] >= 0))
            if form == "unordered" and merge == "step":  # a merged set goes on as its best order does: nearly exact
                assert found.keys() == {sid for sid, _ in expected} == set(sids[: len(expected)])
            else:
                assert list(found) == sids[: len(expected)] == [sid for sid, _ in expected]
                assert np.allclose(list(found.values()), [score for _, score in expected], atol=1e-4)
            assert sorted(item for item in ranking.items[row].tolist() if item >= 0) == live[row], "lists are full"
            some_left |= len(expected) < len(set(paths.values()))
    assert some_left


@pytest.mark.parametrize("form", FORMS)
def test_a_threshold_of_zero_changes_nothing(form):
    case = FORMS_BUILT[form]
    for width in (1, 4, 30):
        plain = tree_search(case.model, case.prompts(), case.grammar, num_beams=width)
        found = tree_search(
            case.model, case.prompts(), case.grammar, num_beams=width, reflection=Reflection.of(case.catalog, 0)
        )
        for name in ("tokens", "states", "scores", "log_probs"):
            assert torch.equal(getattr(plain, name), getattr(found, name))
        assert plain.pruned is None and found.pruned.tolist() == [0, 0, 0]


@pytest.mark.parametrize("form", FORMS)
def test_no_beam_is_ever_empty(form):
    """Even where every path contradicts itself."""
    case = FORMS_BUILT[form]
    lonely = Reflection(torch.eye(10), 1.0)  # every code is of a kind of its own
    plain = tree_search(case.model, case.prompts(), case.grammar, num_beams=5)
    found = tree_search(case.model, case.prompts(), case.grammar, num_beams=5, reflection=lonely)
    assert torch.equal(plain.tokens, found.tokens) and found.pruned.tolist() == [0, 0, 0]
    strict = Reflection.of(case.catalog, 1.0)
    for width in (1, 2, 5):
        beams = tree_search(case.model, case.prompts(), case.grammar, num_beams=width, reflection=strict)
        assert torch.isfinite(beams.scores[:, 0]).all()
        answer = beam_search(case.model, case.prompts(), case.grammar, num_beams=width, top_k=14, reflection=strict)
        assert all(sorted(row) == list(range(14)) for row in answer.items.tolist())


@pytest.mark.parametrize("form", ["flat", "unordered"])
def test_the_share_of_pruned_paths(form):
    """With beams for all: of the paths (sets) that follow from what is left, those that go, over the steps."""
    case, threshold = FORMS_BUILT[form], 0.7
    reflection = Reflection.of(case.catalog, threshold)
    vectors = reflection.vectors.double().numpy()
    beams = tree_search(case.model, case.prompts(), case.grammar, num_beams=300, reflection=reflection)
    left, wanted, dropped = list(paths_of(case, list(range(14)))), 0, 0
    same = frozenset if form == "unordered" else tuple
    for length in (2, 3):
        every = {same(path[:length]) for path in left}
        kept = {prefix for prefix in every if by_hand(vectors, tuple(prefix)) >= threshold}
        wanted, dropped = wanted + len(every), dropped + len(every - kept)
        left = [path for path in left if same(path[:length]) in kept]
    assert 0 < dropped < wanted and left
    assert torch.allclose(beams.pruned, torch.tensor(dropped / wanted))
    answer = beam_search(case.model, case.prompts(), case.grammar, num_beams=300, reflection=reflection)
    assert torch.equal(answer.pruned, beams.pruned)


def test_pruned_width_goes_to_consistent_paths():
    """The beams kept are as many as without reflection, as long as there are consistent paths for them."""
    case = build(LlamaConfig, "unordered", catalog_of(60, (4, 4, 4)))
    reflection = Reflection.of(case.catalog, 0.6)
    plain = tree_search(case.model, case.prompts(), case.grammar, num_beams=6)
    found = tree_search(case.model, case.prompts(), case.grammar, num_beams=6, reflection=reflection)
    assert torch.isfinite(plain.scores).all() and torch.isfinite(found.scores).all()
    assert (reflection.consistency(case.grammar.code_numbers(found.tokens)) >= 0.6 - 1e-5).all()
    assert (reflection.consistency(case.grammar.code_numbers(plain.tokens)) < 0.6).any()
    assert (found.pruned > 0).all()


def test_where_it_is_not_to_be_had():
    case = FORMS_BUILT["flat"]
    reflection = Reflection.of(case.catalog, 0.5)
    for method in ("sample", "gumbel"):
        with pytest.raises(HfGrError, match=f'leave it out of method="{method}"'):
            tree_search(case.model, case.prompts(), case.grammar, num_beams=2, method=method, reflection=reflection)
    with pytest.raises(HfGrError, match='use method="beam" instead of "exhaustive"'):
        beam_search(case.model, case.prompts(), case.grammar, method="exhaustive", reflection=reflection)
    windowed = build(MistralConfig, sliding_window=4)
    with pytest.raises(HfGrError, match="reflection needs the tree search, which is not for this model: its sliding"):
        search(windowed.model, windowed.prompts(), windowed.grammar, num_beams=2, reflection=reflection)


def test_it_goes_with_hidden_feedback():
    case = FORMS_BUILT["stepwise"]
    reflection, feed = Reflection.of(case.catalog, 0.7), feed_of(case)
    beams = tree_search(case.model, case.prompts(), case.grammar, num_beams=30, feed=feed, reflection=reflection)
    plain = tree_search(case.model, case.prompts(), case.grammar, num_beams=30, feed=feed)
    scores = [dict(zip(map(tuple, b.tokens[0].tolist()), b.scores[0].tolist(), strict=True)) for b in (beams, plain)]
    kept = {path for path, score in scores[0].items() if score > -1e30}
    assert kept and kept < scores[1].keys()
    assert all(abs(scores[0][path] - scores[1][path]) < 1e-5 for path in kept)
