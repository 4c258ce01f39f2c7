"""Lists of RecTools' models for `hf-gr evaluate --predictions`: popularity, item-kNN, EASE, SASRec and HSTU.

    make baselines                                                       # once: .venv-baselines
    .venv-baselines/bin/python benchmarks/baselines/lists.py --dataset beauty/dataset --model hstu \
        --config benchmarks/baselines/hstu.yaml --out beauty/hstu.parquet
    hf-gr evaluate --dataset beauty/dataset --predictions beauty/hstu.parquet --output_dir beauty/hstu-judged

RecTools pins numpy < 2, so this runs in an environment of its own and reads the dataset folder by itself; hf_gr is not
imported. The protocol is hf_gr's: of every user's events in order of time (ties as they stand in the file) the last is
test, the one before validation, and models learn from the rest alone. To predict the test event a model is given all
that came before it, the validation event included.

What differs from calling RecTools plainly [ours]: the softmax is computed at the positions that count instead of over
padding as well, over all items or over `shared_negatives` drawn ones and the batch's targets; and training stops when
NDCG@10 of validation, ranked over the full catalogue, has not risen for `patience` epochs, and goes back to the best.
"""

import argparse
import json
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq


MODELS = ("popularity", "item-knn", "ease", "sasrec", "hstu")
OWN_KEYS = {"epochs", "patience", "shared_negatives", "validation_users"}  # of a YAML file; the rest is RecTools'


class Refused(Exception):
    """Bad input; one line with the remedy."""


def read_events(dataset: Path) -> pa.Table:
    """Events with `user_id`, `item_id`, `timestamp` and `left` (events of the same user still to come, int64), users
    in order of appearance, each one's events oldest first, those of one time as they stand in the file."""
    file = dataset / "interactions.parquet"
    if not file.is_file():
        raise Refused(f"{file} is missing; name a dataset folder written by `hf-gr prepare`.")
    table = pq.read_table(file, columns=["user_id", "item_id", "timestamp"])
    users = table["user_id"].combine_chunks().dictionary_encode()
    codes = users.indices.to_numpy()
    order = np.lexsort((table["timestamp"].to_numpy(), codes))  # stable
    ends = np.cumsum(np.bincount(codes))
    short = np.flatnonzero(np.bincount(codes) < 3)
    if len(short):
        name = users.dictionary[int(short[0])].as_py()
        raise Refused(
            f"{dataset}: {len(short)} user(s) have fewer than 3 events (first: {name!r}), but leave-one-out needs one "
            "each for training, validation and test; prepare the data with --min-user-events 3."
        )
    left = ends[codes[order]] - 1 - np.arange(len(order))
    return table.take(pa.array(order)).append_column("left", pa.array(left, pa.int64()))


def training_events(events: pa.Table) -> pa.Table:
    """What may teach: all but each user's last two."""
    return events.filter(pc.greater_equal(events["left"], 2))


def known_events(events: pa.Table, part: str) -> pa.Table:
    """What is known before the predicted event: all but each user's last two (validation) or last one (test)."""
    return events.filter(pc.greater_equal(events["left"], {"validation": 2, "test": 1}[part]))


def targets(events: pa.Table, part: str) -> pa.Table:
    """The predicted event of every user, in order of users."""
    return events.filter(pc.equal(events["left"], {"validation": 1, "test": 0}[part]))


def frame(events: pa.Table) -> Any:
    """Interactions as RecTools takes them; events of one time are set apart by microseconds, in their order."""
    import pandas as pd
    from rectools import Columns

    seconds, place = events["timestamp"].to_numpy(), np.arange(len(events))
    same = np.r_[False, np.diff(seconds) == 0]
    run = place - np.maximum.accumulate(np.where(same, 0, place))  # place among the events of one time
    return pd.DataFrame(
        {
            Columns.User: events["user_id"].to_pylist(),
            Columns.Item: events["item_id"].to_pylist(),
            Columns.Weight: 1.0,
            Columns.Datetime: pd.to_datetime(seconds * 1_000_000 + run, unit="us"),
        }
    )


def rectools_dataset(events: pa.Table, item_ids: list[str]) -> Any:
    """A RecTools dataset whose items are those of the catalogue, so that training and known events share their ids."""
    from rectools.dataset import Dataset, IdMap, Interactions

    interactions = frame(events)
    users, items = IdMap.from_values(interactions["user_id"].unique()), IdMap.from_values(item_ids)
    return Dataset(users, items, Interactions.from_raw(interactions, users, items))


def make_model(name: str, settings: dict[str, Any], seed: int) -> Any:
    """A RecTools model, not trained yet."""
    if name == "popularity":
        from rectools.models import PopularModel

        return PopularModel(**settings)
    if name == "ease":
        from rectools.models import EASEModel

        return EASEModel(**settings)
    if name == "item-knn":
        from implicit.nearest_neighbours import CosineRecommender
        from rectools.models import ImplicitItemKNNWrapperModel

        return ImplicitItemKNNWrapperModel(CosineRecommender(**{"K": 100, "num_threads": 1} | settings))
    import torch
    from pytorch_lightning import seed_everything
    from rectools.models import HSTUModel, SASRecModel

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    seed_everything(seed, verbose=False)
    own = {key: value for key, value in settings.items() if key not in OWN_KEYS}
    kwargs = dict(own.pop("lightning_module_kwargs", {}))
    kind = {"sasrec": SASRecModel, "hstu": HSTUModel}[name]
    module = _lightning_module(settings.get("shared_negatives", 0))
    return kind(**own, loss="counted_softmax", lightning_module_type=module, lightning_module_kwargs=kwargs)


def _lightning_module(negatives: int) -> type:
    """RecTools' training module with the softmax at the positions that count (its hook for losses of one's own)."""
    import torch
    import torch.nn.functional as F
    from rectools.models.nn.transformers.lightning import TransformerLightningModule

    class CountedSoftmax(TransformerLightningModule):
        def _calc_custom_loss(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
            embeddings = self.torch_model.item_model.get_all_embeddings()
            counted = batch["y"] > 0
            hidden = self.torch_model.encode_sessions(batch, embeddings)[counted]
            labels = batch["y"][counted]
            first = self.data_preparator.n_item_extra_tokens
            if negatives:
                drawn = torch.randint(first, len(embeddings), (negatives,))
                candidates, places = torch.cat([labels, drawn]).unique(return_inverse=True)
                embeddings, labels = embeddings[candidates], places[: len(labels)]
            logits = self.torch_model.similarity_module(hidden, embeddings) / self.logits_t
            return F.cross_entropy(logits, labels)

    return CountedSoftmax


def train(model: Any, name: str, data: Any, events: pa.Table, settings: dict[str, Any], seed: int) -> None:
    """Fits a model; neural ones epoch by epoch until validation says stop."""
    if name in ("popularity", "item-knn", "ease"):
        model.fit(data)
        return
    import torch

    random, wanted = np.random.default_rng(seed), targets(events, "validation")
    users = wanted["user_id"].to_pylist()
    chosen = random.permutation(len(users))[: settings.get("validation_users", 5000)]
    truth = {users[row]: wanted["item_id"][int(row)].as_py() for row in chosen}
    best, best_state, waited, begun = -1.0, {}, 0, time.process_time()
    for epoch in range(1, settings.get("epochs", 20) + 1):
        model.fit_partial(data, min_epochs=1, max_epochs=1)
        hits, gain = measured(model, data, truth)
        spent = time.process_time() - begun
        print(f"epoch {epoch}: validation HR@10 {hits:.4f} NDCG@10 {gain:.4f}, {spent:.0f} CPU s", flush=True)
        waited += 1
        if gain > best:
            best, waited = gain, 0
            best_state = {key: value.clone() for key, value in model.torch_model.state_dict().items()}
        if waited >= settings.get("patience", 3):
            break
    with torch.no_grad():
        model.torch_model.load_state_dict(best_state)


def measured(model: Any, data: Any, truth: dict[str, str]) -> tuple[float, float]:
    """HR@10 and NDCG@10 over the users of `truth` (user → item), nothing removed."""
    lists = recommended(model, data, list(truth), 10, False)
    ranks = [lists[user].index(item) if item in lists[user] else None for user, item in truth.items()]
    found = [rank for rank in ranks if rank is not None]
    return len(found) / len(truth), float(np.sum(1 / np.log2(np.array(found, float) + 2))) / len(truth)


def recommended(
    model: Any, data: Any, users: list[str], top_k: int, exclude_seen: bool, times: dict[str, int] | None = None
) -> dict[str, list[str]]:
    """Every user's list, best first; an empty one for users of whom the model knows nothing. `times`: when each asks
    (seconds), which HSTU reads; a second after the latest known event if left out."""
    given: dict[str, Any] = {"k": top_k, "filter_viewed": exclude_seen, "on_unsupported_targets": "ignore"}
    if model.require_recommend_context:
        given["context"] = requests(data, users, times)
    found = model.recommend(users, data, **given)
    found = found.sort_values(["user_id", "rank"])
    lists: dict[str, list[str]] = {user: [] for user in users}
    for user, item in zip(found["user_id"], found["item_id"], strict=True):
        lists[user].append(item)
    return lists


def requests(data: Any, users: list[str], times: dict[str, int] | None) -> Any:
    """The time at which each user asks, as RecTools takes it."""
    import pandas as pd
    from rectools import Columns

    if times is None:
        latest = data.get_raw_interactions().groupby(Columns.User)[Columns.Datetime].max()
        asked = latest.loc[users].to_numpy() + pd.Timedelta(seconds=1)
    else:
        asked = pd.to_datetime([times[user] for user in users], unit="s") + pd.Timedelta(seconds=1)
    return pd.DataFrame({Columns.User: users, Columns.Datetime: asked, Columns.Weight: 1.0})


def write_lists(file: Path, lists: dict[str, list[str]]) -> None:
    """Parquet with `user_id` and `item_ids`, as `hf-gr evaluate --predictions` reads it, put in place in one step."""
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"user_id": list(lists), "item_ids": pa.array(list(lists.values()), pa.list_(pa.string()))})
    staging = file.with_name(f".{file.name}.tmp")
    pq.write_table(table, staging)
    staging.replace(file)


def read_settings(file: Path | None) -> dict[str, Any]:
    """The mapping of a YAML file; empty without one."""
    if file is None:
        return {}
    import yaml

    if not file.is_file():
        raise Refused(f"{file} does not exist; name a YAML file such as benchmarks/baselines/sasrec.yaml.")
    found = yaml.safe_load(file.read_text())
    if not isinstance(found, dict):
        raise Refused(f"{file} holds no keys and values; write one `key: value` a line.")
    return found


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dataset", type=Path, required=True, help="dataset folder of `hf-gr prepare`")
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", choices=("validation", "test"), default="test")
    parser.add_argument("--top-k", type=int, default=50)
    parser.add_argument(
        "--exclude-seen", choices=("true", "false", "both"), default="false", help="both: without them in OUT-unseen"
    )
    parser.add_argument(
        "--request-time",
        choices=("latest", "target"),
        default="latest",
        help="when HSTU is asked: right after the latest known event, or at the predicted event's own time, which no "
        "other model is told",
    )
    parser.add_argument("--config", type=Path, help="YAML file with settings of the model")
    parser.add_argument("--set", default="{}", help='settings that override the file, as JSON: {"lr": 0.001}')
    parser.add_argument("--out", type=Path, required=True, help="Parquet file to write")
    chosen = parser.parse_args(arguments)
    if chosen.top_k < 1:
        raise Refused(f"--top-k is {chosen.top_k}; it must be at least 1.")
    return chosen


def main(arguments: list[str] | None = None) -> None:
    warnings.filterwarnings("ignore", module="rectools|pytorch_lightning")
    chosen = parse(arguments)
    settings = read_settings(chosen.config) | json.loads(chosen.set)
    events = read_events(chosen.dataset)
    item_ids = pq.read_table(chosen.dataset / "items.parquet", columns=["item_id"])["item_id"].to_pylist()
    data = rectools_dataset(training_events(events), item_ids)
    model = make_model(chosen.model, settings, chosen.seed)
    train(model, chosen.model, data, events, settings, chosen.seed)
    known = rectools_dataset(known_events(events, chosen.part), item_ids)
    wanted = targets(events, chosen.part)
    users = wanted["user_id"].to_pylist()
    told = dict(zip(users, wanted["timestamp"].to_pylist(), strict=True)) if chosen.request_time == "target" else None
    unseen = chosen.out.with_name(f"{chosen.out.stem}-unseen{chosen.out.suffix}")
    files = {"false": {False: chosen.out}, "true": {True: chosen.out}, "both": {False: chosen.out, True: unseen}}
    for exclude_seen, file in files[chosen.exclude_seen].items():
        write_lists(file, recommended(model, known, users, chosen.top_k, exclude_seen, told))
        print(f"wrote {file}: {len(users)} lists of {chosen.model}, {chosen.part} part", flush=True)


if __name__ == "__main__":
    try:
        main()
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
