"""One call for every causal LM: the tree where the architecture allows it, `generate` where it does not."""

import logging

from transformers import PreTrainedModel

from ..grammar import ItemFilter, SidGrammar
from ..vocabulary import SidVocabulary
from .beam import Beams, Method, tree_search
from .generate import generate_search
from .support import tree_support


logger = logging.getLogger(__name__)


def search(
    model: PreTrainedModel,
    prompts: list[list[int]],
    grammar: SidGrammar,
    vocabulary: SidVocabulary,
    *,
    num_beams: int,
    method: Method = "beam",
    temperature: float = 1.0,
    item_filter: ItemFilter | None = None,
) -> Beams:
    """The SIDs that best continue each prompt (or draws from the policy), by whichever path suits the model.

    Args and returns: as [`tree_search`]; scores are the constrained policy's on the tree, and with `method="beam"` on
    the other path `generate`'s (over the whole vocabulary, then masked).
    """
    supported, reason = tree_support(model, max(map(len, prompts)) + grammar.num_levels)
    logger.debug("%s: %s", "tree search" if supported else "generate, slower", reason)
    path = tree_search if supported else generate_search
    return path(
        model,
        prompts,
        grammar,
        vocabulary,
        num_beams=num_beams,
        method=method,
        temperature=temperature,
        item_filter=item_filter,
    )
