"""What a cell does: a chain of `hf-gr` stages, each a process of its own, none of them run again without need."""

import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..arguments import RECIPES, recipe_file
from ..artifacts import read_json, stage_version, write_json
from ..errors import HfGrError
from ..fingerprints import fingerprint
from .suite import Cell, Data, Suite


LAUNCHER = re.compile(r"(GROUP_|ROLE_|LOCAL_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|(ACCELERATE|TORCHELASTIC)_.*")
LISTS = Path("benchmarks/baselines/lists.py")  # settings of a system stand beside it, if it has any
_NOWHERE = Path(os.devnull) / "raw"  # in the place of raw data that are not to be read
PROGRAM = [sys.executable, "-m", "hf_gr.cli"]


@dataclass(frozen=True)
class Step:
    """A stage of a cell.

    Attributes:
        stage: Its name.
        output: The folder or file that it writes.
        command: The whole command line.
        key: Tells its settings and those of all that it builds on; the output is up to date if made under this key.
    """

    stage: str
    output: Path
    command: list[str]
    key: str

    @property
    def cost_file(self) -> Path:
        return self.output.with_name(f"{self.output.name}.cost.json")

    @property
    def told(self) -> str:
        """The command line as a person types it."""
        words = self.command[len(PROGRAM) :]
        return " ".join(["hf-gr", *words] if self.command[: -len(words)] == PROGRAM else ["python", *self.command[1:]])

    def cost(self) -> dict[str, Any] | None:
        """What it took, over all attempts: `seconds`, `cpu_seconds`, `peak_bytes` (`None` each where the stage found
        its output made and nothing tells); `None` if it did not run to its end under this key."""
        found = self.attempts()
        return found if found.get("finished") and self.output.exists() else None

    def attempts(self) -> dict[str, Any]:
        """What attempts under this key took so far, and whether one ended well; empty if there was none."""
        found = read_json(self.cost_file) if self.cost_file.is_file() else {}
        return found if found.get("key") == self.key else {}


@dataclass(frozen=True)
class Places:
    """Where a grid reads and writes.

    Attributes:
        out: Folder of all artifacts.
        raw: Folder of the raw data, `{data}` in suites.
        python: Of the environment that the baselines of `lists` run in.
        max_steps: Of trainings, for a trial; 0: the recipes'.
    """

    out: Path
    raw: Path | None = None
    python: str = sys.executable
    max_steps: int = 0

    def portable(self, command: str) -> str:
        """A command line or a word of it without the places of this machine: `bench` and `DATA` in their stead."""
        for folder, name in ((self.out, "bench"), (self.raw, "DATA")):
            command = re.sub(rf"(?<!\S){re.escape(str(folder))}(?=/)", name, command)
        return command


def steps_of(suite: Suite, cell: Cell, places: Places) -> list[Step]:
    """The stages of a cell in order. The last one judges, into `test`; where the suite has `exclude_seen` one judges
    into `test` first, and the last one without the items of the history, into `test-unseen`."""
    return _Chain(suite, cell, places).steps


def settings_of(suite: Suite, cell: Cell) -> str | None:
    """The key of a cell's settings and of the versions of its stages, whatever its raw data; `None` where a part of
    the settings is not here (those of baselines are in a checkout alone)."""
    try:
        return steps_of(suite, cell, Places(Path("bench"), _NOWHERE))[-1].key
    except HfGrError:
        return None


class _Chain:
    """Builds the steps of a cell one on another."""

    def __init__(self, suite: Suite, cell: Cell, places: Places):
        self.suite, self.cell, self.places = suite, cell, places
        self.data: Data = suite.datasets[cell.data]
        self.root = places.out / cell.data
        self.dataset = self.root / "dataset"
        self.steps: list[Step] = []
        self.labelled: Step | None = None  # interests, once a method has mined some
        self._prepare()
        judged = self._train(cell.method)
        made = self.steps[-1].key
        self._judge(judged, "test", made)
        if suite.exclude_seen:
            self._judge(judged, "test-unseen", made, self.steps[-1].key)

    def _add(self, stage: str, output: Path, arguments: list[str], *read: str, program: str = "") -> Step:
        """Adds a step. Its key covers its settings, the stage's version and the keys of the steps it builds on."""
        settings = _settings(arguments, self.places)
        if self.labelled is not None and str(self.labelled.output) in arguments:
            read = (*read, self.labelled.key)
        made = [stage, stage_version(stage), program, settings, read]
        key = hashlib.sha256(json.dumps(made).encode()).hexdigest()[:12]
        start = [self.places.python, program] if program else [*PROGRAM, stage]
        self.steps.append(Step(stage, output, [*start, *arguments], key))
        return self.steps[-1]

    def _prepare(self) -> None:
        raw = self.places.raw
        if raw is None and any("{data}" in word for word in self.data.prepare):
            raise HfGrError(f"{self.data.name} is made of raw files; name their folder with --data.")
        words = [word.replace("{data}", str(raw)) for word in self.data.prepare]
        files = [Path(word) for word, told in zip(words, self.data.prepare, strict=True) if "{data}" in told]
        read = [fingerprint(file) for file in files if file.exists()]
        self._add("prepare", self.dataset, [*words, "--out", str(self.dataset)], *read)

    def _config(self, method: str, stage: str) -> tuple[str, list[str]] | None:
        """Recipe of a stage and its command-line arguments; `None` where the method does not have it."""
        given = self.suite.stage(self.data, method, stage)
        if not given:
            return None
        recipe = str(given.pop("recipe"))
        file = self.data.recipes / f"{recipe}.yaml"
        if not file.is_file():
            raise HfGrError(f"method {method} of suite {self.suite.name} needs {file}, which is not there.")
        ours = self.data.recipes.parent == RECIPES  # told by name, wherever the package is
        return recipe, ["--config", f"{self.data.recipes.name}/{recipe}" if ours else str(file), *_arguments(given)]

    def _train(self, method: str) -> list[str]:
        """The steps up to what a method has to be judged by, and the arguments that tell `evaluate` of it; another
        method's steps first if it goes on from there."""
        own, judged = self.suite.methods[method], list[str]()
        prepared = self.steps[0].key
        if "from" in own:
            judged = self._train(own["from"])
        folder = self.root / f"{method}-s{self.cell.seed}"
        common = ["--dataset", str(self.dataset), "--seed", str(self.cell.seed)]
        if "lists" in own:
            if not LISTS.is_file():
                raise HfGrError(
                    f"method {method} is computed by {LISTS}, which is not here; run the suite in a checkout of "
                    "hf_gr, or name the cells of other methods with --cells."
                )
            output, settings = folder / "lists.parquet", LISTS.with_name(f"{own['lists']}.yaml")
            words = [*common, "--model", own["lists"], "--part", "test", "--top-k", "100", "--out", str(output)]
            words += ["--config", str(settings)] if settings.is_file() else []
            self._add("lists", output, words, prepared, program=str(LISTS))
            return ["--predictions", str(output)]
        if "mine" in own:
            self._interests(method, prepared)
        inputs, reads = {"grpo": judged}, {"retrieve": prepared}  # others read what the step before them made
        if "quantize" in own:
            inputs["sft"] = ["--catalog", str(self._codes(method, prepared))]
        common += ["--disable_tqdm", "true"]
        common += ["--max_steps", str(self.places.max_steps)] if self.places.max_steps else []
        for stage in ("sft", "grpo", "retrieve"):
            if (found := self._config(method, stage)) is not None:
                output = folder / stage
                words = [*found[1], *self._labels_for(found[0]), *inputs.get(stage, []), *common]
                words += ["--memory", "false"] if stage == "sft" else []  # a step of its own, for the methods that ask
                words += ["--output_dir", str(output)]
                self._add(stage, output / "model", words, reads.get(stage, self.steps[-1].key))
                judged = inputs["grpo"] = ["--model", str(output / "model")]
        if "blend" in own:
            given, made = dict(own["blend"]), self.steps[-1].key
            words = [*judged[1:], *self._train(given.pop("method"))[1:], *_arguments(given)]
            self._add("blend", folder / "blend", [*words, "--out", str(folder / "blend")], made, self.steps[-1].key)
            judged = ["--model", str(folder / "blend")]
        return judged

    def _interests(self, method: str, prepared: str) -> None:
        """The steps to labelled interests, which methods of the same settings and all seeds share."""
        self.labelled = None
        recipe, words = self._config(method, "mine") or ("", [])
        folder = self.root / "interests"
        mined = folder / _mark(recipe, words)
        read = self._add("mine", mined, [*words, "--dataset", str(self.dataset), "--output_dir", str(mined)], prepared)
        recipe, words = self._config(method, "label") or ("", [])
        output = folder / f"{mined.name}-{_mark(recipe, words)}"
        words += ["--dataset", str(self.dataset), "--interests", str(mined), "--output_dir", str(output)]
        self.labelled = self._add("label", output, words, read.key)

    def _labels_for(self, recipe: str) -> list[str]:
        """The arguments that tell a stage of the labelled interests, if its recipe reads any."""
        settings = yaml.safe_load((self.data.recipes / f"{recipe}.yaml").read_text(encoding="utf-8"))
        if "interests" not in settings:
            return []
        if self.labelled is None:
            raise HfGrError(f"recipe {recipe} reads interests; give method {self.cell.method} mine and label.")
        return ["--interests", str(self.labelled.output)]

    def _codes(self, method: str, prepared: str) -> Path:
        """The steps to vectors and codes, which methods of the same settings share, and the catalog's folder."""
        recipe, words = self._config(method, "embed") or ("", [])
        labels = self._labels_for(recipe)
        of = f"-of-{self.labelled.output.name}" if labels and self.labelled else ""
        vectors = self.root / "vectors" / f"{_mark(recipe, words)}{of}"
        words += [*labels, "--dataset", str(self.dataset), "--output_dir", str(vectors)]
        embedded = self._add("embed", vectors, words, prepared)
        recipe, words = self._config(method, "quantize") or ("", [])
        of = "" if vectors.name == "embed" else f"{vectors.name}-"
        catalog = self.root / "catalogs" / f"{of}{_mark(recipe, words)}-s{self.cell.seed}"
        words += ["--dataset", str(self.dataset), "--embeddings", str(vectors), "--output_dir", str(catalog)]
        self._add("quantize", catalog, [*words, "--seed", str(self.cell.seed)], embedded.key)
        return catalog

    def _judge(self, judged: list[str], name: str, made: str, *before: str) -> None:
        """The step that judges, after the memory of a method that has one: both know whether seen items are served."""
        method = self.suite.methods[self.cell.method]
        folder, unseen = self.root / f"{self.cell.method}-s{self.cell.seed}", name != "test"
        seed = str(self.cell.seed)
        if "remember" in method:
            output = folder / ("remember-unseen" if unseen else "remember")
            words = [judged[1], str(self.dataset), *_arguments(method["remember"]), "--seed", seed]
            words += ["--exclude-seen"] if unseen else []
            self._add("remember", output, [*words, "--out", str(output)], self.steps[0].key, made)
            judged, made = ["--model", str(output)], self.steps[-1].key
        settings = {"baselines": False, "seed": self.cell.seed, **self.suite.evaluate, **method.get("evaluate", {})}
        settings |= {"exclude_seen": True} if unseen else {}
        words = ["--dataset", str(self.dataset), *judged, *_arguments(settings), "--output_dir", str(folder / name)]
        self._add("evaluate", folder / name, words, made, *before)


def _settings(words: Sequence[str], places: Places) -> list[Any]:
    """What a command line asks for: its first words, and every option's values. What a YAML file says counts as the
    options that it stands for; an option of the line takes its place, as it does when the stage reads them."""
    first, options = list[str](), dict[str, list[str]]()
    values = first
    for word in words:
        if word.startswith("--"):
            values = options.setdefault(word, [])
        else:
            values.append(word)
    if "--config" in options:
        told = yaml.safe_load(recipe_file(options.pop("--config")[0]).read_text(encoding="utf-8"))
        options = {f"--{name}": _arguments({name: value})[1:] for name, value in told.items()} | options
    told = {name: [places.portable(word) for word in values] for name, values in sorted(options.items())}
    return [[places.portable(word) for word in first], told]


def _mark(recipe: str, words: list[str]) -> str:
    """The recipe's name, with a few digits where keys of it were changed."""
    changed = words[2:]
    return recipe + (f"-{hashlib.sha256(json.dumps(changed).encode()).hexdigest()[:6]}" if changed else "")


def _arguments(settings: Mapping[str, Any]) -> list[str]:
    """Keys and values as the stages' command lines have them."""
    words = []
    for key, value in settings.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{key}", *(json.dumps(v) if isinstance(v, dict | bool) else str(v) for v in values)]
    return words


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[int]:
    """Holds the lock file of an artifact, which the system frees when the process ends, however it ends, and all to
    whom it gave the file descriptor that is yielded.

    Yields 0, at once, if another process holds it and this one is not to `wait`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield 0
            return
        yield file.fileno()


class Runner:
    """Runs steps, each as a process; [`stop`] ends those that run, from another thread."""

    def __init__(self, threads: int):
        self.threads, self.stopped = threads, False
        self._running: set[subprocess.Popen] = set()

    def stop(self) -> None:
        """Ends what runs, and lets nothing begin."""
        self.stopped = True
        for process in list(self._running):
            process.terminate()

    def run(self, step: Step, log: Path) -> dict[str, Any]:
        """Runs a step unless its output is there already, and says what it took ([`Step.cost`]).

        Its output goes to `log`. Two processes never make one artifact at a time, also where the grid of one was
        killed: its stage holds the lock. Raises [`HfGrError`] if it fails.
        """
        with locked(step.output) as lock:
            if (known := step.cost()) is not None:
                return known
            if self.stopped:
                raise HfGrError(f"{step.stage} was not begun, as the grid was stopped.")
            before, took = _stamp(step.output), {"seconds": time.perf_counter()}
            with log.open("a", encoding="utf-8") as file:
                file.write(f"$ {' '.join(step.command)}\n")
                file.flush()
                environment = _environment(self.threads)
                process = subprocess.Popen(
                    step.command, stdout=file, stderr=file, env=environment, pass_fds=(lock,), start_new_session=True
                )
                self._running.add(process)
                _, status, used = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                self._running.discard(process)
            took["seconds"] = time.perf_counter() - took["seconds"]
            took |= {"cpu_seconds": used.ru_utime + used.ru_stime}
            took |= {"peak_bytes": used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)}
            cost = _told(step, took, made=before != _stamp(step.output) or process.returncode != 0)
            write_json(step.cost_file, cost | {"key": step.key, "finished": process.returncode == 0})
        if process.returncode:
            last = [
                line
                for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
                if line.startswith("error:")
            ][-1:]
            reason = last[0].removeprefix("error: ") if last else f"exit status {process.returncode}"
            raise HfGrError(f"{step.stage} failed ({reason}); see {log}.")
        return cost


def _told(step: Step, took: dict[str, float], made: bool) -> dict[str, Any]:
    """What a step took with this attempt: earlier attempts added, and where it found its output `made` before, what it
    took then, if that is known."""
    if not made:
        known = read_json(step.cost_file) if step.cost_file.is_file() else {}
        return {name: known.get(name) for name in took}
    earlier = step.attempts()
    together = {name: value + (earlier.get(name) or 0) for name, value in took.items()}
    return together | {"peak_bytes": max(took["peak_bytes"], earlier.get("peak_bytes") or 0)}


def _environment(threads: int) -> dict[str, str]:
    """Of a stage: without what a launcher told this process, and on a GPU of its own where several share some."""
    environment = {name: value for name, value in os.environ.items() if not LAUNCHER.fullmatch(name)}
    if "LOCAL_RANK" in os.environ and "CUDA_VISIBLE_DEVICES" not in os.environ:
        environment["CUDA_VISIBLE_DEVICES"] = os.environ["LOCAL_RANK"]
    return environment | {"OMP_NUM_THREADS": str(threads)}


def _stamp(output: Path) -> int:
    """Tells whether an artifact was written anew; 0 where there is none."""
    file = output / "manifest.json" if output.is_dir() else output
    return file.stat().st_mtime_ns if file.exists() else 0
