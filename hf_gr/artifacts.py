"""Artefacts on disk: fingerprints, atomic folders, and the manifest that says what was read and written.

Every station writes one folder. It is filled beside its final place and then put there in one step, so that a killed
run leaves either the old artefact or the new one. `manifest.json` inside it records the station's settings and the
fingerprints of its inputs, which is all that is needed to see whether the folder is up to date.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .errors import HfGrError


MANIFEST = "manifest.json"
_NOT_CONTENT = {MANIFEST, "README.md"}  # the manifest holds dates and paths, the card is prose
_PACKAGES = ("hf-gr", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "sentence-transformers")


def fingerprint(path: str | Path) -> str:
    """SHA-256 of a file, or of every file below a folder (names and bytes; manifest and card left out), 16 digits."""
    path = Path(path)
    if not path.exists():
        raise HfGrError(f"{path} does not exist; run the station that writes it first.")
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    digest = hashlib.sha256()
    for file in files:
        name = file.name if path.is_file() else file.relative_to(path).as_posix()
        if name in _NOT_CONTENT:
            continue
        digest.update(name.encode())
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """Yields an empty folder; when the block ends without an error it becomes `path`, atomically.

    Whatever stood at `path` before stays whole until that moment, and for ever if the block raises.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    staging.chmod(0o755)
    try:
        yield staging
        _put_in_place(staging, path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _put_in_place(staging: Path, path: Path) -> None:
    if path.is_file():
        raise HfGrError(f"{path} is a file; a folder is to be written there: move it or choose another --out.")
    if path.exists() and not _exchange(staging, path):
        # No atomic exchange on this system: the old folder is parked beside the new one between two renames.
        parked = staging.with_name(f"{staging.name}.old")
        path.rename(parked)
        staging.rename(path)
        shutil.rmtree(parked)
    elif staging.exists() and not path.exists():
        staging.rename(path)


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


def write_json(path: Path, data: Any) -> None:
    """Writes JSON by way of a neighbour file, so that a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(data, indent=2, ensure_ascii=False, sort_keys=True) + "\n")
    temporary.replace(path)


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise HfGrError(f"{path} is missing; is {path.parent} the right folder?") from None
    except json.JSONDecodeError as error:
        raise HfGrError(f"{path} is not valid JSON ({error}); write the artefact again.") from None


def versions() -> dict[str, str]:
    """Versions of the packages a result depends on, of Python, and the git commit of the working tree (if any)."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
        found["commit"] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return found


def hardware(*, gpus: bool = True) -> str:
    """Processor, number of cores and, with `gpus`, the accelerators that torch sees."""
    info = Path("/proc/cpuinfo")  # Linux only; elsewhere `platform` names the processor
    lines = info.read_text().splitlines() if info.is_file() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    found = f"{named[0] if named else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    if gpus:
        import torch

        if torch.cuda.is_available():
            found += f", {torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return found


def write_manifest(
    folder: Path, station: str, settings: Mapping[str, Any], inputs: Mapping[str, str], **facts: Any
) -> None:
    """Writes `manifest.json` into an artefact that is otherwise complete.

    Args:
        folder: The artefact (the staging folder of [`writing`]).
        station: Name of the station that made it, such as `"embed"`.
        settings: Everything that shaped the artefact, JSON-serialisable; no output paths.
        inputs: Name → fingerprint of every artefact that was read.
        facts: Anything else worth recording (counts, durations).
    """
    manifest = {
        "station": station,
        "settings": dict(settings),
        "inputs": dict(inputs),
        "fingerprint": fingerprint(folder),
        "versions": versions(),
        **facts,
    }
    write_json(folder / MANIFEST, manifest)


def settings_key(station: str, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """12 hex digits that name one (station, settings, inputs) combination."""
    text = json.dumps([station, settings, inputs], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def is_current(folder: str | Path, station: str, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> bool:
    """Whether `folder` was made by `station` with these settings from these inputs."""
    file = Path(folder) / MANIFEST
    if not file.is_file():
        return False
    manifest = read_json(file)
    recorded = settings_key(manifest["station"], manifest["settings"], manifest["inputs"])
    return recorded == settings_key(station, settings, inputs)


def report(station: str, inputs: Mapping[str, str | Path], output: str | Path, *, current: bool = False) -> None:
    """Prints the line with which a station says what it read and wrote."""
    read = ", ".join(f"{name} {path} ({fingerprint(path)})" for name, path in inputs.items())
    verb = "up to date:" if current else "wrote"
    arrow = f" from {read}" if read else ""
    print(f"[{station}] {verb} {output} ({fingerprint(output)}){arrow}", flush=True)
