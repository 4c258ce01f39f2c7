"""The ranker: a click model with its items, which scores candidates for a history, and orders another model's list."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoModel

from ..artifacts import read_json, write_json
from ..catalog import SidCatalog
from ..dataset import check_items
from ..errors import HfGrError
from ..models.click import ClickConfig, ClickModel
from ..offline import local_folder
from .features import Features


RANKING_FILE = "ranking.json"
ITEMS_FILE = "items.parquet"


class Ranker:
    """Tells how likely a user is to click each of some candidates.

    ```python
    from hf_gr.ranking import Ranker

    ranker = Ranker.from_pretrained("shop/rank/model")
    ranker.score(["item 1", "item 2"], ["item 7", "item 8"])  # array([0.31, 0.04], dtype=float32)
    ```

    Args:
        model: Click model of N items.
        items: Table of its N items, with `item_id` and `title`.
        features: The columns that it reads.
        batch_size: Candidates that the model scores at a time.
    """

    def __init__(self, model: ClickModel, items: pa.Table, features: Features, batch_size: int = 4096):
        if model.config.num_items != items.num_rows:
            raise HfGrError(
                f"the model knows {model.config.num_items} items, but its table holds {items.num_rows}; put back the "
                f"{ITEMS_FILE} that it was saved with."
            )
        self.model, self.items, self.features, self.batch_size = model.eval(), items, features, batch_size
        self.item_ids: list[str] = items["item_id"].to_pylist()
        self._row_of = {item_id: row for row, item_id in enumerate(self.item_ids)}

    @classmethod
    def from_pretrained(cls, path: str | Path, *, device: torch.device | str | None = None) -> "Ranker":
        """Loads a folder of `hf-gr rank` or a Hub repo; onto a GPU where there is one unless `device` says otherwise.
        Raises [`HfGrError`] where it is no such model."""
        folder = local_folder(path)
        if not is_ranker(folder):
            raise HfGrError(f"{folder} is not a click model; give a folder that `hf-gr rank` has made.")
        model = AutoModel.from_pretrained(folder)
        default = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(model.to(device or default), *beside(folder))

    def save_pretrained(self, folder: str | Path, catalog: SidCatalog | None = None) -> None:
        """Writes the model, its items and columns, and the catalog that its semantic IDs are of, if it reads any."""
        folder = Path(folder)
        self.model.save_pretrained(folder)
        if catalog is None:
            pq.write_table(self.items, folder / ITEMS_FILE)
        else:
            catalog.save(folder)  # whose items.parquet it is
        write_json(folder / RANKING_FILE, self.features.as_json())

    def score(
        self,
        history: Sequence[str],
        candidates: Sequence[str],
        *,
        user: Mapping[str, Any] | None = None,
        request: Mapping[str, Any] | None = None,
    ) -> np.ndarray:
        """Scores candidates for one user.

        Args:
            history: Item ids, oldest first; ids that the model does not know are left out. Empty: a new user.
            candidates: Item ids, n of them.
            user: Name → value of the user's columns that the model reads; unknown where left out.
            request: Name → value of the request's columns, and `timestamp` (whole microseconds) where it reads the
                clock.

        Returns:
            Probabilities of a click, float32 [n], in the order of the candidates. Raises [`HfGrError`] on a candidate
            that is unknown, and on columns as [`Features.of_request`].
        """
        for name, ids in (("history", history), ("candidates", candidates)):
            if isinstance(ids, str) or not all(isinstance(item_id, str) for item_id in ids):
                raise HfGrError(f"{name} is {ids!r}; give a list of item ids, which are strings.")
        if unknown := [item_id for item_id in candidates if item_id not in self._row_of]:
            raise HfGrError(f"candidate {unknown[0]!r} is none of the {len(self.item_ids)} items of the model.")
        known = [self._row_of[item_id] for item_id in history if item_id in self._row_of]
        latest = torch.tensor(known[-self.model.config.max_history :], dtype=torch.int64)
        categories, numbers = map(torch.from_numpy, self.features.of_request(user or {}, request or {}))
        rows = torch.tensor([self._row_of[item_id] for item_id in candidates], dtype=torch.int64)
        shared = {"history": latest[None], "categories": categories, "numbers": numbers}
        batches = (
            {"candidates": part} | {name: tensor.expand(len(part), -1) for name, tensor in shared.items()}
            for part in rows.split(self.batch_size)
        )
        return click_probabilities(self.model, batches)

    def rank(self, history: Sequence[str], candidates: Sequence[str], **told: Any) -> list[dict[str, Any]]:
        """The candidates with scores, `{"item_id", "title", "score"}`, best first; arguments as in [`score`]."""
        titled = [{"item_id": item_id} for item_id in candidates]
        answers = self.rerank(history, titled, **told)
        titles = self.items["title"]
        for answer in answers:
            answer |= {"title": titles[self._row_of[answer["item_id"]]].as_py(), "score": answer.pop("click")}
        return answers

    def rerank(
        self, history: Sequence[str], answers: Sequence[Mapping[str, Any]], **told: Any
    ) -> list[dict[str, Any]]:
        """A second stage: puts the list of a generative model into the order of clicks.

        Args:
            history: As in [`score`], the one that the list was made for.
            answers: What `pipeline("generative-recommendation")` answers: dicts with `item_id`.
            told: `user` and `request`, as in [`score`].

        Returns:
            The same dicts with `click` beside what they hold, best first; equal ones keep the generator's order.
        """
        scores = self.score(history, [answer["item_id"] for answer in answers], **told)
        order = np.argsort(-scores, kind="stable").tolist()
        return [dict(answers[place]) | {"click": float(scores[place])} for place in order]


def is_ranker(folder: str | Path) -> bool:
    """Whether a model folder holds a click model, by the `model_type` of its `config.json`; not if it has none."""
    file = Path(folder) / "config.json"
    return file.is_file() and read_json(file).get("model_type") == ClickConfig.model_type


def beside(folder: Path) -> tuple[pa.Table, Features]:
    """What lies beside the weights of a click model: its items and columns. Raises [`HfGrError`] where it is gone."""
    for name in (ITEMS_FILE, RANKING_FILE):
        if not (folder / name).is_file():
            raise HfGrError(f"{folder / name} is missing; it travels with the model: copy the whole folder.")
    items = check_items(pq.read_table(folder / ITEMS_FILE), folder / ITEMS_FILE)
    return items, Features.of_json(read_json(folder / RANKING_FILE))


@torch.no_grad()
def click_probabilities(model: ClickModel, batches: Iterable[Mapping[str, torch.Tensor]]) -> np.ndarray:
    """Probabilities of clicks, float32 [rows of all batches]; the model is in evaluation mode.

    Raises [`HfGrError`] where one is not finite.
    """
    found = [np.empty(0, np.float32)]
    for batch in batches:
        given = {name: tensor.to(model.device) for name, tensor in batch.items() if name != "labels"}
        found.append(model(**given).logits.float().sigmoid().cpu().numpy())
    scores = np.concatenate(found)
    if not np.isfinite(scores).all():
        raise HfGrError("the click model's scores are not finite; its training has diverged: lower learning_rate.")
    return scores
