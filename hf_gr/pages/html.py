"""Pages in HTML that load nothing, need no script, and read well on light and dark screens.

Names and titles are data, whatever they hold: [`page`], [`section`], [`table`] and [`row`] escape theirs; what is said
to be HTML is taken as it is.
"""

from collections.abc import Iterable
from html import escape
from pathlib import Path


_CSS = """
:root { color-scheme: light dark; --page: #fff; --text: #1c2128; --soft: #5c6670; --line: #d8dee4; --panel: #f6f8fa;
        --hit: #d7f5dd; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14181d; --text: #e2e7ec; --soft: #9aa5b1; --line: #333b44; --panel: #1c2229; --hit: #174426; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 1200px; background: var(--page); color: var(--text);
       font: 16px/1.5 system-ui, "Segoe UI", "Helvetica Neue", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.8rem; margin: 0 0 .3rem; } h2 { font-size: 1.3rem; margin: 2.6rem 0 .6rem; }
p, li { max-width: 75ch; } .soft { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .9rem .35rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; } td.number, th.number { text-align: right; padding-left: .9rem; white-space: nowrap; }
td small { color: var(--soft); } summary { cursor: pointer; margin: .6rem 0; }
.tables { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); gap: 1.5rem 2rem; }
.tables table { width: 100%; font-size: .88rem; } .tables td.number, .tables th.number { padding-left: .4rem; }
.tables tr > :last-child { padding-right: 0; }
.best { font-weight: 700; position: relative; }
.best::before { content: "\\2605"; position: absolute; right: 105%; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); gap: 1.2rem;
          margin-top: 1rem; }
figure { margin: 0; } figure svg { width: 100%; height: auto; } svg text { font-family: inherit; }
.example { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); gap: .5rem 2rem;
           background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1.1rem;
           margin: 0 0 1rem; font-size: .92rem; overflow-wrap: anywhere; }
.example h3 { grid-column: 1 / -1; margin: 0; font-size: 1rem; } .example h4 { margin: 0; color: var(--soft);
           font-weight: 600; } .example p { margin: .2rem 0; } ol { margin: .2rem 0; padding-left: 1.9rem; }
.hit { background: var(--hit); border-radius: 4px; font-weight: 600; padding: 0 .3rem; margin-left: -.3rem; }
code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .9em; overflow-wrap: anywhere; }
@media print { body { max-width: none; } .example, figure { break-inside: avoid; } }
"""


def page(title: str, sections: Iterable[str], style: str = "") -> str:
    """A whole page.

    Args:
        title: Of the window; plain text.
        sections: HTML.
        style: CSS of this page beside what all pages have.
    """
    body = "\n".join(sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="generator" content="hf_gr">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def is_ours(file: Path) -> bool:
    """Whether a file is a page that [`page`] made; those of the first version have its styles only."""
    head = file.read_text(encoding="utf-8", errors="replace")[:2000]
    return '<meta name="generator" content="hf_gr">' in head or _CSS[:100] in head


def section(title: str, *parts: str) -> str:
    """A heading, plain text, and HTML below it."""
    return f"<h2>{escape(title)}</h2>\n" + "\n".join(parts)


def charts(svgs: Iterable[str]) -> str:
    """Plots side by side where there is room."""
    return '<div class="charts">' + "\n".join(f"<figure>{svg}</figure>" for svg in svgs) + "</div>"


def table(header: list[str], rows: list[str]) -> str:
    """A table of [`row`]s; the header is plain text, of a name and of numbers."""
    first, *others = header
    cells = f"<th>{escape(first)}</th>" + "".join(f'<th class="number">{escape(name)}</th>' for name in others)
    body = "\n".join(rows)
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def row(name: str, cells: Iterable[str]) -> str:
    """One row: its name, plain text, and [`cell`]s."""
    return f"<tr><th>{escape(name)}</th>{''.join(cells)}</tr>"


def cell(text: str) -> str:
    """One number, as HTML."""
    return f'<td class="number">{text}</td>'
