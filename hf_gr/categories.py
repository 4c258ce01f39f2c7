"""What kind of thing items and codes are: the one category of each item, and of the items that carry each code."""

from collections.abc import Sequence

import numpy as np

from .catalog import SidCatalog


def category_names(catalog: SidCatalog) -> list[str]:
    """Categories of all items, sorted; their places are the category numbers."""
    return sorted({name for names in catalog.categories for name in names})


def item_categories(catalog: SidCatalog) -> np.ndarray:
    """The one category of each item, int64 [N]: its first one that not more than half of the items share.

    −1 where it has none such. The first categories of a shop ("Beauty") are on every item and tell nothing [ours].
    """
    place = {name: number for number, name in enumerate(category_names(catalog))}
    carried = [place[name] for names in catalog.categories for name in set(names)]
    telling = np.bincount(carried, minlength=len(place)) <= len(catalog) / 2
    own = [[place[name] for name in names] for names in catalog.categories]
    return np.array([next((number for number in numbers if telling[number]), -1) for numbers in own], np.int64)


def code_categories(catalog: SidCatalog) -> list[np.ndarray]:
    """Category of each code, L arrays int64 [K_l]: that of most items that carry it (REG4Rec) [known].

    Items without a category do not count; of equal ones the lower number is taken; −1 where no item counts.
    """
    return [
        np.where(counts.any(axis=1), counts.argmax(axis=1), -1) if counts.shape[1] else np.full(len(counts), -1)
        for counts in _counts(catalog)
    ]


def code_profiles(catalog: SidCatalog) -> list[np.ndarray]:
    """How the items that carry each code spread over categories, L arrays float32 [K_l, categories] of rows of length
    1; zero where no item counts [form ours]."""
    found = []
    for counts in _counts(catalog):
        length = np.sqrt(np.square(counts, dtype=np.float64).sum(axis=1, keepdims=True))
        found.append(np.divide(counts, length, out=np.zeros(counts.shape), where=length > 0).astype(np.float32))
    return found


def _counts(catalog: SidCatalog) -> list[np.ndarray]:
    """Items by code and category, L arrays int64 [K_l, categories]."""
    category, width = item_categories(catalog), len(category_names(catalog))
    known = category >= 0
    return [_table(catalog.codes[known, level], category[known], (size, width)) for level, size in _levels(catalog)]


def _levels(catalog: SidCatalog) -> Sequence[tuple[int, int]]:
    return list(enumerate(catalog.codebook_sizes))


def _table(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return np.bincount(rows.astype(np.int64) * shape[1] + columns, minlength=shape[0] * shape[1]).reshape(shape)
