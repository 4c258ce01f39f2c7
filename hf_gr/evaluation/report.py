"""The report: one HTML file, in the style of all pages."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..pages.html import Cell, as_texts, render
from . import plots
from .metrics import MISS
from .redistribution_page import redistribution_section
from .thoughts_page import thoughts_section


Table = tuple[list[str], list[tuple[str, list[Any]]]]  # header, and rows of a name and cells


@dataclass(frozen=True)
class Example:
    """One case in words: last titles of the history, first recommended titles, the truth and its rank (from 0)."""

    user: str
    history: list[str]
    recommended: list[str]
    truth: str
    rank: int

    @property
    def is_found(self) -> bool:
        """Whether the truth is in the list."""
        return self.rank < MISS

    @property
    def is_shown(self) -> bool:
        """Whether the truth is among the titles shown."""
        return self.is_found and self.rank < len(self.recommended)


def write_report(
    file: str | Path, result: dict[str, Any], examples: list[Example], logs: dict[str, list[dict[str, Any]]]
) -> None:
    """Writes the report. Every text in it is escaped: titles are data, whatever they hold.

    Args:
        file: HTML file to write.
        result: What [`evaluate`] returns.
        examples: Cases to show.
        logs: Name of a run → its `log_history` (entries with `step`, `loss`, `eval_loss`, `reward`, …).
    """
    systems, ks, settings, catalog = result["systems"], result["ks"], result["settings"], result["catalog"]
    main_k = _main_k(ks)
    values = {
        "title": "hf_gr evaluation",
        "subject": _short(settings["model"] or settings["predictions"] or "baselines"),
        "dataset": _short(settings["dataset"]),
        "settings": settings,
        "cases": result["cases"],
        "users": result["users"],
        "sampled": result["sampled"],
        "item_level": _families(result, "item", "item-level", result["best"]),
        "sid_level": _families(result, "sid", "SID-level", {}) if "sid" in next(iter(systems.values())) else [],
        "notes": notes(result),
        "differences": _differences(result),
        "curves": [plots.curves_at_k(systems, ks, family) for family in ("HR", "NDCG")],
        "groups": [
            plots.bars_by_group(systems, key, f"HR@{main_k}", label)
            for key, label in (("by_popularity", "target's popularity"), ("by_history_length", "history length"))
        ],
        "unseen": next(iter(systems.values()))["unseen"],
        "beyond": _beyond(systems, main_k),
        "catalog": catalog,  # empty where there is no model, and so no semantic ID
        "levels": _levels(catalog) if catalog else [],
        "code_use": [plots.code_use(*use) for use in enumerate(catalog["items_per_code"], 1)] if catalog else [],
        "thoughts": thoughts_section(result.get("thoughts")),
        "redistribution": redistribution_section(result.get("redistribution")),
        "training": _training(logs),
        "examples": examples,
        "provenance": as_texts(result["provenance"]) | as_texts(settings),
    }
    Path(file).write_text(render("evaluation/templates/report.html.jinja", **values), encoding="utf-8")


def _short(name: str) -> str:
    return "/".join(Path(name).parts[-2:])


def _main_k(ks: list[int]) -> int:
    """The cut-off that stands for the others where there is room for one."""
    return max((k for k in ks if k <= 10), default=ks[0])


def _families(result: dict[str, Any], level: str, label: str, best: dict[str, str | None]) -> list[Table]:
    """A table of HR, of NDCG and of MRR: a row for each cut-off, a column for each system."""
    systems, tables = result["systems"], []
    for family in ("HR", "NDCG", "MRR"):
        names = [f"{family}@{k}" for k in result["ks"]]
        rows = [
            (name, [_interval(judged[level][name], best.get(name) == system) for system, judged in systems.items()])
            for name in names
        ]
        tables.append(([label, *systems], rows))
    return tables


def _interval(numbers: dict[str, float], best: bool) -> Cell:
    return Cell(f"{numbers['value']:.4f}", f"{numbers['low']:.4f} – {numbers['high']:.4f}", best)


def notes(result: dict[str, Any]) -> list[str]:
    """Sentences on what was judged: where targets stand in their own histories, and which item kNN it is."""
    found = []
    lost = ": they count as missed, as seen items are removed" if result["settings"]["exclude_seen"] else ""
    found.append(f"{result['seen_targets']:.1%} of the targets stand in their own history{lost}.")
    if (knn := result.get("item kNN")) is not None:
        events = "event" if knn["window"] == 1 else "events"
        window = "however far apart" if knn["window"] is None else f"within {knn['window']} {events}"
        found.append(
            f"item kNN: pairs {window}, {knn['neighbours']} neighbours; chosen among {len(knn['trials'])} settings by "
            "NDCG@10 on the validation part."
        )
    return found


def _differences(result: dict[str, Any]) -> list[Cell]:
    first, name = next(iter(result["systems"])), f"HR@{_main_k(result['ks'])}"
    return [
        Cell(
            f"{name} of {first} minus {other}: {metrics[name]['value']:+.4f}",
            f"{metrics[name]['low']:+.4f} to {metrics[name]['high']:+.4f}",
        )
        for other, metrics in result["differences"].items()
    ]


def _beyond(systems: dict[str, Any], k: int) -> Table:
    judged = list(systems.values())
    rows = [
        (f"catalog coverage @{k}", [f"{j['coverage'][str(k)]:.1%}" for j in judged]),
        (f"Gini @{k}", [f"{j['gini'][str(k)]:.3f}" for j in judged]),
        ("unseen items' share of the lists", [f"{j['unseen']['share_of_lists']:.1%}" for j in judged]),
        ("invalid answers", [f"{j['invalid_rate']:.2%}" for j in judged]),
        ("repeated answers", [f"{j['duplicate_rate']:.2%}" for j in judged]),
        ("mean length of the lists", [f"{j['mean_length']:.1f}" for j in judged]),
        ("first item stands in the history", [f"{j['seen_first']:.1%}" for j in judged]),
    ]
    return ["beyond accuracy", *systems], rows


def _levels(catalog: dict[str, Any]) -> list[tuple[str, list[str]]]:
    return [
        (f"level {number}", [f"{level['used']} of {level['size']}", f"{level['perplexity']:.1f}"])
        for number, level in enumerate(catalog["levels"], 1)
    ]


def _training(logs: dict[str, list[dict[str, Any]]]) -> list[str]:
    drawn = [
        plots.training_curves(run, log, wanted, label)
        for run, log in logs.items()
        for wanted, label in ((_is_loss, "loss"), (_is_reward, "reward"), (_is_measured, "validation"))
    ]
    return [svg for svg in drawn if svg is not None]


def _is_loss(name: str) -> bool:
    return name in ("loss", "eval_loss")


def _is_reward(name: str) -> bool:
    return name == "reward" or (name.startswith("rewards/") and name.endswith("/mean"))


def _is_measured(name: str) -> bool:
    return name in ("eval_HR@10", "eval_HR@50", "eval_NDCG@10", "eval_NDCG@50")
