"""The Python in the guides runs as it stands, block after block, on a tiny model in the place of the quickstart's."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tiny import tiny_lm, tiny_tokenizer

from hf_gr.catalog import SidCatalog
from hf_gr.hub import save_repo
from hf_gr.vocabulary import add_vocabulary


ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "docs").glob("*.md"))


@pytest.fixture
def quickstart(tmp_path, monkeypatch):
    """A folder with a model at `quickstart/grpo/model` that knows items "1" to "200"."""
    ids = [str(number) for number in range(1, 201)]
    kinds = [["Comedy"] if number % 2 else ["Drama"] for number in range(200)]
    items = pa.table({"item_id": ids, "title": [f"Film {i}" for i in ids], "categories": kinds})
    catalog = SidCatalog.from_codes(np.random.default_rng(0).integers(0, 8, (200, 3)), items, (8, 8, 8))
    tokenizer, model = tiny_tokenizer(), tiny_lm()
    vocabulary = add_vocabulary(tokenizer, model, catalog, max_history=10)
    save_repo(tmp_path / "quickstart" / "grpo" / "model", model, tokenizer, catalog, vocabulary)
    monkeypatch.chdir(tmp_path)


def blocks(file: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", file.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("file", [file for file in GUIDES if blocks(file)], ids=lambda file: file.name)
def test_the_python_of_a_guide_runs(file, quickstart, capsys):
    names: dict = {}
    for block in blocks(file):
        exec(compile(block, file.name, "exec"), names)
    assert capsys.readouterr().out


def test_links_of_guides_lead_somewhere():
    for file in [*GUIDES, ROOT / "README.md", ROOT / "benchmarks" / "RESULTS.md"]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", file.read_text()):
            assert (file.parent / target).exists(), f"{file.name} links to {target}"
