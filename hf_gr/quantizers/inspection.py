"""`hf-gr inspect`: what a catalog's SIDs are worth, as numbers and in words."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from rich.console import Console
from rich.table import Table

from ..artifacts import MANIFEST, read_json
from ..catalog import CATALOG_FILES, SidCatalog
from ..dataset import InteractionDataset, popularity
from ..embedding.behavior import cooccurrence
from ..embedding.store import ItemVectors, items_fingerprint
from ..errors import HfGrError
from ..offline import local_folder
from ..splits import Split
from ..terminal import clean
from .base import Quantizer
from .clusters import Cluster, clusters_by_codebook, largest_clusters
from .loading import load_quantizer
from .measures import BY_LEVEL, OVERALL, Measure
from .metrics import codebook_report


FIT_LOG = "fit_log.json"
_QUANTIZER = "quantizer"
_FILES = (*CATALOG_FILES, f"{_QUANTIZER}/*", MANIFEST, FIT_LOG)  # what is wanted of a Hub repo
_ARROWS = {"higher": "↑", "lower": "↓", "": ""}
_WINDOW = 5  # of co-occurrence, where no manifest says otherwise


@dataclass(frozen=True)
class Inspection:
    """What [`inspect`] found.

    Attributes:
        name: Of the catalog, as it was given.
        catalog: [`codebook_report`] of its SIDs.
        quantizer: That of the quantizer's own codes, before collisions were resolved; `None` without a quantizer or
            without what it encodes.
        items_per_code: Of every level, how many items each code has.
        clusters: The largest ones, in words, by first codes.
        groups: By level, the group of a codebook among others (an expert's modality), `""` for a digit; empty where
            levels are one hierarchy.
        by_codebook: With groups, the largest clusters of every codebook by itself.
        settings: Of the stage that made the catalog, as far as its manifest tells.
        fit_log: Parts of the loss by epoch; empty for methods without.
        k: Neighbours that overlap was told of.
    """

    name: str
    catalog: dict[str, Any]
    quantizer: dict[str, Any] | None
    items_per_code: list[list[int]]
    clusters: list[Cluster]
    groups: list[str]
    by_codebook: list[list[Cluster]]
    settings: dict[str, Any]
    fit_log: list[dict[str, float]]
    k: int

    @property
    def level_names(self) -> list[str]:
        """By level, its number and, where there are groups, that of its codebook."""
        groups = self.groups or [""] * len(self.catalog["levels"])
        return [f"{number} {group}".rstrip() for number, group in enumerate(groups, 1)]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def is_inspection(file: Path) -> bool:
    """Whether a JSON file is one that `hf-gr inspect` wrote."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(found, dict) and found.keys() == {item.name for item in fields(Inspection)}


def inspect(
    catalog: str | Path,
    embeddings: str | Path | None = None,
    dataset: str | Path | None = None,
    *,
    k: int = 10,
    seed: int = 0,
) -> Inspection:
    """Looks a catalog over.

    Args:
        catalog: Folder that `hf-gr quantize` wrote, or any folder or Hub repo with a catalog in it.
        embeddings: Folder with the vectors of its items: for errors, cohesion, discrimination, nearest neighbours.
        dataset: Dataset folder: for co-occurrence and popularity (of its training part) and test targets. Counted in
            the catalog's items, of which it may know fewer.
        k: Neighbours of an item.
        seed: Of samples, where a catalog is too large to look at all of it.

    Raises:
        HfGrError: If there is no catalog, or one of the others is not of its items.
    """
    folder = local_folder(catalog, files=_FILES)
    sids = SidCatalog.load(folder)
    settings = read_json(folder / MANIFEST).get("settings", {}) if (folder / MANIFEST).is_file() else {}
    quantizer = _load_quantizer(folder, sids) if (folder / _QUANTIZER).is_dir() else None
    vectors = None if embeddings is None else _load_vectors(embeddings, sids)
    if vectors is not None and quantizer is not None and vectors.shape[1] != quantizer.config.dim:
        raise HfGrError(
            f"{embeddings} holds vectors of width {vectors.shape[1]}, but the quantizer of {catalog} takes "
            f"{quantizer.config.dim}; give the embeddings that the catalog was made from."
        )
    evidence = _evidence(dataset, sids, settings)
    graph = evidence["graph"]
    own_codes = _own_codes(quantizer, vectors, graph)

    def judged(codes: np.ndarray, sizes: list[int]) -> dict[str, Any]:
        return codebook_report(codes, sizes, vectors=vectors, quantizer=quantizer, k=k, seed=seed, **evidence)

    sizes = list(sids.codebook_sizes)
    groups = [] if quantizer is None else quantizer.groups
    return Inspection(
        name=str(catalog),
        catalog=judged(sids.codes, sizes),
        quantizer=None if own_codes is None else judged(own_codes, sizes[: own_codes.shape[1]]),
        items_per_code=[
            np.bincount(sids.codes[:, level], minlength=size).tolist() for level, size in enumerate(sizes)
        ],
        clusters=[] if groups else largest_clusters(sids, vectors, seed=seed),
        groups=[*groups, *[""] * (len(sizes) - len(groups))] if groups else [],
        by_codebook=clusters_by_codebook(sids, len(groups), vectors, seed=seed) if groups else [],
        settings=settings,
        fit_log=read_json(folder / FIT_LOG) if (folder / FIT_LOG).is_file() else [],
        k=k,
    )


def _load_quantizer(folder: Path, catalog: SidCatalog) -> Quantizer:
    quantizer = load_quantizer(folder / _QUANTIZER)
    sizes = tuple(quantizer.config.codebook_sizes)
    if catalog.codebook_sizes[: len(sizes)] != sizes:
        raise HfGrError(
            f"{folder}: the quantizer has codebooks of {list(sizes)} codes, the catalog of "
            f"{list(catalog.codebook_sizes)}; they do not belong together: write both again with `hf-gr quantize`."
        )
    return quantizer


def _load_vectors(folder: str | Path, catalog: SidCatalog) -> np.ndarray:
    found = ItemVectors.load(folder)
    recorded = found.info.get("items_fingerprint")  # vectors from elsewhere need not have it
    if len(found) != len(catalog) or recorded not in (None, items_fingerprint(catalog.item_ids)):
        raise HfGrError(
            f"{folder} holds the vectors of {len(found)} items, but not of the {len(catalog)} items of the catalog, "
            "in their order; give the embeddings that it was made from."
        )
    return found.vectors


def _evidence(dataset: str | Path | None, catalog: SidCatalog, settings: dict[str, Any]) -> dict[str, Any]:
    """How the items were used: arguments of [`codebook_report`]."""
    if dataset is None:
        counted = catalog.popularity if catalog.popularity.any() else None  # all zero: nobody counted
        return {"graph": None, "targets": None, "popularity": counted}
    events = InteractionDataset.load(dataset).aligned(catalog.item_ids)
    split: Split = events.split(settings.get("split", "leave_one_out"))
    graph: sp.csr_array = cooccurrence(split.train, len(catalog), settings.get("window", _WINDOW))
    return {"graph": graph, "targets": split.test.targets, "popularity": popularity(split.train, len(catalog))}


def _own_codes(
    quantizer: Quantizer | None, vectors: np.ndarray | None, graph: sp.csr_array | None
) -> np.ndarray | None:
    if quantizer is None or vectors is None or (quantizer.uses_graph and graph is None):
        return None
    return quantizer.encode(quantizer.align(vectors, graph))


def print_inspection(found: Inspection, *, console: Console | None = None) -> None:
    """Prints the headline and two tables: overall, and by level or number of first codes."""
    console = console or Console()
    for line in headline(found):
        console.print(clean(line), highlight=False, markup=False, soft_wrap=True)
    reports = [found.catalog] if found.quantizer is None else [found.catalog, found.quantizer]
    overall = Table("", "catalog", *["before resolving"][: len(reports) - 1], title="overall")
    for measure in OVERALL:
        values = [measure.value(report) for report in reports]
        if values[0] is not None:
            overall.add_row(_titled(measure), *(measure.text(value) for value in values))
    console.print(overall)
    table = Table("", *found.level_names, title="by level, or first codes")
    for measure in BY_LEVEL:
        cells = level_cells(measure, found)
        if cells:
            table.add_row(_titled(measure), *(f"{now}\n({before})" if before else now for now, before in cells))
    console.print(table)
    if found.groups:
        pairs = Table("codebooks of", "pairs", "redundancy", "by chance", "adjusted", title="redundancy by group")
        for row in group_rows(found):
            pairs.add_row(*row)
        console.print(pairs)
    if found.quantizer is not None:
        console.print("(in brackets: before collisions were resolved)", highlight=False)


def _titled(measure: Measure) -> str:
    return f"{measure.name} {_ARROWS[measure.better]}".rstrip()


def group_rows(found: Inspection) -> list[list[str]]:
    """Redundancy within every group of codebooks and between two, as a table; none without groups."""
    rows = []
    for row in found.catalog.get("redundancy_by_group", []):
        one, other = row["groups"]
        values = [row[name] for name in ("information", "chance", "adjusted")]
        texts = ["–" if value is None else f"{value:.3f}" for value in values]
        rows.append([one if one == other else f"{one} and {other}", str(row["pairs"]), *texts])
    return rows


def level_cells(measure: Measure, found: Inspection) -> list[tuple[str, str]]:
    """By level, the catalog's value and, where it reads otherwise, that of the quantizer's own codes, else `""`.

    Empty where the inspection has no such measure.
    """
    now = measure.value(found.catalog)
    if now is None:
        return []
    before = [] if found.quantizer is None else measure.value(found.quantizer) or []
    levels = len(found.catalog["levels"])
    texts, earlier = (
        [measure.text(value) for value in [*values, *[None] * (levels - len(values))]] for values in (now, before)
    )
    return [(text, old if old not in (text, "–") else "") for text, old in zip(texts, earlier, strict=True)]


def headline(found: Inspection) -> list[str]:
    """What the numbers say, in sentences."""
    report, levels = found.catalog, found.catalog["levels"]
    sizes = " × ".join(str(level["size"]) for level in levels)
    lines = [
        f"{report['items']:,} items on {report['distinct_sids']:,} SIDs of {sizes} codes: "
        + (
            "every item has its own."
            if report["collision_rate"] == 0
            else f"{report['collision_rate']:.1%} share theirs, at most {report['largest_bucket']} the same one."
        )
    ]
    for name, level in zip(found.level_names, levels, strict=True):
        if level["use"] < 0.95:
            lines.append(f"Level {name} uses only {level['used']} of its {level['size']} codes.")
        if level["perplexity"] < level["size"] / 4:
            lines.append(
                f"The load of level {name} is uneven: as varied as {level['perplexity']:.0f} of {level['size']} "
                f"codes, and the fullest has {level['skew']:.0f} times its share."
            )
    if found.quantizer is not None:
        before = found.quantizer
        if before["collision_rate"] and before["collision_rate"] != report["collision_rate"]:
            lines.append(f"The quantizer itself gives {before['collision_rate']:.1%} of the items a shared SID.")
            if "error" in report and report["error"] != before["error"]:
                lines.append(
                    f"Telling them apart takes the error from {before['error'][-1]:.3f} to {report['error'][-1]:.3f}."
                )
    for kind, who in (("nearest_overlap", "nearest neighbours"), ("cooccurrence_overlap", "partners in histories")):
        if kind in report:
            overlap, chance = report[kind]["overlap"][0], report[kind]["chance"][0]
            lines.append(f"{overlap:.0%} of an item's {found.k} {who} have its first code; by chance {chance:.1%}.")
    return lines
