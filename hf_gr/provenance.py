"""What an artifact has learned from: the split and the training events, recorded beside it and compared before it
teaches something else or is judged.

Whoever trains on one split and is judged on another has seen the answers.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from .artifacts import read_json, read_manifest, write_json
from .dataset import Histories
from .errors import HfGrError
from .offline import local_folder
from .splits import SplitKind, read_split, split_name


TRAINING_DATA_FILE = "training_data.json"


@dataclass(frozen=True)
class TrainingData:
    """What taught an artifact, and those that it was made of.

    Attributes:
        split: Whose training part, by its one name ([`split_name`]).
        events: Fingerprints ([`events_fingerprint`]) of the training parts, ascending.
    """

    split: SplitKind
    events: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "split", split_name(self.split))

    def save(self, folder: str | Path) -> None:
        write_json(Path(folder) / TRAINING_DATA_FILE, asdict(self))

    @classmethod
    def of(cls, path: str | Path) -> "TrainingData | None":
        """What taught the artifact in a folder or Hub repo. Of an earlier release's the manifest tells the split;
        `None` where nothing does. Raises [`HfGrError`] where it is no such record."""
        folder = local_folder(path, files=["config.json", TRAINING_DATA_FILE])
        if (folder / TRAINING_DATA_FILE).is_file():
            found = read_json(folder / TRAINING_DATA_FILE)
            try:
                return cls(str(found["split"]), tuple(map(str, found["events"])))
            except (KeyError, TypeError):
                raise HfGrError(
                    f"{folder / TRAINING_DATA_FILE} does not say of which split and events it is; make {path} again."
                ) from None
        manifest = read_manifest(folder)
        if manifest is None:
            return None
        trained = manifest["stage"] in ("sft", "grpo", "retrieve")  # which left out what was the default
        split = manifest["settings"].get("split", "leave_one_out" if trained else None)
        return None if split is None else cls(split)


def learned_from(
    split: SplitKind, train: Histories, item_ids: Sequence[str], *made_of: str | Path | None
) -> TrainingData:
    """What teaches an artifact that is about to be made.

    Args:
        split: Whose training part teaches.
        train: That part.
        item_ids: Ids of the items that it counts in.
        made_of: Artifacts that it is made of as well; `None` among them is left out.

    Raises:
        HfGrError: If one of those has learned from another split.
    """
    events = {events_fingerprint(train, item_ids)}
    for path in made_of:
        known = None if path is None else TrainingData.of(path)
        if known is not None:
            _check(split, path, known)
            events |= set(known.events)
    return TrainingData(split, tuple(sorted(events)))


def joined(*paths: str | Path) -> TrainingData | None:
    """What taught artifacts that become one without a training; raises [`HfGrError`] if they differ in their split."""
    known = {path: found for path in paths if (found := TrainingData.of(path)) is not None}
    if not known:
        return None
    first = next(iter(known.values()))
    for path, found in known.items():
        _check(first.split, path, found)
    return TrainingData(first.split, tuple(sorted({events for found in known.values() for events in found.events})))


def check_judged(path: str | Path, split: SplitKind, train: Histories, item_ids: Sequence[str]) -> str | None:
    """What has to be said before a model is judged on the held-out part of a split, if anything.

    Args:
        path: Folder or Hub repo of the model.
        split, train, item_ids: As in [`learned_from`], of the data that it is judged on.

    Raises:
        HfGrError: If it has learned from another split. One that differs in its targets alone has the same training
            part, but for leave-one-out.
    """
    known = TrainingData.of(path)
    if known is None:
        return f"{path} does not tell which split it was trained on; make sure that it is {split}."
    _check(split, path, known)
    if set(known.events) - {events_fingerprint(train, item_ids)}:
        return (
            f"{path} has learned from other training events than those of this data; among them may be some that are "
            "held out here. Judge it on the data that it was trained on, or train it on this."
        )
    return None


def events_fingerprint(train: Histories, item_ids: Sequence[str]) -> str:
    """16 digits that name the events of some histories: users, and their items in order; times are left out."""
    items, users = _hashes(item_ids), _hashes(train.user_ids.tolist())
    digest = hashlib.sha256(np.ascontiguousarray(train.ptr, "<i8").tobytes())
    digest.update(users.tobytes())
    digest.update(items[train.items].tobytes())
    return digest.hexdigest()[:16]


def _hashes(ids: Sequence[str]) -> np.ndarray:
    """Eight bytes of a hash of every id, uint64 [n]."""
    parts = [hashlib.blake2b(str(one).encode(), digest_size=8).digest() for one in ids]
    return np.frombuffer(b"".join(parts), "<u8")


def _check(split: SplitKind, path: str | Path | None, known: TrainingData) -> None:
    if read_split(known.split).training_name != read_split(split).training_name:
        raise HfGrError(
            f"{path} has learned from the training part of the split {known.split}, in which events may stand that "
            f"{split} holds out; set split: {known.split}, or make it again with split: {split}."
        )
