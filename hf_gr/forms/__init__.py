"""Forms of semantic IDs: what a model writes for an item, and what it reads in a history. One file a form."""

from pathlib import Path

from ..errors import HfGrError
from .base import Form, Tokens, build_grammar
from .flat import Flat
from .recursive import Recursive
from .stepwise import Stepwise
from .unordered import Unordered
from .upfront import Upfront


FORMS: dict[str, Form] = {
    "flat": Flat(),
    "stepwise": Stepwise(),
    "upfront": Upfront(),
    "unordered": Unordered(),
    "recursive": Recursive(),
}


def form_named(name: str, where: str | Path = "form") -> Form:
    """Returns the form of a name, or raises [`HfGrError`] that says `where` the name stands."""
    if name not in FORMS:
        raise HfGrError(
            f"{where}: {name!r} is no form of semantic ID; there are {', '.join(FORMS)}, and what your code adds to "
            "hf_gr.forms.FORMS."
        )
    return FORMS[name]


__all__ = ["FORMS", "Form", "Tokens", "build_grammar", "form_named"]
