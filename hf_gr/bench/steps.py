"""What a cell does: a chain of `hf-gr` stations, each a process of its own, none of them run again without need."""

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..artifacts import read_json, write_json
from ..errors import HfGrError
from .suite import Cell, Data, Suite


LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")
LISTS = Path("benchmarks/baselines/lists.py")  # settings of a system stand beside it, if it has any
STATIONS = [sys.executable, "-m", "hf_gr.cli"]


@dataclass(frozen=True)
class Step:
    """A station of a cell.

    Attributes:
        station: Its name.
        output: The folder or file that it writes.
        command: The whole command line.
        key: Tells its settings and those of all that it builds on; the output is up to date if made under this key.
    """

    station: str
    output: Path
    command: list[str]
    key: str

    @property
    def cost_file(self) -> Path:
        return self.output.with_name(f"{self.output.name}.cost.json")

    @property
    def told(self) -> str:
        """The command line as a person types it."""
        words = self.command[len(STATIONS) :]
        return " ".join(
            ["hf-gr", *words] if self.command[: -len(words)] == STATIONS else ["python", *self.command[1:]]
        )

    def cost(self) -> dict[str, Any] | None:
        """What it took: `seconds`, `cpu_seconds`, `peak_bytes` (`None` each where the station found its output made)
        and the key; `None` if it did not run to its end."""
        if not (self.output.exists() and self.cost_file.is_file()):
            return None
        found = read_json(self.cost_file)
        return found if found["key"] == self.key else None


@dataclass(frozen=True)
class Places:
    """Where a grid reads and writes.

    Attributes:
        out: Folder of all artefacts.
        raw: Folder of the raw data, `{data}` in suites.
        python: Of the environment that the baselines of `lists` run in.
        max_steps: Of trainings, for a trial; 0: the recipes'.
    """

    out: Path
    raw: Path | None = None
    python: str = sys.executable
    max_steps: int = 0


def steps_of(suite: Suite, cell: Cell, places: Places) -> list[Step]:
    """The stations of a cell in order; the last one judges, into `test`."""
    return _Chain(suite, cell, places).steps


class _Chain:
    def __init__(self, suite: Suite, cell: Cell, places: Places):
        self.suite, self.cell, self.places = suite, cell, places
        self.data: Data = suite.datasets[cell.data]
        self.root = places.out / cell.data
        self.steps: list[Step] = []
        self._prepare()
        self.judged = ["--model", ""]
        self._train(cell.method)
        self._judge()

    def _add(self, station: str, output: Path, arguments: list[str], *read: str, program: str = "") -> Step:
        """Adds a step whose key covers its arguments, the recipe's content and the steps that it builds on (keys)."""
        told = [argument.replace(str(self.places.out), "") for argument in arguments]
        recipes = [Path(argument).read_bytes().hex() for argument in arguments if argument.endswith(".yaml")]
        key = hashlib.sha256(json.dumps([station, program, told, recipes, read]).encode()).hexdigest()[:12]
        start = [self.places.python, program] if program else [*STATIONS, station]
        step = Step(station, output, [*start, *arguments], key)
        self.steps.append(step)
        return step

    def _prepare(self) -> None:
        raw = self.places.raw
        if raw is None and any("{data}" in word for word in self.data.prepare):
            raise HfGrError(f"{self.data.name} is made of raw files; name their folder with --data.")
        words = [word.replace("{data}", str(raw)) for word in self.data.prepare]
        output = self.root / "dataset"
        self.dataset = self._add("prepare", output, [*words, "--out", str(output)])
        told = [word.replace("{data}", "DATA") for word in self.data.prepare]  # wherever the raw files lie
        self.dataset = self.steps[-1] = Step(
            "prepare", output, self.dataset.command, hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]
        )

    def _config(self, method: str, station: str) -> tuple[str, list[str]] | None:
        """Recipe of a station and its command-line arguments; `None` where the method does not have it."""
        given = self.suite.station(self.data, method, station)
        if not given:
            return None
        recipe = str(given.pop("recipe"))
        file = self.data.recipes / f"{recipe}.yaml"
        if not file.is_file():
            raise HfGrError(f"method {method} of suite {self.suite.name} needs {file}, which is not there.")
        return recipe, ["--config", str(file), *_arguments(given)]

    def _train(self, method: str) -> None:
        """The steps up to a method's model; of another method's first if it goes on from there."""
        own, seed = self.suite.methods[method], self.cell.seed
        if "from" in own:
            self._train(own["from"])
        folder, dataset = self.root / f"{method}-s{seed}", self.root / "dataset"
        trial = ["--max_steps", str(self.places.max_steps)] if self.places.max_steps else []
        if (lists := own.get("lists")) is not None:
            output = folder / "lists.parquet"
            words = ["--dataset", str(dataset), "--model", lists, "--seed", str(seed), "--part", "test"]
            settings = LISTS.with_name(f"{lists}.yaml")
            words += ["--config", str(settings)] if settings.is_file() else []
            self._add("lists", output, [*words, "--out", str(output)], self.dataset.key, program=str(LISTS))
            self.judged = ["--predictions", str(output)]
            return
        if (found := self._config(method, "embed")) is not None:
            recipe, words = found
            vectors = self.root / "vectors" / _mark(recipe, words)
            step = self._add(
                "embed", vectors, [*words, "--dataset", str(dataset), "--output_dir", str(vectors)], self.dataset.key
            )
            recipe, words = self._config(method, "quantize") or ("", [])
            self.catalog = self.root / "catalogs" / f"{_mark(recipe, words)}-s{seed}"
            words += ["--dataset", str(dataset), "--embeddings", str(vectors), "--output_dir", str(self.catalog)]
            self.built = self._add("quantize", self.catalog, [*words, "--seed", str(seed)], step.key)
        common = ["--dataset", str(dataset), "--seed", str(seed), "--disable_tqdm", "true", *trial]
        for station in ("sft", "grpo", "retrieve"):
            if (found := self._config(method, station)) is None:
                continue
            output = folder / station
            read = {"sft": ["--catalog", str(getattr(self, "catalog", ""))], "grpo": ["--model", self.judged[1]]}
            before = self.steps[-1].key
            words = [*found[1], *read.get(station, []), *common, "--output_dir", str(output)]
            self._add(station, output / "model", words, before)
            self.judged = ["--model", str(output / "model")]

    def _judge(self) -> None:
        output = self.root / f"{self.cell.method}-s{self.cell.seed}" / "test"
        settings = {"baselines": False, "seed": self.cell.seed, **self.suite.evaluate}
        settings |= self.suite.methods[self.cell.method].get("evaluate", {})
        words = ["--dataset", str(self.root / "dataset"), *self.judged, *_arguments(settings)]
        self._add("evaluate", output, [*words, "--output_dir", str(output)], self.steps[-1].key)


def _mark(recipe: str, words: list[str]) -> str:
    """The recipe's name, with a few digits where keys of it were changed."""
    changed = words[2:]
    return recipe + (f"-{hashlib.sha256(json.dumps(changed).encode()).hexdigest()[:6]}" if changed else "")


def _arguments(settings: Mapping[str, Any]) -> list[str]:
    """Keys and values as the stations' command lines have them."""
    words = []
    for key, value in settings.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{key}", *(json.dumps(v) if isinstance(v, dict | bool) else str(v) for v in values)]
    return words


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Holds the lock file of an artefact, which the system frees when the process ends, however it ends.

    Yields False, at once, if another process holds it and this one is not to `wait`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def run_step(step: Step, log: Path, threads: int) -> dict[str, Any]:
    """Runs a step unless its output is there already, and says what it took.

    Its output goes to `log`. Two processes never make one artefact at a time. Raises [`HfGrError`] if it fails.
    """
    with locked(step.output):
        if (known := step.cost()) is not None:
            return known
        environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
        environment |= {"OMP_NUM_THREADS": str(threads), "HF_GR_BENCH": "1"}
        if "LOCAL_RANK" in os.environ and "CUDA_VISIBLE_DEVICES" not in os.environ:
            environment["CUDA_VISIBLE_DEVICES"] = os.environ["LOCAL_RANK"]
        started, before = time.perf_counter(), _stamp(step.output)
        with log.open("a") as file:
            file.write(f"$ {' '.join(step.command)}\n")
            file.flush()
            process = subprocess.Popen(step.command, stdout=file, stderr=file, env=environment)
            try:
                _, status, used = os.wait4(process.pid, 0)
            except BaseException:
                process.kill()
                process.wait()
                raise
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            last = [line for line in log.read_text().splitlines() if line.startswith("error:")][-1:]
            reason = last[0].removeprefix("error: ") if last else f"exit status {process.returncode}"
            raise HfGrError(f"{step.station} failed ({reason}); see {log}.")
        made = before != _stamp(step.output)
        cost = {
            "key": step.key,
            "seconds": time.perf_counter() - started if made else None,
            "cpu_seconds": used.ru_utime + used.ru_stime if made else None,
            "peak_bytes": used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) if made else None,
        }
        write_json(step.cost_file, cost)
        return cost


def _stamp(output: Path) -> int:
    """Tells whether an artefact was written anew; 0 where there is none."""
    file = output / "manifest.json" if output.is_dir() else output
    return file.stat().st_mtime_ns if file.exists() else 0
