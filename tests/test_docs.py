"""What the pages say holds: code runs, commands and settings exist, links lead somewhere, and the site builds.

Python runs as it stands, block after block, on tiny models in the place of those that a reader would have trained.
The commands of the page on one's own data run too; all others are held against what the stages take.
"""

import csv
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from docs_blocks import (
    OWN_DATA,
    ROOT,
    SHOWN,
    STAGES,
    blocks_of,
    check,
    check_names,
    check_settings,
    commands_of,
    inline_commands,
    settings_of,
)
from searching import RECURSIVE, recursive
from tiny import tiny_lm, tiny_tokenizer

from hf_gr.catalog import SidCatalog
from hf_gr.cli import main
from hf_gr.dataset import write_dataset
from hf_gr.decoding import Call
from hf_gr.forms import FORMS
from hf_gr.hub import save_repo
from hf_gr.models import ClickConfig, ClickModel, RecursionConfig, ThinkingConfig, ThinkingHeads
from hf_gr.quantizers import METHODS
from hf_gr.ranking import Ranker
from hf_gr.ranking.features import Features
from hf_gr.retrieval import BSARecConfig, BSARecModel
from hf_gr.rewards import REWARDS
from hf_gr.search_config import SearchConfig
from hf_gr.vocabulary import add_vocabulary


README = ROOT / "README.md"
GUIDES = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, *GUIDES, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "benchmarks").glob("*.md"))]
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
METHOD_PAGES = ["codebooks", "decoding", "grpo", "interests", "intrr", "mmq", "r3-vae", "reg4rec", "retrieval"]
METHOD_PAGES += ["ranking", "s2gr", "sft"]
WITH_PYTHON = [page for page in (README, *GUIDES) if any(block.language == "python" for block in blocks_of(page))]


def make_models(folder: Path, ids: Sequence[str], stages: dict[str, str]) -> pa.Table:
    """Untrained models of 200 items in `folder`, by the stage that would train each and its form; their items."""
    kinds = [["Comedy"] if number % 2 else ["Drama"] for number in range(200)]
    items = pa.table({"item_id": ids, "title": [f"Film {i}" for i in ids], "categories": kinds})
    random = np.random.default_rng(0)
    codes, vectors = random.integers(0, 8, (200, 3)), tuple(random.normal(size=(3, 8, 5)).astype(np.float32))
    catalog = SidCatalog.from_codes(codes, items, (8, 8, 8), code_vectors=vectors)
    for stage, form in stages.items():
        tokenizer, model = tiny_tokenizer(), tiny_lm()
        vocabulary = add_vocabulary(tokenizer, model, catalog, max_history=10, form=form)
        if form == RECURSIVE:
            model, vocabulary = recursive(model, vocabulary, catalog)
        repo = folder / stage / "model"
        save_repo(repo, model, tokenizer, catalog, vocabulary)
        if form == "stepwise":
            ThinkingHeads.start(ThinkingConfig(clusters=4), 32, catalog, seed=0).save(repo)
    catalog.save(folder / "catalog")
    return items


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Folders `quickstart` and `shop` with models that know items "1" to "200" and "item 1" to "item 200", and a data
    set of the first."""
    ids = [str(number) for number in range(1, 201)]
    forms = {"sft": "flat", "grpo": "flat", "sft-s2gr": "stepwise", "sft-reg4rec": "unordered", "sft-intrr": RECURSIVE}
    items = make_models(tmp_path / "quickstart", ids, forms)
    make_models(tmp_path / "shop", [f"item {i}" for i in ids], {"sft": "flat", "thinking": "stepwise"})
    retriever = tmp_path / "quickstart" / "retrieve-bsarec" / "model"
    BSARecModel(BSARecConfig(len(ids), 8)).save_pretrained(retriever)
    pq.write_table(items, retriever / "items.parquet")
    clicks = ClickModel(ClickConfig(len(ids), hidden_size=8))
    Ranker(clicks, items, Features()).save_pretrained(tmp_path / "quickstart" / "rank" / "model")
    users = [str(user) for user in range(1, 13) for _ in range(5)]
    events = {"user_id": users, "item_id": ids[: len(users)], "timestamp": list(range(len(users)))}
    write_dataset(tmp_path / "quickstart" / "dataset", pa.table(events), items, source="Made for tests.")
    monkeypatch.chdir(tmp_path)
    before = dict(METHODS), dict(REWARDS), dict(FORMS)
    yield
    for table, entries in zip((METHODS, REWARDS, FORMS), before, strict=True):  # without those that a page has added
        table.clear()
        table.update(entries)


@pytest.mark.parametrize("file", [file for file in WITH_PYTHON if file != OWN_DATA], ids=lambda file: file.name)
def test_the_python_of_a_page_runs(file, trained, capsys):
    names: dict = {}
    for block in blocks_of(file):
        if block.language == "python":
            exec(compile(block.text, str(block), "exec"), names)
    assert capsys.readouterr().out


VALUES = {  # of the columns that the page's tables have
    "customer": lambda row: f"c{row // 6 + 10}",
    "sku": lambda row: f"A{row % 80 + 20}",
    "time": lambda row: f"2024-04-{row % 6 + 1:02d}T12:00:00",
    "stars": lambda row: str(row % 5 + 1),
    "title": lambda row: f"Thing {row} of {row % 7}",
    "brand": lambda row: f"Brand {row % 3}",
    "categories": lambda row: "tools|hammers" if row % 2 else "fasteners",
    "description": lambda row: f"Good for {row % 11}.",
}


@pytest.mark.slow
def test_the_page_on_your_own_data_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = blocks_of(OWN_DATA)
    logs, items = (block for block in blocks if block.language == "csv")
    with_shown = {"sku": lambda row: ("A17", "A4")[row // 6 % 2] if row % 6 == 0 else VALUES["sku"](row)}
    for file, shown, rows, values in (("logs.csv", logs, 360, VALUES | with_shown), ("items.csv", items, 80, VALUES)):
        header, *given = csv.reader(shown.text.splitlines())
        made = [[values[column](row) for column in header] for row in range(rows)]
        with open(file, "w", newline="") as written:
            csv.writer(written).writerows([header, *given, *made])
    names: dict = {}
    stages = []
    for block in (block for block in blocks if block.kind != "marked"):
        if block.language == "python":
            exec(compile(block.text, str(block), "exec"), names)
        for words in commands_of(block.text) if block.language == "bash" else ():
            if words[0] == "hf-gr":  # not pip
                stages.append(words[1])
                main([word for pair in _shortened(words[1:]) for word in pair])
    assert stages[:7] == ["prepare", "embed", "quantize", "inspect", "sft", "evaluate", "recommend"]
    for made in ("shop/codebook.html", "shop/evaluation-grpo/report.html", "recommendations.parquet"):
        assert Path(made).is_file()
    assert "Rubber mallet" not in capsys.readouterr().err


def _shortened(words: list[str]) -> list[list[str]]:
    """A command line in which no training takes more than two steps."""
    pairs, steps = [], False
    for word in words:
        pairs.append([str(min(int(word), 2)) if steps else word])
        steps = word == "--max_steps"
    return pairs


def test_every_block_is_run_checked_marked_or_shown():
    for block in BLOCKS:
        assert block.language in SHOWN | {"python", "bash", "yaml"}, f"{block}: what is {block.language}?"
        assert not block.mark.startswith("not run") or block.kind == "marked", f"{block}: not run: why?"
        assert block.language != "python" or block.kind == "marked" or block.file in WITH_PYTHON, block
    kinds = Counter(block.kind for block in BLOCKS)
    print(dict(kinds))
    assert kinds["run"] and kinds["checked"] and kinds["marked"] < kinds["checked"]


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_commands_and_settings_are_such_as_there_are(file, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for block in blocks_of(file):
        try:
            if block.language == "bash":  # also of blocks that are not run
                for words in commands_of(block.text):
                    check(words)
            elif block.language == "yaml" and block.mark != "not a config":
                check_settings(block.text, tmp_path / "settings.yaml")
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{block}: {error}") from error
    for words in inline_commands(file):
        check_names(words)


BAD = ["hf-gr sfx", "hf-gr sft --stepz 3", "hf-gr sft --config recipes/none.yaml", "hf-gr recommend m --topk 3"]
BAD += [
    "python benchmarks/decode.py --no-such",
    "make cake",
    "make quickstart CAKE=1",
    "rm -rf /",
    "hf-gr prepare table",
]


@pytest.mark.parametrize("line", BAD)
def test_what_there_is_not_is_refused(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    (words,) = commands_of(line)
    with pytest.raises(Exception):  # noqa: B017  of as many kinds as there are checks
        check(words)


def test_settings_that_there_are_not_are_refused(tmp_path):
    for text in ("form: sideways", "levelz: 3", "thinking: {clusterz: 3}\nform: stepwise"):
        with pytest.raises(AssertionError):
            check_settings(text, tmp_path / "settings.yaml")


def test_commands_of_a_script():
    script = (
        "A=1 one --x 'a b' && two  # why\nfor d in p q; do for f in r s; do\n  three $d-${f} \\\n  end; done; done\n"
    )
    found = list(commands_of(script))
    assert found[:2] == [["one", "--x", "a b"], ["two"]]
    assert found[2:] == [["three", f"{d}-{f}", "end"] for d in "pq" for f in "rs"]


def _known() -> dict[str, list]:
    """Names of settings and of arguments, with their defaults wherever they have one."""
    configs = [*STAGES.values(), ThinkingConfig, RecursionConfig, SearchConfig, Call]
    configs += [method.config_class for method in METHODS.values()]
    found: dict[str, list] = {}
    for kind in configs:
        for entry in settings_of(kind):
            default = entry.default_factory() if callable(entry.default_factory) else entry.default
            found.setdefault(entry.name, []).append(default)
    return found


def _same(told: str, default: object) -> bool:
    if isinstance(default, int | float) and not isinstance(default, bool):
        return re.fullmatch(r"[\d.e-]+", told) is not None and float(told) == default
    shown = {True: "true", False: "false", None: "none"}.get(default) if default in (True, False, None) else None
    return told == (shown or (", ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)))


@pytest.mark.parametrize("name", METHOD_PAGES)
def test_a_page_of_a_method_begins_alike_and_names_knobs_that_there_are(name):
    text = (ROOT / "docs" / f"{name}.md").read_text()
    parts = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert parts[:4] == ["What it is", "When to use it", "Its numbers", "Its knobs"]
    assert "../benchmarks/" in text.split("## Its numbers")[1].split("## ")[0], "numbers say where they are from"
    known = _known()
    rows = re.findall(r"^\| (`.+?) \|", text.split("## Its knobs")[1].split("\n## ")[0], re.MULTILINE)
    assert rows
    for knob, told in (pair for row in rows for pair in re.findall(r"`(\w+)`(?: \(([^)]+)\))?", row)):
        assert knob in known, f"{name}.md: there is no {knob}"
        default = told.split(":")[0]
        assert not told or any(_same(default, value) for value in known[knob]), f"{knob} ({told}): {known[knob]}"


@pytest.mark.parametrize(
    "source",
    [
        "evaluation/templates/report.html.jinja",
        "evaluation/templates/thoughts.html.jinja",
        "evaluation/templates/redistribution.html.jinja",
        "quantizers/templates/inspection.html.jinja",
    ],
)
def test_every_section_of_a_report_is_explained(source):
    page = (ROOT / "docs" / "reading-a-report.md").read_text()
    titles = re.findall(r"<h2>(.+)</h2>", (ROOT / "hf_gr" / source).read_text())
    assert titles
    for title in titles:
        told = re.sub(r"^\{.*\} (\w)", lambda match: match[1].upper(), title)  # "{{ n }} users, …": "Users, …"
        assert re.search(rf"^### {re.escape(told)}$|\*{re.escape(told)}\*", page, re.MULTILINE), title


def test_links_of_pages_lead_somewhere():
    for file in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", file.read_text()):
            assert (file.parent / target).exists(), f"{file.name} links to {target}"


def test_the_site_builds_without_warnings_and_loads_nothing_from_elsewhere(tmp_path):
    # not --quiet, which keeps warnings from failing a strict build
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0 and "WARNING" not in done.stdout + done.stderr, done.stdout + done.stderr
    built = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.html")}
    assert built >= {f"{page.stem}.html" for page in GUIDES} | {"benchmarks/STUDIES.html", "CONTRIBUTING.html"}
    elsewhere = re.compile(r"""<(?:script|img|iframe)[^>]+src="?(?:https?:)?//|<link[^>]+href="?(?:https?:)?//""")
    for file in tmp_path.rglob("*.html"):
        assert not elsewhere.search(file.read_text()), file
    for file in tmp_path.rglob("*.css"):
        assert not re.search(r"@import|url\(['\"]?(?:https?:)?//", file.read_text()), file
