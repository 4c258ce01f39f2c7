"""Trunk and branches: everything that is predicted from one history in one row, the history computed once.

A *trunk* is what was read (a history, a prompt); a *branch* is an answer that continues the trunk's first tokens. A
branch sees the trunk up to where it is attached, and itself; its positions go on from there. So every target of a
history, the several next items of each position, or the G rollouts of a prompt are computed in one pass, and
log-probabilities and gradients equal those of one row per answer. An answer that stands in the trunk itself, as the
codes of the next item do in a history of codes, takes no columns of its own.

[`~hf_gr.packing.pack`] builds rows from lists of tokens, [`share_prompts`] from tensors on any device. Known: tree
attention masks for decoding (SpecInfer, 2023); our choice: this form, and one for training, scoring and explaining.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypedDict

import torch
import torch.nn.functional as F

from .errors import HfGrError


if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

IGNORED = -100


class Row(TypedDict):
    """A trunk and its n answers, as lists.

    Attributes:
        input_ids: The trunk.
        attach: Of each answer, how many tokens of the trunk it continues (at least 1).
        answers: Its tokens. None where all labels are read from the trunk's last token (codes by recursion).
        labels: Each of them again, or −100 where it is given and not predicted (a forced thinking token).
        weights: What the answer counts in the loss.
    """

    input_ids: list[int]
    attach: list[int]
    answers: list[list[int]]
    labels: list[list[int]]
    weights: list[float]


@dataclass(frozen=True, eq=False)
class Packed:
    """B rows of T columns that hold some trunks and their n answers. All int64 but `weights`.

    Attributes:
        input_ids: [B, T].
        position_ids: [B, T].
        trunk: [B, T], number of the trunk that a column belongs to; −1 on padding.
        branch: [B, T], 0 in the trunk, else number of the branch within the row.
        attachment: [B, T], the last position of its trunk that a column sees (in the trunk: its own).
        labels: [n, A], the predicted tokens of each answer, in order; −100 after the last.
        predictors: [n, A], the column (counted through all rows: row · T + column) that predicts each; 0 after them.
        anchors: [n], the column of the last trunk token that the answer continues.
        thoughts: [n, L], the columns of its thinking tokens; −1 where it has none.
        weights: float32 [n].
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    trunk: torch.Tensor
    branch: torch.Tensor
    attachment: torch.Tensor
    labels: torch.Tensor
    predictors: torch.Tensor
    anchors: torch.Tensor
    thoughts: torch.Tensor
    weights: torch.Tensor

    @property
    def simple(self) -> bool:
        """Whether every row is one trunk and nothing else, padded on the right: then causal attention suffices."""
        alone = (self.trunk == self.trunk[:, :1]) | (self.trunk == -1)
        return bool(((self.branch == 0) & alone).all() & (self.trunk[:, 0] >= 0).all())

    @property
    def branched(self) -> torch.Tensor:
        """Which answers stand on branches of their own, bool [n]; those of one token stand nowhere."""
        return self.branch.view(-1)[self.predictors[:, min(1, self.predictors.shape[1] - 1)]] > 0

    @property
    def visible(self) -> torch.Tensor:
        """Which column (last axis) each column sees, bool [B, T, T]."""
        column = torch.arange(self.trunk.shape[1], device=self.trunk.device)
        rows = torch.arange(len(self.trunk), device=self.trunk.device)[:, None, None]
        return self._sees(rows, column[:, None], column)

    def _sees(self, row: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        of_trunk = (self.branch[row, key] == 0) & (self.position_ids[row, key] <= self.attachment[row, query])
        own = (self.branch[row, key] == self.branch[row, query]) & (key <= query)
        in_branch = self.branch[row, query] > 0
        return (self.trunk[row, key] == self.trunk[row, query]) & (of_trunk | (own & in_branch))

    def mask(self, dtype: torch.dtype) -> torch.Tensor:
        """Additive attention mask [B, 1, T, T] of what is visible, for `sdpa` and `eager`."""
        return additive_mask(self.visible, dtype)

    def block_mask(self) -> "BlockMask":
        """The same for FlexAttention, which leaves out blocks that nobody sees; for rows of thousands of columns."""
        from torch.nn.attention.flex_attention import create_block_mask

        def sees(row: torch.Tensor, _: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            return self._sees(row, query, key)

        rows, columns = self.trunk.shape
        return create_block_mask(sees, rows, None, columns, columns, device=str(self.trunk.device))

    def inputs(self, attention: str, dtype: torch.dtype) -> dict[str, Any]:
        """Arguments of a model's forward.

        Args:
            attention: The model's attention implementation. Any will do for [`simple`] rows.
            dtype: Of the model, for the additive mask.
        """
        if self.simple:
            return {"input_ids": self.input_ids, "attention_mask": (self.trunk >= 0).long()}
        mask = self.block_mask() if attention == "flex_attention" else self.mask(dtype)
        return {"input_ids": self.input_ids, "position_ids": self.position_ids, "attention_mask": mask}

    def reordered(self, answers: torch.Tensor, orders: torch.Tensor) -> "Packed":
        """The same with the tokens of some answers in another order.

        Args:
            answers: bool [n], which of them; all of their tokens are labels, and they stand on branches of their own.
            orders: int64 [m, C], for each of these the places of its C labels in their new order.
        """
        count = orders.shape[1]
        labels, input_ids = self.labels.clone(), self.input_ids.clone()
        labels[answers, :count] = written = self.labels[answers, :count].gather(1, orders)
        input_ids.view(-1)[self.predictors[answers, 1:count]] = written[:, :-1]
        return replace(self, labels=labels, input_ids=input_ids)

    def to(self, device: torch.device | str) -> "Packed":
        return Packed(**{name: value.to(device) for name, value in vars(self).items()})

    def as_batch(self) -> dict[str, torch.Tensor]:
        """The tensors as a trainer's batch. Labels get a column in front, as trainers count labels from the second on:
        a language model's first token is predicted by nothing."""
        return vars(self) | {"labels": F.pad(self.labels, (1, 0), value=IGNORED)}

    @classmethod
    def of_batch(cls, batch: Mapping[str, Any]) -> "Packed":
        """The inverse of [`as_batch`]; other entries of the batch are left out."""
        taken = {field.name: batch[field.name] for field in fields(cls)}
        return cls(**taken | {"labels": taken["labels"][:, 1:]})


def additive_mask(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Additive mask [B, 1, queries, keys] of a boolean one [B, queries, keys].

    What is hidden takes a finite minimum that bf16 can hold too: a padding row of −inf alone would be NaN, and
    autocast may turn the mask into bf16.
    """
    lowest = max(torch.finfo(dtype).min, torch.finfo(torch.bfloat16).min)
    return torch.where(visible, 0.0, lowest).to(dtype)[:, None]


def fit(row: Row, max_columns: int) -> list[Row]:
    """A row as several of at most `max_columns` columns, each a copy of the trunk with a part of the branches.

    Raises:
        HfGrError: If the trunk with one branch is longer than that.
    """
    if _columns(row) <= max_columns:
        return [row]
    found: list[Row] = []
    order = sorted(range(len(row["attach"])), key=lambda answer: row["attach"][answer])
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and _columns(part := _part(row, order[start : end + 1])) <= max_columns:
            best, end = part, end + 1
        if end == start:
            raise HfGrError(
                f"a history with one answer takes {_columns(part)} tokens, but rows have at most {max_columns}; raise "
                "max_length or lower max_history."
            )
        found.append(best)
        start = end
    return found


def separate(row: Row) -> list[Row]:
    """One row per answer, which continues a trunk of its own: for models that take no mask of ours."""
    found = []
    for attach, answer, labels, weight in _answers(row):
        trunk = row["input_ids"][:attach] + answer[:-1]
        found.append(Row(input_ids=trunk, attach=[attach], answers=[answer], labels=[labels], weights=[weight]))
    return found


def share_prompts(prompts: torch.Tensor, prompt_mask: torch.Tensor, answers: torch.Tensor) -> Packed:
    """Puts the answers of equal prompts on one row; tensors all the way, on their device.

    Args:
        prompts: int64 [R, P], padded on the left.
        prompt_mask: int64 [R, P], 0 on padding.
        answers: int64 [R, A], all of A tokens. Rows of one prompt may stand anywhere.

    Returns:
        A row `[padding | prompt | branch 1 | branch 2 | …]` for every distinct prompt; answers in the order given. An
        answer's last token predicts nothing and is not fed.
    """
    length, tokens = prompts.shape[1], answers.shape[1] - 1
    device = prompts.device
    _, row = torch.unique(prompts.masked_fill(prompt_mask == 0, -1), dim=0, return_inverse=True)
    num_rows = int(row.max()) + 1
    order = torch.argsort(row, stable=True)
    counts = torch.bincount(row, minlength=num_rows)
    branch = torch.empty_like(row)
    branch[order] = torch.arange(len(row), device=device) - (counts.cumsum(0) - counts)[row[order]]
    width = int(counts.max())

    first = torch.empty(num_rows, dtype=torch.int64, device=device)
    first[row] = torch.arange(len(row), device=device)
    real = prompt_mask[first].bool()
    columns = length + width * tokens
    input_ids = torch.zeros(num_rows, columns, dtype=torch.int64, device=device)
    input_ids[:, :length] = prompts[first]
    own = length + branch[:, None] * tokens + torch.arange(tokens, device=device)
    input_ids[row[:, None], own] = answers[:, :-1]

    ends = real.sum(1, keepdim=True)
    positions = (real.cumsum(1) - 1).clamp(min=0)
    in_branch = torch.arange(width * tokens, device=device).expand(num_rows, -1)
    filled = in_branch // tokens < counts[:, None]
    number = torch.arange(num_rows, device=device)[:, None]
    trunk = torch.cat([torch.where(real, number, -1), torch.where(filled, number, -1)], dim=1)
    predictors = torch.cat([torch.full_like(row, length - 1)[:, None], own], dim=1) + (row * columns)[:, None]
    return Packed(
        input_ids,
        torch.cat([positions, ends + in_branch % tokens], dim=1),
        trunk,
        torch.cat([torch.zeros_like(positions), in_branch // tokens + 1], dim=1),
        torch.cat([positions, (ends - 1).expand_as(in_branch)], dim=1),
        labels=answers,
        predictors=predictors,
        anchors=predictors[:, 0],
        thoughts=predictors.new_empty(len(answers), 0),
        weights=torch.ones(len(answers), device=device),
    )


def _answers(row: Row) -> list[tuple[int, list[int], list[int], float]]:
    return list(zip(row["attach"], row["answers"], row["labels"], row["weights"], strict=True))


def _in_trunk(row: Row, attach: int, tokens: list[int]) -> bool:
    return row["input_ids"][attach : attach + len(tokens) - 1] == tokens[:-1]


def _trunk_columns(row: Row) -> int:
    """How much of the trunk somebody sees or stands in."""
    return max(
        attach + (max(len(tokens) - 1, 0) if _in_trunk(row, attach, tokens) else 0)
        for attach, tokens, _, _ in _answers(row)
    )


def _columns(row: Row) -> int:
    own = (len(tokens) - 1 for attach, tokens, _, _ in _answers(row) if not _in_trunk(row, attach, tokens))
    return _trunk_columns(row) + sum(own)


def _part(row: Row, chosen: Sequence[int]) -> Row:
    """The row with some of its answers, its trunk no longer than they need."""
    part = Row(
        input_ids=row["input_ids"],
        attach=[row["attach"][answer] for answer in chosen],
        answers=[row["answers"][answer] for answer in chosen],
        labels=[row["labels"][answer] for answer in chosen],
        weights=[row["weights"][answer] for answer in chosen],
    )
    part["input_ids"] = row["input_ids"][: _trunk_columns(part)]
    return part
