"""Artifacts on disk: fingerprints, atomic folders and files, and the manifest that says what was read and written.

Every stage writes one folder. It is filled beside its final place and then put there in one step, so that a killed
run leaves either the old artifact or the new one. `manifest.json` inside it records the stage's settings, the
fingerprints of its inputs and its files: enough to see whether the folder is up to date, and whether it may be
replaced. A folder or file that hf_gr did not write is never replaced.
"""

import contextlib
import ctypes
import glob
import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .cards import merged_card
from .environment import versions
from .errors import HfGrError
from .fingerprints import CARD, MANIFEST, fingerprint


MARKER = ".hf-gr"  # a folder that holds this file is scratch: hf_gr made it, and may remove it
_LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}  # what file managers leave in any folder
_VERSIONS: dict[str, int] = {}  # of a stage; raise it with a change that gives the same settings another result
_FORMER_KEYS = {"station": "stage", "upkeep": "catalog_updates"}  # of the first releases' manifests


# Output folders


class _Held(threading.local):
    """Output folders that this thread holds."""

    def __init__(self) -> None:
        self.paths: set[Path] = set()


_held = _Held()


def check_output(path: str | Path, stage: str, inputs: Iterable[str | Path] = (), *, rewrite: bool = False) -> Path:
    """Checks that a stage may write its folder there, and returns the folder with links followed.

    A folder may be replaced if it is empty, or if its manifest says that the same stage made it and it holds nothing
    else. (Manifests of the first version do not name the files: then the stage counts alone.)

    Args:
        path: Folder to write.
        stage: Who writes it.
        inputs: Files and folders that are read; what is no path of this machine, such as a Hub id, is skipped.
        rewrite: Whether the new folder takes over all that the old one holds, so that it may be anybody's.

    Raises:
        HfGrError: If there is a file, a mount point, the working folder, a folder with an input in it, or anything
            that the stage did not make.
    """
    folder = _place(path)
    if rewrite or _is_empty(folder):
        return folder
    for read in inputs:
        if Path(read).exists() and Path(read).resolve().is_relative_to(folder):
            raise HfGrError(f"{path} would be replaced, but holds the input {read}; choose another output folder.")
    manifest = read_manifest(folder)
    remedy = "choose another output folder, or move this one away"
    if manifest is None:
        raise HfGrError(f"{path} holds files that hf-gr did not write, and would replace; {remedy}.")
    if manifest["stage"] != stage:
        raise HfGrError(f"{path} was written by {manifest['stage']}, not by {stage}, and is kept; {remedy}.")
    foreign = sorted(set(file_names(folder)) - {MANIFEST, *manifest.get("files", file_names(folder))})
    if foreign:
        raise HfGrError(
            f"{path} holds {foreign[0]}, which {stage} did not write, and would be replaced with it; "
            "move that file away, or choose another output folder."
        )
    return folder


def _place(path: str | Path) -> Path:
    """An output folder with links followed, if a folder may stand there at all."""
    folder = Path(path).resolve()
    if folder.exists() and not folder.is_dir():
        raise HfGrError(f"{path} is a file; a folder is to be written there: move it or choose another --out.")
    if folder.is_mount():
        raise HfGrError(f"{path} is a mount point, which cannot be replaced in one step; name a folder inside it.")
    if Path.cwd().is_relative_to(folder):
        raise HfGrError(f"{path} is the folder that this command runs in, or one above it; name a new folder.")
    return folder


def check_output_file(path: str | Path, ours: Callable[[Path], bool]) -> Path:
    """Checks that a command may write its file there: it does not exist, is empty, or is `ours`.

    Returns the file with links followed; raises [`HfGrError`] otherwise.
    """
    file = Path(path).resolve()
    if file.is_dir():
        raise HfGrError(f"{path} is a folder; name a file.")
    if file.is_file() and file.stat().st_size and not ours(file):
        raise HfGrError(f"{path} exists, and this command did not write it; choose another name, or move it away.")
    return file


@contextlib.contextmanager
def claimed(path: str | Path) -> Iterator[Path]:
    """Holds an output folder for one command from reading to writing: another that wants it waits.

    What killed runs left beside the folder is removed. Nests within a thread. Yields the folder with links followed;
    raises [`HfGrError`] where no folder can be written.
    """
    folder = _place(path)
    if folder in _held.paths:
        yield folder
        return
    made = [parent for parent in folder.parents if not parent.exists()]
    lock = folder.with_name(f".{folder.name}.hf-gr-lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(lock, folder)
    except OSError as error:  # no permission, a read-only disk, a file in the way, or no locks on this file system
        raise HfGrError(f"cannot write to {folder.parent} ({error.strerror}); choose another output folder.") from None
    _held.paths.add(folder)
    try:
        _clear_leftovers(folder)
        yield folder
    finally:
        _held.paths.discard(folder)
        lock.unlink(missing_ok=True)
        os.close(descriptor)
        for parent in made:
            with contextlib.suppress(OSError):  # not empty any more, as it should be
                parent.rmdir()


def _lock(file: Path, folder: Path) -> int:
    """An open lock file. The system frees it when the process ends, however it ends."""
    import fcntl  # not on every system; nothing is written without it

    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another command that writes {folder}", file=sys.stderr, flush=True)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if file.exists() and os.path.samestat(file.stat(), os.fstat(descriptor)):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # who held it has removed the file: the lock is on one that nobody finds any more


@contextlib.contextmanager
def writing(
    path: str | Path, stage: str, inputs: Iterable[str | Path] = (), *, rewrite: bool = False
) -> Iterator[Path]:
    """Yields an empty folder; when the block ends without an error it becomes `path`, atomically.

    Whatever stood at `path` before stays whole until that moment, and for ever if the block raises. Sections of its
    card that the new card does not have move to the new one. Arguments and errors are those of [`check_output`]; what
    may be written is asked before the block, and once more after it.
    """
    inputs = list(inputs)
    with claimed(path) as place:
        check_output(place, stage, inputs, rewrite=rewrite)
        scratch = Path(tempfile.mkdtemp(prefix=f".{place.name}.hf-gr-", dir=place.parent))
        try:
            (scratch / MARKER).write_text(_of(place), encoding="utf-8")
            folder = scratch / place.name
            folder.mkdir()
            yield folder
            check_output(place, stage, inputs, rewrite=rewrite)
            _keep_card(place / CARD, folder / CARD)
            _put_in_place(folder, place)
        finally:
            discard(scratch)


def _of(place: Path) -> str:
    return f"on the way to {place.name}\n"


def _parked(scratch: Path, place: Path) -> Path:
    return scratch / f"{place.name}.old"


def _put_in_place(folder: Path, place: Path) -> None:
    if not place.exists():
        folder.rename(place)
    elif not _exchange(folder, place):
        # No atomic exchange on this system: the old folder is parked beside the new one between two renames.
        place.rename(_parked(folder.parent, place))
        folder.rename(place)


def _clear_leftovers(place: Path) -> None:
    """Removes what killed runs left of their way to `place`; whoever holds it knows that they are dead."""
    for scratch in place.parent.glob(f".{glob.escape(place.name)}.hf-gr-*/"):
        marker = scratch / MARKER
        if marker.is_file() and marker.read_text(encoding="utf-8") == _of(place):
            parked = _parked(scratch, place)
            if parked.is_dir() and not place.exists():  # killed between two renames
                parked.rename(place)
            discard(scratch)
        elif _is_empty(scratch):
            shutil.rmtree(scratch, ignore_errors=True)


def _keep_card(old: Path, new: Path) -> None:
    if old.is_file() and new.is_file():
        new.write_text(merged_card(new.read_text(encoding="utf-8"), old.read_text(encoding="utf-8")), encoding="utf-8")


def _exchange(a: Path, b: Path) -> bool:
    """Swaps two folders in one step (`renameat2` on Linux, `renamex_np` on macOS). False without such a call."""
    libc = ctypes.CDLL(None, use_errno=True)
    at_fdcwd, exchange = -100, 2
    system = platform.system()
    try:
        if system == "Linux":
            return libc.renameat2(at_fdcwd, os.fsencode(a), at_fdcwd, os.fsencode(b), exchange) == 0
        if system == "Darwin":
            return libc.renamex_np(os.fsencode(a), os.fsencode(b), exchange) == 0
    except AttributeError:  # a C library older than the call
        return False
    return False


def file_names(folder: Path) -> list[str]:
    """Names of all files and links below a folder, but for what file managers leave."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in found if path.name not in _LITTER)


def _is_empty(folder: Path) -> bool:
    return not folder.exists() or all(path.name in _LITTER for path in folder.iterdir())


@contextlib.contextmanager
def resumable(path: str | Path, name: str) -> Iterator[Path]:
    """Holds an output folder as [`claimed`] does, and yields the scratch folder `.FOLDER.NAME` beside it, for what a
    run that is killed goes on from.

    The scratch folder is removed when the block ends without an error, or with nothing in it. A folder that was there
    before, with other things in it, is used and stays.
    """
    with claimed(path) as place:
        folder = place.with_name(f".{place.name}.{name}")
        mark(folder)
        try:
            yield folder
        except BaseException:
            if file_names(folder) == [MARKER]:
                discard(folder)
            raise
        discard(folder)


def mark(folder: Path) -> None:
    """Makes a scratch folder, which [`discard`] may remove; leaves one that holds anything as it is."""
    if _is_empty(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).touch()


def discard(folder: Path) -> None:
    """Removes a scratch folder, its mark last; leaves any other folder alone."""
    if not (folder / MARKER).is_file():
        return
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != MARKER:
            path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


# Files


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a neighbor file to write, which takes the name `path` when the block ends without an error.

    A reader never sees half a file. Links are followed.
    """
    file = Path(path).resolve()
    temporary = file.with_name(f".{file.name}.hf-gr-tmp")
    try:
        yield temporary
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Writes JSON in one step."""
    with replacing(path) as file:
        text = json.dumps(data, indent=2, ensure_ascii=False, sort_keys=True)
        file.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HfGrError(f"{path} is missing; is {path.parent} the right folder?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise HfGrError(f"{path} is not valid JSON ({error}); write the artifact again.") from None


# Manifests


def write_manifest(
    folder: Path, stage: str, settings: Mapping[str, Any], inputs: Mapping[str, str], **facts: Any
) -> None:
    """Writes `manifest.json` into an artifact that is otherwise complete: what comes later is not the stage's.

    Args:
        folder: The artifact (the staging folder of [`writing`]).
        stage: Name of the stage that made it, such as `"embed"`.
        settings: Everything that shaped the artifact, JSON-serializable; no output paths.
        inputs: Name → fingerprint of every artifact that was read.
        facts: Anything else worth recording (counts, durations).
    """
    manifest = {
        "stage": stage,
        "stage_version": stage_version(stage),
        "settings": dict(settings),
        "inputs": dict(inputs),
        "fingerprint": fingerprint(folder),
        "files": file_names(folder),
        "versions": versions(),
        **facts,
    }
    write_json(folder / MANIFEST, manifest)


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """The manifest of an artifact; `None` where there is none of ours."""
    file = Path(folder) / MANIFEST
    if not file.is_file():
        return None
    with contextlib.suppress(ValueError):  # another program's file may hold anything
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(manifest, dict):
            manifest = {_FORMER_KEYS.get(key, key): value for key, value in manifest.items()}
        if isinstance(manifest, dict) and {"stage", "settings", "inputs"} <= manifest.keys():
            return manifest
    return None


def stage_version(stage: str) -> int:
    """Version of a stage, from 1: artifacts of two versions may differ where settings and inputs do not."""
    return _VERSIONS.get(stage, 1)


def settings_key(stage: str, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """12 hex digits that name one (stage, settings, inputs) combination."""
    version = stage_version(stage)
    made = [stage, settings, inputs, *([version] if version > 1 else [])]  # keys of version 1 are those of before
    text = json.dumps(made, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def is_current(folder: str | Path, stage: str, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> bool:
    """Whether `folder` was made by today's version of `stage` with these settings from these inputs."""
    manifest = read_manifest(folder)
    if manifest is None or manifest.get("stage_version", 1) != stage_version(stage):
        return False
    recorded = settings_key(manifest["stage"], manifest["settings"], manifest["inputs"])
    return recorded == settings_key(stage, settings, inputs)


def report(stage: str, inputs: Mapping[str, str | Path], output: str | Path, *, current: bool = False) -> None:
    """Prints the line with which a stage says what it read and wrote."""
    read = ", ".join(f"{name} {path} ({fingerprint(path)})" for name, path in inputs.items())
    verb = "up to date:" if current else "wrote"
    arrow = f" from {read}" if read else ""
    print(f"[{stage}] {verb} {output} ({fingerprint(output)}){arrow}", flush=True)
