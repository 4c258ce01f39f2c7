"""Filters against the model's own order: does a filtered search rank what is left as the whole list does?

Ranks every item for some test users once, without a filter. Then asks for the 10 best of the target and 99 random
others (`allow`), and of random 50, 25 and 10 % of all items with the target among them (`only`), and compares each
list with the whole one, filtered afterwards: HR@10 of both, shared items among the 10,
lists that begin with the same item.

    python benchmarks/filters.py --model scientific/sft/model --dataset scientific/dataset --lists lists.npz

The whole lists take most of the time: `--lists` keeps them for the next run.
"""

import argparse
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch

from hf_gr.dataset import Histories, InteractionDataset
from hf_gr.decoding import Recommender


TOP_K = 10
CANDIDATES = 100
SHARES = (0.5, 0.25, 0.1)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--dataset", required=True, help="its dataset folder")
    parser.add_argument("--users", type=int, default=400, help="test users, drawn at random")
    parser.add_argument("--split", default="leave_one_out")
    parser.add_argument("--beams", type=int, default=50, help="of the filtered searches")
    parser.add_argument("--length", type=int, default=0, help="of the whole lists and their beams (0: all items)")
    parser.add_argument("--batch", type=int, default=16, help="users of a filtered search")
    parser.add_argument("--lists", type=Path, metavar="FILE", help="keeps the whole lists, or takes them from there")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, metavar="FILE")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    recommender = Recommender.from_pretrained(chosen.model)
    catalog = recommender.catalog
    cases = InteractionDataset.load(chosen.dataset).aligned(catalog.item_ids).split(chosen.split).test
    rng = np.random.default_rng(chosen.seed)
    live = np.flatnonzero(catalog.live[cases.targets])
    users = np.sort(rng.permutation(live)[: chosen.users])
    histories, targets = cases.take(users).histories, cases.targets[users]
    whole = _whole_lists(recommender, histories, chosen.length or int(catalog.live.sum()), chosen.lists)
    found: dict[str, Any] = {"users": len(users), "items": int(catalog.live.sum()), "length": whole.shape[1]}
    for share in (0.0, *SHARES):
        name = f"mask {share:.0%}" if share else f"allow {CANDIDATES}"
        left = [_left(rng, catalog.live, target, share) for target in targets]
        lists = _filtered_lists(recommender, histories, left, chosen.beams, chosen.batch, allow=not share)
        found[name] = result = _compared(lists, whole, left, targets)
        print(
            f"{name:>9}: HR@10 {result['filtered']:.4f} filtered, {result['whole']:.4f} of the whole list "
            f"(difference {result['difference']:+.4f} ± {result['error']:.4f}); "
            f"{result['overlap']:.1%} of the 10 shared, {result['first']:.1%} begin alike",
            flush=True,
        )
    settings = {name: str(value) for name, value in vars(chosen).items()}
    found |= {"settings": settings} | measure.provenance(str(recommender.model.device))
    if chosen.json:
        measure.write_json(chosen.json, found)
    return found


def _whole_lists(recommender: Recommender, histories: Histories, length: int, file: Path | None) -> np.ndarray:
    """The `length` best items for every history, int64 [users, length], with as many beams: of all items exact."""
    if file is not None and file.is_file():
        stored = np.load(file)
        same = np.array_equal(stored["users"], histories.user_ids.astype(str)) and stored["lists"].shape[1] == length
        if not same:
            raise SystemExit(f"{file} holds lists of other users or of another length; give another file.")
        return stored["lists"]
    lists = []
    for user in range(len(histories)):
        one = histories.cut(np.array([user]), histories.lengths[[user]])
        lists.append(recommender.recommend(one, top_k=length, num_beams=length)[0][0])
        if user % 50 == 49:
            print(f"whole lists of {user + 1} of {len(histories)} users", flush=True)
    if file is not None:
        np.savez_compressed(file, users=histories.user_ids.astype(str), lists=np.stack(lists))
    return np.stack(lists)


def _left(rng: np.random.Generator, live: np.ndarray, target: int, share: float) -> np.ndarray:
    """Which items a filter leaves, bool [N]: a share of the live ones, or so many candidates; always the target."""
    left = np.zeros(len(live), bool)
    if share:
        left = live & (rng.random(len(live)) < share)
    else:
        others = np.setdiff1d(np.flatnonzero(live), [target])
        left[rng.choice(others, min(CANDIDATES - 1, len(others)), replace=False)] = True
    left[target] = True
    return left


def _filtered_lists(
    recommender: Recommender, histories: Histories, left: list[np.ndarray], beams: int, batch: int, allow: bool
) -> np.ndarray:
    """The best items of those left, int64 [users, TOP_K], by a filter of the search: a list of items or a mask."""
    lists = []
    for start in range(0, len(histories), batch):
        users = np.arange(start, min(start + batch, len(histories)))
        rows = [left[user] for user in users]
        given = [np.flatnonzero(row) for row in rows] if allow else None
        only = None if allow else [recommender.grammar.mask(row) for row in rows]
        chosen = histories.cut(users, histories.lengths[users])
        lists.append(recommender.recommend(chosen, top_k=TOP_K, num_beams=beams, allow=given, only=only)[0])
    return np.concatenate(lists)


def _compared(lists: np.ndarray, whole: np.ndarray, left: list[np.ndarray], targets: np.ndarray) -> dict[str, float]:
    hits, overlap, first = [], [], []
    for own, full, row, target in zip(lists, whole, left, targets, strict=True):
        full = full[full >= 0]
        expected, answer = full[row[full]][:TOP_K], own[own >= 0]
        hits.append((target in answer, target in expected))
        overlap.append(len(np.intersect1d(answer, expected)) / max(len(expected), 1))
        first.append(len(expected) > 0 and len(answer) > 0 and answer[0] == expected[0])
    filtered, after = np.array(hits, float).T
    difference = filtered - after
    return {
        "filtered": float(filtered.mean()),
        "whole": float(after.mean()),
        "difference": float(difference.mean()),
        "error": float(1.96 * difference.std() / np.sqrt(len(difference))),
        "overlap": float(np.mean(overlap)),
        "first": float(np.mean(first)),
    }


if __name__ == "__main__":
    main()
