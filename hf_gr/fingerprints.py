"""Fingerprints of files and folders: what an artifact was made of."""

import hashlib
import time
from pathlib import Path

from .errors import HfGrError


MANIFEST = "manifest.json"
CARD = "README.md"
_NOT_CONTENT = {MANIFEST, CARD}  # the manifest holds dates and paths, the card is prose
_LARGE = 1 << 20  # bytes from which on the digest of a file is kept
_SETTLED = 100_000_000  # nanoseconds after which another write to a file shows in its time
_digests: dict[tuple[int, ...], bytes] = {}


def fingerprint(path: str | Path) -> str:
    """SHA-256 of a file, or of every file below a folder (names and bytes; manifest and card left out), 16 digits."""
    path = Path(path)
    if not path.exists():
        raise HfGrError(f"{path} does not exist; run the stage that writes it first.")
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    digest = hashlib.sha256()
    for file in files:
        name = file.name if path.is_file() else file.relative_to(path).as_posix()
        if name in _NOT_CONTENT:
            continue
        digest.update(name.encode())
        digest.update(_digest(file))
    return digest.hexdigest()[:16]


def _digest(file: Path) -> bytes:
    """SHA-256 of a file; a large one is read once by a process, as long as nobody writes to it."""
    found = file.stat()
    key = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    if key in _digests:
        return _digests[key]
    settled = time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) > _SETTLED
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").digest()
    if found.st_size >= _LARGE and settled:
        _digests[key] = digest
    return digest
