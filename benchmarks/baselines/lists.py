"""Lists of systems of the RecTools library, for `hf-gr evaluate --predictions`.

    lists.py --dataset DIR --model sasrec --config sasrec.yaml --out lists.parquet
    hf-gr evaluate --dataset DIR --predictions lists.parquet --output_dir evaluation

RecTools needs numpy < 2 and so runs in an environment of its own (`make baselines`) that does not have hf_gr; this
file reads a dataset folder and leaves one out by itself. Every system learns from the training part alone: of every
user all events but the last two, or all where there are fewer than three (such users are not judged). Its lists are
inferred from all events before the one that is predicted. Networks are trained until `patience` looks at the
validation part in a row bring no better NDCG@10, and the best state answers.
"""

import argparse
import copy
import itertools
import math
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq


MODELS = ("popularity", "ease", "sasrec", "hstu")
NETWORKS = ("sasrec", "hstu")
_AFTER = {"train": 2, "validation": 2, "test": 1}  # events at a history's end that are not known
SCHEDULE = {"epochs": 100, "every": 5, "patience": 3, "seconds": math.inf}  # of a config, ours; the rest is RecTools'
_FIRST_DAY = np.datetime64("2000-01-01", "s")


@dataclass(frozen=True, eq=False)
class Events:
    """Events of U users, E in all, oldest first.

    Attributes:
        user_ids: U strings.
        item_ids: N strings, the catalog in its own order.
        ptr: int64 [U + 1]; events of user `u` are `ptr[u]:ptr[u + 1]`.
        items: int64 [E], rows of the catalog.
    """

    user_ids: list[str]
    item_ids: list[str]
    ptr: np.ndarray
    items: np.ndarray

    def known(self, part: str) -> "Events":
        """What is known when the targets of a part (`train` has none) are predicted; all of users not judged."""
        lengths = np.diff(self.ptr)
        lengths[self.judged] -= _AFTER[part]
        place = np.arange(len(self.items)) - np.repeat(self.ptr[:-1], np.diff(self.ptr))
        keep = place < np.repeat(lengths, np.diff(self.ptr))
        return replace(self, ptr=np.concatenate([[0], np.cumsum(lengths)]), items=self.items[keep])

    def targets(self, part: str) -> np.ndarray:
        """The event that a part predicts of every user who is judged, int64."""
        return self.items[self.ptr[1:][self.judged] - _AFTER[part]]

    @property
    def judged(self) -> np.ndarray:
        """Users with three events, int64; the others only teach."""
        return np.flatnonzero(np.diff(self.ptr) >= 3)

    @property
    def users(self) -> np.ndarray:
        """User of every event, int64 [E]."""
        return np.repeat(np.arange(len(self.user_ids)), np.diff(self.ptr))


def read_events(folder: Path) -> Events:
    """Reads a dataset folder as hf_gr does: users as they first appear, events by time, ties in the file's order.

    Raises:
        SystemExit: With one line, if a file is missing or no user has the three events that are needed.
    """
    for name in ("interactions.parquet", "items.parquet"):
        if not (folder / name).is_file():
            raise SystemExit(f"error: {folder / name} is missing; write the folder with `hf-gr prepare`.")
    table = pq.read_table(folder / "interactions.parquet", columns=["user_id", "item_id", "timestamp"])
    catalog = pq.read_table(folder / "items.parquet", columns=["item_id"])["item_id"].cast(pa.string())
    users = table["user_id"].cast(pa.string()).combine_chunks().dictionary_encode()
    codes = users.indices.to_numpy()
    order = np.lexsort((table["timestamp"].to_numpy(), codes))
    rows = pc.index_in(table["item_id"].cast(pa.string()), catalog.combine_chunks())
    if rows.null_count:
        missing = table["item_id"].filter(pc.is_null(rows))[0].as_py()
        raise SystemExit(f"error: {folder}: item {missing!r} is not in items.parquet; prepare the data again.")
    lengths = np.bincount(codes)
    names = users.dictionary.to_pylist()
    if (lengths < 3).all():
        raise SystemExit(f"error: {folder}: no user has 3 events, which leave-one-out needs; take a longer log.")
    ptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Events(names, catalog.to_pylist(), ptr, rows.to_numpy().astype(np.int64)[order])


def rectools_dataset(events: Events) -> Any:
    """Events as RecTools has them; ids are rows, all of them known. Its clock is the place in the history, a day each,
    so that no system sees when something happened and ties are in our order."""
    import pandas as pd
    from rectools import Columns
    from rectools.dataset import Dataset, IdMap, Interactions

    place = np.arange(len(events.items)) - np.repeat(events.ptr[:-1], np.diff(events.ptr))
    frame = pd.DataFrame(
        {
            Columns.User: events.users,
            Columns.Item: events.items,
            Columns.Weight: np.ones(len(events.items), np.float32),
            Columns.Datetime: _FIRST_DAY + place * np.timedelta64(86400, "s"),
        }
    )
    users, items = (IdMap.from_values(np.arange(len(ids))) for ids in (events.user_ids, events.item_ids))
    return Dataset(users, items, Interactions.from_raw(frame, users, items))


def answers(model: Any, known: Events, top_k: int, exclude_seen: bool) -> np.ndarray:
    """What RecTools answers all users, best first, int64 [U, top_k], -1 where it says nothing: it knows only items of
    the training part, and no user without one."""
    from rectools import Columns

    users = np.arange(len(known.user_ids))
    found = model.recommend(
        users, rectools_dataset(known), k=top_k, filter_viewed=exclude_seen, on_unsupported_targets="ignore"
    )
    lists = np.full((len(users), top_k), -1, np.int64)
    lists[found[Columns.User].to_numpy(), found[Columns.Rank].to_numpy() - 1] = found[Columns.Item].to_numpy()
    return lists


def lists_of(model: Any, events: Events, known: Events, top_k: int, exclude_seen: bool) -> np.ndarray:
    """Lists of all users, best first, int64 [U, top_k]: the model's, filled up with what is most popular in the
    training part; -1 where the catalog is exhausted."""
    lists = answers(model, known, top_k, exclude_seen)
    popular = np.argsort(-np.bincount(events.known("train").items, minlength=len(events.item_ids)), kind="stable")
    for user in np.flatnonzero((lists < 0).any(axis=1)):
        seen = known.items[known.ptr[user] : known.ptr[user + 1]] if exclude_seen else known.items[:0]
        had = lists[user][lists[user] >= 0]
        front = popular[: top_k + len(had) + len(seen)]
        row = np.concatenate([had, front[~np.isin(front, np.concatenate([had, seen]))]])[:top_k]
        lists[user, : len(row)] = row
    return lists


def ndcg(lists: np.ndarray, targets: np.ndarray, k: int = 10) -> float:
    """Mean NDCG@k with one relevant item each."""
    hits = lists[:, :k] == targets[:, None]
    return float((hits / np.log2(np.arange(2, hits.shape[1] + 2))).sum(1).mean())


def simple_model(name: str, settings: dict[str, Any]) -> Any:
    """Popularity or EASE, with RecTools' defaults but for `settings`."""
    from rectools.models import EASEModel, PopularModel

    return PopularModel(**settings) if name == "popularity" else EASEModel(recommend_n_threads=1, **settings)


def chosen_model(name: str, settings: dict[str, Any], events: Events, exclude_seen: bool) -> Any:
    """Popularity or EASE; of a setting that is a list the value with the best NDCG@10 on the validation part."""
    train = rectools_dataset(events.known("train"))
    known, targets = events.known("validation"), events.targets("validation")
    choices = [key for key, value in settings.items() if isinstance(value, list)]
    best, model = -1.0, None
    for values in itertools.product(*(settings[key] for key in choices)):
        trial = dict(zip(choices, values, strict=True))
        candidate = simple_model(name, settings | trial).fit(train)
        if not choices:
            return candidate
        score = ndcg(lists_of(candidate, events, known, 10, exclude_seen)[events.judged], targets)
        print(f"{trial}: validation NDCG@10 {score:.4f}", flush=True)
        if score > best:
            best, model = score, candidate
    return model


def trained_network(name: str, settings: dict[str, Any], events: Events, seed: int, exclude_seen: bool) -> Any:
    """SASRec or HSTU, in the state of the best look at the validation part."""
    from pytorch_lightning import Trainer, seed_everything
    from rectools.models import HSTUModel, SASRecModel
    from shared_negatives import SharedSampler, SharedSimilarity

    schedule = {key: settings.pop(key, default) for key, default in SCHEDULE.items()}
    seed_everything(seed)

    def trainer() -> Any:
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        return Trainer(max_epochs=1, deterministic=True, enable_model_summary=False, **quiet)

    kind = SASRecModel if name == "sasrec" else HSTUModel
    shared = {"negative_sampler_type": SharedSampler, "similarity_module_type": SharedSimilarity}
    model = kind(get_trainer_func=trainer, **shared, **settings)
    train, known = rectools_dataset(events.known("train")), events.known("validation")
    targets = events.targets("validation")
    popular = ndcg(lists_of(simple_model("popularity", {}).fit(train), events, known, 10, exclude_seen), targets)
    best, state, since, started, ended = -1.0, {}, 0, time.process_time(), "by the number of epochs"
    for epoch in range(schedule["every"], schedule["epochs"] + 1, schedule["every"]):
        model.fit_partial(train, min_epochs=schedule["every"], max_epochs=schedule["every"])
        score = ndcg(lists_of(model, events, known, 10, exclude_seen)[events.judged], targets)
        used = time.process_time() - started
        print(f"epoch {epoch}: validation NDCG@10 {score:.4f}, {used:.0f} CPU seconds so far", flush=True)
        since += 1
        if score > best:
            best, state, since = score, copy.deepcopy(model.lightning_model.state_dict()), 0
        if since >= schedule["patience"]:
            ended = "by patience"
            break
        if used > schedule["seconds"]:
            ended = "by CPU seconds" + (", while it still gained" if since == 0 else "")
            break
    print(f"stopped {ended}; best validation NDCG@10 {best:.4f}, that of popularity {popular:.4f}", flush=True)
    if best <= popular:
        raise SystemExit(
            f"error: {name} is not ahead of popularity on validation, so it has not learned; see its loss."
        )
    model.lightning_model.load_state_dict(state)
    return model


def write_lists(file: Path, lists: np.ndarray, events: Events) -> None:
    """Writes `user_id` and `item_ids`, best first."""
    ids = np.array(events.item_ids, dtype=object)
    found = [ids[row[row >= 0]].tolist() for row in lists]
    columns = {"user_id": pa.array(events.user_ids, pa.string()), "item_ids": pa.array(found, pa.list_(pa.string()))}
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.tmp")
    pq.write_table(pa.table(columns), temporary)
    temporary.replace(file)


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line; ends with a message where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, required=True, help="dataset folder of hf_gr")
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--out", type=Path, required=True, help="Parquet file to write")
    parser.add_argument("--config", type=Path, help="YAML file with the model's settings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", choices=("validation", "test"), default="test", help="what is predicted")
    parser.add_argument("--top-k", type=int, default=50, help="length of the lists")
    parser.add_argument("--exclude-seen", action="store_true", help="leave out what is in the history")
    parser.add_argument(
        "--also",
        type=Path,
        help="second file: lists of the same model of the other kind, with or without what is in the history",
    )
    parser.add_argument("--threads", type=int, default=1)
    found = parser.parse_args(given)
    for name in ("top_k", "threads"):
        if vars(found)[name] < 1:
            parser.error(f"--{name.replace('_', '-')} is {vars(found)[name]}; give at least 1")
    for name, file in (("out", found.out), ("also", found.also)):
        if file is not None and file.suffix != ".parquet":
            parser.error(f"--{name} is {file}; name a .parquet file")
    if found.config is not None and not found.config.is_file():
        parser.error(f"--config {found.config} does not exist; name a YAML file")
    return found


def settings_of(file: Path | None) -> dict[str, Any]:
    """Settings of a YAML file, none without one."""
    import yaml

    settings = {} if file is None else yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        raise SystemExit(f"error: {file} holds no settings; write one `key: value` a line.")
    return settings


def main(given: list[str] | None = None) -> None:
    asked = arguments(given)
    events, settings = read_events(asked.dataset), settings_of(asked.config)
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, str(asked.threads))
    started = time.process_time()
    if asked.model in NETWORKS:
        import torch

        torch.set_num_threads(asked.threads)
        model = trained_network(asked.model, settings, events, asked.seed, asked.exclude_seen)
    else:
        model = chosen_model(asked.model, settings, events, asked.exclude_seen)
    for file, exclude_seen in ((asked.out, asked.exclude_seen), (asked.also, not asked.exclude_seen)):
        if file is not None:
            lists = lists_of(model, events, events.known(asked.part), asked.top_k, exclude_seen)
            write_lists(file, lists, events)
            print(f"wrote {file}: {len(lists)} lists, {time.process_time() - started:.0f} CPU seconds so far")


if __name__ == "__main__":
    main()
