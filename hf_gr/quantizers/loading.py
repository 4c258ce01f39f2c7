"""A fitted quantizer, whatever its method."""

from pathlib import Path

from ..artifacts import read_json
from ..errors import HfGrError
from .base import Quantizer
from .stage import METHODS


def load_quantizer(folder: str | Path) -> Quantizer:
    """Loads a quantizer by the `model_type` of its config.

    Args:
        folder: `quantizer/` of a folder that `hf-gr quantize` wrote.

    Raises:
        HfGrError: If there is none, or it is of no method of [`~hf_gr.quantizers.stage.METHODS`].
    """
    folder = Path(folder)
    known = {method.config_class.model_type: method for method in METHODS.values()}
    name = read_json(folder / "config.json").get("model_type")
    if name not in known:
        raise HfGrError(f"{folder} holds a {name!r}, not a quantizer; quantizers are: {', '.join(known)}.")
    return known[name].from_pretrained(folder)
