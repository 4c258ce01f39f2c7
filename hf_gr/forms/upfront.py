"""`think_1 … think_L s_1 … s_L`: all thoughts before the codes; to compare stepwise ones with."""

from typing import Any

import numpy as np

from ..branches import IGNORED
from ..errors import HfGrError
from .base import Form, Tokens


class Upfront(Form):
    """The thinking tokens end the prompt, so that the codes are those of the flat form."""

    thinks = True
    trunk_predicts = True

    def ending(self, tokens: Tokens) -> tuple[int, ...]:
        return tuple(tokens.think_ids)

    def answers(self, tokens: Tokens, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        thoughts = np.broadcast_to(np.array(tokens.think_ids, np.int64), codes.shape)
        return np.hstack([thoughts, codes]), np.hstack([np.full_like(codes, IGNORED), codes])

    def check_model(self, name: str, config: Any) -> None:
        super().check_model(name, config)
        if config.heads is not None and config.heads.feedback == "hidden":
            raise HfGrError("thinking.feedback is 'hidden', which searches serve for form: stepwise alone; use that.")
