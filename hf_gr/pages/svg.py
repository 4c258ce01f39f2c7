"""Plots as inline SVG, for light and dark pages alike: text and axes take the color of the page's text."""

import io
import re
from collections.abc import Callable
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure


COLORS = ("#3d85d8", "#e07b39", "#3aa676", "#a46bd1")  # mid-tones, legible on white and on near-black
TEXT = "#010203"  # stands for the page's text color until the SVG is written
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "hf_gr",  # the same numbers give the same bytes
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.edgecolor": TEXT,
    "axes.labelcolor": TEXT,
    "axes.titlecolor": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": TEXT,
    "text.parse_math": False,  # labels are names, and a name may hold dollar signs
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "legend.frameon": False,
}


def drawn(draw: Callable[[Axes], None], title: str, *, width: float = 6.4, height: float = 3.6) -> str:
    """Draws a plot as SVG, which a template takes as it is (`| safe`): names in it are escaped.

    Args:
        draw: Puts the plot into its axes; `TEXT` is the color of the page's text.
        title: What a screen reader says.
        width: In inches; 6.4 fill one of the page's two columns, 13 both, with letters of one size.
        height: In inches.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        axes.grid(axis="y", color=TEXT, alpha=0.12, linewidth=0.8)
        axes.set_axisbelow(True)
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    size = 'width="[^"]*" height="[^"]*"'  # the view box stays, so the page decides on the size
    text = re.sub(f"<svg ([^>]*?){size}", rf'<svg role="img" aria-label="{escape(title)}" \1', text, count=1)
    return text.replace(TEXT, "currentColor")
