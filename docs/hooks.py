"""What `mkdocs.yml` asks of MkDocs beside a plain site.

Pages that stand outside docs/ (`benchmarks/*.md`, `CONTRIBUTING.md`) are added under the path that they have in the
repository. Pages are written for the repository, where links lead anywhere in it. On the site those between pages stay
links; those to sources become their paths, as a site has no sources (or links, once `repo_url` says where these are).
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page


ROOT = Path(__file__).parents[1]
OUTSIDE = ["CONTRIBUTING.md", *sorted(file.relative_to(ROOT).as_posix() for file in ROOT.glob("benchmarks/*.md"))]
NUMBERS = "Numbers"  # section of the navigation that benchmarks/*.md are added to
_FENCE = re.compile(r"^(```.*?^```)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    for section in config.nav:
        if NUMBERS in section:
            section[NUMBERS] += [path for path in OUTSIDE if path.startswith("benchmarks/")]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path in OUTSIDE:
        files.append(File.generated(config, path, content=(ROOT / path).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of a page, which are those of its place in the repository, as the site needs them."""
    here = posixpath.dirname(_in_repository(page.file.src_uri))

    def replaced(match: re.Match) -> str:
        image, text, target, anchor = match.groups(default="")
        path = posixpath.normpath(posixpath.join(here, target))
        if files.get_file_from_path(_on_site(path)):
            to = posixpath.relpath(_on_site(path), posixpath.dirname(page.file.src_uri) or ".")
            return f"{image}[{text}]({to}{anchor})"
        if not (ROOT / path).exists():
            return match[0]  # MkDocs says what it thinks of it
        if config.repo_url:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{path})"
        return f"`{path}`" if text.strip("`") in path else f"{text} (`{path}`)"

    parts = _FENCE.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(replaced, part) for part in parts)


def _in_repository(uri: str) -> str:
    return uri if uri in OUTSIDE else f"docs/{uri}"


def _on_site(path: str) -> str:
    return path.removeprefix("docs/")
