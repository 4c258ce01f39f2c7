"""What other libraries raise becomes one line, also where it has none or many."""

import re
from pathlib import Path

import pytest

import data_prep
import hf_gr
from hf_gr.errors import HfGrError, first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyError(), "KeyError"),
        (AssertionError(" \n "), "AssertionError"),
        (ValueError("\n  one\ntwo"), "one"),
        (HfGrError("what, where, remedy"), "what, where, remedy"),
    ],
)
def test_one_line_of_any_error(error, line):
    assert first_line(error) == line


def test_no_message_takes_a_first_line_by_itself():
    """An exception without a text has no line 0."""
    files = [file for package in (hf_gr, data_prep) for file in Path(package.__file__).parent.rglob("*.py")]
    assert len(files) > 100
    by_hand = re.compile(r"str\(error\)[^\n]*splitlines\(\)\[0\]")
    assert not [file.name for file in files if by_hand.search(file.read_text())]


def test_an_encoder_that_fails_without_a_text_is_refused_in_a_line(monkeypatch):
    from hf_gr.embedding.text import SentenceEncoder

    def fail(*_args, **_kwargs):
        raise OSError

    monkeypatch.setattr("sentence_transformers.SentenceTransformer", fail)
    with pytest.raises(HfGrError, match=r"cannot load the text encoder '\.' \(OSError\); name a model that exists"):
        SentenceEncoder(".")
