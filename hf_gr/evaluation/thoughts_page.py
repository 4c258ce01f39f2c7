"""The report's section on thoughts: whether they come true, and some of them in words."""

from typing import Any

from ..pages.html import Cell, render


_HEADER = ("", "of the first answer", "of the truth", "always the most frequent", "truth less most frequent")


def thoughts_section(thoughts: dict[str, Any] | None) -> str:
    """Writes the section of what [`judge_thoughts`] returns; it is empty for a model without thoughts."""
    if thoughts is None:
        return ""
    rows = [(f"thought {level['level']}", _cells(level)) for level in thoughts["levels"]]
    if thoughts["interest"] is not None:
        rows.append(("global interest", _cells(thoughts["interest"])))
    values = {"header": _HEADER, "rows": rows, "cases": thoughts["cases"], "examples": thoughts["examples"]}
    return render("evaluation/templates/thoughts.html.jinja", **values)


def _cells(shares: dict[str, Any]) -> list[Cell]:
    return [
        *(_share(shares[name], ".1%") for name in ("top_item", "truth", "most_frequent")),
        _share(shares["difference"], "+.1%"),
    ]


def _share(share: dict[str, float], form: str) -> Cell:
    value, low, high = (format(share[name], form) for name in ("value", "low", "high"))
    return Cell(value, f"{low} – {high}")
