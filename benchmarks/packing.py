"""Packing of training rows: events per second from the data set to the batch, in whole arrays and as loops over lists.

Histories are random, their lengths from 4 to 29 events; rows are those of the task `next_item`, which hold items, in
random order. Both sides take the same batches in one process (`num_workers=0`) and give the same tensors, bit by bit.

    python benchmarks/packing.py --json packing.json      # some ten seconds
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from hf_gr.branches import IGNORED, Packed, Row
from hf_gr.catalog import SidCatalog
from hf_gr.dataset import Histories
from hf_gr.packing import first_fit, pack
from hf_gr.sft.rows import RowBatches
from hf_gr.sft.tasks import next_item
from hf_gr.sft.writing import RowVocabulary
from hf_gr.vocabulary import SidVocabulary


FORMS = ("flat", "stepwise", "unordered", "recursive")
SIZES = (256, 256, 256)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=3000)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=64, help="rows of a batch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    chosen = parser.parse_args(arguments)
    result = {form: measured(form, chosen) for form in FORMS}
    if chosen.json:
        chosen.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result


def measured(form: str, chosen: argparse.Namespace) -> dict[str, float]:
    """Events per second of both sides, medians, and their ratio."""
    random = np.random.default_rng(0)
    catalog, vocabulary = made(chosen.items)
    lengths = random.integers(4, 30, chosen.users)
    ptr = np.concatenate([[0], np.cumsum(lengths)])
    users = np.array([str(user) for user in range(chosen.users)], object)
    histories = Histories(users, ptr, random.integers(0, chosen.items, ptr[-1]), np.arange(ptr[-1]))
    rows = next_item(histories, catalog, RowVocabulary.of(replace(vocabulary, form=form)))
    order = random.permutation(len(rows)).tolist()
    batches = [order[start : start + chosen.batch] for start in range(0, len(rows), chosen.batch)]
    think = vocabulary.think_ids
    sides: dict[str, Callable[[list[int]], Packed]] = {
        "lists": lambda batch: listed_pack(rows.__getitems__(batch), think_ids=think, crowd=True),
        "arrays": (lambda fetched: lambda batch: pack(fetched.__getitems__(batch), think_ids=think, crowd=True))(
            RowBatches(rows)
        ),
    }
    for batch in batches[:3]:
        one, other = (vars(side(batch)) for side in sides.values())
        assert all(torch.equal(one[name], other[name]) for name in one), "the sides differ"
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(chosen.repeats):
        for name, side in sides.items():
            start = time.process_time()
            for batch in batches:
                side(batch)
            seconds[name].append(time.process_time() - start)
    speed = {name: float(ptr[-1]) / statistics.median(values) for name, values in seconds.items()}
    ratio = speed["arrays"] / speed["lists"]
    print(f"{form:>9}: {speed['lists']:>7,.0f} events/s as lists, {speed['arrays']:>9,.0f} as arrays, {ratio:.1f} x")
    return speed | {"ratio": ratio}


def made(num_items: int) -> tuple[SidCatalog, SidVocabulary]:
    """Random SIDs, and tokens for them."""
    codes = np.random.default_rng(1).integers(0, SIZES[0], (num_items, len(SIZES)))
    names = [str(row) for row in range(num_items)]
    catalog = SidCatalog.from_codes(codes, pa.table({"item_id": names, "title": names}), SIZES)
    code_ids = tuple(tuple(range(10 + 256 * level, 10 + 256 * (level + 1))) for level in range(len(SIZES)))
    vocabulary = SidVocabulary(code_ids, (4, 5, 6), 3, "none", {}, 50, catalog.fingerprint, first_item_id=1000)
    return catalog, vocabulary


def listed_pack(
    rows: Sequence[Row], *, think_ids: Sequence[int] = (), max_columns: int = 0, crowd: bool = False
) -> Packed:
    """[`pack`] as loops over lists: what it was, and what it is held to."""
    parts = [_Part.of(row, think_ids) for row in rows]
    lengths = [len(part.ids) for part in parts]
    wasteful = crowd and len(parts) * max(lengths) > 2 * sum(lengths)
    if max_columns or wasteful or any(max(part.branch) for part in parts):
        places = first_fit(lengths, max(max_columns, *lengths))
    else:
        places = [(row, 0) for row in range(len(parts))]
    columns = max(start + len(part.ids) for (_, start), part in zip(places, parts, strict=True))
    num_rows = 1 + max(row for row, _ in places)
    table = torch.zeros(5, num_rows, columns, dtype=torch.int64)
    table[2] = -1
    branches = [0] * num_rows
    answers: list[_Answer] = []
    for number, ((row, start), part) in enumerate(zip(places, parts, strict=True)):
        span = slice(start, start + len(part.ids))
        branch = torch.tensor(part.branch)
        table[0, row, span] = torch.tensor(part.ids)
        table[1, row, span] = torch.tensor(part.positions)
        table[2, row, span] = number
        table[3, row, span] = torch.where(branch > 0, branch + branches[row], 0)
        table[4, row, span] = torch.tensor(part.attachment)
        branches[row] += max(part.branch)
        answers += [answer.moved(row * columns + start) for answer in part.answers]
    longest = max((len(answer.labels) for answer in answers), default=0)

    def padded(lists: list[list[int]], width: int, fill: int) -> torch.Tensor:
        filled = [entries + [fill] * (width - len(entries)) for entries in lists]
        return torch.tensor(filled, dtype=torch.int64).view(len(lists), width)

    input_ids, position_ids, trunk, branch, attachment = table.unbind(0)
    return Packed(
        input_ids,
        position_ids,
        trunk,
        branch,
        attachment,
        labels=padded([answer.labels for answer in answers], longest, IGNORED),
        predictors=padded([answer.predictors for answer in answers], longest, 0),
        anchors=torch.tensor([answer.anchor for answer in answers], dtype=torch.int64),
        thoughts=padded([answer.thoughts for answer in answers], len(think_ids), -1),
        weights=torch.tensor([weight for row in rows for weight in row["weights"]]),
    )


@dataclass(frozen=True)
class _Answer:
    """Where an answer stands; columns counted from the start of its part."""

    labels: list[int]
    predictors: list[int]
    anchor: int
    thoughts: list[int]

    def moved(self, start: int) -> "_Answer":
        thoughts = [column + start if column >= 0 else column for column in self.thoughts]
        return _Answer(self.labels, [column + start for column in self.predictors], self.anchor + start, thoughts)


@dataclass(frozen=True)
class _Part:
    """A trunk with its branches, laid out one after the other; lists over its columns, and its answers."""

    ids: list[int]
    positions: list[int]
    branch: list[int]
    attachment: list[int]
    answers: list[_Answer]

    @classmethod
    def of(cls, row: Row, think_ids: Sequence[int]) -> "_Part":
        length = _trunk_columns(row)
        ids = row["input_ids"][:length]
        positions, branch, attachment = list(range(length)), [0] * length, list(range(length))
        answers, branches = [], 0
        for attach, tokens, labels, _ in _answers(row):
            if _in_trunk(row, attach, tokens):
                own = range(attach, attach + len(tokens))
            else:
                branches += 1
                own = range(len(ids), len(ids) + len(tokens))
                fed = len(tokens) - 1  # nothing is predicted after the last
                ids += tokens[:-1]
                positions += range(attach, attach + fed)
                branch += [branches] * fed
                attachment += [attach - 1] * fed
            before = [attach - 1, *own[:-1]] if tokens else [attach - 1] * len(labels)
            predicted = [place for place, label in enumerate(labels) if label != IGNORED]
            answers.append(
                _Answer(
                    [labels[place] for place in predicted],
                    [before[place] for place in predicted],
                    attach - 1,
                    [own[tokens.index(think)] if think in tokens else -1 for think in think_ids],
                )
            )
        return cls(ids, positions, branch, attachment, answers)


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


if __name__ == "__main__":
    main()
