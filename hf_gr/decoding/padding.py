"""Prompts of different lengths as one batch."""

import torch


def pad_left(
    rows: list[list[int]], fill: int, device: torch.device | str, multiple: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids int64 [B, P] padded on the left to a multiple of columns, and their attention mask int64 [B, P]."""
    longest = -(-max(map(len, rows)) // multiple) * multiple
    ids = torch.tensor([[fill] * (longest - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
