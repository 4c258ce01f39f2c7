import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hf_gr import artifacts, environment
from hf_gr.artifacts import (
    MANIFEST,
    fingerprint,
    is_current,
    read_json,
    report,
    settings_key,
    write_json,
    write_manifest,
    writing,
)
from hf_gr.errors import HfGrError


def contents(folder: Path) -> dict[str, str]:
    """Of the files of a folder but the manifest."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """An artifact that already stands where the next one is to be written."""
    folder = tmp_path / "artifact"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("old a")
    (folder / "sub" / "b.txt").write_text("old b")
    write_manifest(folder, "test", {}, {})
    return folder


OLD = {"a.txt": "old a", "sub/b.txt": "old b"}


def test_a_new_folder_appears_only_at_the_end(tmp_path):
    target = tmp_path / "deep" / "artifact"
    with writing(target, "test") as folder:
        (folder / "a.txt").write_text("new")
        assert not target.exists()
        assert folder.parent.parent == target.parent  # a rename must not cross file systems
    assert contents(target) == {"a.txt": "new"}
    assert [p.name for p in target.parent.iterdir()] == ["artifact"]
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("atomic", [True, False])
def test_an_old_folder_is_replaced_whole(old, atomic, monkeypatch):
    if not atomic:
        monkeypatch.setattr(artifacts, "_exchange", lambda a, b: False)
    with writing(old, "test") as folder:
        (folder / "c.txt").write_text("new c")
        assert contents(old) == OLD
    assert contents(old) == {"c.txt": "new c"}
    assert [p.name for p in old.parent.iterdir()] == ["artifact"]


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="no atomic exchange on this system")
def test_the_replacement_is_one_step(old, monkeypatch):
    """With the exchange to be had, nothing is renamed, so there is no moment without a folder."""
    monkeypatch.setattr(Path, "rename", lambda *_: pytest.fail("renamed"))
    with writing(old, "test") as folder:
        (folder / "c.txt").write_text("new c")
    assert contents(old) == {"c.txt": "new c"}


def test_an_exception_leaves_the_old_folder(old):
    with pytest.raises(RuntimeError, match="half way"), writing(old, "test") as folder:
        (folder / "a.txt").write_text("new a")
        raise RuntimeError("half way")
    assert contents(old) == OLD
    assert [p.name for p in old.parent.iterdir()] == ["artifact"]


def test_a_full_disk_leaves_the_old_folder(old, monkeypatch):
    def no_space(self: Path, text: str, **_: object) -> int:
        self.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    with pytest.raises(OSError, match="No space left"), writing(old, "test") as folder:
        monkeypatch.setattr(Path, "write_text", no_space)
        write_json(folder / "a.json", {"new": 1})
    assert contents(old) == OLD
    assert [p.name for p in old.parent.iterdir()] == ["artifact"]


def test_a_full_disk_leaves_the_old_json(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    write_json(file, {"old": 1})
    monkeypatch.setattr(json, "dumps", lambda *_, **__: "{")  # what arrives before the disk is full
    monkeypatch.setattr(Path, "replace", lambda *_: pytest.fail("half a file was put in place"))
    original = Path.write_text

    def half(self: Path, text: str, **encoding: str) -> int:
        original(self, text, **encoding)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="No space left"):
        write_json(file, {"new": 1})
    assert read_json(file) == {"old": 1}


def test_a_kill_leaves_the_old_folder(old):
    script = """
import os, signal, sys
from pathlib import Path
from hf_gr.artifacts import writing
with writing(sys.argv[1], "test") as folder:
    (folder / "a.txt").write_text("new a")
    print("half way", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script, str(old)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL and done.stdout == "half way\n", done.stderr
    assert contents(old) == OLD
    with writing(old, "test") as folder:  # and the next run is not disturbed by what the killed one left
        (folder / "a.txt").write_text("new a")
    assert contents(old) == {"a.txt": "new a"}


def test_a_file_in_the_way_is_refused_and_kept(tmp_path):
    file = tmp_path / "artifact"
    file.write_text("mine")
    with pytest.raises(HfGrError, match=r"artifact is a file; .* choose another --out"), writing(file, "test"):
        pass
    assert file.read_text() == "mine" and [p.name for p in tmp_path.iterdir()] == ["artifact"]


def test_fingerprint_follows_names_and_bytes(old):
    first = fingerprint(old)
    assert len(first) == 16 and int(first, 16) >= 0
    seen = {first}
    (old / "a.txt").write_text("other")
    seen.add(fingerprint(old))
    (old / "a.txt").rename(old / "c.txt")
    seen.add(fingerprint(old))
    (old / "sub" / "b.txt").rename(old / "b.txt")
    seen.add(fingerprint(old))
    (old / "empty").touch()
    seen.add(fingerprint(old))
    assert len(seen) == 5
    seen.add(fingerprint(old / "b.txt"))
    assert len(seen) == 6
    with pytest.raises(HfGrError, match="nowhere does not exist; run the stage"):
        fingerprint(old / "nowhere")


def test_fingerprint_does_not_read_manifest_and_card(old):
    before = fingerprint(old)
    (old / "manifest.json").write_text("{}")
    (old / "README.md").write_text("prose")
    assert fingerprint(old) == before
    (old / "sub" / "README.md").write_text("prose")  # below the top it is content like any other
    assert fingerprint(old) != before


SETTINGS = {"levels": 3, "sizes": [4, 4], "method": "rq"}
INPUTS = {"dataset": "0123456789abcdef"}


def test_manifest_says_what_was_read_and_whether_it_is_current(old):
    assert not is_current(old, "quantize", SETTINGS, INPUTS)
    before = fingerprint(old)
    write_manifest(old, "quantize", SETTINGS, INPUTS, seconds=1.5)
    manifest = read_json(old / "manifest.json")
    assert manifest["fingerprint"] == before == fingerprint(old)
    assert manifest["seconds"] == 1.5 and manifest["inputs"] == INPUTS
    assert {"python", "torch", "transformers"} <= manifest["versions"].keys()
    assert is_current(old, "quantize", SETTINGS, INPUTS)
    assert is_current(str(old), "quantize", {"method": "rq", "sizes": (4, 4), "levels": 3}, INPUTS)
    assert not is_current(old, "embed", SETTINGS, INPUTS)
    assert not is_current(old, "quantize", SETTINGS | {"levels": 4}, INPUTS)
    assert not is_current(old, "quantize", SETTINGS | {"seed": 0}, INPUTS)
    assert not is_current(old, "quantize", SETTINGS, {"dataset": "f" * 16})
    assert not is_current(old / "nowhere", "quantize", SETTINGS, INPUTS)


def test_settings_key_names_one_combination():
    key = settings_key("quantize", SETTINGS, INPUTS)
    assert len(key) == 12 and int(key, 16) >= 0
    assert key == settings_key("quantize", dict(reversed(SETTINGS.items())), INPUTS)
    others = [
        settings_key("embed", SETTINGS, INPUTS),
        settings_key("quantize", SETTINGS | {"levels": 4}, INPUTS),
        settings_key("quantize", SETTINGS, INPUTS | {"embeddings": "1"}),
        settings_key("quantize", SETTINGS | {"path": Path("a")}, INPUTS),
    ]
    assert len({key, *others}) == 5


def test_json_errors_say_what_to_do(tmp_path):
    with pytest.raises(HfGrError, match=r"a\.json is missing; is .* the right folder\?"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(HfGrError, match=r"a\.json is not valid JSON \(.*\); write the artifact again"):
        read_json(tmp_path / "a.json")


def test_report_names_paths_and_fingerprints(old, tmp_path, capsys):
    (tmp_path / "input").write_text("read")
    report("embed", {"dataset": tmp_path / "input"}, old)
    report("embed", {}, old, current=True)
    read, here = fingerprint(tmp_path / "input"), fingerprint(old)
    assert capsys.readouterr().out.splitlines() == [
        f"[embed] wrote {old} ({here}) from dataset {tmp_path / 'input'} ({read})",
        f"[embed] up to date: {old} ({here})",
    ]


def test_the_commit_is_that_of_hf_gr_itself(tmp_path):
    """A repository around the environment that the package lies in is somebody else's."""

    def git(*words: str) -> str:
        settings = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *settings, *words], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    for folder in ("hf_gr", ".venv/hf_gr"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "hf_gr" / "__init__.py").touch()
    git("init", "-q")
    git("add", "hf_gr")
    git("commit", "-q", "-m", "first")
    assert environment._commit(tmp_path / "hf_gr") == git("rev-parse", "--short", "HEAD")
    assert environment._commit(tmp_path / ".venv" / "hf_gr") is None


def test_text_of_json_is_utf_8_whatever_the_machine_says(tmp_path):
    script = "import sys; from pathlib import Path; from hf_gr.artifacts import read_json, write_json\n"
    script += "file = Path(sys.argv[1]); write_json(file, {'\\u00e9': '\\u65e5\\u672c'}); read_json(file)"
    plain = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", script, str(tmp_path / "a.json")]
    done = subprocess.run(command, env=plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_json(tmp_path / "a.json") == {"é": "日本"}
