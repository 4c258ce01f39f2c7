"""`think_1 s_1 … think_L s_L`: a thinking token before each code (S²GR)."""

import numpy as np

from ..branches import IGNORED
from ..catalog import SidCatalog
from ..grammar import SidGrammar, TrieGrammar
from .base import Form, Tokens, build_grammar


class Stepwise(Form):
    """A forced thinking token before each code of an answer; histories hold codes alone."""

    thinks = True
    trunk_predicts = True

    def grammar(self, tokens: Tokens, catalog: SidCatalog) -> SidGrammar:
        return build_grammar(TrieGrammar, tokens, catalog, think_ids=tokens.think_ids)

    def answers(self, tokens: Tokens, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        thoughts = np.broadcast_to(np.array(tokens.think_ids, np.int64), codes.shape)
        return _interleaved(thoughts, codes), _interleaved(np.full_like(codes, IGNORED), codes)


def _interleaved(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[n, 2 L] of two [n, L]: a column of the one, then of the other."""
    return np.stack([one, other], axis=2).reshape(len(one), 2 * one.shape[1])
