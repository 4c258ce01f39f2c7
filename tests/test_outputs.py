"""Nothing that is not ours is ever deleted: every command and its output folder or file."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny import tiny_catalog, tiny_interactions, tiny_items

import hf_gr.fingerprints
from data_prep.cli import app as prepare_app
from hf_gr.artifacts import MARKER, check_output, claimed, fingerprint, read_manifest, write_manifest, writing
from hf_gr.catalog import SidCatalog
from hf_gr.catalog_updates import remove_items
from hf_gr.cli import app, main
from hf_gr.dataset import write_dataset
from hf_gr.errors import HfGrError


# What each command is given, to write into `out`; `read` is a folder with files to read, most of which no command gets
# as far as reading. Commands that train write into a folder below the one that is named.
COMMANDS: dict[str, Callable[[Path, Path], list]] = {
    "prepare movielens": lambda read, out: ["--path", read / "ml-100k", "--out", out],
    "prepare amazon": lambda read, out: [read / "logs.jsonl", "--out", out],
    "prepare table": lambda read, out: [read / "logs.csv", "--out", out],
    "prepare sessions": lambda read, out: [read / "logs.csv", "--out", out],
    "prepare hub": lambda read, out: [read / "any", "--out", out],
    "prepare minionerec": lambda read, out: [read / "logs.csv", "--items", read / "items.json", "--out", out],
    "embed": lambda read, out: ["--dataset", read / "any", "--output_dir", out],
    "mine": lambda read, out: ["--dataset", read / "any", "--output_dir", out],
    "label": lambda read, out: ["--dataset", read / "any", "--interests", read / "any", "--output_dir", out],
    "quantize": lambda read, out: ["--dataset", read / "any", "--embeddings", read / "any", "--output_dir", out],
    "sft": lambda read, out: ["--dataset", read / "any", "--catalog", read / "any", "--output_dir", out.parent],
    "grpo": lambda read, out: ["--dataset", read / "any", "--model", read / "any", "--output_dir", out.parent],
    "retrieve": lambda read, out: ["--dataset", read / "any", "--output_dir", out.parent],
    "rank": lambda read, out: ["--dataset", read / "any", "--item_as", "id", "--output_dir", out.parent],
    "evaluate": lambda read, out: ["--dataset", read / "any", "--model", read / "any", "--output_dir", out],
    "blend": lambda read, out: [read / "any", read / "any", "--out", out],
    "remember": lambda read, out: [read / "any", read / "any", "--out", out],
    "add-items": lambda read, out: [read / "catalog", read / "items.parquet", "--update", "--out", out],
    "remove-items": lambda read, out: [read / "catalog", "i001", "--out", out],
}
STAGES = {name: "prepare" if name.startswith("prepare") else name for name in COMMANDS}
# The same for commands that write a file.
FILES: dict[str, Callable[[Path, Path], list]] = {
    "inspect": lambda read, out: [read / "catalog", "--out", out],
    "inspect --json": lambda read, out: [read / "catalog", "--out", read / "new.html", "--json", out],
    "recommend": lambda read, out: [read / "any", "--users", read / "users.jsonl", "--out", out],
    "bench": lambda read, out: ["scientific", "--data", read, "--out", read / "bench", "--report", out],
}
WRITE_NOTHING_THERE = {"push", "tune"}  # tune writes files of fixed names: tests/tune


@pytest.fixture(scope="module")
def read(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("read")
    (folder / "any").mkdir()
    (folder / "any" / "file.txt").write_text("an input")
    for name in ("logs.csv", "logs.jsonl", "items.json", "users.jsonl", "ml-100k/u.data", "ml-100k/u.item"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("user_id,item_id,timestamp\nann,a,1\n")
    tiny_catalog().save(folder / "catalog")
    pq.write_table(tiny_items(4), folder / "items.parquet")
    return folder


def everything(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and times of all files, hidden ones too."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def refused(words: list, capfd) -> str:
    """Runs a command that must fail; returns its one line."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as exit:
        main([str(word) for word in words])
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert exit.value.code == 1 and len(errors) == 1
    return errors[0]


def foreign_folders(folder: Path, stage: str) -> Iterator[tuple[Path, str]]:
    """Folders called `model` that a stage did not make, and what is to be said of each."""
    for kind in ("notes", "another stage", "a file added", "another program"):
        out = folder / kind / "model"
        (out / "sub").mkdir(parents=True)
        (out / "sub" / "deep.csv").write_text("mine")
        if kind == "another stage":
            write_manifest(out, "import", {}, {})
        elif kind == "a file added":
            write_manifest(out, stage, {}, {})
            (out / "sub" / "notes.txt").write_text("mine too")
        elif kind == "another program":
            (out / "manifest.json").write_text('{"name": "an extension of a browser"}')
        told = {"another stage": "was written by import", "a file added": r"holds sub/notes\.txt, which"}
        yield out, told.get(kind, "holds files that hf-gr did not write")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_is_not_theirs_is_refused_and_untouched(command, read, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(read)
    for out, told in foreign_folders(tmp_path, STAGES[command]):
        before = everything(tmp_path)
        line = refused([*command.split(), *COMMANDS[command](read, out)], capfd)
        assert re.search(told, line), line
        assert everything(tmp_path) == before
        assert {path.name for path in out.parent.iterdir()} == {"model"}  # no lock, no half a folder


def test_a_catalog_that_came_with_other_data_too(read, tmp_path, capfd):
    for out, told in foreign_folders(tmp_path, "other"):
        if "import" not in told:
            words = ["prepare", "minionerec", read / "logs.csv", "--items", read / "items.json"]
            words += ["--index", read / "items.json", "--out", tmp_path / "new", "--catalog", out]
            before = everything(tmp_path)
            assert "is kept" in (line := refused(words, capfd)) or re.search(told, line), line
            assert everything(tmp_path) == before and not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", FILES)
def test_a_file_that_is_not_theirs_is_refused_and_untouched(command, read, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    for name, content in {"notes.txt": b"mine", "page.html": b"<!doctype html><p>mine", "a.json": b'{"a": 1}'}.items():
        (tmp_path / name).write_bytes(content)
        before = everything(tmp_path)
        line = refused([command.split()[0], *FILES[command](read, tmp_path / name)], capfd)
        assert "exists, and this command did not write it" in line
        assert everything(tmp_path) == before


def test_every_command_is_among_these():
    names = {command.name or command.callback.__name__ for command in app.registered_commands}
    names |= {f"prepare {command.name or command.callback.__name__}" for command in prepare_app.registered_commands}
    assert names == COMMANDS.keys() | {name.split()[0] for name in FILES} | WRITE_NOTHING_THERE


def test_an_output_that_holds_an_input_or_the_working_folder(read, tmp_path, capfd, monkeypatch):
    shop = tmp_path / "shop"
    shop.mkdir()
    (shop / "logs.csv").write_text("user_id,item_id,timestamp\n" + "ann,a,1\nann,b,2\nann,c,3\n" * 2)
    before = everything(tmp_path)
    line = refused(["prepare", "table", shop / "logs.csv", "--out", shop], capfd)
    assert "would be replaced, but holds the input" in line
    write_manifest(shop, "prepare", {}, {})
    before = everything(tmp_path)
    refused(["prepare", "table", shop / "logs.csv", "--out", shop], capfd)  # also of a folder that may be replaced
    monkeypatch.chdir(shop)
    for out in (".", "..", shop):
        line = refused(["prepare", "table", "logs.csv", "--out", out], capfd)
        assert "is the folder that this command runs in" in line
    assert everything(tmp_path) == before
    line = refused(["remove-items", read / "catalog", "i001", "--out", read / "catalog" / "copy"], capfd)
    assert "lies inside" in line


def make(folder: Path, text: str = "old") -> Path:
    with writing(folder, "test") as new:
        (new / "a.txt").write_text(text)
        write_manifest(new, "test", {}, {})
    return folder


def test_what_the_same_stage_made_is_replaced_also_by_a_manifest_without_files(tmp_path):
    out = make(tmp_path / "out")
    make(out, "new")
    assert (out / "a.txt").read_text() == "new"
    manifest = read_manifest(out)
    assert manifest is not None and manifest.pop("files") == ["a.txt"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    (out / ".DS_Store").write_text("a file manager's")
    make(out, "newer")
    assert (out / "a.txt").read_text() == "newer"
    (tmp_path / "empty").mkdir()
    make(tmp_path / "empty")


def test_a_link_is_followed_and_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    make(tmp_path / "disk" / "data")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "disk" / "data")
    make(link, "new")
    assert link.is_symlink() and (tmp_path / "disk" / "data" / "a.txt").read_text() == "new"
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["data"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]


def test_a_folder_filled_while_the_command_ran_is_kept(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(HfGrError, match="did not write"), writing(out, "test") as folder:
        (folder / "a.txt").write_text("ours")
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    assert everything(tmp_path).keys() == {"out/notes.txt"}


CARD = "---\nlicense: {}\n---\n\n# Model\n\n## Use\n\n```bash\n## no heading\n```\n{}"


def test_what_was_written_on_a_card_by_hand_stays(tmp_path):
    out = make(tmp_path / "out")
    (out / "README.md").write_text(CARD.format("mit", "\n## Limits\n\nMine.\n\n## Use it well\n\nToo.\n"))
    write_manifest(out, "test", {}, {})
    for _ in range(2):  # nothing is told twice
        with writing(out, "test") as folder:
            (folder / "README.md").write_text(CARD.format("unknown", "New.\n"))
            write_manifest(folder, "test", {}, {})
    card = (out / "README.md").read_text()
    assert card == CARD.format("mit", "New.\n\n## Limits\n\nMine.\n\n## Use it well\n\nToo.\n")


_KILLED = """
import os, signal, sys
from hf_gr.artifacts import resumable, writing
from pathlib import Path
out = Path(sys.argv[1])
with resumable(out, "cache") as cache, writing(out, "test") as folder:
    (cache / "chunk").write_text("half")
    (folder / "weights").write_bytes(b"0" * 1000)
    if sys.argv[2] == "between":  # two renames, where there is no exchange
        out.rename(folder.with_name("out.old"))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_file_in_the_way_of_an_output_folder_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(HfGrError, match=r"cannot write to .*notes\.txt \(.+\); choose another output folder"):
        make(tmp_path / "notes.txt" / "out")
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("moment", ["before", "between"])
def test_leftovers_of_killed_runs_are_cleaned_and_only_those(tmp_path, moment):
    out = make(tmp_path / "out")
    for name in (".out.mine", ".out.hf-gr-mine", ".outer.hf-gr-x"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("mine")
    (tmp_path / ".outer.hf-gr-x" / MARKER).write_text("on the way to outer\n")
    before = everything(tmp_path)
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", _KILLED, str(out), moment], capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list(tmp_path.glob(".out.hf-gr-*"))) >= 2
    with claimed(out):
        pass
    left = everything(tmp_path)
    assert {name: left[name] for name in before} == before
    assert left.keys() - before.keys() == {
        ".out.cache/chunk",
        f".out.cache/{MARKER}",
    }  # what the next run goes on from


def test_two_commands_on_one_folder_take_turns(tmp_path):
    out, order = tmp_path / "out", []

    def write(name: str) -> None:
        with claimed(out):
            order.append(f"{name} begins")
            time.sleep(0.05)
            make(out, name)
            order.append(f"{name} ends")

    threads = [threading.Thread(target=write, args=(str(number),)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [line.split()[1] for line in order] == ["begins", "ends"] * 5
    assert all(order[i].split()[0] == order[i + 1].split()[0] for i in range(0, 10, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_of_two_removals_at_once_none_is_lost(tmp_path, monkeypatch):
    folder = tmp_path / "catalog"
    tiny_catalog().save(folder)
    load = SidCatalog.load
    both = threading.Barrier(2)

    def slow(path: Path) -> SidCatalog:
        catalog = load(path)
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(timeout=0.3)  # were both to read first, one of them would write over the other
        return catalog

    monkeypatch.setattr(SidCatalog, "load", slow)
    threads = [threading.Thread(target=remove_items, args=(folder, [item_id])) for item_id in ("i001", "i002")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monkeypatch.undo()
    catalog = SidCatalog.load(folder)
    assert [catalog.item_ids[row] for row in range(len(catalog)) if not catalog.live[row]] == ["i001", "i002"]


def test_what_an_update_rewrites_keeps_all_that_lies_there(tmp_path):
    folder = tmp_path / "catalog"
    tiny_catalog().save(folder)
    write_manifest(folder, "quantize", {}, {})
    (folder / "notes.txt").write_text("mine")
    remove_items(folder, ["i001"])
    assert (folder / "notes.txt").read_text() == "mine"
    with pytest.raises(HfGrError, match=r"holds notes\.txt, which quantize did not write"):
        check_output(folder, "quantize")
    copy = remove_items(folder, ["i002"], out=tmp_path / "copy")
    remove_items(folder, ["i003"], out=copy)  # its own copy it may replace
    with pytest.raises(HfGrError, match="was written by remove-items, not by quantize"):
        check_output(copy, "quantize")


def test_a_dataset_is_written_again_where_it_was(tmp_path, capfd):
    for _ in range(2):
        write_dataset(tmp_path / "data", tiny_interactions(), tiny_items(), source="Made for tests.")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    mount = Path("/dev/shm")
    if os.path.ismount(mount):
        with pytest.raises(HfGrError, match="is a mount point"):
            check_output(mount, "prepare")


def test_large_files_are_hashed_once_as_long_as_nobody_writes_to_them(tmp_path, monkeypatch):
    read: list[str] = []
    digest = hf_gr.fingerprints.hashlib.file_digest

    def counting(handle, kind):
        read.append(Path(handle.name).name)
        return digest(handle, kind)

    monkeypatch.setattr(hf_gr.fingerprints.hashlib, "file_digest", counting)
    monkeypatch.setattr(hf_gr.fingerprints, "_SETTLED", 0)
    with writing(tmp_path / "model", "test") as folder:
        (folder / "model.safetensors").write_bytes(b"0" * (1 << 20))
        (folder / "config.json").write_text("{}")
        time.sleep(0.02)
        write_manifest(folder, "test", {}, {})
    first = fingerprint(tmp_path / "model")
    assert fingerprint(tmp_path / "model") == first and read.count("model.safetensors") == 1
    (tmp_path / "model" / "model.safetensors").write_bytes(b"1" * (1 << 20))
    assert fingerprint(tmp_path / "model") != first
    assert read.count("model.safetensors") == 2 and read.count("config.json") == 4
