"""Small worlds of items for rewards, and batches of rollouts in them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pytest

from hf_gr.catalog import SidCatalog
from hf_gr.dataset import Histories
from hf_gr.rewards import ItemKnowledge, Rollouts


def histories(rows: Sequence[Sequence[int]]) -> Histories:
    lengths = [len(row) for row in rows]
    events = np.array([item for row in rows for item in row], np.int64)
    return Histories(
        np.array([f"u{user}" for user in range(len(rows))]),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        events,
        np.arange(len(events)),
    )


def catalog_of(
    codes: Sequence[Sequence[int]],
    sizes: tuple[int, ...],
    categories: Sequence[Sequence[str]] | None = None,
    code_vectors: Sequence[np.ndarray] = (),
    collisions: str = "keep",
) -> SidCatalog:
    names = [f"i{row}" for row in range(len(codes))]
    columns: dict[str, list] = {"item_id": names, "title": names}
    if categories is not None:
        columns["categories"] = [list(entry) for entry in categories]
    return SidCatalog.from_codes(np.array(codes), pa.table(columns), sizes, None, code_vectors, collisions)


def knowledge_of(
    codes: Sequence[Sequence[int]],
    sizes: tuple[int, ...],
    *,
    categories: Sequence[Sequence[str]] | None = None,
    train: Sequence[Sequence[int]] = ((0,),),
    code_vectors: Sequence[np.ndarray] = (),
    collisions: str = "keep",
    embeddings: str | None = None,
    quality: np.ndarray | None = None,
) -> ItemKnowledge:
    catalog = catalog_of(codes, sizes, categories, code_vectors, collisions)
    known = ItemKnowledge.of(catalog, histories(train), embeddings)
    return known if quality is None else replace(known, quality=quality)


@pytest.fixture(scope="session")
def make_items() -> Callable[..., ItemKnowledge]:
    return knowledge_of


@pytest.fixture(scope="session")
def group() -> Callable[..., Rollouts]:
    """One prompt's answers, of falling score, for one target or the next ones."""

    def made(items: Sequence[int], *targets: int) -> Rollouts:
        return Rollouts(np.array([items]), np.array([targets]), -np.arange(1.0, len(items) + 1)[None])

    return made


@dataclass(frozen=True)
class World:
    """A random world in plain lists, for definitions in plain loops; `items` is the same as rewards see it."""

    codes: list[list[int]]
    categories: list[list[str]]
    train: list[list[int]]
    vectors: list[np.ndarray]
    quality: list[float]
    items: ItemKnowledge

    def __len__(self) -> int:
        return len(self.codes)

    def rollouts(self, seed: int, horizon: int = 1) -> Rollouts:
        """With ties, repeats, answers that are no item, and users with fewer events left than the horizon."""
        random = np.random.default_rng(seed)
        prompts, size = random.integers(1, 5), random.integers(1, 7)
        targets = random.integers(0, len(self), (prompts, horizon))
        left = random.integers(1, horizon + 1, (prompts, 1))
        targets = np.where(np.arange(horizon) < left, targets, -1)
        answers = random.integers(-1, len(self), (prompts, size))
        answers = np.where(random.random(answers.shape) < 0.3, targets[:, :1], answers)
        taken = random.integers(-1, len(self), (prompts, 3))
        return Rollouts(answers, targets, random.choice([-9.5, -3.0, -2.5, -0.1], answers.shape), taken)


@pytest.fixture(scope="session", params=[0, 1, 2])
def world(request) -> World:
    random = np.random.default_rng(request.param)
    count, sizes = 14, (3, 4, 2)
    codes = np.stack([random.integers(0, size, count) for size in sizes], axis=1).tolist()
    names = ["all", "a", "b", "c", "d"]
    categories = [["all", *random.choice(names[1:], random.integers(0, 4)).tolist()] for _ in range(count)]
    train = [random.integers(1, count, random.integers(1, 9)).tolist() for _ in range(9)]  # nobody takes item 0
    vectors = [random.normal(size=(size, 5)).astype(np.float32) for size in sizes]
    quality = random.random(count)
    items = knowledge_of(codes, sizes, categories=categories, train=train, code_vectors=vectors, quality=quality)
    return World(codes, categories, train, vectors, quality.tolist(), items)
