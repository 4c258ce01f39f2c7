"""The model repo: what a trained model's folder holds, its card, and its way to the Hub.

A repo works by its name in two ways. After `import hf_gr`, `pipeline("generative-recommendation", model=repo)` needs
no remote code. Without that import, `pipeline(model=repo, trust_remote_code=True)` takes `gr_pipeline.py`, a thin file
that imports the installed package. Were the repo to declare the first task as its custom pipeline, transformers would
demand remote code for it even after the import, so it declares another one.
"""

import glob
import shutil
import tempfile
import warnings
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from .artifacts import CARD, read_json, replacing, write_json
from .cards import merged_card
from .catalog import SidCatalog
from .errors import HfGrError, first_line
from .interests.table import INTERESTS_FILE
from .model_card import PIPELINE_TAG, REPO_PLACEHOLDER, model_card, ranked_by, recounted, resized, update_card
from .models import RETRIEVERS, ClickConfig, IntRRForCausalLM, grow_items
from .models.item_features import NOWHERE, RECIPE_FILE, Sources
from .models.thinking import THINKING_FILES
from .offline import local_folder
from .provenance import TRAINING_DATA_FILE
from .scorers.saved import SAVED_FILES, copy_scorers, grow_scorers, read_mixture
from .vocabulary import VOCABULARY_FILE, SidVocabulary


__all__ = [
    "PIPELINE_TAG",
    "carry",
    "carry_scorers",
    "push_to_hub",
    "repo_files",
    "save_repo",
    "say_ranking",
    "update_card",
    "update_catalog",
]

REMOTE_TASK = "generative-recommender-remote"
REMOTE_CODE_FILE = "gr_pipeline.py"

# What belongs to a model repo. Checkpoints, optimizer states, logs and manifests of the run stay where they are.
REPO_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template.jinja",
    "catalog.json",
    "items.parquet",
    "vocabulary.json",
    "ranking.json",
    TRAINING_DATA_FILE,
    "thinking.json",
    INTERESTS_FILE,
    "quantizer/*.json",
    "quantizer/*.safetensors",
    "embedder/*.json",
    "embedder/*.safetensors",
    RECIPE_FILE,
    "removed.json",
    "index.faiss",
    "index.json",
    *SAVED_FILES,
    REMOTE_CODE_FILE,
    CARD,
)
READ_FILES = tuple(name for name in REPO_FILES if name != REMOTE_CODE_FILE)  # what we load a model from
# What a model carries on for new items.
_CARRIED = ("quantizer", "embedder")

_REMOTE_CODE = '''"""Lets `pipeline(model=..., trust_remote_code=True)` find the installed package hf_gr."""

from pathlib import Path


try:
    from hf_gr.models import IntRRConfig, IntRRForCausalLM
    from hf_gr.pipeline import GenerativeRecommendationPipeline as _Pipeline
except ImportError as error:
    raise ImportError("this model answers through the package hf_gr; install it: pip install hf-gr") from error


__all__ = ["GenerativeRecommendationPipeline", "IntRRConfig", "IntRRForCausalLM"]


class GenerativeRecommendationPipeline(_Pipeline):
    """Reads all of the commit that this file is of: transformers keeps it in a folder named after the commit."""

    commit = Path(__file__).parent.name
'''

_NEEDED = ("config.json", "catalog.json", VOCABULARY_FILE, REMOTE_CODE_FILE, CARD)
RETRIEVER_FILES = ("config.json", "items.parquet", CARD)
_NEEDED_BY: dict[str, tuple[str, ...]] = {  # models that are no generative ones, by their type
    **dict.fromkeys(RETRIEVERS, RETRIEVER_FILES),
    ClickConfig.model_type: ("config.json", "items.parquet", "ranking.json", CARD),
}


def save_repo(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    catalog: SidCatalog,
    vocabulary: SidVocabulary,
    *,
    base_model: str | None = None,
    metrics: dict | None = None,
) -> None:
    """Writes a complete model repo, ready for the Hub, into a folder.

    Args:
        folder: Where to; usually the staging folder of [`~hf_gr.artifacts.writing`].
        model: With the SID tokens. Its generation config is replaced by a neutral one: what a chat model was shipped
            with (top_k, top_p, a repetition penalty) would distort the scores of items.
        tokenizer: Of the model, with the same tokens.
        catalog: Items and their SIDs.
        vocabulary: Must belong to `catalog` and `tokenizer`; [`HfGrError`] if it does not.
        base_model: What the model was made from; a Hub id goes into the card's metadata.
        metrics: What `hf-gr evaluate` wrote to `metrics.json`; the card says so when there is none.

    Raises [`HfGrError`] on a model with adapters, which is no model by itself.
    """
    if isinstance(model, PeftModel):
        raise HfGrError(
            "the model has adapters, and a model repo holds whole weights; give model.merge_and_unload(), loaded in "
            "full precision."
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary.check(catalog, tokenizer, folder)
    model.generation_config = _neutral_generation_config(tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    catalog.save(folder)
    vocabulary.save(folder)
    _complete_config(folder, catalog)
    card, file = str(model_card(model, catalog, vocabulary, base_model, metrics)), folder / CARD
    if file.is_file():
        card = merged_card(card, file.read_text(encoding="utf-8"))
    file.write_text(card, encoding="utf-8")


def carry(source: str | Path, folder: str | Path, revision: str | None = None) -> None:
    """Copies what new items need, `quantizer/` and `embedder/`, and interests from a catalog, model folder or repo
    that has them; thinking heads too, unless the model in `folder` writes no thoughts."""
    files = ["config.json", *(f"{name}/*" for name in _CARRIED), *THINKING_FILES, INTERESTS_FILE, TRAINING_DATA_FILE]
    source, folder = local_folder(source, revision=revision, files=files), Path(folder)
    for name in _CARRIED:
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name, dirs_exist_ok=True)
    model = folder / VOCABULARY_FILE
    thinks = not model.is_file() or SidVocabulary.load(folder).sid_form.thinks
    for name in [*(THINKING_FILES if thinks else ()), INTERESTS_FILE, TRAINING_DATA_FILE]:
        if (source / name).is_file():
            shutil.copy2(source / name, folder / name)


def carry_scorers(source: str | Path, folder: str | Path, revision: str | None = None) -> None:
    """Copies the scorers that a model folder or repo carries beside its weights, and what each counts, into the folder
    of another model of the same catalog; its card says so."""
    folder = Path(folder)
    copy_scorers(local_folder(source, revision=revision, files=["config.json", *SAVED_FILES]), folder)
    say_ranking(folder)


def say_ranking(folder: Path) -> None:
    """Lets the card of a model folder say what the scorers beside its weights count, if it has any."""
    mixture = read_mixture(folder, SidCatalog.load(folder))
    if mixture is not None and (folder / CARD).is_file():
        text = ranked_by((folder / CARD).read_text(encoding="utf-8"), mixture)
        with replacing(folder / CARD) as half:
            half.write_text(text, encoding="utf-8")


def update_catalog(folder: Path, catalog: SidCatalog, sources: Sources = NOWHERE) -> None:
    """Writes another state of its catalog into a model folder.

    Weights and tokenizer are not touched, but for a model of the form `"recursive"`: new items get rows of its
    unique-ID table ([`~hf_gr.models.grow_items`]), and the weights are written anew. Scorers beside the weights learn
    of new items.

    Args:
        folder: With everything else that belongs to a model. It is not changed in one step: give a copy.
        catalog: The old one with items added, removed or changed; codebooks and SIDs as they were.
        sources: What scorers that read more of new items than their SIDs make it from.
    """
    vocabulary = replace(SidVocabulary.load(folder), catalog_fingerprint=catalog.fingerprint)
    grow_scorers(folder, SidCatalog.load(folder), catalog, sources)
    catalog.save(folder)
    vocabulary.save(folder)
    config = read_json(folder / "config.json") | {"catalog_fingerprint": catalog.fingerprint}
    card = folder / CARD
    text = recounted(card.read_text(encoding="utf-8"), catalog) if card.is_file() else None
    if vocabulary.sid_form.item_table and len(catalog) > config["num_items"]:
        parameters = _grow(folder, vocabulary.item_tokens(catalog, slice(config["num_items"], None)))
        config["num_items"] = len(catalog)
        text = None if text is None else resized(text, parameters)
    write_json(folder / "config.json", config)
    if text is not None:
        with replacing(card) as half:
            half.write_text(text, encoding="utf-8")


def _grow(folder: Path, codes: np.ndarray) -> int:
    """Writes weights with rows of new items, of SID tokens int64 [n, L]; returns the number of parameters."""
    model = grow_items(IntRRForCausalLM.from_pretrained(folder, dtype="auto"), torch.from_numpy(codes))
    for file in folder.glob("model*.safetensors*"):
        file.unlink()  # not written over: it may be a link to another folder's, or a shard that is none any more
    model.save_pretrained(folder)
    return int(model.num_parameters())


def push_to_hub(folder: str | Path, repo_id: str, *, private: bool = False) -> str:
    """Uploads a model folder as one commit and returns the repo's address.

    Only files of the repo itself go up: no checkpoints, optimizer states, logs or manifests that lie beside them.
    Files of that kind that an earlier push left in the repo, and this model does not have, go away in the same commit.
    Other files stay, and so do sections and the license that were written on the repo's own card. The token is the one
    of `hf auth login` or of the environment (`HF_TOKEN`).

    Args:
        folder: A model folder as [`save_repo`] or `hf-gr retrieve` writes it.
        repo_id: `user/name`; made if it does not exist.
        private: Whether a new repo is private.

    Raises:
        HfGrError: If the folder is no model repo, or the Hub refuses or cannot be reached.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    for name in _NEEDED_BY.get(str(config.get("model_type")), _NEEDED):
        if not (folder / name).is_file():
            raise HfGrError(
                f"{folder / name} is missing; push a model folder made by `hf-gr sft`, `hf-gr grpo`, "
                "`hf-gr retrieve` or `hf-gr rank`."
            )
    card = (folder / CARD).read_text(encoding="utf-8").replace(REPO_PLACEHOLDER, repo_id)
    api = HfApi()
    try:
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        there = api.list_repo_files(repo_id)
        with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
            if CARD in there:
                file = Path(api.hf_hub_download(repo_id, CARD, local_dir=f"{scratch}/there"))
                card = merged_card(card, file.read_text(encoding="utf-8"))
            staged = _linked(repo_files(folder), folder, Path(scratch) / "staged")
            (staged / CARD).unlink()
            (staged / CARD).write_text(card, encoding="utf-8")
            # Names, not the patterns: those of huggingface_hub match in every folder, and one that is not ours stays.
            outdated = [glob.escape(name) for name in there if _is_repo_file(name)]
            warnings.filterwarnings("ignore", message=".*data file.*")  # items.parquet is part of the model
            api.upload_folder(
                repo_id=repo_id,
                folder_path=staged,
                delete_patterns=outdated,
                commit_message="Upload model, catalog and card",
            )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        reason = first_line(error)
        raise HfGrError(
            f"cannot push to {repo_id} ({reason}); check the name, the network and `hf auth login`."
        ) from None
    return str(address)


def repo_files(folder: Path) -> list[Path]:
    """The files of a model folder that belong to its repo."""
    return sorted({file for pattern in REPO_FILES for file in folder.glob(pattern) if file.is_file()})


def _linked(files: list[Path], source: Path, folder: Path) -> Path:
    """A folder of links to files of another one, each under the name that it has there."""
    for file in files:
        link = folder / file.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file.resolve())
    return folder


def _is_repo_file(name: str) -> bool:
    """Whether a file of a repo is of the kind that belongs to a model; hand-written ones are not."""
    parts = name.split("/")
    return any(
        len(parts) == pattern.count("/") + 1 and all(map(fnmatchcase, parts, pattern.split("/")))
        for pattern in REPO_FILES
    )


def _neutral_generation_config(tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return GenerationConfig(do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=pad)


def _complete_config(folder: Path, catalog: SidCatalog) -> None:
    """Writes the thin pipeline file, and into `config.json` its entry and the catalog that the weights go with.

    A model that was itself loaded from a repo may hold both already, in that repo's words: they are replaced.
    """
    (folder / REMOTE_CODE_FILE).write_text(_REMOTE_CODE, encoding="utf-8")
    module, config = Path(REMOTE_CODE_FILE).stem, read_json(folder / "config.json")
    entry = {
        "impl": f"{module}.GenerativeRecommendationPipeline",
        "pt": ["AutoModelForCausalLM"],
        "type": "text",
    }
    added = {"custom_pipelines": {REMOTE_TASK: entry}, "catalog_fingerprint": catalog.fingerprint}
    if config["model_type"] == "intrr":  # an architecture that transformers does not have
        classes = {"AutoConfig": "IntRRConfig", "AutoModelForCausalLM": "IntRRForCausalLM"}
        added["auto_map"] = {auto: f"{module}.{name}" for auto, name in classes.items()}
    write_json(folder / "config.json", config | added)
