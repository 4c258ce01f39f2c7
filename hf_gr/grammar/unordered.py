from .base import SidGrammar
class UnorderedGrammar(SidGrammar):
    """Stub while it is written."""
