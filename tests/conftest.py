"""Fixtures made of the small things in tests/tiny.py."""

import os


os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests reach nothing but a package index

from pathlib import Path

import pytest
from tiny import tiny_catalog, tiny_interactions, tiny_items, tiny_lm, tiny_tokenizer

from hf_gr.dataset import write_dataset
from hf_gr.vocabulary import add_vocabulary


@pytest.fixture
def dataset_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "dataset"
    write_dataset(folder, tiny_interactions(), tiny_items(), source="Made for tests.")
    return folder


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def catalog():
    return tiny_catalog()


@pytest.fixture
def tiny_model(tokenizer, catalog):
    """Model, tokenizer, catalog and vocabulary that belong together (untrained)."""
    model = tiny_lm()
    vocabulary = add_vocabulary(tokenizer, model, catalog, max_history=10)
    return model, tokenizer, catalog, vocabulary
