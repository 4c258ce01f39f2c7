"""The similarity of what a model has read to every item's own vector (see `models/dense.py`)."""

import torch
import torch.nn.functional as F

from ..errors import HfGrError
from ..models import IntRRForCausalLM, ItemVectors
from ..scoring import DenseScores, Requests


class VectorScorer:
    """The dense output of a model that was trained with one.

    Args:
        model: Whose `vectors` they are.
        kept: Keeps the vectors from one call to the next.
    """

    def __init__(self, model: IntRRForCausalLM, kept: ItemVectors):
        self.model, self.kept = model, kept

    @torch.no_grad()
    def read(self, requests: Requests) -> DenseScores:
        if requests.hidden is None:
            raise HfGrError("item vectors are compared with what the model has read, but it read nothing.")
        vectors = self.kept.of(self.model)
        return DenseScores(F.linear(requests.hidden.to(vectors.dtype), vectors), requests)
