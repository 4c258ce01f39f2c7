"""`s_1 s_2 … s_L`: the codes, level by level."""

from .base import Form


class Flat(Form):
    """The codes alone, in histories and answers. The next item of a history is its answer: it takes no branch."""
