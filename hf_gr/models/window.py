"""How many positions a model reads."""

from transformers import PreTrainedModel

from ..errors import HfGrError


# in configs of transformers
_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions")


def window_of(model: PreTrainedModel) -> int | None:
    """Positions that a model was made for; `None` where its config names no limit (recurrent models, ALiBi)."""
    settings = model.config.get_text_config().to_dict()
    return next((settings[name] for name in _NAMES if settings.get(name)), None)


def check_window(model: PreTrainedModel, length: int, what: str, remedy: str) -> None:
    """Raises [`HfGrError`] if `what` takes more tokens than the model reads."""
    window = window_of(model)
    if window is not None and length > window:
        kind = model.config.get_text_config().model_type
        raise HfGrError(f"{what} takes {length} tokens, but this {kind} reads at most {window}; {remedy}.")
