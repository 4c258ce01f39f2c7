"""Pages in HTML that load nothing, need no script, and read well on light and dark screens.

Every page is a Jinja template of its room that extends `pages/templates/page.html.jinja`; tables and plots are macros
of `parts.html.jinja`. Names and titles are data, whatever they hold: every value is escaped, but for what a template
marks with `| safe`, the plots of [`~hf_gr.pages.svg.drawn`] and whole sections.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined


_TEMPLATES = Environment(
    loader=PackageLoader("hf_gr", ""),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters["form"] = format
_FIRST_STYLE = ":root { color-scheme: light dark; --page: #fff; --text: #1c2128; --soft: #5c6670;"


class Cell(NamedTuple):
    """A number or name in a table, with small print below it; the best of its row gets a star."""

    text: str
    small: str = ""
    best: bool = False


def render(template: str, **values: Any) -> str:
    """Fills a template.

    Args:
        template: Its path below the package, such as `"evaluation/templates/report.html.jinja"`.
        values: What it names; each is escaped where it is written. A name that is missing is an error.
    """
    return _TEMPLATES.get_template(template).render(values)


def as_texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Settings and the like as texts: JSON of everything that is none."""
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in values.items()
    }


def is_ours(file: Path) -> bool:
    """Whether a file is a page of hf_gr; those of the first version have its styles only."""
    head = file.read_text(encoding="utf-8", errors="replace")[:2000]
    return '<meta name="generator" content="hf_gr">' in head or _FIRST_STYLE in head
