"""`s_1 … s_L` by a small recursion, after histories of one position an item (IntRR)."""

import numpy as np

from ..errors import HfGrError
from .base import Form, Tokens


class Recursive(Form):
    """All codes come from the history's last hidden state, so that none is read back; items are read by their rows."""

    item_table = True
    full_loss = False
    tasks = ("next_item", "title_to_sid", "query_to_sid")  # whose answers are items, after nothing else

    def events(self, tokens: Tokens, items: np.ndarray, codes: np.ndarray) -> np.ndarray:
        if tokens.first_item_id is None:
            raise HfGrError("the model has no item table, which form: recursive reads items from; train a new model.")
        return items[:, None].astype(np.int64) + tokens.first_item_id

    def answers(self, tokens: Tokens, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return codes[:, :0], codes
