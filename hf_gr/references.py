"""References to an item's code in place of its token: what training rows hold, so that codes may change under them.

The token that stands for level l of item r is whatever a table of tokens says when the row is read.
"""

from dataclasses import replace

import numpy as np
import torch

from .branches import Packed


FIRST = 1 << 40  # above every token id


def references(items: np.ndarray, levels: int) -> np.ndarray:
    """Returns the reference of every level of some items (rows of the catalog, int64 [n]): int64 [n, L]."""
    return FIRST + items.astype(np.int64)[:, None] * levels + np.arange(levels)


def resolved(packed: Packed, table: torch.Tensor) -> Packed:
    """Returns a batch with tokens in place of its references; what is none stays as it is.

    Args:
        packed: The batch.
        table: Tokens of every item, int64 [N, L], on the batch's device.
    """
    tokens = table.flatten()

    def read(ids: torch.Tensor) -> torch.Tensor:
        return torch.where(ids >= FIRST, tokens[(ids - FIRST).clamp(min=0)], ids)

    return replace(packed, input_ids=read(packed.input_ids), labels=read(packed.labels))
