"""A dense retriever of the same items, beside any model."""

import torch

from ..errors import HfGrError
from ..models import BSARecModel
from ..models.bsarec import log_probabilities
from ..scoring import DenseScores, Requests


class RetrieverScorer:
    """A trained retriever, whose items stand in the order of the catalog.

    Args:
        model: Of the first `num_items` rows of the catalog; later ones have probability 0.
    """

    def __init__(self, model: BSARecModel):
        self.model = model.eval()

    @torch.no_grad()
    def read(self, requests: Requests) -> DenseScores:
        if requests.histories is None:
            raise HfGrError("a retriever reads histories, but none are given; give histories=… (a Recommender does).")
        log_probs = log_probabilities(self.model, requests.histories).to(requests.live.device)
        missing = requests.every.shape[1] - log_probs.shape[1]
        return DenseScores(torch.nn.functional.pad(log_probs, (0, missing), value=-torch.inf), requests)
