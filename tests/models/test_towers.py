"""The item tower by hand, what training reads against what is saved, and items that come later."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModel

from hf_gr.errors import HfGrError
from hf_gr.models import TowersConfig, TowersModel
from hf_gr.models.bsarec import PADDING, log_probabilities
from hf_gr.models.item_features import FeatureRecipe, ItemFeatures
from hf_gr.models.losses import sampled_softmax, softmax


ITEMS, WIDTH = 12, 8
NAMES = ("id", "category", "brand", "sid", "text")


def items_of(count: int) -> pa.Table:
    return pa.table(
        {
            "item_id": [f"i{row}" for row in range(count)],
            "title": [f"Title {row}" for row in range(count)],
            "brand": [["a", "b", None, "rare" if row == 3 else "a"][row % 4] for row in range(count)],
            "categories": [[["x"], ["x", "y"], [], ["y", "x", "x"]][row % 4] for row in range(count)],
        }
    )


RECIPE = FeatureRecipe.of(NAMES, items_of(ITEMS), {"text": 5, "unread": 3}, (4, 4))


def features_of(count: int) -> ItemFeatures:
    random = np.random.default_rng(0)
    return RECIPE.features(
        items_of(count), {"text": random.normal(size=(count, 5))}, random.integers(0, 4, (count, 3))
    )


def towers(**settings: object) -> TowersModel:
    torch.manual_seed(0)
    encoder = {"hidden_size": WIDTH, "max_history": 6, "hidden_dropout": 0.0, "attention_dropout": 0.0}
    given = {"encoder": encoder | {"initializer_range": 0.5, "causal": True}} | settings
    model = TowersModel(TowersConfig(ITEMS, ITEMS, NAMES, RECIPE.dims, RECIPE.tag_sizes, **given))
    model.features = features_of(ITEMS)
    return model


def test_a_recipe_reads_tags_that_items_share():
    assert RECIPE.vocabularies == {"category": ("x", "y"), "brand": ("a", "b")}
    assert RECIPE.dims == {"text": 5} and RECIPE.tag_sizes == {"category": 3, "brand": 3, "sid": 9}
    features = features_of(4)
    assert features.tags["category"].tolist() == [[1, 0], [1, 2], [0, 0], [1, 2]]
    assert features.tags["brand"].tolist() == [[1], [2], [0], [0]]
    codes = np.random.default_rng(0)
    codes.normal(size=(4, 5))
    assert features.tags["sid"].tolist() == (codes.integers(0, 4, (4, 3))[:, :2] + [1, 5]).tolist()
    assert torch.allclose(features.vectors["text"].norm(dim=1), torch.ones(4))


def test_a_recipe_is_saved_and_read(tmp_path):
    RECIPE.save(tmp_path)
    assert FeatureRecipe.load(tmp_path) == RECIPE
    (tmp_path / "features.json").write_text("{}")
    with pytest.raises(HfGrError, match="is not what this release reads"):
        FeatureRecipe.load(tmp_path)
    with pytest.raises(HfGrError, match=r"features\.json is missing"):
        FeatureRecipe.load(tmp_path / "none")


@pytest.mark.parametrize(
    ("names", "message"),
    [(("id", "image"), "'image', a part of item vectors, but these hold text"), (("brand",), "no two items share")],
)
def test_features_that_there_is_nothing_of_are_refused(names, message):
    table = items_of(ITEMS).drop_columns(["brand"])
    with pytest.raises(HfGrError, match=message):
        FeatureRecipe.of(names, table, {"text": 5})


def vector_by_hand(model: TowersModel, item: int, id_row: int) -> torch.Tensor:
    """v = s + W₂ gelu(W₁ norm(s)), one item at a time."""
    tower, features = model.tower, features_of(ITEMS + 4)
    s = tower.ids.weight[id_row].clone()
    for name, table in tower.tags.items():
        own = [tag for tag in features.tags[name][item].tolist() if tag]
        s += sum((table.weight[tag] for tag in own), torch.zeros(WIDTH)) / max(len(own), 1)
    s += tower.vectors["text"].weight @ features.vectors["text"][item]
    normed = torch.nn.functional.layer_norm(s, (WIDTH,))
    inner = torch.nn.functional.gelu(tower.inner.weight @ normed + tower.inner.bias)
    return s + tower.outer.weight @ inner + tower.outer.bias


def full_features() -> ItemFeatures:
    return features_of(ITEMS + 4)


@torch.no_grad()
def test_the_tower_by_hand_old_and_new_items_alike():
    model = towers()
    model.features = full_features().take(torch.arange(ITEMS))
    model.refresh()
    model.add_items(full_features().take(torch.arange(ITEMS, ITEMS + 4)))
    for item in range(ITEMS + 4):
        expected = vector_by_hand(model, item, min(item, ITEMS))  # the last row is that of items without one
        assert torch.allclose(model.catalog[item], expected, atol=1e-5), item


def test_without_the_id_nothing_knows_items_apart_that_are_alike():
    model = towers()
    model.eval()
    features = features_of(ITEMS).take(torch.tensor([1, 1]))
    found = model.item_vectors(features, torch.tensor([1, 2]))
    assert not torch.allclose(found[0], found[1])
    model.tower.id_dropout = 1.0
    model.train()
    found = model.item_vectors(features, torch.tensor([1, 2]))
    assert torch.equal(found[0], found[1])


@torch.no_grad()
def test_items_without_events_are_known_by_their_other_features():
    model = towers()
    model.without_id(np.array([2, 5]))
    model.refresh()
    features = features_of(ITEMS)
    expected = model.item_vectors(features, torch.tensor([0, 1, -1, 3, 4, -1, *range(6, ITEMS)]))
    assert torch.allclose(model.catalog, expected, atol=1e-6)


def test_id_dropout_replaces_its_share_in_training_alone():
    model = towers(id_dropout=0.3)
    many = torch.zeros(5000, dtype=torch.int64)
    features = features_of(ITEMS).take(many)
    with torch.no_grad():
        without = model.item_vectors(features.take(slice(1)), torch.tensor([-1]))[0]
        training = model.train().item_vectors(features, many)
        judged = model.eval().item_vectors(features, many)
    assert torch.isclose(training, without, atol=1e-6).all(1).float().mean() == pytest.approx(0.3, abs=0.03)
    assert not torch.isclose(judged, without, atol=1e-6).all(1).any()


@pytest.mark.parametrize("temperature", [None, 0.1])
def test_training_reads_what_is_saved(temperature):
    """The loss over some items and over all is that of scores made of the vectors that are saved."""
    model = towers(cosine_temperature=temperature)
    rows = torch.tensor([[ITEMS, 3, 5, 3], [ITEMS, 7, PADDING, PADDING]])
    labels = torch.tensor([[3, 5, 3, 9], [7, 2, PADDING, PADDING]])
    model.refresh()
    hidden = model(rows).last_hidden_state
    users, targets = hidden[labels != PADDING], labels[labels != PADDING]
    some = torch.tensor([2, 3, 5, 7, 9, 11])
    drawn, weights = torch.tensor([0, 3, 8]), torch.tensor([0.5, -0.2, 0.1])
    vectors = model.catalog
    expected = [
        softmax(users, targets, vectors),
        softmax(users, targets, vectors[some], some),
        sampled_softmax(users, vectors[targets], targets, vectors[drawn], drawn, weights),
    ]
    found = [model(rows, labels), model(rows, labels, some), model(rows, labels, drawn, weights)]
    assert [float(one.loss) for one in found] == pytest.approx([float(loss) for loss in expected], rel=1e-5)
    if temperature is not None:
        assert torch.allclose(vectors.norm(dim=1), torch.ones(ITEMS))
        assert torch.allclose(users.norm(dim=1), torch.full((len(users),), 1 / temperature))


def test_every_weight_learns():
    model = towers()
    rows, labels = torch.tensor([[ITEMS, 3, 5, 3]]), torch.tensor([[3, 5, 3, 9]])
    model(rows, labels).loss.backward()
    silent = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert silent == []


def test_a_saved_model_answers_alike_and_knows_new_items_in_histories(tmp_path):
    model = towers().eval()
    model.refresh()
    model.add_items(full_features().take(torch.arange(ITEMS, ITEMS + 4)))
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    histories = [np.array([1, ITEMS + 2]), np.array([], np.int64)]
    found = log_probabilities(again, histories)
    assert isinstance(again, TowersModel) and found.shape == (2, ITEMS + 4)
    assert torch.equal(found, log_probabilities(model, histories))
    assert again.id_rows.tolist() == [*range(ITEMS), -1, -1, -1, -1]


def test_items_in_another_order_are_scored_alike():
    model = towers().eval()
    model.refresh()
    before = log_probabilities(model, [np.array([1, 4])])
    order = torch.tensor(np.random.default_rng(0).permutation(ITEMS))
    place = torch.argsort(order)
    model.reorder(order)
    after = log_probabilities(model, [place[[1, 4]].numpy()])
    assert torch.allclose(after, before[:, order], atol=1e-6)


def test_training_without_features_is_refused():
    model = towers()
    model.features = None
    with pytest.raises(HfGrError, match="no features to learn from"):
        model(torch.tensor([[ITEMS, 1]]), torch.tensor([[1, 2]]))
    with pytest.raises(HfGrError, match="there is no encoder 'rnn'"):
        TowersModel(TowersConfig(encoder_type="rnn"))
