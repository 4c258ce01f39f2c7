"""The Python in the guides runs as it stands, block after block, on a tiny model in the place of the quickstart's."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from searching import RECURSIVE, recursive
from tiny import tiny_lm, tiny_tokenizer

from hf_gr.catalog import SidCatalog
from hf_gr.dataset import write_dataset
from hf_gr.hub import save_repo
from hf_gr.models import ThinkingConfig, ThinkingHeads
from hf_gr.vocabulary import add_vocabulary


ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "docs").glob("*.md"))


@pytest.fixture
def quickstart(tmp_path, monkeypatch):
    """A folder `quickstart` with flat, thinking, unordered and recursive models that know items "1" to "200", and a
    data set of them."""
    ids = [str(number) for number in range(1, 201)]
    kinds = [["Comedy"] if number % 2 else ["Drama"] for number in range(200)]
    items = pa.table({"item_id": ids, "title": [f"Film {i}" for i in ids], "categories": kinds})
    random = np.random.default_rng(0)
    codes, vectors = random.integers(0, 8, (200, 3)), tuple(random.normal(size=(3, 8, 5)).astype(np.float32))
    catalog = SidCatalog.from_codes(codes, items, (8, 8, 8), code_vectors=vectors)
    stations = {"grpo": "flat", "sft-s2gr": "stepwise", "sft-reg4rec": "unordered", "sft-intrr": RECURSIVE}
    for station, form in stations.items():
        tokenizer, model = tiny_tokenizer(), tiny_lm()
        vocabulary = add_vocabulary(tokenizer, model, catalog, max_history=10, form=form)
        if form == RECURSIVE:
            model, vocabulary = recursive(model, vocabulary, catalog)
        folder = tmp_path / "quickstart" / station / "model"
        save_repo(folder, model, tokenizer, catalog, vocabulary)
        if form == "stepwise":
            ThinkingHeads.start(ThinkingConfig(clusters=4), 32, catalog, seed=0).save(folder)
    events = {"user_id": ["1"] * 5, "item_id": ids[:5], "timestamp": [1, 2, 3, 4, 5]}
    write_dataset(tmp_path / "quickstart" / "dataset", pa.table(events), items, source="Made for tests.")
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
    for file in [*GUIDES, ROOT / "README.md", ROOT / "benchmarks" / "STUDIES.md"]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", file.read_text()):
            assert (file.parent / target).exists(), f"{file.name} links to {target}"
