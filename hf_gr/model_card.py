"""The card of a model repo: what it says, and what of it is written anew when numbers or items change."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel

from .artifacts import CARD, replacing
from .cards import sections
from .catalog import SidCatalog
from .errors import HfGrError
from .vocabulary import SidVocabulary


PIPELINE_TAG = "generative-recommendation"  # the task that hf_gr/pipeline.py registers
REPO_PLACEHOLDER = "your-name/your-model"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")

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
_RETRIEVER_CARD = """# Dense retriever of {items:,} items

Ranks all items after a history of items, by one vector each; made with `hf-gr retrieve`. The items travel with it in
`items.parquet`.

## Use

```bash
hf-gr blend MODEL {repo} --out blended    # beside a generative model of the same items
```

```python
from hf_gr.retrieval import Retriever

retriever = Retriever.from_pretrained("{repo}")
```
"""
_NOT_EVALUATED = "Not evaluated yet: `hf-gr evaluate` measures a model."
_OUTDATED = "Items have come or gone since this was measured: `hf-gr evaluate` measures again."
_MEASURED_HEADING = "## Measured"
# What hf_gr itself writes below that heading; the rest of the section is the user's.
_MEASURED = re.compile(
    rf"(?:{re.escape(_NOT_EVALUATED)}|^\| metric \|.*?^Measured [^\n]*)(?:\n+{re.escape(_OUTDATED)})?",
    re.MULTILINE | re.DOTALL,
)


def update_card(folder: str | Path, metrics: dict) -> None:
    """Puts measured numbers (the content of `metrics.json`) on the card of a model folder, in the place of those that
    hf_gr put there before; the rest of it stays."""
    file = Path(folder) / CARD
    if not file.is_file():
        raise HfGrError(f"{file} is missing; is {folder} a model folder made by `hf-gr sft`?")
    card = _with_measured(file.read_text(encoding="utf-8"), lambda _: _measured(metrics))
    if card is None:
        raise HfGrError(f"{file} has no heading '## Measured' to write the numbers under; add one at its end.")
    with replacing(file) as half:
        half.write_text(card, encoding="utf-8")


def model_card(
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
        repo=REPO_PLACEHOLDER,
        example=", ".join(json.dumps(item_id) for item_id in catalog.item_ids[:2]),
        measured=_NOT_EVALUATED if metrics is None else _measured(metrics),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}")


def retriever_card(num_items: int) -> ModelCard:
    """The card of a dense retriever."""
    tags = ["hf_gr", "recommendation", "sequential-recommendation"]
    data = ModelCardData(license="unknown", library_name="hf_gr", tags=tags)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_RETRIEVER_CARD.format(items=num_items, repo=REPO_PLACEHOLDER)}")


def _counts(catalog: SidCatalog) -> list[str]:
    counts = {
        "items": len(catalog),
        "live": int(catalog.live.sum()),
        "sids": len(np.unique(catalog.codes[catalog.live], axis=0)),
        "codebooks": " × ".join(map(str, catalog.codebook_sizes)),
    }
    return [line.format(**counts) for line in _COUNTS]


def recounted(card: str, catalog: SidCatalog) -> str:
    """A card with the numbers of another state of the catalog, and a word below what was measured before."""
    for template, line in zip(_COUNTS, _counts(catalog), strict=True):
        card = _replaced(card, template, line)
    return _with_measured(card, _outdated) or card


def _outdated(measured: str) -> str:
    """What stands below the heading, with a word that it is of an earlier state of the catalog."""
    told = not measured or _NOT_EVALUATED in measured or _OUTDATED in measured
    return measured if told else f"{measured}\n\n{_OUTDATED}"


def _with_measured(card: str, change: Callable[[str], str]) -> str | None:
    """A card with what hf_gr wrote below "Measured" changed, the rest of that section and of the card as it was;
    `None` where it has no such heading."""
    parts = sections(card)
    place = next((place for place, (heading, _) in enumerate(parts) if heading == _MEASURED_HEADING), None)
    if place is None:
        return None
    text = parts[place][1]
    found = _MEASURED.search(text)
    start, end = found.span() if found else (len(text.splitlines(keepends=True)[0]),) * 2
    changed = change(text[start:end])
    if not found and changed:  # the user took ours away
        changed = f"\n{changed}\n"
    return "".join(
        [
            *(own for _, own in parts[:place]),
            text[:start],
            changed,
            text[end:],
            *(own for _, own in parts[place + 1 :]),
        ]
    )


def resized(card: str, parameters: int) -> str:
    """A card with another number of parameters."""
    return _replaced(card, _SIZE, _SIZE.format(parameters))


def _replaced(card: str, template: str, line: str) -> str:
    """A card with another line in the place of the one that begins as the template does."""
    start = template.partition("{")[0]
    return re.sub(rf"^{re.escape(start)}.*$", lambda _: line, card, count=1, flags=re.MULTILINE)  # the first is ours


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
            f"Item-level, {metrics['cases']:,} cases of {metrics['users']:,} users{sample}, 95 % bootstrap intervals "
            "over users, without the noise of training.",
            f"Split: {settings['split']}, {settings['part']} part; ranked against the whole catalogue, items of the "
            f"history {seen}; {settings['num_beams']} beams; seed {settings['seed']}.",
            "",
            f"Measured {provenance['date']} on {provenance['hardware']}; {made}.",
        ]
    )


def _interval(measured: Mapping[str, float]) -> str:
    return f"{measured['value']:.4f} [{measured['low']:.4f}, {measured['high']:.4f}]"
