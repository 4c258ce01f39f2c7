from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from tiny import tiny_items

from hf_gr.branches import IGNORED, Packed, Row
from hf_gr.catalog import SidCatalog
from hf_gr.errors import HfGrError
from hf_gr.models import ThinkingConfig, ThinkingHeads
from hf_gr.packing import pack


D, SIZES, NUM_ITEMS = 24, (6, 7, 5), 30
THINK = (200, 201, 202)
SMALL = ThinkingConfig(clusters=3, interest_width=16)


def catalog(widths: tuple[int, ...] = (8, 8, 8), collisions: str = "keep") -> SidCatalog:
    random = np.random.default_rng(0)
    codes = np.stack([random.integers(0, size - 1, NUM_ITEMS) for size in SIZES], 1)  # the last of each is unused
    vectors = [
        random.normal(1, 1, size=(size, width)).astype(np.float32) for size, width in zip(SIZES, widths, strict=True)
    ]
    return SidCatalog.from_codes(codes, tiny_items(NUM_ITEMS), SIZES, None, vectors, collisions)


def unit_rows(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def row(sids: list[list[int]], trunk: int, attach: list[int], weights: list[float]) -> Row:
    """Answers think₁ s₁ think₂ s₂ think₃ s₃, code c of level l as token 20·l + c."""
    tokens = [[20 * level + code for level, code in enumerate(sid)] for sid in sids]
    return Row(
        input_ids=list(range(100, 100 + trunk)),
        attach=attach,
        answers=[[token for pair in zip(THINK, own, strict=True) for token in pair] for own in tokens],
        labels=[[label for code in own for label in (IGNORED, code)] for own in tokens],
        weights=weights,
    )


def a_batch(items: SidCatalog) -> tuple[Packed, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three users, five targets (the second and the fourth are one SID, the last is no SID), two rows."""
    codes = torch.tensor(items.codes[[3, 5, 8, 5, 0]]).long()
    rows = [
        row(codes[:2].tolist(), 9, [4, 9], [1.0, 0.5]),
        row(codes[2:4].tolist(), 5, [5, 2], [1.0, 2.0]),
        row([[1, 1, 1]], 3, [3], [4.0]),
    ]
    packed = pack(rows, think_ids=THINK, max_columns=30)
    assert len(packed.trunk) == 2
    codes[4] = -1
    hidden = torch.randn(packed.trunk.numel(), D, generator=torch.Generator().manual_seed(1))
    return packed, codes, torch.tensor([True, True, True, True, False]), hidden.requires_grad_()


def heads_of(items: SidCatalog, config: ThinkingConfig = SMALL, seed: int = 0) -> ThinkingHeads:
    return ThinkingHeads.start(config, D, items, seed)


def slow_interests(heads: ThinkingHeads, packed: Packed, hidden: torch.Tensor) -> torch.Tensor:
    """One sequence per answer: the columns of its trunk up to its anchor, in order of position."""
    head, found = heads.interest, []
    trunk, branch, position = (x.flatten() for x in (packed.trunk, packed.branch, packed.position_ids))
    for anchor in packed.anchors:
        own = (trunk == trunk[anchor]) & (branch == 0) & (position <= position[anchor])
        columns = own.nonzero()[:, 0]
        states = head.into(hidden[columns[position[columns].argsort()]])[None]
        mask = torch.full((len(columns), len(columns)), -torch.inf).triu(1)
        for layer in head.layers:
            states = layer(states, src_mask=mask)
        found.append(head.out(head.norm(states[0, -1])))
    return torch.stack(found)


def slow_target(items: SidCatalog, sid: list[int], levels: int) -> np.ndarray:
    def vector(codes):
        own = [items.code_vectors[level][codes[level]] for level in range(levels)]
        return np.mean(own, 0) if len({len(v) for v in own}) == 1 else np.concatenate(own)

    return vector(sid) - np.mean([vector(codes) for codes in items.codes[items.live]], 0)


def cosine(a, b) -> float:
    a, b = (np.asarray(x.detach() if isinstance(x, torch.Tensor) else x, np.float64) for x in (a, b))
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def slow_terms(heads, items, packed, codes, chosen, hidden) -> dict[str, float]:
    """Target by target, in plain numbers."""
    config, levels = heads.config, heads.num_levels
    interests = slow_interests(heads, packed, hidden)
    targets = chosen.nonzero()[:, 0].tolist()
    sums = {"align": 0.0, "interest": 0.0, "agreement": 0.0} | {f"align_accuracy_{n + 1}": 0.0 for n in range(levels)}
    total = sum(float(packed.weights[t]) for t in targets)
    for t in targets:
        weight = float(packed.weights[t]) / total
        for level in range(levels):
            thought = heads.projections[level](hidden[packed.thoughts[t, level]])
            scores = [cosine(thought, c) / config.temperature for c in heads.levels[level].centroids]
            cluster = int(heads.clusters_of(level)[codes[t, level]])
            sums["align"] += weight * (np.logaddexp.reduce(scores) - scores[cluster])
            sums[f"align_accuracy_{level + 1}"] += weight * (int(np.argmax(scores)) == cluster)
        own = slow_target(items, codes[t].tolist(), levels)
        positive = cosine(interests[t], own) / config.interest_temperature
        negatives = [
            cosine(interests[t], slow_target(items, codes[o].tolist(), levels)) / config.interest_temperature
            for o in targets
            if codes[o, :levels].tolist() != codes[t, :levels].tolist()
        ]
        sums["interest"] += weight * (np.logaddexp.reduce([positive, *negatives]) - positive)
        first = heads.projections[0](hidden[packed.thoughts[t, 0]])
        sums["agreement"] += weight * (1 - cosine(first, interests[t][: len(first)]))
    return sums


KINDS = {
    "plain": ((8, 8, 8), "keep"),
    "digit": ((8, 8, 8), "digit"),
    "widths": ((8, 6, 4), "greedy"),
    "digit and widths": ((8, 6, 6), "digit"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_terms_are_those_of_a_loop_over_the_targets(kind):
    items = catalog(*KINDS[kind])
    heads = heads_of(items)
    assert heads.num_levels == (2 if "digit" in kind else 3)
    packed, codes, chosen, hidden = a_batch(items)
    found = heads(hidden, packed, codes, chosen)
    expected = slow_terms(heads, items, packed, codes, chosen, hidden)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert not found["align_accuracy_1"].requires_grad


def test_interests_know_the_trunk_up_to_the_anchor_and_no_branch():
    items = catalog()
    heads = heads_of(items)
    packed, _, _, hidden = a_batch(items)
    found = heads.interest_of(hidden, packed)
    assert torch.allclose(found, slow_interests(heads, packed, hidden), atol=1e-5)
    with torch.no_grad():  # inference has kernels of its own
        assert torch.allclose(heads.eval().interest_of(hidden, packed), found, atol=1e-5)
    (gradient,) = torch.autograd.grad(found[0].sum(), hidden)
    reached = (gradient.abs().sum(1) > 0).nonzero()[:, 0].tolist()
    first = int(packed.anchors[0]) - 3
    assert reached == list(range(first, first + 4))


def test_gradients_reach_every_head_and_the_thoughts():
    items = catalog()
    heads = heads_of(items, replace(SMALL, feedback="hidden"))
    packed, codes, chosen, hidden = a_batch(items)
    terms = heads(hidden, packed, codes, chosen)
    (terms["align"] + terms["interest"] + terms["agreement"]).backward()
    for name, parameter in heads.named_parameters():
        assert parameter.grad is not None, name
        assert name.startswith("feed") or parameter.grad.abs().sum() > 0, name
    assert (hidden.grad[packed.thoughts[:4]].abs().sum(-1) > 0).all() and hidden.grad[packed.thoughts[4]].sum() == 0


def test_agreement_teaches_the_thought_and_not_the_interest():
    items = catalog()
    heads = heads_of(items)
    packed, codes, chosen, hidden = a_batch(items)
    heads(hidden, packed, codes, chosen)["agreement"].backward()
    assert all(parameter.grad.abs().sum() == 0 for parameter in heads.interest.parameters())
    assert heads.projections[0].weight.grad.abs().sum() > 0
    assert heads.projections[1].weight.grad.abs().sum() == 0


def test_a_batch_without_targets_has_zero_gradients_for_every_parameter():
    items = catalog()
    heads = heads_of(items, replace(SMALL, feedback="hidden"))
    packed, codes, chosen, hidden = a_batch(items)
    terms = heads(hidden, packed, codes, torch.zeros_like(chosen))
    assert terms.keys() == heads(hidden, packed, codes, chosen).keys()
    for name in ("align", "interest", "agreement"):
        assert terms[name] == 0 and terms[name].requires_grad
    sum(terms[name] for name in ("align", "interest", "agreement")).backward()
    assert all((parameter.grad == 0).all() for parameter in heads.parameters())
    assert terms["align_accuracy_1"].isnan()


def test_clusters_are_k_means_of_the_codes_in_use():
    items = catalog()
    heads = heads_of(items)
    for level, vectors in enumerate(items.code_vectors):
        used = np.unique(items.codes[:, level])
        assert len(used) == len(vectors) - 1
        units = unit_rows(vectors - vectors[used].mean(0))
        centroids = heads.levels[level].centroids.numpy()
        distances = np.square(units[used][:, None] - centroids).sum(-1)
        # no split of so few codes into three is better
        splits = np.array(list(product(range(3), repeat=len(used))))
        best = min(
            sum(np.square(own - own.mean(0)).sum() for k in range(3) if len(own := units[used][split == k]))
            for split in splits
        )
        assert distances.min(1).sum() == pytest.approx(best, rel=1e-4)
        cosines = units @ unit_rows(centroids).T
        assert heads.clusters_of(level).tolist() == cosines.argmax(1).tolist()


def test_short_vectors_that_point_everywhere_make_no_single_cluster():
    """As residuals of lower levels are: by distance, all short ones would be near one centroid."""
    random = np.random.default_rng(0)
    units = unit_rows(random.normal(size=(60, 16)).astype(np.float32))
    vectors = np.where(np.arange(60)[:, None] < 45, 0.3, 1.0).astype(np.float32) * units
    items = SidCatalog.from_codes(np.arange(60)[:, None], tiny_items(60), (60,), None, [vectors])
    heads = heads_of(items, replace(SMALL, clusters=10))
    assert np.bincount(heads.clusters_of(0).numpy()).max() < 20
    by_distance = KMeans(10, n_init=4, random_state=0).fit(vectors - vectors.mean(0))
    assert np.bincount(by_distance.labels_).max() > 35


def test_removed_items_shape_no_cluster():
    items = catalog()
    gone = items.codes[:, 0] == 2
    fewer = items.removed([items.item_ids[row] for row in np.flatnonzero(gone)])
    many = replace(SMALL, clusters=32)
    assert len(heads_of(items, many).levels[0].centroids) == 5 and len(heads_of(fewer, many).levels[0].centroids) == 4
    assert heads_of(fewer, many).clusters_of(0).shape == (6,)
    with pytest.raises(HfGrError, match="no live item"):
        heads_of(items.removed(items.item_ids))


@pytest.mark.parametrize("kind", KINDS)
def test_clusters_of_the_items_are_those_of_their_target_vectors(kind):
    items = catalog(*KINDS[kind])
    heads = heads_of(items)
    targets = unit_rows(np.stack([slow_target(items, sid, heads.num_levels) for sid in items.codes.tolist()]))
    fitted = KMeans(3, n_init=10, random_state=0).fit(targets[np.random.default_rng(0).permutation(NUM_ITEMS)])
    assert np.allclose(np.sort(heads.interest_centroids, 0), np.sort(fitted.cluster_centers_, 0), atol=1e-4)
    cosines = targets @ unit_rows(heads.interest_centroids.numpy()).T
    assert heads.interest_clusters_of(torch.tensor(items.codes).long()).tolist() == cosines.argmax(1).tolist()
    interest = torch.tensor(targets[:2], dtype=torch.float32)
    scores = [[cosine(row, c) / SMALL.interest_temperature for c in heads.interest_centroids] for row in interest]
    assert torch.allclose(heads.interest_points_at(interest), torch.tensor(scores).softmax(1), atol=1e-5)


def test_points_at_is_the_softmax_of_scaled_cosines():
    heads = heads_of(catalog())
    thoughts = torch.randn(2, 4, D)
    found = heads.points_at(1, thoughts)
    assert found.shape == (2, 4, 3) and torch.allclose(found.sum(-1), torch.ones(2, 4))
    projected = thoughts @ heads.projections[1].weight.T + heads.projections[1].bias
    scores = F.cosine_similarity(projected[:, :, None], heads.levels[1].centroids, dim=-1) / SMALL.temperature
    assert torch.allclose(found, scores.softmax(-1), atol=1e-5)


def test_autocast_and_half_precision_states_change_no_arithmetic():
    items = catalog()
    heads = heads_of(items)
    packed, codes, chosen, hidden = a_batch(items)
    hidden = hidden.detach().bfloat16()
    plain = heads(hidden.float(), packed, codes, chosen)
    with torch.autocast("cpu", torch.bfloat16):
        for states in (hidden, hidden.float()):
            under = heads(states, packed, codes, chosen)
            assert all(torch.equal(under[name], plain[name]) for name in plain)
        assert heads.points_at(0, hidden).dtype == heads.interest_of(hidden, packed).dtype == torch.float32


def test_without_a_global_interest_there_is_align_alone():
    items = catalog()
    heads = heads_of(items, replace(SMALL, interest=0, agreement=0))
    packed, codes, chosen, hidden = a_batch(items)
    assert heads.interest is None and not any(name.startswith("interest.") for name in heads.state_dict())
    for which in (chosen, torch.zeros_like(chosen)):
        assert set(heads(hidden, packed, codes, which)) == {"align", *(f"align_accuracy_{n}" for n in (1, 2, 3))}
    with pytest.raises(HfGrError, match="no global interest"):
        heads.interest_of(hidden, packed)


def test_the_start_depends_on_the_seed_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = heads_of(catalog()).state_dict()
    assert torch.equal(torch.rand(3), expected)  # nobody else's draws are moved
    torch.manual_seed(6)
    other, third = heads_of(catalog()).state_dict(), heads_of(catalog(), seed=1).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["projections.0.weight"], third["projections.0.weight"])
    feed = heads_of(catalog(), replace(SMALL, feedback="hidden")).feed
    assert feed.weight.shape == (D, D) and (feed.weight == 0).all() and feed.bias is None
    assert heads_of(catalog()).feed is None


@pytest.mark.parametrize("changes", [{}, {"feedback": "hidden"}, {"interest": 0.0, "agreement": 0.0}])
@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_they_are_the_same(tmp_path, kind, changes):
    items = catalog(*KINDS[kind])
    heads = heads_of(items, replace(SMALL, **changes))
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter)
    heads.save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["thinking.json", "thinking.safetensors"]
    loaded = ThinkingHeads.load(tmp_path, items.removed(items.item_ids[:3]))  # items come and go
    assert loaded.config == heads.config and loaded.hidden_size == D and not loaded.training
    packed, codes, chosen, hidden = a_batch(items)
    one, other = heads(hidden, packed, codes, chosen), loaded(hidden, packed, codes, chosen)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert all(torch.equal(heads.state_dict()[name], value) for name, value in loaded.state_dict().items())


def test_heads_of_other_codebooks_and_broken_files_are_refused(tmp_path):
    heads_of(catalog()).save(tmp_path)
    with pytest.raises(HfGrError, match="made for codebooks"):
        ThinkingHeads.load(tmp_path, catalog((8, 6, 4)))
    with pytest.raises(HfGrError, match="made for codebooks"):
        ThinkingHeads.load(tmp_path, catalog(collisions="digit"))
    (tmp_path / "thinking.safetensors").write_bytes(b"rubbish")
    with pytest.raises(HfGrError, match="cannot be read") as error:
        ThinkingHeads.load(tmp_path, catalog())
    assert "\n" not in str(error.value)
    (tmp_path / "thinking.safetensors").unlink()
    with pytest.raises(HfGrError, match="cannot be read"):
        ThinkingHeads.load(tmp_path, catalog())


def test_catalogs_that_mean_nothing_are_refused():
    items = catalog()
    with pytest.raises(HfGrError, match="no code vectors"):
        heads_of(replace(items, code_vectors=()))
    digit = SidCatalog.from_codes(
        items.codes[:, :1], items.items, SIZES[:1], None, items.code_vectors[:1], collisions="digit"
    )
    with pytest.raises(HfGrError, match="only level is a digit"):
        heads_of(digit)


def test_settings_that_cannot_be_are_refused_in_one_line():
    bad = [
        {"clusters": 0},
        {"clusters": 2.5},
        {"temperature": 0},
        {"temperature": "warm"},
        {"interest_temperature": -1},
        {"align": -0.1},
        {"align": float("nan")},
        {"interest": 0},  # agreement needs it
        {"interest_layers": 0},
        {"interest_width": 30},
        {"feedback": "loud"},
        {"cluster": 3},
    ]
    for settings in bad:
        with pytest.raises(HfGrError) as error:
            ThinkingConfig.of_dict(settings)
        assert "\n" not in str(error.value) and next(iter(settings)) in str(error.value), settings
    given = {"clusters": 16, "feedback": "hidden", "interest": 0, "agreement": 0}
    assert ThinkingConfig.of_dict(given) == ThinkingConfig(clusters=16, feedback="hidden", interest=0, agreement=0)
