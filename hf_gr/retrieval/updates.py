"""Items come and go in a retriever's folder: `hf-gr add-items` and `hf-gr remove-items`, without training.

A new item gets a vector at once, of what is known of it, so that it can be an answer and stand in histories. Nobody
else's vector moves. A removed item keeps its row and may stand in histories, but is no answer.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..artifacts import CARD, MANIFEST, report, write_json
from ..errors import HfGrError
from ..model_card import retriever_recounted
from ..models import TowersModel
from ..models.item_features import ID, Sources, new_features
from ..tables import matched, with_rows
from ..updating import updating
from .index import INDEX_FILES
from .retriever import ITEMS_FILE, REMOVED_FILE, Retriever


_REWRITTEN = (ITEMS_FILE, REMOVED_FILE, "config.json", "model.safetensors", CARD, MANIFEST, *INDEX_FILES)


def add_to_retriever(source: Path, target: Path, items: pa.Table, sources: Sources, update: bool) -> Path:
    """Adds items to a retriever, or brings removed ones back; as [`~hf_gr.catalog_updates.add_items`].

    Args:
        source: Folder of the retriever.
        target: Folder to write; the same one, or another.
        items: Table of new items, checked.
        sources: Of their features.
        update: Whether items that are there already get the columns given now. Their vectors stay, as in a catalog
            their SIDs do: they are what training has made of them.

    Raises:
        HfGrError: On items that are there already without `update`, or new ones for a retriever of ids alone.
    """
    retriever = Retriever.from_pretrained(source, device="cpu")
    place = {item_id: row for row, item_id in enumerate(retriever.item_ids)}
    rows = np.array([place.get(item_id, -1) for item_id in items["item_id"].to_pylist()], np.int64)
    known, new = np.flatnonzero(rows >= 0), np.flatnonzero(rows < 0)
    there = known[retriever.live[rows[known]]]
    if len(there) and not update:
        raise HfGrError(
            f"{len(there)} of the items are in {source} already (first: {items['item_id'][int(there[0])].as_py()!r}); "
            "leave them out, or pass --update to change their titles and other columns."
        )
    retriever.live[rows[known]] = True
    table = with_rows(retriever.items, rows[known], items.take(known))
    if len(new):
        model, added = _reading_more(retriever, source), items.take(new)
        model.add_items(new_features(source, added, sources))
        table = pa.concat_tables([table, matched(added, table.schema)])
        if retriever.index is not None:
            retriever.index.add(model.catalog[-len(new) :].float().numpy())
    live = np.concatenate([retriever.live, np.ones(len(new), bool)])
    counts = {"new": len(new), "back": len(known) - len(there), "updated": len(there)}
    return _write("add-items", source, target, retriever, table, live, counts)


def remove_from_retriever(source: Path, target: Path, item_ids: Sequence[str]) -> Path:
    """Makes items of a retriever no answer any more; as [`~hf_gr.catalog_updates.remove_items`]."""
    retriever = Retriever.from_pretrained(source, device="cpu")
    place = {item_id: row for row, item_id in enumerate(retriever.item_ids)}
    unknown = next((item_id for item_id in item_ids if item_id not in place), None)
    if unknown is not None:
        raise HfGrError(f"item {unknown!r} is not among the {len(place)} of {source}; nothing was changed.")
    live = retriever.live.copy()
    live[[place[item_id] for item_id in item_ids]] = False
    if not live.any():
        raise HfGrError(f"{source}: no item would be left; keep at least one.")
    counts = {"removed": int(retriever.live.sum() - live.sum())}
    return _write("remove-items", source, target, retriever, retriever.items, live, counts)


def _reading_more(retriever: Retriever, source: Path) -> TowersModel:
    """Its model; raises [`HfGrError`] where that knows items by their ids alone."""
    model = retriever.model
    if not isinstance(model, TowersModel) or model.config.item_features == [ID]:
        raise HfGrError(
            f"{source} knows items by their ids alone, so it knows nothing of new ones; train it with more "
            "item_features (text, category, …)."
        )
    return model


def _write(
    stage: str,
    source: Path,
    target: Path,
    retriever: Retriever,
    items: pa.Table,
    live: np.ndarray,
    counts: dict[str, int],
) -> Path:
    removed = [item_id for item_id, alive in zip(items["item_id"].to_pylist(), live, strict=True) if not alive]
    with updating(stage, source, target, _REWRITTEN, "catalog_updates", counts) as folder:
        pq.write_table(items, folder / ITEMS_FILE)
        if counts.get("new"):
            for file in folder.glob("model*.safetensors*"):  # fewer or more files than before
                file.unlink()
            retriever.model.save_pretrained(folder)
            if retriever.index is not None:
                retriever.index.save(folder)
        write_json(folder / REMOVED_FILE, removed)
        if (folder / CARD).is_file():
            text = retriever_recounted((folder / CARD).read_text(encoding="utf-8"), items.num_rows)
            (folder / CARD).write_text(text, encoding="utf-8")
    done = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(f"[{stage}] {done}; {int(live.sum())} of {len(live)} items live", flush=True)
    report(stage, {}, target)
    return target
