"""Text of items and users on a terminal: shown as it is, never obeyed."""

import unicodedata
from typing import Any

from rich.text import Text


_BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # turn the order of the text around them


def clean(text: str, width: int | None = None) -> str:
    """The text without what steers a terminal: control characters, such as those of escape sequences, become �.

    Args:
        text: Such as a title.
        width: Longer texts are cut to so many characters, the last of them "…".
    """
    kinds = ("Cc", "Cs", "Zl", "Zp")
    safe = "".join("�" if unicodedata.category(sign) in kinds or sign in _BIDI else sign for sign in text)
    return safe if width is None or len(safe) <= width else safe[: width - 1] + "…"


def plain(value: Any, width: int | None = None) -> Text:
    """A cell or title of a table of rich, without markup: `[red]` stays these five characters."""
    return Text(clean(str(value), width))
