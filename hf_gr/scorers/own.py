"""The scorers that a model itself carries beside its semantic IDs, and what each of them counts."""

from transformers import PreTrainedModel

from ..models import ItemVectors, inner_outputs, shares_of
from ..scoring import Scorer
from ..search_config import SEMANTIC_ID, Mixture
from .retriever import RetrieverScorer
from .vectors import VectorScorer


def own_scorers(model: PreTrainedModel, vectors: ItemVectors) -> dict[str, Scorer]:
    """By name; none of a plain LM."""
    dense, retriever = inner_outputs(model)
    scorers: dict[str, Scorer] = {}
    if dense is not None:
        scorers["vectors"] = VectorScorer(dense, vectors)
    if retriever is not None:
        scorers["retriever"] = RetrieverScorer(retriever)
    return scorers


def own_mixture(model: PreTrainedModel) -> Mixture | None:
    """The mixture that the model's config holds; `None` of one that ranks by semantic IDs alone."""
    semantic_id, vectors, retriever = shares_of(model)
    if semantic_id == 1:
        return None
    return Mixture({SEMANTIC_ID: semantic_id, "vectors": vectors, "retriever": retriever}, "shares")
