"""A dense retriever of the same items, beside any model."""

import copy
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import torch
from safetensors import SafetensorError
from transformers import AutoConfig

from ..errors import HfGrError, first_line
from ..models import RETRIEVERS, RetrieverModel, TowersModel, grow_retriever
from ..models.bsarec import log_probabilities
from ..models.item_features import ID, NOWHERE, RECIPE_PATTERNS, Sources, new_features
from ..scoring import DenseScores, Requests


class RetrieverScorer:
    """A trained retriever, whose items stand in the order of the catalog.

    Args:
        model: Of the first `num_items` rows of the catalog; later ones have probability 0. It moves to where requests
            are.
        folder: Of a retriever whose item tower reads features: what those of new items are made by is read from it.
    """

    def __init__(self, model: RetrieverModel, folder: Path | None = None):
        self.model, self.folder = model.eval(), folder
        found = [] if folder is None else [file for name in RECIPE_PATTERNS for file in folder.glob(name)]
        # in memory, as a scorer is saved over the folder that it was read from
        self.recipe = {str(file.relative_to(folder)): file.read_bytes() for file in found if folder is not None}

    @property
    def num_items(self) -> int:
        return int(self.model.config.num_items)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads `config.json` and weights, as `hf-gr retrieve` writes them; raises [`HfGrError`] where it cannot."""
        try:
            kind = AutoConfig.from_pretrained(folder).model_type
            if kind not in RETRIEVERS:
                raise _broken(folder, f"its model is of type {kind!r}")
            model, told = RETRIEVERS[kind].from_pretrained(folder, dtype="auto", output_loading_info=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise _broken(folder, first_line(error)) from None
        if told["missing_keys"]:
            raise _broken(folder, f"no weights {min(told['missing_keys'])}")
        return cls(model, folder)

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        for name, content in self.recipe.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)

    def with_items(
        self, codes: np.ndarray, new: np.ndarray, items: pa.Table | None = None, sources: Sources = NOWHERE
    ) -> Self:
        """A new item gets the vector that the item tower makes of it; from a tower of ids alone the mean vector of the
        items that share the longest prefix of its SID ([`grow_retriever`])."""
        model = copy.deepcopy(self.model)
        if isinstance(model, TowersModel) and model.config.item_features != [ID]:
            if items is None or self.folder is None:
                raise HfGrError("the retriever's item tower reads more of new items than SIDs; give their table.")
            model.add_items(new_features(self.folder, items, sources, new))
        else:
            sids, added = (torch.from_numpy(np.asarray(rows, np.int64)) for rows in (codes, new))
            grow_retriever(model, sids.to(model.device), added.to(model.device))
        return type(self)(model, self.folder)

    @torch.no_grad()
    def read(self, requests: Requests) -> DenseScores:
        if requests.histories is None:
            raise HfGrError("a retriever reads histories, but none are given; give histories=… (a Recommender does).")
        model = self.model.to(requests.live.device)
        log_probs = log_probabilities(model, requests.histories)
        missing = requests.every.shape[1] - log_probs.shape[1]
        return DenseScores(torch.nn.functional.pad(log_probs, (0, missing), value=-torch.inf), requests)


def _broken(folder: Path, reason: str) -> HfGrError:
    return HfGrError(
        f"{folder} does not hold a retriever ({reason}); copy the whole folder, or run hf-gr blend again."
    )
