"""The quantize stage: item vectors → quantizer and SID catalog."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..artifacts import (
    check_output,
    fingerprint,
    is_current,
    report,
    resumable,
    settings_key,
    write_json,
    write_manifest,
    writing,
)
from ..catalog import SidCatalog
from ..dataset import InteractionDataset, popularity
from ..embedding.behavior import cooccurrence
from ..embedding.new_items import RECIPE_FILES
from ..embedding.store import ItemVectors, items_fingerprint
from ..errors import HfGrError
from ..options import check_idle
from ..processes import main_process_first
from ..provenance import learned_from
from ..settings import checked, mapping, types_of
from ..splits import SplitKind, check_split
from .base import Quantizer
from .coba import CoBa
from .collisions import SPARE_DIGITS, CollisionMethod, check_room, digit_vectors, resolve_collisions
from .metrics import collision_report, print_collisions
from .mmq import MMQ
from .mpq import MPQ
from .neural import NeuralQuantizer
from .opq import OPQ
from .r3_vae import R3VAE
from .rq_kmeans import RQKMeans
from .rq_vae import RQVAE


STAGE = "quantize"


@dataclass
class QuantizeConfig:
    """Settings of [`quantize`]."""

    dataset: str = field(metadata={"help": "Dataset folder to read."})
    embeddings: str = field(metadata={"help": "Folder with the item vectors of that dataset."})
    output_dir: str = field(metadata={"help": "Folder to write the quantizer and the SID catalog to."})
    method: str = field(
        default="rq_kmeans", metadata={"help": "Quantizer: rq_kmeans, opq, rq_vae, coba, r3_vae, mpq, mmq."}
    )
    levels: int = field(default=3, metadata={"help": "Codes in a SID."})
    codebook_size: int = field(default=64, metadata={"help": "Codes to choose from on each level."})
    method_config: dict | str | None = field(
        default=None,
        metadata={
            "help": 'Further settings of the method\'s config, such as {"epochs": 200}; its docstring lists them.'
        },
    )
    collisions: CollisionMethod = field(
        default="greedy",
        metadata={
            "help": "Items on one SID: greedy moves them to free codes, the least loss first; sinkhorn assigns those "
            "below one prefix anew, together; digit adds a level that counts; keep leaves them."
        },
    )
    spare_digits: int = field(
        default=SPARE_DIGITS,
        metadata={"help": "Digits beyond the largest bucket's, trained with the others, for items that come later."},
    )
    window: int = field(
        default=5,
        metadata={"help": "For methods that use co-occurrence: events at most this far apart were used together."},
    )
    split: SplitKind = field(
        default="leave_one_out",
        metadata={"help": "Split whose training part gives popularity (the order on a shared SID) and co-occurrence."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of the quantizer."})
    force: bool = field(default=False, metadata={"help": "Write again even if the output is up to date."})

    def __post_init__(self) -> None:
        if isinstance(self.method_config, str):  # from the command line
            self.method_config = mapping("method_config", self.method_config)


METHODS: dict[str, type[Quantizer]] = {
    "coba": CoBa,
    "mmq": MMQ,
    "mpq": MPQ,
    "opq": OPQ,
    "r3_vae": R3VAE,
    "rq_kmeans": RQKMeans,
    "rq_vae": RQVAE,
}


def quantize(config: QuantizeConfig) -> Path:
    """Fits a quantizer, gives every item a SID, and writes both as one artifact.

    The folder holds `quantizer/` (a transformers model), `embedder/` (what says how the vectors were made, for items
    that come later), the files of [`SidCatalog.save`], `fit_log.json` of a method that is trained by gradients, and
    the manifest, which also keeps the collision report. The report counts test targets on shared SIDs; nothing is
    learned from them. Of several processes only the main one fits and writes; the others wait.

    Returns:
        The folder written (or found up to date).

    Raises:
        HfGrError: On an unknown method, vectors of other items, or fewer items than codes.
    """
    _check(config)
    with main_process_first() as main:
        if main:
            with resumable(config.output_dir, "fit") as states:
                _quantize(config, Path(config.output_dir), states)
    return Path(config.output_dir)


def _quantize(config: QuantizeConfig, output: Path, states: Path) -> None:
    read = {"dataset": config.dataset, "embeddings": config.embeddings}
    settings, inputs = _settings(config), {name: fingerprint(path) for name, path in read.items()}
    if not config.force and is_current(output, STAGE, settings, inputs):
        report(STAGE, read, output, current=True)
        return
    check_output(output, STAGE, read.values())
    dataset = InteractionDataset.load(config.dataset)
    split = dataset.split(config.split)
    learned = learned_from(config.split, split.train, dataset.item_ids, config.embeddings)
    item_vectors = _load_vectors(config.embeddings, dataset)
    check_room(config.collisions, dataset.num_items, [config.codebook_size] * config.levels)
    parts = item_vectors.parts(config.embeddings) if METHODS[config.method].uses_parts else None
    quantizer = new_quantizer(config, item_vectors.dim, parts).to(_device())
    graph = cooccurrence(split.train, dataset.num_items, config.window) if quantizer.uses_graph else None
    vectors = quantizer.align(item_vectors.vectors, graph)
    checkpoint = states / f"{settings_key(STAGE, settings, inputs)}.pt"
    quantizer.fit(vectors, item_ids=dataset.item_ids, seed=config.seed, checkpoint=checkpoint)
    codes, sizes = resolve_collisions(
        quantizer.encode(vectors, item_ids=dataset.item_ids),
        vectors,
        quantizer,
        config.collisions,
        config.spare_digits,
    )
    counts = popularity(split.train, dataset.num_items)
    code_vectors = [quantizer.code_vectors(level) for level in range(quantizer.num_levels)]
    code_vectors += [digit_vectors(size, code_vectors[-1].shape[1]) for size in sizes[quantizer.num_levels :]]
    catalog = SidCatalog.from_codes(
        codes, dataset.items, sizes, popularity=counts, code_vectors=code_vectors, collisions=config.collisions
    )
    found = collision_report(codes, list(sizes), targets=split.test.targets, popularity=counts)
    with writing(output, STAGE) as folder:
        quantizer.save_pretrained(folder / "quantizer")
        _copy_recipe(Path(config.embeddings), folder / "embedder")
        catalog.save(folder)
        learned.save(folder)
        if isinstance(quantizer, NeuralQuantizer):
            write_json(folder / "fit_log.json", quantizer.fit_log)
        write_manifest(folder, STAGE, settings, inputs, collisions=found)
    report(STAGE, read, output)
    print_collisions(found)


def _check(config: QuantizeConfig) -> None:
    check_idle(config, {"spare_digits": (config.collisions == "digit", "collisions: digit")})
    check_split(config.split)
    if config.method not in METHODS:
        raise HfGrError(f"method {config.method!r} is unknown; use one of {', '.join(METHODS)}.")
    if config.levels < 1 or config.codebook_size < 2:
        raise HfGrError(
            f"levels {config.levels} and codebook_size {config.codebook_size} make no SID; "
            "use at least 1 level of 2 codes."
        )


def new_quantizer(config: QuantizeConfig, dim: int, parts: Mapping[str, int] | None = None) -> Quantizer:
    """The quantizer that a config names, not fitted yet. Raises [`HfGrError`] on settings its method does not have.

    Args:
        config: Its method, sizes and `method_config` are read.
        dim: d, width of the vectors.
        parts: Names and widths of what a vector is made of, in order; for a method that `uses_parts`.
    """
    method = METHODS[config.method]
    measured: dict[str, Any] = {"dim": dim}
    if method.uses_parts:
        measured |= {"modalities": list(parts or {}), "widths": list((parts or {}).values())}
    given = config.method_config if isinstance(config.method_config, dict) else {}
    inherited = {item.name for item in fields(PreTrainedConfig)} | {*measured, "codebook_sizes"}
    types = {name: kind for name, kind in types_of(method.config_class).items() if name not in inherited}
    given = checked(given, types, f"method_config of {config.method}")
    sizes = [config.codebook_size] * config.levels
    return method(method.config_class(codebook_sizes=sizes, **measured, **given))


def _device() -> torch.device:
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def _load_vectors(folder: str, dataset: InteractionDataset) -> ItemVectors:
    item_vectors = ItemVectors.load(folder)
    recorded = item_vectors.info.get("items_fingerprint")  # vectors from elsewhere need not have it
    if len(item_vectors) != dataset.num_items or recorded not in (None, items_fingerprint(dataset.item_ids)):
        raise HfGrError(
            f"{folder} holds the vectors of {len(item_vectors)} items, but not of the {dataset.num_items} items of "
            f"{dataset.path}, in their order; run `hf-gr embed` on this dataset."
        )
    return item_vectors


def _copy_recipe(embeddings: Path, folder: Path) -> None:
    folder.mkdir()
    for name in RECIPE_FILES:
        if (embeddings / name).is_file():  # some are there only for vectors that need them
            shutil.copyfile(embeddings / name, folder / name)


def _settings(config: QuantizeConfig) -> dict[str, Any]:
    names = ["method", "levels", "codebook_size", "method_config", "collisions", "window", "split", "seed"]
    if config.collisions == "digit":
        names.append("spare_digits")
    return {name: vars(config)[name] for name in names}
