"""Trunk and branches: several answers to one prompt in one row, the prompt computed once.

A row is `[padding | prompt | branch 0 | branch 1 | …]`. A branch sees the prompt and itself; its positions go on from
the prompt's end. The result equals that of one row per answer.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class SharedPrompts:
    """U rows that hold R answers of C tokens, M branches at most in a row.

    Attributes:
        input_ids: int64 [U, P + M·C].
        position_ids: int64 [U, P + M·C].
        visible: bool [U, P + M·C, P + M·C], which column (last axis) each column sees.
        row: int64 [R], the row of each answer.
        predictors: int64 [R, C], the column whose hidden state predicts each answer token.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    visible: torch.Tensor
    row: torch.Tensor
    predictors: torch.Tensor

    def mask(self, dtype: torch.dtype) -> torch.Tensor:
        """Additive attention mask [U, 1, columns, columns]."""
        return additive_mask(self.visible, dtype)


def additive_mask(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Additive mask [B, 1, queries, keys] of a boolean one [B, queries, keys].

    What is hidden takes a finite minimum that bf16 can hold too: a padding row of −inf alone would be NaN, and
    autocast may turn the mask into bf16.
    """
    lowest = max(torch.finfo(dtype).min, torch.finfo(torch.bfloat16).min)
    return torch.where(visible, 0.0, lowest).to(dtype)[:, None]


def share_prompts(prompts: torch.Tensor, prompt_mask: torch.Tensor, answers: torch.Tensor) -> SharedPrompts:
    """Puts the answers of equal prompts on one row.

    Args:
        prompts: int64 [R, P], padded on the left.
        prompt_mask: int64 [R, P], 0 on padding.
        answers: int64 [R, C], all of C tokens. Rows of one prompt may stand anywhere.
    """
    length, tokens = prompts.shape[1], answers.shape[1]
    _, row = torch.unique(prompts.masked_fill(prompt_mask == 0, -1), dim=0, return_inverse=True)
    num_rows = int(row.max()) + 1
    order = torch.argsort(row, stable=True)
    counts = torch.bincount(row, minlength=num_rows)
    branch = torch.empty_like(row)
    branch[order] = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row[order]]
    width = int(counts.max())

    first = torch.empty(num_rows, dtype=torch.int64, device=row.device)
    first[row] = torch.arange(len(row), device=row.device)
    real = prompt_mask[first].bool()
    input_ids = torch.zeros(num_rows, length + width * tokens, dtype=torch.int64, device=row.device)
    input_ids[:, :length] = prompts[first]
    columns = length + branch[:, None] * tokens + torch.arange(tokens, device=row.device)
    input_ids[row[:, None], columns] = answers

    in_branch = torch.arange(width * tokens, device=row.device)
    trunk_positions = (real.cumsum(1) - 1).clamp(min=0)
    branch_positions = real.sum(1, keepdim=True) + in_branch % tokens
    causal = torch.ones(length, length, dtype=torch.bool, device=row.device).tril() & real[:, None]
    own = (in_branch[:, None] // tokens == in_branch // tokens) & (in_branch[:, None] >= in_branch)
    below = torch.cat([real[:, None].expand(-1, len(in_branch), -1), own.expand(num_rows, -1, -1)], dim=2)
    above = torch.cat([causal, causal.new_zeros(num_rows, length, len(in_branch))], dim=2)
    predictors = torch.cat([torch.full_like(columns[:, :1], length - 1), columns[:, :-1]], dim=1)
    return SharedPrompts(
        input_ids,
        torch.cat([trunk_positions, branch_positions], dim=1),
        torch.cat([above, below], dim=1),
        row,
        predictors,
    )
