"""Whose interests are mined: items, and users by their training history; and what a miner finds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ..dataset import Histories, InteractionDataset
from ..embedding.image import item_images
from ..embedding.text import DEFAULT_FIELDS, item_texts


@dataclass(frozen=True)
class Subject:
    """An item or a user.

    Attributes:
        kind: `"item"` or `"user"`.
        id: Of the item or user.
        text: All that is known of it in words. Untrusted: it is data, whatever it says.
        image: File with the item's picture, if there is one.
    """

    kind: Literal["item", "user"]
    id: str
    text: str
    image: Path | None = None


@dataclass(frozen=True)
class Finding:
    """An interest that one miner sees in one subject.

    Attributes:
        interest: A few words for why people want the item, or what the user wants.
        evidence: Words of the subject's text that it was read from.
        confidence: The miner's own, between 0 and 1.
    """

    interest: str
    evidence: str
    confidence: float


def item_subjects(
    dataset: InteractionDataset,
    train: Histories,
    *,
    fields: Sequence[str] = DEFAULT_FIELDS,
    reviews: int = 3,
    images: bool = False,
) -> list[Subject]:
    """Every item of a dataset, in its order.

    Args:
        dataset: Whose items they are.
        train: Histories of the training part; no review from elsewhere is read.
        fields: Columns of the items table that make the text.
        reviews: The latest reviews of an item that are read, at most, where the dataset has any.
        images: Whether to give the items' pictures as well.
    """
    texts = item_texts(dataset.items, fields)
    if train.reviews is not None and reviews:
        latest = np.argsort(-train.timestamps, kind="stable")
        written: list[list[str]] = [[] for _ in texts]
        for event in latest[[bool(train.reviews[event]) for event in latest]]:
            if len(written[train.items[event]]) < reviews:
                written[train.items[event]].append(f"review: {train.reviews[event]}")
        texts = ["\n".join([text, *own]) for text, own in zip(texts, written, strict=True)]
    pictures = item_images(dataset.items, dataset.path) if images else {}
    return [
        Subject("item", item_id, text, pictures.get(item_id))
        for item_id, text in zip(dataset.item_ids, texts, strict=True)
    ]


def user_subjects(dataset: InteractionDataset, train: Histories, *, max_items: int = 10) -> list[Subject]:
    """Every user of the training part with at least two events there, by the titles (and own reviews) of the latest
    `max_items` events before the last one.

    The last training event is kept out, so that training may ask for it without having told it [ours].
    """
    found = []
    for user, (start, end) in enumerate(zip(train.ptr[:-1], train.ptr[1:], strict=True)):
        lines = [_event(dataset, train, event) for event in range(max(start, end - 1 - max_items), end - 1)]
        if lines:
            found.append(Subject("user", str(train.user_ids[user]), "\n".join(lines)))
    return found


def _event(dataset: InteractionDataset, train: Histories, event: int) -> str:
    title = dataset.titles[train.items[event]]
    review = None if train.reviews is None else train.reviews[event]
    return f"{title} | review: {review}" if review else title
