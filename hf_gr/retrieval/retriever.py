"""The retriever: a dense model with its items, and one call that ranks the whole catalog."""

import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoModel

from ..artifacts import read_json
from ..dataset import Cases, Histories, check_items
from ..errors import HfGrError
from ..evaluation.metrics import check_finite, target_ranks
from ..models import RETRIEVERS, RetrieverModel
from ..models.bsarec import log_probabilities, user_vectors
from ..offline import local_folder
from .index import INDEX_FILES, VectorIndex
from .search import MISSING, search


ITEMS_FILE = "items.parquet"
REMOVED_FILE = "removed.json"  # ids of items that are no answer any more; without the file there are none


class Retrieved(NamedTuple):
    """Answers to B histories.

    Attributes:
        items: int64 [B, K], catalog rows, best first, distinct; −1 behind the last where filters leave fewer than K.
        scores: float32 [B, K], log-probability among all items, or with an approximate index what the softmax is
            taken of, a number for each; −inf behind the last.
    """

    items: np.ndarray
    scores: np.ndarray


class Retriever:
    """Answers histories with items, by a score of every item.

    Args:
        model: Dense model of N items.
        items: Table of its N items, with `item_id` and `title`.
        removed: Ids of items that are no answer; histories may hold them.
        index: Of the model's vectors, by which items are found; left out: every product is taken.
    """

    def __init__(
        self,
        model: RetrieverModel,
        items: pa.Table,
        removed: Collection[str] = (),
        index: VectorIndex | None = None,
    ):
        if model.config.num_items != items.num_rows:
            raise HfGrError(
                f"the model knows {model.config.num_items} items, but its table holds {items.num_rows}; put back the "
                f"{ITEMS_FILE} that it was saved with."
            )
        if index is not None and len(index) != items.num_rows:
            raise HfGrError(f"the index holds {len(index)} items, but the model {items.num_rows}; copy all its files.")
        self.model, self.items, self.index = model.eval(), items, index
        self.item_ids: list[str] = items["item_id"].to_pylist()
        self.live = ~np.isin(np.array(self.item_ids, object), np.array([*removed], object))

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, dtype: torch.dtype | str = "auto", device: torch.device | str | None = None
    ) -> "Retriever":
        """Loads a folder of `hf-gr retrieve` or a Hub repo; onto a GPU where there is one unless `device` says
        otherwise. Raises [`HfGrError`] where it is no such model."""
        folder = local_folder(path)
        if not is_retriever(folder):
            raise HfGrError(f"{folder} is not a dense retriever; give a folder that `hf-gr retrieve` has made.")
        model = AutoModel.from_pretrained(folder, dtype=dtype)
        default = "cuda" if torch.cuda.is_available() else "cpu"
        file = folder / ITEMS_FILE
        if not file.is_file():
            raise HfGrError(f"{file} is missing; it travels with the model: copy the whole folder.")
        items, removed = check_items(pq.read_table(file), file), folder / REMOVED_FILE
        return cls(
            model.to(device or default),
            items,
            read_json(removed) if removed.is_file() else (),
            VectorIndex.load(folder) if (folder / INDEX_FILES[0]).is_file() else None,
        )

    def recommend(
        self,
        histories: Histories,
        *,
        top_k: int = 10,
        exclude: Sequence[np.ndarray] | None = None,
        only: np.ndarray | None = None,
        batch_size: int = 512,
    ) -> Retrieved:
        """Ranks every item for every history. Items of equal score stand in an order drawn at random, the same
        whenever the same history is asked for. With an index those that it finds are ranked; where filters leave
        fewer than K of them, the search widens, at last to every item.

        Args:
            histories: In rows of the catalog; an empty one is a cold user.
            top_k: K.
            exclude: For every history rows of items that are no answer to it.
            only: Rows of the items that may be an answer; all of them if left out.
            batch_size: Histories at a time; their scores are float32 [batch_size, N].

        Raises:
            HfGrError: For an item outside the catalog, a `top_k` below 1, or scores that are not finite.
        """
        if top_k < 1:
            raise HfGrError(f"top_k is {top_k}; it must be at least 1.")
        if exclude is not None and len(exclude) != len(histories):
            raise HfGrError(f"exclude has {len(exclude)} entries for {len(histories)} histories; give one for each.")
        num_items = len(self.item_ids)
        for rows in [histories.items, *(exclude or ()), *([] if only is None else [only])]:
            if rows.size and not (rows.min() >= 0 and rows.max() < num_items):
                raise HfGrError(f"an item lies outside 0 to {num_items - 1}; count in rows of the model's items.")
        banned = ~self.live
        if only is not None:
            chosen = np.zeros(num_items, bool)
            chosen[only] = True
            banned = banned | ~chosen
        if self.index is None:
            return _retrieved(self.model, list(histories), top_k, batch_size, torch.from_numpy(banned), exclude)
        return self._found(self.index, list(histories), top_k, batch_size, banned, exclude)

    def _found(
        self,
        index: VectorIndex,
        histories: Sequence[np.ndarray],
        top_k: int,
        batch_size: int,
        banned: np.ndarray,
        exclude: Sequence[np.ndarray] | None,
    ) -> Retrieved:
        vectors, answers = self.model.catalog.float().cpu().numpy(), []
        for start in range(0, len(histories), batch_size):
            batch = slice(start, start + batch_size)
            users = user_vectors(self.model, histories[batch]).float().cpu().numpy()
            check_finite(users)
            answers.append(search(index, vectors, users, top_k, banned, exclude[batch] if exclude else None))
        empty = np.empty((0, top_k))
        items = np.concatenate([empty.astype(np.int64), *(items for items, _ in answers)])
        return Retrieved(items, np.concatenate([empty.astype(np.float32), *(scores for _, scores in answers)]))


def is_retriever(folder: str | Path) -> bool:
    """Whether a model folder holds a dense retriever, by the `model_type` of its `config.json`; not if it has none."""
    file = Path(folder) / "config.json"
    return file.is_file() and read_json(file).get("model_type") in RETRIEVERS


def target_places(model: RetrieverModel, cases: Cases, batch_size: int) -> np.ndarray:
    """Place of every case's target in the list of 50 that is answered, counted from 0, int64 [cases];
    [`~hf_gr.evaluation.metrics.MISS`] where it is not in it."""
    order = np.argsort(cases.ends, kind="stable")  # alike long rows share a batch
    histories = list(cases)
    lists = _retrieved(model, [histories[case] for case in order], 50, batch_size).items
    ranks = np.empty(len(cases), np.int64)
    ranks[order] = target_ranks(lists, cases.targets[order])
    return ranks


def _retrieved(
    model: RetrieverModel,
    histories: Sequence[np.ndarray],
    top_k: int,
    batch_size: int,
    banned: torch.Tensor | None = None,
    exclude: Sequence[np.ndarray] | None = None,
) -> Retrieved:
    """The best items of every history but for `banned` ones (bool [N]) and what `exclude` names for it."""
    items = np.full((len(histories), top_k), MISSING, np.int64)
    scores = np.full((len(histories), top_k), -np.inf, np.float32)
    k = min(top_k, model.config.num_items)
    for start in range(0, len(histories), batch_size):
        batch = slice(start, start + batch_size)
        found = log_probabilities(model, histories[batch])
        check_finite(torch.stack(found.aminmax(dim=1)).cpu().numpy())  # NaN is both; two numbers a row leave the GPU
        if banned is not None:
            found.masked_fill_(banned.to(found.device), -torch.inf)
        for row, gone in zip(found, exclude[batch] if exclude is not None else (), strict=False):
            row[torch.as_tensor(gone, device=row.device)] = -torch.inf
        best, places = _ranked(found, k, histories[batch])
        items[batch, :k] = places.masked_fill(best.isneginf(), MISSING).cpu().numpy()
        scores[batch, :k] = best.cpu().numpy()
    return Retrieved(items, scores)


def _ranked(scores: torch.Tensor, k: int, histories: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest scores of every row and where they stand, [B, k] each; equal ones in an order that is drawn from
    the row's history."""
    more, places = scores.topk(min(k + 1, scores.shape[1]))
    best, places = more[:, :k].clone(), places[:, :k].clone()
    equal = (more[:, 1:] == more[:, :-1]) & ~more[:, 1:].isneginf()
    for row in equal.any(dim=1).nonzero()[:, 0].tolist():
        drawn = np.random.default_rng(zlib.crc32(histories[row].tobytes())).permutation(scores.shape[1])
        order = torch.from_numpy(drawn).to(scores.device)
        places[row] = order[scores[row, order].sort(descending=True, stable=True).indices[:k]]
        best[row] = scores[row, places[row]]
    return best, places
