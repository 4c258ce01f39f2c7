"""The retriever: a dense model with its items, and one call that ranks the whole catalog."""

import zlib
from collections.abc import Sequence
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
from ..models.bsarec import BSARecConfig, BSARecModel, log_probabilities
from ..offline import local_folder


ITEMS_FILE = "items.parquet"
MISSING = -1  # in lists, behind the last answer


class Retrieved(NamedTuple):
    """Answers to B histories.

    Attributes:
        items: int64 [B, K], catalog rows, best first, distinct; −1 behind the last where filters leave fewer than K.
        scores: float32 [B, K], log-probability among all items; −inf behind the last.
    """

    items: np.ndarray
    scores: np.ndarray


class Retriever:
    """Answers histories with items, by a score of every item.

    Args:
        model: Dense model of N items.
        items: Table of its N items, with `item_id` and `title`.
    """

    def __init__(self, model: BSARecModel, items: pa.Table):
        if model.config.num_items != items.num_rows:
            raise HfGrError(
                f"the model knows {model.config.num_items} items, but its table holds {items.num_rows}; put back the "
                f"{ITEMS_FILE} that it was saved with."
            )
        self.model, self.items = model.eval(), items
        self.item_ids: list[str] = items["item_id"].to_pylist()

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
        return cls(model.to(device or default), check_items(pq.read_table(file), file))

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
        whenever the same history is asked for.

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
        banned = torch.zeros(num_items, dtype=torch.bool)
        if only is not None:
            banned[:] = True
            banned[torch.as_tensor(only)] = False
        return _retrieved(self.model, list(histories), top_k, batch_size, banned, exclude)


def is_retriever(folder: str | Path) -> bool:
    """Whether a model folder holds a dense retriever, by the `model_type` of its `config.json`; not if it has none."""
    file = Path(folder) / "config.json"
    return file.is_file() and read_json(file).get("model_type") == BSARecConfig.model_type


def target_places(model: BSARecModel, cases: Cases, batch_size: int) -> np.ndarray:
    """Place of every case's target in the list of 50 that is answered, counted from 0, int64 [cases];
    [`~hf_gr.evaluation.metrics.MISS`] where it is not in it."""
    order = np.argsort(cases.ends, kind="stable")  # alike long rows share a batch
    histories = list(cases)
    lists = _retrieved(model, [histories[case] for case in order], 50, batch_size).items
    ranks = np.empty(len(cases), np.int64)
    ranks[order] = target_ranks(lists, cases.targets[order])
    return ranks


def _retrieved(
    model: BSARecModel,
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
