"""Which LMs take the tree path (shared prompt, ancestor mask) and which take `generate`."""

from transformers import PreTrainedModel

from ..models import TREE_MODEL_TYPES, recursion_of


TREE_ATTENTION = ("sdpa", "eager")


def tree_support(model: PreTrainedModel, longest_row: int, *, training: bool = False) -> tuple[bool, str]:
    """Whether branches and tree beams may be used with this model, and why (not).

    They need full attention that takes an additive 4-D mask. A mask of our own silently replaces a sliding window, so
    a window shorter than the longest row excludes a model, and so do linear attention and implementations that take no
    such mask. A model whose codes come by recursion feeds no branches, and so needs nothing of that.

    Args:
        model: Any causal LM.
        longest_row: Tokens of the longest row that will be fed, prompt and answer together.
        training: Whether rows are fed at once, without a cache: then FlexAttention with its block mask will do too.
    """
    if recursion_of(model) is not None and not training:
        return True, "codes come by recursion, after the prompt alone"
    config = model.config.get_text_config().to_dict()
    if config["model_type"] not in TREE_MODEL_TYPES:
        return False, f"architecture {config['model_type']!r} is not among {', '.join(TREE_MODEL_TYPES)}"
    attention = model.config.get_text_config()._attn_implementation
    if attention not in TREE_ATTENTION and not (training and attention == "flex_attention"):
        return False, f"attention implementation {attention!r} takes no 4-D mask"
    window = config.get("sliding_window")
    slides = config.get("use_sliding_window", True) and window is not None
    if slides and window < longest_row:
        return False, f"its sliding window of {window} is shorter than a row of {longest_row} tokens"
    return True, f"{config['model_type']} with full attention under {attention}"
