"""CORP (REG4Rec): paths that contradict themselves are dropped while they are searched.

A path is consistent when its codes stand for one kind of thing. Each code has a vector of length 1: its category alone
("agreement"), or how its items spread over categories ("cosine"). Consistency of n codes is the mean cosine of their
pairs, (‖Σ v‖² − n) / (n(n − 1)): with "agreement" the share of pairs of one category. It does not depend on the order
of the codes, so that merged sets have one, and it is 1 for fewer than two codes. Codes whose items have no category
neither agree nor disagree: they do not count, and no more does a digit level's code, which only counts items.

Known: paths are dropped whose steps disagree in category, or whose category vectors' cosine is below θ. Ours: all
pairs instead of neighbours, what is done without a category, and dropping inside the search rather than after it.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from ..catalog import SidCatalog
from ..categories import category_names, code_categories, code_profiles
from ..errors import HfGrError
from ..search_config import check_threshold


Agreement = Literal["cosine", "agreement"]

ROUNDING = 1e-5  # a path that is at the threshold but for the last digits is kept


@dataclass(frozen=True, eq=False)
class Reflection:
    """Which paths are consistent.

    Attributes:
        vectors: float32 [ΣK, categories], of every code, counted through all codebooks: of length 1, or zero.
        threshold: θ from 0 to 1 ([`HfGrError`]): paths of a lower consistency are dropped; at 0 none is.
    """

    vectors: torch.Tensor
    threshold: float

    def __post_init__(self) -> None:
        check_threshold(self.threshold)

    @classmethod
    def of(cls, catalog: SidCatalog, threshold: float, by: Agreement = "cosine") -> "Reflection":
        """Of a catalog's categories.

        Raises:
            HfGrError: If θ is not between 0 and 1, or no item has a category that tells it from others.
        """
        check_threshold(threshold)
        if by == "cosine":
            vectors = np.concatenate(code_profiles(catalog))
        else:
            found = np.concatenate(code_categories(catalog))
            vectors = (found[:, None] == np.arange(len(category_names(catalog)))).astype(np.float32)
        if catalog.collisions == "digit":
            vectors[-catalog.codebook_sizes[-1] :] = 0
        if not vectors.any():
            raise HfGrError(
                "items have no categories that tell them apart, by which paths could be consistent; give the items "
                "`categories`, or leave reflection out."
            )
        return cls(torch.from_numpy(vectors[:, vectors.any(axis=0)]), threshold)

    def to(self, device: torch.device | str) -> "Reflection":
        return Reflection(self.vectors.to(device), self.threshold)

    def consistency(self, numbers: torch.Tensor) -> torch.Tensor:
        """Of paths of t codes, given by their numbers int64 [..., t] (−1: none): float32 [...]."""
        vectors = self.vectors[numbers.clamp(min=0)] * (numbers >= 0)[..., None]
        return _mean_cosine(vectors.sum(-2).square().sum(-1), vectors.square().sum((-1, -2)))

    def consistency_of_options(self, numbers: torch.Tensor, options: torch.Tensor) -> torch.Tensor:
        """Of paths int64 [rows, t] with one more code each, of int64 [D]: float32 [rows, D]."""
        held = self.vectors[numbers.clamp(min=0)] * (numbers >= 0)[..., None]
        theme, count = held.sum(1), held.square().sum((1, 2))
        added = self.vectors[options]
        own = added.square().sum(-1)
        squared = theme.square().sum(1, keepdim=True) + 2 * theme @ added.T + own
        return _mean_cosine(squared, count[:, None] + own)

    def keeps(self, numbers: torch.Tensor, options: torch.Tensor) -> torch.Tensor:
        """Which paths int64 [rows, t] with one more code of int64 [D] are consistent, bool [rows, D]."""
        return self.consistency_of_options(numbers, options) >= self.threshold - ROUNDING


def _mean_cosine(squared: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Mean cosine of the pairs of `count` vectors of length 1 whose sum has this squared length; 1 below two."""
    count = count.round()
    return torch.where(count > 1, (squared - count) / (count * (count - 1)).clamp(min=1), 1.0)
