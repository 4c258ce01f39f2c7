"""What is judged: the lists of a model, of another system and of the baselines, in rows of the dataset."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from ..dataset import Cases, Histories, InteractionDataset
from ..errors import HfGrError
from ..limits import NO_LIMITS
from ..search_config import MEMORY, SearchConfig
from ..splits import Split
from . import metrics as m
from .baselines import ItemKNN, Popularity, tuned_knn
from .config import EvaluateConfig
from .predictions import read_predictions, without_history
from .redistribution import judge_redistribution
from .thoughts import judge_thoughts


if TYPE_CHECKING:
    from accelerate import PartialState

    from ..decoding.recommender import Recommender
    from ..scoring import Scorer
    from ..thoughts import Thoughts

Exclude = Sequence[np.ndarray] | None  # of every history, what is no answer to it

_CASES_AT_ONCE = 4096  # whose histories a baseline holds


def all_lists(
    config: EvaluateConfig,
    paths: dict[str, Path],
    dataset: InteractionDataset,
    split: Split,
    cases: Cases,
    world: "PartialState | None",
) -> tuple[dict[str, np.ndarray], np.ndarray | None, dict[str, Any]]:
    """The lists of every system, the one in question first; with a model its semantic IDs, their figures, what is
    found of its thoughts, how far its items moved, and with reflection the share of pruned paths; with baselines what
    was chosen for item kNN."""
    main = world is None or world.is_main_process
    lists: dict[str, np.ndarray] = {}
    codes, figures = None, dict[str, Any](catalog={})
    if world is not None:
        from ..retrieval import is_retriever

        if is_retriever(paths["model"]):
            lists["model"] = _retriever_lists(paths["model"], dataset, cases, config, world)
        else:
            of_model, codes, figures = _generated(paths["model"], dataset, cases, config, world)
            lists |= of_model
    if config.predictions and main:
        read = read_predictions(
            config.predictions, dataset, cases, top_k=None if config.exclude_seen else config.top_k
        )
        read = without_history(read, cases) if config.exclude_seen else read
        short = max(0, config.top_k - read.shape[1])
        lists["predictions"] = np.pad(read, ((0, 0), (0, short)), constant_values=m.MISSING)[:, : config.top_k]
    if config.baselines and main:
        settings: dict[str, Any] = {"num_items": dataset.num_items, "exclude_seen": config.exclude_seen}
        knn, trials = tuned_knn(split.train, split.validation, **settings)
        lists["item kNN"] = _in_parts(knn, cases, config.top_k)
        lists["popularity"] = _in_parts(Popularity(split.train, **settings), cases, config.top_k)
        figures["item kNN"] = {
            "window": knn.window,
            "neighbours": knn.neighbors,
            "trials": [
                {"window": trial.window, "neighbours": trial.neighbors, "validation": trial.validation}
                for trial in trials
            ],
        }
    return lists, codes, figures


def _in_parts(baseline: Popularity | ItemKNN, cases: Cases, top_k: int) -> np.ndarray:
    """The baseline's lists, int64 [cases, top_k]; the histories of a few thousand cases are held at a time."""
    parts = np.split(np.arange(len(cases)), range(_CASES_AT_ONCE, len(cases), _CASES_AT_ONCE))
    return np.concatenate([baseline.recommend(cases.take(rows).histories, top_k) for rows in parts])


def _generated(
    folder: Path, dataset: InteractionDataset, cases: Cases, config: EvaluateConfig, world: "PartialState"
) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, Any]]:
    """The lists of a generative model in dataset rows, with those of its memory alone where it ranks by one; the
    semantic IDs of the dataset's items (negative: none); and what there is to tell of the model."""
    from ..decoding.recommender import Recommender
    from ..thoughts import Thoughts

    recommender = Recommender.from_pretrained(str(folder), dtype=config.dtype, limits=NO_LIMITS)
    rows = _catalog_rows(recommender.catalog.item_ids, dataset)
    codes = np.full((dataset.num_items, recommender.catalog.codes.shape[1]), -1, np.int64)
    codes[rows] = recommender.catalog.codes
    figures: dict[str, Any] = {"catalog": _catalog_figures(recommender, rows, cases, dataset.num_items)}
    own, pruned = _model_lists(recommender, rows, cases, dataset.num_items, config, world)
    lists = {"model": own}
    mixture, memory = config.search.mixture or recommender.mixture, (recommender.scorers or {}).get(MEMORY)
    if config.baselines and mixture is not None and mixture.by_name.get(MEMORY, 0) > 0 and memory is not None:
        lists["memory alone"] = _memory_lists(memory, recommender, rows, cases, dataset.num_items, config, world)
    if pruned is not None:
        figures["pruned"] = pruned
    if world.is_main_process and recommender.thinking is not None:
        thoughts = Thoughts(recommender, recommender.thinking)
        figures["thoughts"] = _judged_thoughts(thoughts, rows, cases, own[:, 0], dataset.num_items, config)
    if world.is_main_process and (moved := judge_redistribution(recommender)) is not None:
        figures["redistribution"] = moved
    return lists, codes, figures


def _catalog_figures(recommender: "Recommender", rows: np.ndarray, cases: Cases, num_items: int) -> dict[str, Any]:
    """Collisions of the model's catalog, and the items on every code of every level."""
    from ..quantizers.metrics import collision_report

    codes, sizes = recommender.catalog.codes, recommender.catalog.codebook_sizes
    targets = _places(rows, num_items)[cases.targets]
    figures = collision_report(codes, sizes, targets[targets >= 0])
    use = [np.bincount(level, minlength=size).tolist() for level, size in zip(codes.T, sizes, strict=True)]
    return figures | {"items_per_code": use}


def _catalog_rows(item_ids: list[str], dataset: InteractionDataset) -> np.ndarray:
    """Row in the dataset of every item of the model's catalog, int64 [catalog]."""
    row = {item: number for number, item in enumerate(dataset.item_ids)}
    for item in item_ids:
        if item not in row:
            raise HfGrError(
                f"{dataset.path} lacks item {item!r} of the model's catalog; evaluate on the dataset that the model "
                "was made for, or one that contains it."
            )
    return np.array([row[item] for item in item_ids], np.int64)


def _model_lists(
    recommender: "Recommender",
    rows: np.ndarray,
    cases: Cases,
    num_items: int,
    config: EvaluateConfig,
    world: "PartialState",
) -> tuple[np.ndarray, float | None]:
    """The model's lists in dataset rows, int64 [cases, top_k], and with reflection the mean share of pruned paths, on
    every process."""

    def answer(batch: Histories, exclude: Exclude) -> tuple[np.ndarray, np.ndarray | None]:
        answers = recommender.answers(batch, config.search, exclude=exclude)
        m.check_finite(answers.scores[answers.items != m.MISSING])
        return answers.items, answers.pruned

    return _shared_out(answer, rows, cases, num_items, config, world)


def _memory_lists(
    memory: "Scorer",
    recommender: "Recommender",
    rows: np.ndarray,
    cases: Cases,
    num_items: int,
    config: EvaluateConfig,
    world: "PartialState",
) -> np.ndarray:
    """The lists of a model's memory without the model, in dataset rows, int64 [cases, top_k]."""
    from ..scoring import Requests

    grammar, every = recommender.grammar, recommender.grammar.live()

    def answer(batch: Histories, exclude: Exclude) -> tuple[np.ndarray, None]:
        live = grammar.live(None if exclude is None else grammar.filter(exclude))
        requests = Requests([[]] * len(batch), list(batch), None, live, every)
        best = memory.read(requests).candidates(config.top_k).cpu().numpy()
        return np.pad(best, ((0, 0), (0, config.top_k - best.shape[1])), constant_values=m.MISSING), None

    return _shared_out(answer, rows, cases, num_items, config, world)[0]


def _retriever_lists(
    folder: Path, dataset: InteractionDataset, cases: Cases, config: EvaluateConfig, world: "PartialState"
) -> np.ndarray:
    """A dense retriever's lists in dataset rows, int64 [cases, top_k]."""
    from ..retrieval import Retriever

    if config.search != SearchConfig(config.num_beams, config.top_k):
        what = f"reflection is {config.reflection}" if config.reflection else "options of the search are set"
        raise HfGrError(f"{what}, but {folder} is a dense retriever without paths; leave them out.")
    retriever = Retriever.from_pretrained(folder, dtype=config.dtype)

    def answer(batch: Histories, exclude: Exclude) -> tuple[np.ndarray, None]:
        return retriever.recommend(batch, top_k=config.top_k, exclude=exclude).items, None

    rows = _catalog_rows(retriever.item_ids, dataset)
    return _shared_out(answer, rows, cases, dataset.num_items, config, world)[0]


def _shared_out(
    answer: Callable[[Histories, Exclude], tuple[np.ndarray, np.ndarray | None]],
    rows: np.ndarray,
    cases: Cases,
    num_items: int,
    config: EvaluateConfig,
    world: "PartialState",
) -> tuple[np.ndarray, float | None]:
    """The answers to all cases, each process asking for its share of them: lists in dataset rows, int64
    [cases, top_k], and the mean share of pruned paths where it is told, on every process."""
    from accelerate.utils import gather_object

    moved = _translate(cases, rows, num_items)
    order = np.argsort(-moved.ends, kind="stable")  # similar lengths share a batch: little padding
    mine = order[world.process_index :: world.num_processes]
    done = []
    starts = range(0, len(mine), config.batch_size)
    for start in tqdm(starts, desc="recommend", unit="batch", disable=not world.is_main_process):
        chosen = mine[start : start + config.batch_size]
        batch = moved.take(chosen).histories
        items, pruned = answer(batch, [np.unique(history) for history in batch] if config.exclude_seen else None)
        done.append((chosen, items, pruned))
    lists = np.full((len(cases), config.top_k), m.MISSING, np.int64)
    shares = []
    for chosen, items, pruned in gather_object(done):
        lists[chosen] = items
        shares += [] if pruned is None else [pruned]
    known = (lists >= 0) & (lists < len(rows))
    found = np.where(known, rows[np.where(known, lists, 0)], np.where(lists == m.MISSING, m.MISSING, m.INVALID))
    return found, float(np.nanmean(np.concatenate(shares))) if shares else None


def _judged_thoughts(
    thoughts: "Thoughts", rows: np.ndarray, cases: Cases, first: np.ndarray, num_items: int, config: EvaluateConfig
) -> dict[str, Any] | None:
    """What [`judge_thoughts`] finds; `first` int64 [cases]: the items that the model puts first, in dataset rows."""
    moved = _translate(cases, rows, num_items)
    top_items = np.where(first >= 0, _places(rows, num_items)[np.maximum(first, 0)], -1)
    return judge_thoughts(thoughts, moved, top_items, batch_size=config.batch_size, seed=config.seed)


def _places(rows: np.ndarray, num_items: int) -> np.ndarray:
    """Row in the model's catalog of every item of the dataset, -1 where it has none, int64 [items]."""
    places = np.full(num_items, -1, np.int64)
    places[rows] = np.arange(len(rows))
    return places


def _translate(cases: Cases, rows: np.ndarray, num_items: int) -> Cases:
    """Cases in rows of the model's catalog; events of items that it does not have are left out of histories, and a
    target that it does not have is -1."""
    places, events = _places(rows, num_items), cases.events
    items = places[events.items]
    keep = items >= 0
    before = np.concatenate([[0], np.cumsum(keep)])  # events kept before every one
    starts = events.ptr[:-1][cases.users]
    known = Histories(
        events.user_ids,
        before[events.ptr],
        items[keep],
        events.timestamps[keep],
        None if events.ratings is None else events.ratings[keep],
        None if events.behaviors is None else events.behaviors[keep],
    )
    return Cases(known, places[cases.targets], cases.users, before[starts + cases.ends] - before[starts])
