"""A grid of cells, run by any number of workers: threads here, other processes, other launches; resumable at any point.

A worker takes a cell that has no row yet and whose lock is free, and runs its stations. Where another worker is making
what the cell needs, it lets go of the cell and takes another one. What is finished is never run again; what a kill
interrupted goes on from its last checkpoint.
"""

import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from ..artifacts import read_json, write_json
from ..errors import HfGrError
from ..processes import launched
from .cells import Cell
from .rows import row_of
from .stations import Busy, Stopped, locked, run_station


_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
_LAUNCHER_PREFIXES = ("GROUP_", "ROLE_", "TORCHELASTIC_", "ACCELERATE_", "FSDP_", "TORCH_NCCL_")
_KEPT = ("ACCELERATE_USE_CPU",)
_PATIENCE = 1.0  # seconds before a worker looks again for a cell that has become free


@dataclass
class Grid:
    """Cells and what became of them.

    Attributes:
        cells: What is to be run, in this order if it can be.
        jobs: Workers in this process.
        failed: Cell → why, of those that failed.
    """

    cells: Sequence[Cell]
    jobs: int = 1
    failed: dict[str, str] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)
    _mutex: threading.Lock = field(default_factory=threading.Lock)
    _open: list[Cell] = field(default_factory=list)
    _running: int = 0

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise HfGrError(f"jobs is {self.jobs}; it must be at least 1.")

    def run(self) -> None:
        """Runs all cells that are not finished. Failures are in `failed`; the others go on.

        Raises:
            KeyboardInterrupt: On Ctrl-C or SIGTERM, after the running commands have ended.
        """
        self._open = [cell for cell in self.cells if not is_finished(cell)]
        devices = visible_devices() if self._open else []
        places = [int(os.environ.get("LOCAL_RANK", "0")) * self.jobs + job for job in range(self.jobs)]
        workers = [
            threading.Thread(target=self._work, args=(environment(os.environ, self.jobs, place, devices),))
            for place in places[: max(1, len(self._open))]
        ]
        with _terminated_as_interrupted():
            try:
                for worker in workers:
                    worker.start()
                for worker in workers:
                    while worker.is_alive():
                        worker.join(0.2)
            except KeyboardInterrupt:
                self._stop.set()
                for worker in workers:
                    worker.join()
                raise

    def _work(self, variables: Mapping[str, str]) -> None:
        fruitless = 0
        while not self._stop.is_set() and (cell := self._take()) is not None:
            outcome = self._attempt(cell, variables)
            with self._mutex:
                if outcome == "busy":
                    self._open.append(cell)
            fruitless = fruitless + 1 if outcome == "busy" else 0
            if fruitless >= max(1, len(self._open)):  # a whole round in vain
                self._stop.wait(_PATIENCE)
                fruitless = 0

    def _take(self) -> Cell | None:
        with self._mutex:
            return self._open.pop(0) if self._open else None

    def _attempt(self, cell: Cell, variables: Mapping[str, str]) -> str:
        """`done`, `busy` or `failed`."""
        try:
            with locked(cell.folder / "cell.lock"):
                if is_finished(cell):
                    return "done"
                for station in cell.stations:
                    run_station(station, variables, self._stop)
                write_json(cell.row_file, row_of(cell))
            print(f"[bench] {cell.name}: done", flush=True)
            return "done"
        except Busy:
            return "busy"
        except (HfGrError, Stopped) as error:
            if isinstance(error, Stopped) and self._stop.wait(_PATIENCE):
                return "failed"
            self.failed[cell.name] = str(error)
            print(f"[bench] {cell.name}: {error}", flush=True)
            return "failed"
        except Exception as error:  # of the harness itself: named with the cell, the others go on
            self.failed[cell.name] = f"{type(error).__name__}: {error}"
            return "failed"


def is_finished(cell: Cell) -> bool:
    """Whether the cell has a row of these very settings and data."""
    if not cell.row_file.is_file():
        return False
    row = read_json(cell.row_file)
    return (row["key"], row["source"]) == (cell.key, cell.source)


def state_of(cell: Cell) -> str:
    """In words: `done`, `running`, `changed` (finished with other settings), `begun` or `to do`."""
    if is_finished(cell):
        return "done"
    if not cell.folder.is_dir():
        return "to do"
    try:
        with locked(cell.folder / "cell.lock"):
            pass
    except Busy:
        return "running"
    if cell.row_file.is_file():
        return "changed"
    return "begun" if any(station.is_done() for station in cell.stations if station.trains) else "to do"


def environment(given: Mapping[str, str], jobs: int, place: int, devices: Sequence[str]) -> dict[str, str]:
    """Variables of a worker's commands: without the launcher's, so that each is a run of its own.

    Args:
        given: Variables of this process.
        jobs: Workers in each process of the launch.
        place: Number of the worker among those of this machine.
        devices: Accelerators of this machine; with several, each worker has one of them.
    """
    kept = {
        name: value
        for name, value in given.items()
        if name in _KEPT or (name not in _LAUNCHER and not name.startswith(_LAUNCHER_PREFIXES))
    }
    share = max(1, len(os.sched_getaffinity(0)) // (jobs * int(given.get("LOCAL_WORLD_SIZE", "1"))))
    if "OMP_NUM_THREADS" in given and launched() == 1:  # torchrun sets it to 1 by itself
        share = min(share, int(given["OMP_NUM_THREADS"]))
    kept["OMP_NUM_THREADS"] = str(share)
    kept["PYTHONUNBUFFERED"] = "1"
    if len(devices) > 1:
        kept["CUDA_VISIBLE_DEVICES"] = devices[place % len(devices)]
    return kept


def visible_devices() -> list[str]:
    """Names of the CUDA devices of this process, as `CUDA_VISIBLE_DEVICES` has them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    if shutil.which("nvidia-smi") is None:
        return []
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM (of `timeout`, of a scheduler) does in the block what Ctrl-C does."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
