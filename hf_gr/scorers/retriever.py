"""A dense retriever of the same items, beside any model."""

import copy
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors import SafetensorError

from ..errors import HfGrError, first_line
from ..models import BSARecModel, grow_retriever
from ..models.bsarec import log_probabilities
from ..scoring import DenseScores, Requests


class RetrieverScorer:
    """A trained retriever, whose items stand in the order of the catalog.

    Args:
        model: Of the first `num_items` rows of the catalog; later ones have probability 0. It moves to where requests
            are.
    """

    def __init__(self, model: BSARecModel):
        self.model = model.eval()

    @property
    def num_items(self) -> int:
        return int(self.model.config.num_items)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads `config.json` and weights, as `hf-gr retrieve` writes them; raises [`HfGrError`] where it cannot."""
        try:
            model, told = BSARecModel.from_pretrained(folder, dtype="auto", output_loading_info=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise _broken(folder, first_line(error)) from None
        if told["missing_keys"]:
            raise _broken(folder, f"no weights {min(told['missing_keys'])}")
        return cls(model)

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)

    def with_items(self, codes: np.ndarray, new: np.ndarray) -> Self:
        """A new item gets the mean row of the items that share the longest prefix of its SID ([`grow_retriever`])."""
        sids, added = (torch.from_numpy(np.asarray(rows, np.int64)) for rows in (codes, new))
        model = copy.deepcopy(self.model)
        grow_retriever(model, sids.to(model.device), added.to(model.device))
        return type(self)(model)

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
