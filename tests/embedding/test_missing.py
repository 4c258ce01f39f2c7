from pathlib import Path

import numpy as np
import pytest

from hf_gr.embedding import missing
from hf_gr.embedding.missing import RIDGE, fill_missing, learn_maps, load_maps, save_maps
from hf_gr.errors import HfGrError


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def example(num_items: int = 60, unknown: int = 8) -> dict[str, np.ndarray]:
    """Behavior is a noisy linear function of text; the last items have none, and one item has no text."""
    random = np.random.default_rng(0)
    text = random.normal(size=(num_items, 6)).astype(np.float32) * 3
    behavior = (unit(text) @ random.normal(size=(6, 4)) + 0.1 * random.normal(size=(num_items, 4)) + 1).astype(
        np.float32
    )
    behavior[num_items - unknown :] = 0
    text[0] = 0
    return {"text": text, "behavior": behavior}


@pytest.mark.parametrize("block", [7, 1000])
def test_the_map_is_the_minimum_of_the_ridge_loss(monkeypatch, block: int):
    monkeypatch.setattr(missing, "_BLOCK_ROWS", block)
    parts = example()
    map = learn_maps(parts)["behavior"]
    text, behavior = unit(parts["text"][1:52].astype(np.float64)), unit(parts["behavior"][1:52].astype(np.float64))
    assert np.allclose(map.text_mean, text.mean(0), atol=1e-6)
    assert np.allclose(map.part_mean, behavior.mean(0), atol=1e-6)
    x, y = text - text.mean(0), behavior - behavior.mean(0)
    ridge = RIDGE * np.square(x).sum() / 6
    # rows of √λ beside the data make the ridge an ordinary least-squares problem
    weights = np.linalg.lstsq(
        np.vstack([x, np.sqrt(ridge) * np.eye(6)]), np.vstack([y, np.zeros((6, 4))]), rcond=None
    )[0]
    assert np.allclose(map.weights, weights, atol=1e-5)


def test_only_unknown_rows_are_filled_and_with_what_the_text_tells():
    parts = example()
    before = {name: part.copy() for name, part in parts.items()}
    maps = learn_maps(parts)
    filled = fill_missing(parts, maps)
    assert np.array_equal(filled["behavior"][:52], before["behavior"][:52])
    assert np.array_equal(filled["text"], before["text"])
    assert np.array_equal(filled["behavior"][52:], maps["behavior"](parts["text"][52:]))
    assert all(np.array_equal(parts[name], before[name]) for name in parts)  # the input is left as it was


def test_predictions_are_nearer_to_the_truth_than_the_mean():
    parts = example(200, unknown=0)
    truth = unit(parts["behavior"][150:])
    parts["behavior"][150:] = 0
    map = learn_maps(parts)["behavior"]
    predicted = unit(fill_missing(parts, {"behavior": map})["behavior"][150:])
    by_map, by_mean = (predicted * truth).sum(1).mean(), (truth @ map.part_mean).mean() / np.linalg.norm(map.part_mean)
    assert by_map > 0.9 > by_mean


def test_an_item_without_text_stays_without_the_part():
    parts = example()
    parts["text"][55] = 0
    filled = fill_missing(parts, learn_maps(parts))["behavior"]
    assert not filled[55].any()
    assert filled[[52, 53, 54, 56]].any(axis=1).all()


def test_nothing_is_learned_without_text_or_from_few_items():
    parts = example(17, unknown=6)  # one of the 11 that have behavior lacks text
    assert list(learn_maps(parts)) == ["behavior"]
    parts["behavior"][5] = 0
    assert learn_maps(parts) == {}
    assert learn_maps({"behavior": parts["behavior"]}) == {}
    assert fill_missing(parts, {})["behavior"] is parts["behavior"]


def test_texts_that_are_all_alike_give_the_mean():
    parts = example()
    parts["text"][:] = 1
    map = learn_maps(parts)["behavior"]
    assert np.allclose(map(parts["text"][:1])[0], map.part_mean, atol=1e-6)


def test_maps_come_back_from_disk_bit_by_bit(tmp_path: Path):
    parts = example() | {"image": np.random.default_rng(1).normal(size=(60, 3)).astype(np.float32)}
    maps = learn_maps(parts)
    save_maps(maps, tmp_path)
    loaded = load_maps(tmp_path, ["behavior", "image"])
    for name in ("behavior", "image"):
        assert np.array_equal(loaded[name](parts["text"]), maps[name](parts["text"]))
    save_maps({}, tmp_path / "nowhere")
    assert load_maps(tmp_path / "nowhere", []) == {}


def test_a_file_that_is_missing_or_damaged_is_one_line(tmp_path: Path):
    with pytest.raises(HfGrError, match="missing or damaged") as error:
        load_maps(tmp_path, ["behavior"])
    assert "\n" not in str(error.value)
    save_maps(learn_maps(example()), tmp_path)
    with pytest.raises(HfGrError, match=r"image\.weights"):
        load_maps(tmp_path, ["behavior", "image"])
    (tmp_path / "missing.safetensors").write_text("text")
    with pytest.raises(HfGrError, match="missing or damaged"):
        load_maps(tmp_path, ["behavior"])
