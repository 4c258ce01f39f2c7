"""Folders of catalogs and models that are changed: in place, in one step, or as a changed copy."""

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from .artifacts import MANIFEST, file_names, fingerprint, read_manifest, write_json, writing
from .errors import HfGrError
from .offline import local_folder


def source_and_target(folder: str | Path, out: str | Path | None) -> tuple[Path, Path]:
    """The folder to read, and the one to write. Raises [`HfGrError`] where nothing can be written."""
    if out is None and not Path(folder).is_dir():
        raise HfGrError(f"{folder} is no folder; give the folder of a catalog or model, or --out for a Hub repo.")
    source = local_folder(folder)
    target = Path(folder if out is None else out)
    if source.resolve() in target.resolve().parents:
        raise HfGrError(f"{target} lies inside {source}, which is copied; name a folder outside it.")
    return source, target


@contextlib.contextmanager
def updating(
    stage: str, source: Path, target: Path, rewritten: Collection[str], kind: str, update: Mapping[str, Any]
) -> Iterator[Path]:
    """Yields a copy of a folder to change; when the block ends without an error it becomes `target`, atomically.

    Args:
        stage: Name of the command.
        source: Folder to copy. Where it is the target, files are linked, as weights are large.
        target: Folder to write.
        rewritten: Names of files that the block may write into, which are always copied.
        kind: Entry of the manifest that lists updates of this kind.
        update: What the manifest says of this one, beside its stage.
    """
    in_place = target.resolve() == source.resolve()
    with writing(target, stage, [source], rewrite=in_place) as folder:
        _copy(source, folder, rewritten if in_place else None)
        yield folder
        _write_manifest(stage, source, folder, in_place, kind, update)


def _write_manifest(
    stage: str, source: Path, folder: Path, in_place: bool, kind: str, update: Mapping[str, Any]
) -> None:
    """Of a folder changed in place, what made it and which files are not its own stay as they were; a copy is this
    stage's. What came from the Hub has no manifest."""
    manifest = read_manifest(source)
    if manifest is None and in_place:
        return
    manifest = manifest or {"settings": {}, "inputs": {}}
    changed: dict[str, Any] = {"fingerprint": fingerprint(folder)}
    changed[kind] = [*manifest.get(kind, []), {"stage": stage, **update}]
    if not in_place:
        changed |= {"stage": stage, "files": file_names(folder)}
    elif "files" in manifest:
        before, now = set(file_names(source)), set(file_names(folder))
        changed["files"] = sorted(set(manifest["files"]) & now | now - before)
    write_json(folder / MANIFEST, manifest | changed)


def _copy(source: Path, folder: Path, rewritten: Collection[str] | None) -> None:
    """Copies a folder; links all but the files that are `rewritten`, if there are any such names."""

    def keep(file: str, copy: str) -> str:
        if rewritten is not None and Path(file).name not in rewritten:
            try:
                os.link(os.path.realpath(file), copy)
            except OSError:  # a file system without hard links
                shutil.copy2(file, copy)
            return copy
        return str(shutil.copy2(file, copy))

    shutil.copytree(source, folder, copy_function=keep, dirs_exist_ok=True)
