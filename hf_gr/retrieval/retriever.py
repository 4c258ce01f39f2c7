"""The retriever: a dense model with its items, and one call that ranks the whole catalogue."""

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
from ..models.bsarec import BSARecConfig, BSARecModel, log_probabilities
from ..offline import local_folder


ITEMS_FILE = "items.parquet"
MISSING = -1  # in lists, behind the last answer


class Retrieved(NamedTuple):
    """Answers to B histories.

    Attributes:
        items: int64 [B, K], catalogue rows, best first, distinct; −1 behind the last where filters leave fewer than K.
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
        """Ranks every item for every history.

        Args:
            histories: In rows of the catalogue; an empty one is a cold user.
            top_k: K.
            exclude: For every history rows of items that are no answer to it.
            only: Rows of the items that may be an answer; all of them if left out.
            batch_size: Histories at a time; their scores are float32 [batch_size, N].

        Raises:
            HfGrError: For an item outside the catalogue, or a `top_k` below 1.
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
        items = np.full((len(histories), top_k), MISSING, np.int64)
        scores = np.full((len(histories), top_k), -np.inf, np.float32)
        k = min(top_k, num_items)
        read = list(histories)
        for start in range(0, len(read), batch_size):
            batch = slice(start, start + batch_size)
            found = log_probabilities(self.model, read[batch])
            found.masked_fill_(banned.to(found.device), -torch.inf)
            for row, gone in zip(found, exclude[batch] if exclude is not None else (), strict=False):
                row[torch.as_tensor(gone, device=row.device)] = -torch.inf
            best, places = found.topk(k)
            items[batch, :k] = places.masked_fill(best.isneginf(), MISSING).cpu().numpy()
            scores[batch, :k] = best.cpu().numpy()
        return Retrieved(items, scores)


def is_retriever(folder: str | Path) -> bool:
    """Whether a model folder holds a dense retriever, by the `model_type` of its `config.json`; not if it has none."""
    file = Path(folder) / "config.json"
    return file.is_file() and read_json(file).get("model_type") == BSARecConfig.model_type


def target_places(model: BSARecModel, cases: Cases, batch_size: int) -> np.ndarray:
    """Rank of every case's target among all items, counted from 0, int64 [cases]; items on a level with it stand
    behind."""
    ranks = np.empty(len(cases), np.int64)
    order = np.argsort(cases.histories.lengths, kind="stable")  # alike long rows share a batch
    histories = list(cases.histories)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        scores = log_probabilities(model, [histories[case] for case in chosen])
        target = scores.gather(1, torch.from_numpy(cases.targets[chosen])[:, None].to(scores.device))
        ranks[chosen] = (scores > target).sum(1).cpu().numpy()
    return ranks
