"""One station of a cell: a command in a process of its own, run once, whoever asks, and measured by the system.

Beside an artefact `NAME` lie `NAME.lock` (held while it is made), `NAME.log` (what its command printed) and
`NAME.cost.json` (what it took). The lock is a `flock`, which the system frees when the last process that has it open
ends; the command inherits it, so that it is held until nobody works on the artefact any more, even if the grid itself
was killed.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import IO, Any

from ..artifacts import read_json, write_json
from ..errors import HfGrError


HF_GR = [sys.executable, "-m", "hf_gr.cli"]
_MEMORY_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes of what the system counts memory in
_INTERRUPTED = (130, -signal.SIGINT, -signal.SIGTERM)  # exit statuses
_LOOK_AGAIN = 0.05  # seconds between looks at a command that may be told to stop


class Busy(Exception):
    """Another process is making the artefact."""


class Stopped(Exception):
    """The grid was told to stop."""


class StationError(HfGrError):
    """A command that failed; the message names it and its log."""


@dataclass(frozen=True)
class Station:
    """A command and the artefact that it makes.

    Attributes:
        name: Of the station, such as `sft`; with the method before it (`flat:sft`) if a cell goes on from that.
        command: Words; `hf-gr` at its head is this package's own.
        output: Folder or file that it makes.
        key: Of its settings and those of all that it reads, 12 hex digits.
        source: Fingerprint of the raw data that it all begins with.
        trains: Whether its time counts as training.
    """

    name: str
    command: tuple[str, ...]
    output: Path
    key: str
    source: str
    trains: bool = False

    @property
    def cost_file(self) -> Path:
        return self.output.with_name(f"{self.output.name}.cost.json")

    @property
    def log_file(self) -> Path:
        return self.output.with_name(f"{self.output.name}.log")

    def cost(self) -> dict[str, Any]:
        """What it took: `cpu_seconds`, `wall_seconds`, `peak_bytes`; `lost`: runs that were killed with their grid,
        whose time is not known; `done`. Empty if it never ran with these settings on this data."""
        found = read_json(self.cost_file) if self.cost_file.is_file() else {}
        return found if (found.get("key"), found.get("source")) == (self.key, self.source) else {}

    def is_done(self) -> bool:
        """Whether the artefact was made with these settings from this data."""
        return bool(self.cost().get("done")) and self.output.exists()


@contextlib.contextmanager
def locked(file: Path) -> Iterator[IO[str]]:
    """Holds a lock file, or raises [`Busy`]."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(str(file)) from None
        yield handle


def run_station(station: Station, environment: Mapping[str, str], stop: Event) -> None:
    """Makes an artefact unless it is there; adds up what its command takes over all runs that it needs.

    Raises:
        Busy: Another process is at it.
        Stopped: `stop` was set; the command was ended, and goes on where it can when it is run again.
        StationError: The command failed.
    """
    if station.is_done():
        return
    with locked(station.output.with_name(f"{station.output.name}.lock")) as lock:
        if station.is_done():
            return
        fresh = {"key": station.key, "source": station.source, "done": False, "lost": 0}
        cost = station.cost() or fresh | {"cpu_seconds": 0.0, "wall_seconds": 0.0, "peak_bytes": 0}
        write_json(station.cost_file, cost | {"done": False, "lost": cost["lost"] + 1})
        status, used = _run(station, environment, lock.fileno(), stop)
        for name in ("cpu_seconds", "wall_seconds"):
            cost[name] += used[name]
        cost["peak_bytes"] = max(cost["peak_bytes"], used["peak_bytes"])
        cost["done"] = status == 0 and station.output.exists()
        write_json(station.cost_file, cost)
        if not cost["done"] and (stop.is_set() or status in _INTERRUPTED):
            raise Stopped(f"{station.name} was stopped, see {station.log_file}")
        if not cost["done"]:
            raise StationError(f"{station.name} failed ({_reason(station, status)}), see {station.log_file}")


def _run(station: Station, environment: Mapping[str, str], lock: int, stop: Event) -> tuple[int, dict[str, Any]]:
    """Exit status and use of a command, which keeps the descriptor `lock` open."""
    words = [*HF_GR, *station.command[1:]] if station.command[0] == "hf-gr" else list(station.command)
    started = time.perf_counter()
    with station.log_file.open("a") as log:
        print(f"$ {' '.join(station.command)}", file=log, flush=True)
        try:
            process = subprocess.Popen(words, stdout=log, stderr=log, env=dict(environment), pass_fds=(lock,))
        except OSError as error:
            print(f"error: {words[0]} cannot be run ({error.strerror}).", file=log)
            return 127, {"cpu_seconds": 0.0, "wall_seconds": 0.0, "peak_bytes": 0}
        told = False
        while True:
            done, status, usage = os.wait4(process.pid, os.WNOHANG)
            if done:
                break
            if stop.is_set() and not told:
                process.terminate()
                told = True
            time.sleep(_LOOK_AGAIN)
    process.returncode = os.waitstatus_to_exitcode(status)
    used = {"cpu_seconds": usage.ru_utime + usage.ru_stime, "wall_seconds": time.perf_counter() - started}
    return process.returncode, used | {"peak_bytes": usage.ru_maxrss * _MEMORY_UNIT}


def _reason(station: Station, status: int) -> str:
    """The line with which a command of ours ends, or else its exit status."""
    lines = station.log_file.read_text(errors="replace").strip().splitlines()
    if lines and lines[-1].startswith(("error: ", "lists.py: error: ")):
        return lines[-1].partition("error: ")[2].rstrip(".")
    return f"exit status {status}" if status else f"it wrote no {station.output}"


def as_word(value: Any) -> str:
    """A setting as the command line has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value) if isinstance(value, dict) else str(value)


def as_words(settings: Mapping[str, Any]) -> list[str]:
    """`--key value` for every setting; those of a list follow each other."""
    words = []
    for key, value in settings.items():
        words += [f"--{key}", *map(as_word, value if isinstance(value, list) else [value])]
    return words
