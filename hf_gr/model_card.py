"""The card of a model repo: what it says, and what of it is written anew when numbers or items change.

Cards are made from `templates/*.md.jinja`. A card that exists may hold a person's words: there, only the lines and the
block of metadata that hf_gr wrote are replaced.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index
from huggingface_hub.utils import yaml_dump
from transformers import PreTrainedModel

from .artifacts import CARD, replacing
from .cards import front_matter, sections
from .catalog import SidCatalog
from .errors import HfGrError, first_line
from .scorers.own import own_mixture
from .search_config import Mixture
from .vocabulary import SidVocabulary


PIPELINE_TAG = "generative-recommendation"  # the task that hf_gr/pipeline.py registers
REPO_PLACEHOLDER = "your-name/your-model"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_TEMPLATES = Path(__file__).with_name("templates")

_NOT_EVALUATED = "Not evaluated yet: `hf-gr evaluate` measures a model."
_OUTDATED = "Items have come or gone since this was measured: `hf-gr evaluate` measures again."
_MEASURED_HEADING = "## Measured"
_FAMILIES = ("HR@", "NDCG@")
_MODEL_INDEX = re.compile(r"^model-index:.*\n(?:(?:#.*\n|\n)*[ -].*\n)*", re.MULTILINE)
# What hf_gr itself writes below that heading; the rest of the section is the user's.
_MEASURED = re.compile(
    rf"(?:{re.escape(_NOT_EVALUATED)}|^\| metric \|.*?^Measured [^\n]*)(?:\n+{re.escape(_OUTDATED)})?",
    re.MULTILINE | re.DOTALL,
)


def update_card(folder: str | Path, metrics: dict) -> None:
    """Puts measured numbers on the card of a model folder: a table, and the `model-index` that the Hub shows.

    They take the place of those that hf_gr put there before; the rest of the card stays.

    Args:
        folder: A model folder with a card that has a heading "## Measured".
        metrics: The content of `metrics.json` of `hf-gr evaluate`.

    Raises:
        HfGrError: If there is no card, no such heading, or metadata that cannot be read, or if no model was judged.
    """
    if "model" not in metrics["systems"]:
        raise HfGrError(
            f"these metrics are of {', '.join(metrics['systems'])}, not of a model; evaluate this one with --model."
        )
    file = Path(folder) / CARD
    if not file.is_file():
        raise HfGrError(f"{file} is missing; is {folder} a model folder made by `hf-gr sft`?")
    card = _with_measured(file.read_text(encoding="utf-8"), lambda _: _measured(metrics))
    if card is None:
        raise HfGrError(f"{file} has no heading '## Measured' to write the numbers under; add one at its end.")
    with replacing(file) as half:
        half.write_text(_with_results(card, eval_results(metrics)), encoding="utf-8")


def model_card(
    model: PreTrainedModel,
    catalog: SidCatalog,
    vocabulary: SidVocabulary,
    base_model: str | None,
    metrics: dict | None,
) -> ModelCard:
    """Makes the card of a new model.

    The license is left to whoever publishes the model: it follows from the base model and the data.
    """
    on_hub = base_model is not None and bool(_HUB_ID.fullmatch(base_model)) and not Path(base_model).exists()
    base = base_model.removeprefix("wheel:") if base_model else "a fresh model"
    context = "" if vocabulary.context == "none" else f", each with its {vocabulary.context}"
    data = ModelCardData(
        license="unknown",
        library_name="hf_gr",
        pipeline_tag=PIPELINE_TAG,
        tags=["hf_gr", "recommendation", "generative-recommendation", "semantic-ids"],
        base_model=base_model if on_hub else None,
        model_name=None if metrics is None else REPO_PLACEHOLDER,
        eval_results=None if metrics is None else eval_results(metrics),
    )
    return _from_template(
        "model_card.md.jinja",
        data,
        title=_title(catalog),
        facts=_counts(catalog)
        | {
            "parameters": f"{model.num_parameters():,}",
            "made from": base if on_hub else Path(base).name,  # never a path of the machine it was trained on
            "history": f"the {vocabulary.max_history} most recent events{context}",
            "ranks by": _scorers(own_mixture(model)),
        },
        repo=REPO_PLACEHOLDER,
        example=", ".join(json.dumps(item_id) for item_id in catalog.item_ids[:2]),
        measured=_NOT_EVALUATED if metrics is None else _measured(metrics),
    )


def retriever_card(num_items: int, features: Sequence[str] = ("id",)) -> ModelCard:
    """Makes the card of a dense retriever, whose item tower reads these features."""
    tags = ["hf_gr", "recommendation", "sequential-recommendation"]
    data = ModelCardData(license="unknown", library_name="hf_gr", tags=tags)
    return _from_template("retriever_card.md.jinja", data, items=num_items, features=features, repo=REPO_PLACEHOLDER)


def retriever_recounted(card: str, num_items: int) -> str:
    """The card of a dense retriever with another number of items."""
    title = f"# Dense retriever of {num_items:,} items"
    return re.sub(r"^# Dense retriever of .*$", title, card, count=1, flags=re.MULTILINE)


def ranker_card(num_items: int) -> ModelCard:
    """Makes the card of a click model."""
    tags = ["hf_gr", "recommendation", "click-prediction"]
    data = ModelCardData(license="unknown", library_name="hf_gr", tags=tags)
    return _from_template("ranker_card.md.jinja", data, items=num_items, repo=REPO_PLACEHOLDER)


def _from_template(name: str, data: ModelCardData, **values: Any) -> ModelCard:
    card = ModelCard.from_template(data, str(_TEMPLATES / name), **values)
    card.text += "\n"  # Jinja leaves out the last line break of a template
    return card


def eval_results(metrics: Mapping[str, Any]) -> list[EvalResult]:
    """Turns the model's item-level HR and NDCG into what `model-index` holds.

    The task `generative-recommendation` marks them as those of hf_gr.

    Args:
        metrics: The content of `metrics.json` of `hf-gr evaluate`.
    """
    settings = metrics["settings"]
    return [
        EvalResult(
            task_type=PIPELINE_TAG,
            task_name="Generative recommendation",
            dataset_type="unknown",  # a folder, which the Hub may or may not have
            dataset_name=Path(settings["dataset"]).name,
            dataset_split=settings["part"],
            metric_type=name.lower(),
            metric_name=name,
            metric_value=measured["value"],
        )
        for name, measured in metrics["systems"]["model"]["item"].items()
        if name.startswith(_FAMILIES)
    ]


def _with_results(card: str, results: list[EvalResult]) -> str:
    """A card whose `model-index` holds these results in the place of those of hf_gr; other people's stay.

    The block alone is written anew: a person's metadata keep their comments, quotes and order.
    """
    metadata = front_matter(card)
    if not results and not _MODEL_INDEX.search(metadata):
        return card
    try:
        data = ModelCardData(**(yaml.safe_load(metadata) or {}))
    except (TypeError, ValueError, yaml.YAMLError) as error:
        raise HfGrError(
            f"the metadata at the top of {CARD} cannot be read ({first_line(error)}); correct that block."
        ) from None
    others = [result for result in data.eval_results or [] if result.task_type != PIPELINE_TAG]
    changed = _MODEL_INDEX.sub("", metadata)
    if others or results:
        index = eval_results_to_model_index(data.model_name or REPO_PLACEHOLDER, others + results)
        changed += yaml_dump({"model-index": index}, sort_keys=False)
    block = f"---\n{metadata}---\n"
    body = card.removeprefix(block) if card.startswith(block) else f"\n{card}"
    return f"---\n{changed}---\n{body}" if changed else card


def _title(catalog: SidCatalog) -> str:
    return f"Generative recommender of {len(catalog):,} items"


def _counts(catalog: SidCatalog) -> dict[str, str]:
    """The rows of the card that change when items come or go."""
    sids = len(np.unique(catalog.codes[catalog.live], axis=0))
    codebooks = " × ".join(map(str, catalog.codebook_sizes))
    return {
        "items": f"{len(catalog):,} ({int(catalog.live.sum()):,} live)",
        "semantic IDs": f"{sids:,} distinct, codebooks {codebooks}",
    }


def recounted(card: str, catalog: SidCatalog) -> str:
    """A card with the numbers of another state of the catalog.

    What was measured before is said to be older, and leaves the `model-index`.
    """
    card = re.sub(r"^# Generative recommender of .*$", f"# {_title(catalog)}", card, count=1, flags=re.MULTILINE)
    for what, value in _counts(catalog).items():
        card = _with_fact(card, what, value)
    return _with_results(_with_measured(card, _outdated) or card, [])


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
    return _with_fact(card, "parameters", f"{parameters:,}")


def ranked_by(card: str, mixture: Mixture) -> str:
    """A card with another mixture of scorers."""
    return _with_fact(card, "ranks by", _scorers(mixture))


def _scorers(mixture: Mixture | None) -> str:
    """What each scorer counts, the heaviest first, and the rule."""
    if mixture is None:
        return "semantic IDs"
    weights = sorted((pair for pair in dict(mixture.weights).items() if pair[1]), key=lambda pair: -pair[1])
    return f"{', '.join(f'{name} {weight:.3g}' for name, weight in weights)} ({mixture.rule})"


def _with_fact(card: str, what: str, value: str) -> str:
    """A card with another value in the row of that name; the first such row is ours."""
    row = rf"^\| {re.escape(what)} \|.*$"
    return re.sub(row, lambda _: f"| {what} | {value} |", card, count=1, flags=re.MULTILINE)


def _measured(metrics: Mapping[str, Any]) -> str:
    """The table of HR and NDCG, the model beside the baselines, and how it was measured."""
    settings, provenance, systems = metrics["settings"], metrics["provenance"], metrics["systems"]
    names = [name for name in systems["model"]["item"] if name.startswith(_FAMILIES)]
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
            f"Split: {settings['split']}, {settings['part']} part; ranked against the whole catalog, items of the "
            f"history {seen}; {settings['num_beams']} beams; seed {settings['seed']}.",
            "",
            f"Measured {provenance['date']} on {provenance['hardware']}; {made}.",
        ]
    )


def _interval(measured: Mapping[str, float]) -> str:
    return f"{measured['value']:.4f} [{measured['low']:.4f}, {measured['high']:.4f}]"
