"""Items come and go: `hf-gr add-items` and `hf-gr remove-items`, on a catalog or on a trained model.

A new item gets a vector by the recipe of the old ones, and codes from the frozen quantizer among those whose tokens
are trained. Nobody else's SID moves, so the model needs no training to recommend it. A model that reads every item
through a row of its own (`form: recursive`) gets a row for it, which alone is fitted to its SID.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .artifacts import MANIFEST, claimed, report
from .catalog import CATALOG_FILES, SidCatalog
from .dataset import check_items
from .embedding.new_items import embed_new_items
from .errors import HfGrError, first_line
from .hub import update_catalog
from .models.item_features import NOWHERE, Sources
from .quantizers.base import Quantizer
from .quantizers.collisions import place
from .quantizers.loading import load_quantizer
from .retrieval.retriever import is_retriever
from .retrieval.updates import add_to_retriever, remove_from_retriever
from .updating import source_and_target, updating
from .vocabulary import VOCABULARY_FILE, SidVocabulary


_REWRITTEN = (*CATALOG_FILES, VOCABULARY_FILE, "config.json", "generation_config.json", "README.md", MANIFEST)


def add_items(
    folder: str | Path,
    items: pa.Table | str | Path,
    *,
    vectors_file: str | Path | None = None,
    images_root: str | Path | None = None,
    out: str | Path | None = None,
    update: bool = False,
    device: str | None = None,
) -> Path:
    """Adds items to a catalog or trained model, which can then recommend them without training.

    Items that had been removed come back with their old SID, and with the columns given now. New items start with
    popularity 0 and the catalog's columns; those they lack are null, others are dropped.

    Args:
        folder: Folder of `hf-gr quantize`, `sft`, `grpo` or `retrieve`, replaced in one step when all is done; or,
            with `out`, a Hub repo.
        items: Table or Parquet file with `item_id`, `title`, and what the item vectors are made of.
        vectors_file: Vectors of new items, where those of the catalog came from a file.
        images_root: Folder that the paths in the column `image` start from.
        out: Folder to write to instead of `folder`.
        update: Whether items that are there already get the columns given now (their SIDs stay).
        device: Device of the encoders; chosen if left out.

    Returns:
        The folder written.

    Raises:
        HfGrError: On items that are there already, a folder without quantizer or embedder, vectors that cannot be
            made, or a catalog whose trained SIDs are used up.
    """
    source, target = source_and_target(folder, out)
    table = _checked(items if isinstance(items, pa.Table) else _read(Path(items)))
    sources = Sources(images_root, vectors_file, device)
    with claimed(target):  # from reading to writing: of two commands at once none is lost
        if is_retriever(source):
            return add_to_retriever(source, target, table, sources, update)
        catalog = _load(source)
        changed, counts = _with_items(catalog, source, table, sources, update)
        return _write("add-items", source, target, changed, counts, sources)


def _with_items(
    catalog: SidCatalog,
    source: Path,
    table: pa.Table,
    sources: Sources,
    update: bool,
) -> tuple[SidCatalog, dict[str, int]]:
    """The catalog with items added, and how many of them are new, back and updated."""
    rows = np.array([catalog.row_of.get(item_id, -1) for item_id in table["item_id"].to_pylist()])
    known = np.flatnonzero(rows >= 0)
    there = known[catalog.live[rows[known]]]
    if len(there) and not update:
        raise HfGrError(
            f"{len(there)} of the items are in {source} already (first: {table['item_id'][int(there[0])].as_py()!r}); "
            "leave them out, or pass --update to change their titles and other columns."
        )
    changed, new = catalog, table.filter(pa.array(rows < 0))
    if len(known):
        changed = changed.updated(table.take(known))
    if new.num_rows:
        quantizer, recipe = _encoder(source)
        vectors = embed_new_items(recipe, new, sources.images_root, sources.vectors_file, sources.device)
        changed = changed.extended(new, new_codes(changed, vectors, quantizer))
    return changed, {"new": new.num_rows, "back": len(known) - len(there), "updated": len(there)}


def remove_items(folder: str | Path, item_ids: Sequence[str], *, out: str | Path | None = None) -> Path:
    """Makes items of a catalog or trained model no answer any more; [`add_items`] brings them back.

    Their SIDs stay theirs, and histories may go on naming them.

    Args:
        folder: As for [`add_items`].
        item_ids: To be removed; those that are removed already may be among them.
        out: Folder to write to instead of `folder`.

    Returns:
        The folder written.

    Raises:
        HfGrError: On ids that are not in the catalog, or if no item would be left.
    """
    source, target = source_and_target(folder, out)
    with claimed(target):
        if is_retriever(source):
            return remove_from_retriever(source, target, item_ids)
        catalog = _load(source)
        changed = catalog.removed(item_ids)
        if not changed.live.any():
            raise HfGrError(f"{source}: no item would be left; keep at least one.")
        counts = {"removed": int(catalog.live.sum() - changed.live.sum())}
        return _write("remove-items", source, target, changed, counts)


def new_codes(catalog: SidCatalog, vectors: np.ndarray, quantizer: Quantizer) -> np.ndarray:
    """SIDs of new items beside those of a catalog, which stay.

    Only codes that an item of the catalog carries are given, so that their tokens are trained. Collisions are
    resolved greedily, except in a `keep` catalog; a `digit` catalog gives the next free digit of the bucket, and
    where there is none, the next-best codes before it.

    Args:
        catalog: Of `quantizer`.
        vectors: float32 [n, d] of the new items.
        quantizer: The one that the catalog was made with.

    Returns:
        int32 [n, L].

    Raises:
        HfGrError: If the quantizer is not the catalog's, or the items do not fit on free SIDs of trained codes.
    """
    digits = catalog.num_levels - quantizer.num_levels
    sizes = catalog.codebook_sizes[: quantizer.num_levels]
    if list(sizes) != quantizer.config.codebook_sizes or digits != (catalog.collisions == "digit"):
        raise HfGrError(
            f"the quantizer has codebooks {quantizer.config.codebook_sizes}, but the catalog (collisions: "
            f"{catalog.collisions}) {list(catalog.codebook_sizes)}; use the quantizer that it was made with."
        )
    trained = [
        np.bincount(catalog.codes[:, level], minlength=size) > 0 for level, size in enumerate(catalog.codebook_sizes)
    ]
    codes = quantizer.encode(vectors, allowed=trained[: quantizer.num_levels])
    if catalog.collisions == "keep":
        return codes
    lowest = [np.full(len(codes), mask.argmax(), np.int32) for mask in trained[quantizer.num_levels :]]
    return place(np.column_stack([codes, *lowest]), vectors, quantizer, trained, catalog.codes)


def _load(source: Path) -> SidCatalog:
    catalog = SidCatalog.load(source)
    if (source / VOCABULARY_FILE).is_file():
        expected = SidVocabulary.load(source).catalog_fingerprint
        if catalog.fingerprint != expected:
            raise HfGrError(
                f"{source}: the catalog (fingerprint {catalog.fingerprint}) is not the one this model was trained "
                f"on ({expected}); bring the model's own files back."
            )
    return catalog


def _read(file: Path) -> pa.Table:
    if file.suffix in (".csv", ".tsv", ".json", ".jsonl", ".xlsx"):  # types of columns are not told there
        raise HfGrError(f"{file} is no Parquet file; write the items as one, as pandas' df.to_parquet does.")
    if not file.is_file():
        raise HfGrError(f"{file} is missing; give a Parquet file of items.")
    try:
        return pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        reason = first_line(error).replace(f" '{file}'", "")  # Arrow names the file too
        raise HfGrError(f"cannot read {file} ({reason}); give a Parquet file of items.") from None


def _checked(items: pa.Table) -> pa.Table:
    for name in ("item_id", "title"):
        if name not in items.column_names:
            raise HfGrError(
                f"the new items have no column {name!r} (they have: {', '.join(items.column_names)}); add it, or "
                "rename the one that holds it."
            )
    return check_items(items, "new items")


def _encoder(source: Path) -> tuple[Quantizer, Path]:
    for name in ("quantizer", "embedder"):
        if not (source / name).is_dir():
            raise HfGrError(
                f"{source / name} is missing, which new items need; copy it from the catalog folder, or run "
                "`hf-gr quantize` again and train on what it writes."
            )
    return load_quantizer(source / "quantizer"), source / "embedder"


def _write(
    stage: str, source: Path, target: Path, catalog: SidCatalog, counts: dict[str, int], sources: Sources = NOWHERE
) -> Path:
    with updating(stage, source, target, _REWRITTEN, "catalog_updates", counts) as folder:
        if (folder / VOCABULARY_FILE).is_file():
            update_catalog(folder, catalog, sources)
        else:
            catalog.save(folder)
    done = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(f"[{stage}] {done}; {int(catalog.live.sum())} of {len(catalog)} items live", flush=True)
    report(stage, {}, target)
    return target
