"""The stage: a model gets a memory of its training events, and the memory takes in what came after."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..artifacts import check_output, claimed, report, write_json
from ..catalog import SidCatalog
from ..dataset import InteractionDataset, events_of
from ..decoding import Recommender
from ..errors import HfGrError, first_line
from ..hub import say_ranking
from ..provenance import TrainingData, events_fingerprint, learned_from
from ..scorers import Memory, save_scorers
from ..scorers.saved import drop_scorer, read_mixture
from ..search_config import MEMORY
from ..splits import Split, SplitKind
from ..tables import TimeKind
from ..updating import source_and_target, updating
from .fit import FittedMemory, fit_memory


STAGE = "remember"
TRIALS_FILE = "trials.json"
_REWRITTEN = ("README.md", "manifest.json")


def remember(
    model: str | Path,
    source: str | Path,
    *,
    out: str | Path | None = None,
    split: SplitKind | None = None,
    exclude_seen: bool = False,
    users: int = 1000,
    num_beams: int = 50,
    batch_size: int = 64,
    seed: int = 0,
) -> Path:
    """Gives a model a memory of a dataset's training events, or takes further events into the memory that it has.

    Nothing is trained. How the memory is read, and what it counts beside the model, is chosen on the validation part
    ([`~hf_gr.remember.fit.fit_memory`]); new events change neither.

    Args:
        model: Model folder, changed in one step; or, with `out`, a Hub repo.
        source: A dataset folder: the memory is made of its training events, in place of one that is there. Or a
            Parquet file of events (`user_id`, `item_id`, `timestamp`), such as the `interactions.parquet` of another
            prepared folder: they are taken in.
        out: Folder to write to instead of `model`.
        split: Whose training part is remembered; none: the one that the model was trained on.
        exclude_seen: Whether lists without items of the history choose, for those who serve such.
        users: Validation cases that choose what the memory counts.
        num_beams, batch_size: Of their search.
        seed: Of the cases drawn.

    Returns:
        The folder written.

    Raises:
        HfGrError: On a model of other items or of another split, and on events that cannot be read.
    """
    folder, target = source_and_target(model, out)
    with claimed(target):  # from reading to writing: of two commands at once none is lost
        check_output(target, STAGE, [folder, source], rewrite=target.resolve() == folder.resolve())
        if Path(source).is_file():
            _take_in(folder, Path(source), target)
        else:
            settings = {"users": users, "num_beams": num_beams, "batch_size": batch_size, "seed": seed}
            _make(folder, Path(source), target, split, settings | {"exclude_seen": exclude_seen})
    report(STAGE, {"model": model, "events": source} if out else {"events": source}, target)
    return target


def write_memory(
    folder: Path, recommender: Recommender, split: Split, time: TimeKind, **settings: Any
) -> FittedMemory:
    """Makes a memory of the training part and writes it into a model's folder, which holds all else already.

    Args:
        folder: Of the model; usually the staging folder of [`~hf_gr.artifacts.writing`].
        recommender: With the model.
        split, time, settings: As for [`fit_memory`].
    """
    result = fit_memory(recommender, split, time, **settings)
    save_scorers(folder, recommender.catalog, {MEMORY: result.memory}, result.mixture)
    tried = {
        "exclude_seen": result.exclude_seen,
        "memory": [asdict(trial) for trial in result.memories],
        "mixture": [asdict(trial) for trial in result.mixtures],
    }
    write_json(folder / MEMORY / TRIALS_FILE, tried)
    say_ranking(folder)
    return result


def _make(folder: Path, source: Path, target: Path, split: SplitKind | None, settings: dict[str, Any]) -> None:
    known = TrainingData.of(folder)
    kind = split or ("leave_one_out" if known is None else known.split)
    catalog = SidCatalog.load(folder)
    dataset = InteractionDataset.load(source).aligned(catalog.item_ids)
    parts = dataset.split(kind)
    learned = learned_from(kind, parts.train, catalog.item_ids, folder)
    with updating(STAGE, folder, target, _REWRITTEN, "memory_updates", {"events": len(parts.train.items)}) as half:
        drop_scorer(half, MEMORY)  # one that is there may be broken, or of another release
        result = write_memory(half, Recommender.from_pretrained(half), parts, dataset.time, **settings)
        learned.save(half)
    print(f"[{STAGE}] {result.summary}", flush=True)


def _take_in(folder: Path, file: Path, target: Path) -> None:
    catalog = SidCatalog.load(folder)
    mixture = read_mixture(folder, catalog)
    if mixture is None or MEMORY not in mixture.by_name:
        raise HfGrError(f"{folder} has no memory to take events into; make one first: hf-gr remember MODEL DATASET.")
    memory = Memory.load(folder / MEMORY)
    time = "timestamp" if memory.tails is None else memory.tails.time
    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise HfGrError(
            f"cannot read {file} ({first_line(error)}); give a Parquet file of events, as `hf-gr prepare` writes it."
        ) from None
    new, unknown = events_of(table, catalog.item_ids, file, time)
    memory, left_out = memory.remember(new, len(catalog))
    counts = {"new": len(new.items) - left_out, "known before": left_out, "of unknown items": unknown}
    known, events = TrainingData.of(folder), events_fingerprint(new, catalog.item_ids)
    if time == "position" and known is not None and events in known.events:
        raise HfGrError(f"{file}: the memory has counted these very events; positions do not tell, so give others.")
    with updating(STAGE, folder, target, _REWRITTEN, "memory_updates", counts) as half:
        memory.save(half / MEMORY)
        if known is not None and counts["new"]:
            replace(known, events=tuple(sorted({*known.events, events}))).save(half)
    line = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(f"[{STAGE}] events: {line}", flush=True)
