"""The model repo: what a trained model's folder holds, its card, and its way to the Hub.

A repo works by its name in two ways. After `import hf_gr`, `pipeline("generative-recommendation", model=repo)` needs
no remote code. Without that import, `pipeline(model=repo, trust_remote_code=True)` takes `gr_pipeline.py`, a thin file
that imports the installed package. Were the repo to declare the first task as its custom pipeline, transformers would
demand remote code for it even after the import, so it declares another one.
"""

import json
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from .artifacts import read_json, write_json
from .catalog import SidCatalog
from .errors import HfGrError, first_line
from .interests.table import INTERESTS_FILE
from .models import IntRRForCausalLM, grown
from .offline import local_folder
from .provenance import TRAINING_DATA_FILE
from .vocabulary import SidVocabulary


PIPELINE_TAG = "generative-recommendation"  # the task that hf_gr/pipeline.py registers
REMOTE_TASK = "generative-recommender-remote"
REMOTE_CODE_FILE = "gr_pipeline.py"
_REPO_PLACEHOLDER = "your-name/your-model"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")

# What belongs to a model repo. Checkpoints, optimizer states, logs and manifests of the run stay where they are.
_REPO_FILES = (
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
    TRAINING_DATA_FILE,
    "thinking.json",
    INTERESTS_FILE,
    "quantizer/*.json",
    "quantizer/*.safetensors",
    "embedder/*.json",
    "embedder/*.safetensors",
    REMOTE_CODE_FILE,
    "README.md",
)
# What a model carries on: folders that new items need; thinking heads, interests of items, and what taught it.
_CARRIED = ("quantizer", "embedder")
_CARRIED_FILES = ("thinking.json", "thinking.safetensors", INTERESTS_FILE, TRAINING_DATA_FILE)

_REMOTE_CODE = '''"""Lets `pipeline(model=..., trust_remote_code=True)` find the installed package hf_gr."""

try:
    from hf_gr.models import IntRRConfig, IntRRForCausalLM
    from hf_gr.pipeline import GenerativeRecommendationPipeline
except ImportError as error:
    raise ImportError("this model answers through the package hf_gr; install it: pip install hf-gr") from error


__all__ = ["GenerativeRecommendationPipeline", "IntRRConfig", "IntRRForCausalLM"]
'''

# Lines of the card that change when items come or go.
_COUNTS = (
    "# Generative recommender of {items:,} items",
    "| items | {items:,} ({live:,} live) |",
    "| semantic IDs | {sids:,} distinct, codebooks {codebooks} |",
)
_SIZE = "| parameters | {:,} |"
_CARD = """{counts[0]}

A generative recommender: a causal language model that writes the semantic ID of the next item, made with hf_gr. Its
answers are always items of the catalogue that travels with it.

| what | |
|---|---|
{counts[1]}
{counts[2]}
{size}
| made from | {made_from} |
| history | the {max_history} most recent events{context} |

## Use

```python
# pip install hf-gr
import hf_gr
from transformers import pipeline

recommend = pipeline("{task}", model="{repo}")
recommend([{example}], top_k=5)
```

Without `import hf_gr` (the package still has to be installed):
`pipeline(model="{repo}", trust_remote_code=True)`.

## Measured

{measured}
"""
_NOT_EVALUATED = "Not evaluated yet: `hf-gr evaluate` measures a model."
_OUTDATED = "Items have come or gone since this was measured: `hf-gr evaluate` measures again."
_MEASURED_HEADING = "\n## Measured\n"


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
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary.check(catalog, tokenizer, folder)
    model.generation_config = _neutral_generation_config(tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    catalog.save(folder)
    vocabulary.save(folder)
    _complete_config(folder, catalog)
    _card(model, catalog, vocabulary, base_model, metrics).save(folder / "README.md")


def update_card(folder: str | Path, metrics: dict) -> None:
    """Puts measured numbers (the content of `metrics.json`) on the card of a model folder; the rest of it stays."""
    file = Path(folder) / "README.md"
    if not file.is_file():
        raise HfGrError(f"{file} is missing; is {folder} a model folder made by `hf-gr sft`?")
    head, heading, _ = file.read_text().partition(_MEASURED_HEADING)
    if not heading:
        raise HfGrError(f"{file} has no heading '## Measured' to write the numbers under; add one at its end.")
    temporary = file.with_name(".README.md.tmp")
    temporary.write_text(f"{head}{heading}\n{_measured(metrics)}\n")
    temporary.replace(file)


def carry(source: str | Path, folder: str | Path) -> None:
    """Copies what new items need, `quantizer/` and `embedder/`, thinking heads and interests from a catalogue, model
    folder or repo that has them."""
    source = local_folder(source, files=[*(f"{name}/*" for name in _CARRIED), *_CARRIED_FILES])
    for name in _CARRIED:
        if (source / name).is_dir():
            shutil.copytree(source / name, Path(folder) / name, dirs_exist_ok=True)
    for name in _CARRIED_FILES:
        if (source / name).is_file():
            shutil.copy2(source / name, Path(folder) / name)


def update_catalog(folder: Path, catalog: SidCatalog) -> None:
    """Writes another state of its catalogue into a model folder.

    Weights and tokenizer are not touched, but for a model of the form `"recursive"`: new items get rows of its
    unique-ID table ([`~hf_gr.models.grown`]), and the weights are written anew.

    Args:
        folder: With everything else that belongs to a model. It is not changed in one step: give a copy.
        catalog: The old one with items added, removed or changed; codebooks and SIDs as they were.
    """
    vocabulary = replace(SidVocabulary.load(folder), catalog_fingerprint=catalog.fingerprint)
    catalog.save(folder)
    vocabulary.save(folder)
    config = read_json(folder / "config.json") | {"catalog_fingerprint": catalog.fingerprint}
    card = folder / "README.md"
    text = _recounted(card.read_text(), catalog) if card.is_file() else None
    if vocabulary.form == "recursive" and len(catalog) > config["num_items"]:
        parameters = _grow(folder, vocabulary.item_tokens(catalog, slice(config["num_items"], None)))
        config["num_items"] = len(catalog)
        text = None if text is None else _replaced(text, _SIZE, _SIZE.format(parameters))
    write_json(folder / "config.json", config)
    if text is not None:
        card.write_text(text)


def _grow(folder: Path, codes: np.ndarray) -> int:
    """Writes weights with rows of new items, of SID tokens int64 [n, L]; returns the number of parameters."""
    model = grown(IntRRForCausalLM.from_pretrained(folder, dtype="auto"), torch.from_numpy(codes))
    for file in folder.glob("model*.safetensors*"):
        file.unlink()  # not written over: it may be a link to another folder's, or a shard that is none any more
    model.save_pretrained(folder)
    return int(model.num_parameters())


def push_to_hub(folder: str | Path, repo_id: str, *, private: bool = False) -> str:
    """Uploads a model folder as one commit and returns the repo's address.

    Only files of the repo itself go up: no checkpoints, optimizer states, logs or manifests that lie beside them. The
    token is the one of `hf auth login` or of the environment (`HF_TOKEN`).

    Args:
        folder: A model folder as [`save_repo`] writes it.
        repo_id: `user/name`; made if it does not exist.
        private: Whether a new repo is private.

    Raises:
        HfGrError: If the folder is no model repo, or the Hub refuses or cannot be reached.
    """
    folder = Path(folder)
    for name in ("config.json", "catalog.json", "vocabulary.json", REMOTE_CODE_FILE, "README.md"):
        if not (folder / name).is_file():
            raise HfGrError(f"{folder / name} is missing; push a model folder made by `hf-gr sft` or `hf-gr grpo`.")
    card = (folder / "README.md").read_text().replace(_REPO_PLACEHOLDER, repo_id)
    operations = [
        CommitOperationAdd(name, card.encode() if name == "README.md" else str(folder / name))
        for name in (file.relative_to(folder).as_posix() for file in repo_files(folder))
    ]
    api = HfApi()
    try:
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*data file.*")  # items.parquet is part of the model
            api.create_commit(repo_id, operations, commit_message="Upload model, catalogue and card")
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled) as error:
        reason = first_line(error)
        raise HfGrError(
            f"cannot push to {repo_id} ({reason}); check the name, the network and `hf auth login`."
        ) from None
    return str(address)


def repo_files(folder: Path) -> list[Path]:
    """The files of a model folder that belong to its repo."""
    return sorted({file for pattern in _REPO_FILES for file in folder.glob(pattern) if file.is_file()})


def _neutral_generation_config(tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return GenerationConfig(do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=pad)


def _complete_config(folder: Path, catalog: SidCatalog) -> None:
    """Writes the thin pipeline file, and into `config.json` its entry and the catalogue that the weights go with.

    A model that was itself loaded from a repo may hold both already, in that repo's words: they are replaced.
    """
    (folder / REMOTE_CODE_FILE).write_text(_REMOTE_CODE)
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


def _card(
    model: PreTrainedModel,
    catalog: SidCatalog,
    vocabulary: SidVocabulary,
    base_model: str | None,
    metrics: dict | None,
) -> ModelCard:
    """The licence is left to whoever publishes the model: it follows from the base model and the data."""
    base = base_model.removeprefix("wheel:") if base_model else "a fresh model"
    on_hub = base_model is not None and bool(_HUB_ID.fullmatch(base_model)) and not Path(base_model).exists()
    data = ModelCardData(
        license="unknown",
        library_name="hf_gr",
        pipeline_tag=PIPELINE_TAG,
        tags=["hf_gr", "recommendation", "generative-recommendation", "semantic-ids"],
        base_model=base_model if on_hub else None,
    )
    body = _CARD.format(
        counts=_counts(catalog),
        size=_SIZE.format(model.num_parameters()),
        made_from=base if on_hub else Path(base).name,  # never a path of the machine it was trained on
        max_history=vocabulary.max_history,
        context="" if vocabulary.context == "none" else f", each with its {vocabulary.context}",
        task=PIPELINE_TAG,
        repo=_REPO_PLACEHOLDER,
        example=", ".join(json.dumps(item_id) for item_id in catalog.item_ids[:2]),
        measured=_NOT_EVALUATED if metrics is None else _measured(metrics),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}")


def _counts(catalog: SidCatalog) -> list[str]:
    counts = {
        "items": len(catalog),
        "live": int(catalog.live.sum()),
        "sids": len(np.unique(catalog.codes[catalog.live], axis=0)),
        "codebooks": " × ".join(map(str, catalog.codebook_sizes)),
    }
    return [line.format(**counts) for line in _COUNTS]


def _recounted(card: str, catalog: SidCatalog) -> str:
    for template, line in zip(_COUNTS, _counts(catalog), strict=True):
        card = _replaced(card, template, line)
    head, heading, measured = card.partition(_MEASURED_HEADING)
    if heading and _NOT_EVALUATED not in measured and _OUTDATED not in measured:
        card = f"{head}{heading}{measured.rstrip()}\n\n{_OUTDATED}\n"
    return card


def _replaced(card: str, template: str, line: str) -> str:
    """A card with another line in the place of those that begin as the template does."""
    start = template.partition("{")[0]
    return re.sub(rf"^{re.escape(start)}.*$", line, card, flags=re.MULTILINE)


def _measured(metrics: Mapping[str, Any]) -> str:
    """The table of HR and NDCG, the model beside the baselines, and how it was measured."""
    settings, provenance, systems = metrics["settings"], metrics["provenance"], metrics["systems"]
    names = [name for name in systems["model"]["item"] if name.startswith(("HR@", "NDCG@"))]
    lines = [f"| metric | {' | '.join(systems)} |", f"|---|{'---|' * len(systems)}"]
    for name in names:
        cells = [_interval(system["item"][name]) for system in systems.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    seen = "left out" if settings["exclude_seen"] else "not left out"
    made = ", ".join(f"{key} {value}" for key, value in provenance.items() if key not in ("date", "hardware"))
    sample = " (a sample)" if metrics["sampled"] else ""
    return "\n".join(
        [
            *lines,
            "",
            f"Item-level, {metrics['cases']:,} cases of {metrics['users']:,} users{sample}, 95 % bootstrap intervals.",
            f"Split: {settings['split']}, {settings['part']} part; ranked against the whole catalogue, items of the "
            f"history {seen}; {settings['num_beams']} beams; seed {settings['seed']}.",
            "",
            f"Measured {provenance['date']} on {provenance['hardware']}; {made}.",
        ]
    )


def _interval(measured: Mapping[str, float]) -> str:
    return f"{measured['value']:.4f} [{measured['low']:.4f}, {measured['high']:.4f}]"
