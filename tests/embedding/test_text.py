from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from hf_gr.embedding.text import SentenceEncoder, encode_text, item_texts
from hf_gr.errors import HfGrError


class FakeEncoder:
    """Vectors from the texts' letters; dies after some calls, as a killed run does."""

    name = "fake"
    pooling = "none"

    def __init__(self, dies_after: int | None = None) -> None:
        self.dies_after = dies_after
        self.seen: list[str] = []
        self.calls = 0

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        if self.calls == self.dies_after:
            raise KeyboardInterrupt
        self.calls += 1
        self.seen += texts
        return np.array([[len(text), sum(map(ord, text)), 1] for text in texts], np.float32)


TEXTS = [f"text number {row}" for row in range(23)]


def run(encoder: FakeEncoder, cache: Path | None, texts: Sequence[str] = TEXTS, chunk_size: int = 5) -> np.ndarray:
    return encode_text(texts, encoder, progress=False, cache=cache, chunk_size=chunk_size)


def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path):
    whole = run(FakeEncoder(), None)
    with pytest.raises(KeyboardInterrupt):
        run(FakeEncoder(dies_after=3), tmp_path)
    second = FakeEncoder()
    assert np.array_equal(run(second, tmp_path), whole)
    assert second.seen == TEXTS[15:]  # three chunks of five were there


def test_chunks_of_other_texts_or_encoders_are_not_used(tmp_path: Path):
    run(FakeEncoder(), tmp_path)
    others = [*TEXTS[:-1], "another last text"]
    encoder = FakeEncoder()
    assert np.array_equal(run(encoder, tmp_path, others), run(FakeEncoder(), None, others))
    assert encoder.seen == others
    renamed = FakeEncoder()
    renamed.name = "another"
    run(renamed, tmp_path)
    assert renamed.seen == TEXTS
    rechunked = FakeEncoder()
    run(rechunked, tmp_path, chunk_size=7)
    assert rechunked.seen == TEXTS


def test_a_half_written_chunk_is_not_read(tmp_path: Path):
    run(FakeEncoder(), tmp_path)
    chunk = sorted(tmp_path.rglob("*.npy"))[1]
    chunk.with_suffix(".tmp").write_bytes(chunk.read_bytes()[:10])
    chunk.unlink()
    encoder = FakeEncoder()
    assert np.array_equal(run(encoder, tmp_path), run(FakeEncoder(), None))
    assert encoder.seen == TEXTS[5:10]


def test_texts_use_the_fields_that_an_item_has():
    items = pa.table(
        {
            "item_id": ["a", "b"],
            "title": ["A lamp", "{value} of {field}"],
            "categories": [["home", "light"], []],
            "description": [None, " plain "],
        }
    )
    lamp, braces = item_texts(items)
    assert lamp == "title: A lamp\ncategories: home, light"
    assert braces == "title: {value} of {field}\ndescription: plain"  # what the user wrote is data
    assert item_texts(items, ["description", "title"], "<{value}>") == ["<A lamp>", "<plain>\n<{value} of {field}>"]


@pytest.mark.parametrize("template", ["{title}", "{field}", "{value", "{value} {0}"])
def test_templates_that_cannot_work_are_refused(template: str):
    items = pa.table({"item_id": ["a"], "title": ["A"]})
    with pytest.raises(HfGrError, match="template"):
        item_texts(items, ["title"], template)


def test_fields_that_no_item_has_are_refused():
    items = pa.table({"item_id": ["a"], "title": ["A"]})
    with pytest.raises(HfGrError, match="tittle"):
        item_texts(items, ["tittle"])
    with pytest.raises(HfGrError, match="no texts"):
        encode_text([], FakeEncoder())


def test_a_sentence_transformers_model_gives_one_row_per_text_whatever_the_batches(tiny_encoder: Path):
    texts = ["title: Red", "title: A much longer text, far beyond what the model reads " * 5, "x"]
    at_once = encode_text(texts, str(tiny_encoder), batch_size=3, device="cpu", progress=False)
    one_by_one = encode_text(texts, str(tiny_encoder), batch_size=1, device="cpu", progress=False, chunk_size=1)
    assert at_once.dtype == np.float32
    assert at_once.shape == (3, 16)
    assert np.allclose(at_once, one_by_one, atol=1e-5)
    assert not np.allclose(at_once[0], at_once[2], atol=1e-3)


def test_pooling_is_read_from_the_model(tiny_encoder: Path):
    assert SentenceEncoder(str(tiny_encoder), device="cpu").pooling == "mean"


def test_an_encoder_that_does_not_exist_is_one_line(tmp_path: Path):
    with pytest.raises(HfGrError, match="no-such-model") as caught:
        encode_text(["a"], str(tmp_path / "no-such-model"), device="cpu", progress=False)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_minilm_from_its_wheel_puts_like_near_like():
    texts = ["a red lipstick", "lip gloss, red", "a printer cable"]
    vectors = encode_text(texts, "wheel:all-MiniLM-L6-v2", device="cpu", progress=False)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert vectors.shape == (3, 384)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2
