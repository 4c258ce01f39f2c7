"""The quantize station: item vectors → quantizer and SID catalogue."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..artifacts import fingerprint, is_current, report, write_manifest, writing
from ..catalog import SidCatalog
from ..dataset import InteractionDataset, SplitKind, popularity
from ..embedding.store import ItemVectors, items_fingerprint
from ..errors import HfGrError
from .base import Quantizer
from .collisions import CollisionMethod, collision_report, print_collisions, resolve_collisions
from .rq_kmeans import RQKMeans, RQKMeansConfig


STATION = "quantize"


@dataclass
class QuantizeConfig:
    """Settings of [`quantize`]."""

    dataset: str = field(metadata={"help": "Dataset folder to read."})
    embeddings: str = field(metadata={"help": "Folder with the item vectors of that dataset."})
    output_dir: str = field(metadata={"help": "Folder to write the quantizer and the SID catalogue to."})
    method: str = field(default="rq_kmeans", metadata={"help": "Quantizer: rq_kmeans."})
    levels: int = field(default=3, metadata={"help": "Codes in a SID."})
    codebook_size: int = field(default=64, metadata={"help": "Codes to choose from on each level."})
    collisions: CollisionMethod = field(
        default="greedy",
        metadata={"help": "Items on one SID: greedy moves them to free codes of the last level, none leaves them."},
    )
    n_iter: int = field(default=25, metadata={"help": "Iterations of K-means per level."})
    split: SplitKind = field(
        default="leave_one_out",
        metadata={"help": "Split whose training part gives popularity, which orders items on a shared SID."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of the quantizer."})
    force: bool = field(default=False, metadata={"help": "Write again even if the output is up to date."})


def _rq_kmeans(config: QuantizeConfig, dim: int) -> Quantizer:
    sizes = [config.codebook_size] * config.levels
    return RQKMeans(RQKMeansConfig(dim=dim, codebook_sizes=sizes, n_iter=config.n_iter))


METHODS: dict[str, Callable[[QuantizeConfig, int], Quantizer]] = {"rq_kmeans": _rq_kmeans}


def quantize(config: QuantizeConfig) -> Path:
    """Fits a quantizer, gives every item a SID, and writes both as one artefact.

    The folder holds `quantizer/` (a transformers model), the files of [`SidCatalog.save`] and the manifest, which also
    keeps the collision report. The report counts test targets on shared SIDs; nothing is learned from them.

    Returns:
        The folder written (or found up to date).

    Raises:
        HfGrError: On an unknown method, vectors of other items, or fewer items than codes.
    """
    _check(config)
    output = Path(config.output_dir)
    read = {"dataset": config.dataset, "embeddings": config.embeddings}
    settings, inputs = _settings(config), {name: fingerprint(path) for name, path in read.items()}
    if not config.force and is_current(output, STATION, settings, inputs):
        report(STATION, read, output, current=True)
        return output
    dataset = InteractionDataset.load(config.dataset)
    split = dataset.split(config.split)
    item_vectors = _load_vectors(config.embeddings, dataset)
    quantizer = METHODS[config.method](config, item_vectors.dim).fit(item_vectors.vectors, seed=config.seed)
    codes = quantizer.encode(item_vectors.vectors)
    codes = resolve_collisions(codes, item_vectors.vectors, quantizer, config.collisions)
    counts = popularity(split.train, dataset.num_items)
    sizes = list(quantizer.config.codebook_sizes)
    code_vectors = [quantizer.code_vectors(level) for level in range(quantizer.num_levels)]
    catalog = SidCatalog.from_codes(
        codes=codes, items=dataset.items, codebook_sizes=sizes, popularity=counts, code_vectors=code_vectors
    )
    found = collision_report(codes, sizes, targets=split.test.targets, popularity=counts)
    with writing(output) as folder:
        quantizer.save_pretrained(folder / "quantizer")
        catalog.save(folder)
        write_manifest(folder, STATION, settings, inputs, collisions=found)
    report(STATION, read, output)
    print_collisions(found)
    return output


def _check(config: QuantizeConfig) -> None:
    if config.method not in METHODS:
        raise HfGrError(f"method {config.method!r} is unknown; use one of {', '.join(METHODS)}.")
    if config.levels < 1 or config.codebook_size < 2:
        raise HfGrError(
            f"levels {config.levels} and codebook_size {config.codebook_size} make no SID; "
            "use at least 1 level of 2 codes."
        )


def _load_vectors(folder: str, dataset: InteractionDataset) -> ItemVectors:
    item_vectors = ItemVectors.load(folder)
    recorded = item_vectors.info.get("items_fingerprint")  # vectors from elsewhere need not have it
    if len(item_vectors) != dataset.num_items or recorded not in (None, items_fingerprint(dataset.item_ids)):
        raise HfGrError(
            f"{folder} holds the vectors of {len(item_vectors)} items, but not of the {dataset.num_items} items of "
            f"{dataset.path}, in their order; run `hf-gr embed` on this dataset."
        )
    return item_vectors


def _settings(config: QuantizeConfig) -> dict[str, Any]:
    names = ("method", "levels", "codebook_size", "collisions", "n_iter", "split", "seed")
    return {name: value for name, value in vars(config).items() if name in names}
