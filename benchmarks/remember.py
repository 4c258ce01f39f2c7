"""New events for a memory: seconds to take them in, from files to files, beside making the memory anew of all events.

Histories are random walks over items of Zipf's popularity. Both sides run in one process and end in the same bytes.

    python benchmarks/remember.py --json remember.json      # 100,000 items, 2,000,000 events, 10,000 new: a minute
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_gr.dataset import Histories
from hf_gr.scorers import Memory


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--new", type=int, default=10_000, help="events to take in")
    parser.add_argument("--json", type=Path, metavar="FILE")
    chosen = parser.parse_args(arguments)
    random = np.random.default_rng(0)
    owners = np.sort(random.integers(0, chosen.users, chosen.events + chosen.new))
    items = np.minimum(random.zipf(1.2, len(owners)) - 1, chosen.items - 1)
    is_new = np.zeros(len(owners), bool)
    last = np.flatnonzero(np.append(owners[1:] != owners[:-1], True))  # new events are the last of their users
    is_new[random.choice(last, min(chosen.new, len(last)), replace=False)] = True
    old, new = (histories_of(owners[part], items[part], np.flatnonzero(part)) for part in (~is_new, is_new))
    whole = histories_of(owners, items, np.arange(len(owners)))
    with tempfile.TemporaryDirectory() as scratch:
        folder, anew = Path(scratch) / "memory", Path(scratch) / "anew"
        Memory.of(old, chosen.items).save(folder)
        result = {
            "new_events": int(is_new.sum()),
            "remember": seconds(lambda: Memory.load(folder).remember(new, chosen.items)[0].save(folder)),
            "anew": seconds(lambda: Memory.of(whole, chosen.items).save(anew)),
            "same_bytes": all(
                file.read_bytes() == (anew / file.name).read_bytes() for file in folder.glob("memory.*")
            ),
        }
    result["speedup"] = result["anew"] / result["remember"]
    print(json.dumps(result))
    if chosen.json:
        chosen.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result


def histories_of(owners: np.ndarray, items: np.ndarray, times: np.ndarray) -> Histories:
    users, counts = np.unique(owners, return_counts=True)
    return Histories(users.astype(str).astype(object), np.concatenate([[0], np.cumsum(counts)]), items, times)


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
