"""Titles are never terminal markup, wherever a table is printed."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from hf_gr.terminal import clean, plain


HOSTILE = [
    "Adapter [/usb]",
    "usb cable [white] 2m",
    "[link=https://example.org]Hammer[/link]",
    "[bold]",
    "\\[x]",
]


@pytest.mark.parametrize("title", HOSTILE)
def test_markup_stays_text(title):
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system="truecolor")
    table = Table("title")
    table.add_row(plain(title))
    console.print(table)
    printed = console.file.getvalue()
    assert title in printed and "\x1b]8" not in printed


@given(st.text())
def test_nothing_steers_the_terminal(text):
    safe = clean(text)
    assert len(safe) == len(text)
    assert not any(ord(sign) < 32 or 0x7F <= ord(sign) < 0xA0 or "\u202a" <= sign <= "\u202e" for sign in safe)
    assert all(new in (old, "�") for old, new in zip(text, safe, strict=True))
    assert clean(safe) == safe


def test_escape_sequences_and_long_texts():
    assert clean("\x1b]8;;https://example.org\x07Hammer\x1b[31m\n") == "�]8;;https://example.org�Hammer�[31m�"
    assert clean("👩‍👧 café ばら") == "👩‍👧 café ばら"
    assert clean("x" * 900, width=80) == "x" * 79 + "…" and clean("x" * 80, width=80) == "x" * 80
