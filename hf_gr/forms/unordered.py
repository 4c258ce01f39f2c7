"""`{s_1, …, s_L}`: one code of every level, in any order (REG4Rec)."""

from ..catalog import SidCatalog
from ..grammar import SidGrammar, UnorderedGrammar
from .base import Form, Tokens, build_grammar


class Unordered(Form):
    """A set of codes, whose order the model chooses. `answers` has them in the order of the levels; trainings and
    explanations write them anew in another."""

    sets = True
    trunk_predicts = True

    def grammar(self, tokens: Tokens, catalog: SidCatalog) -> SidGrammar:
        return build_grammar(UnorderedGrammar, tokens, catalog)
