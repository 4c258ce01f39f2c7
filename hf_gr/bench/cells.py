"""The cells of a suite: data set × method × seed, each a row of stations from the raw data to `metrics.json`.

    OUT/DATASET/dataset                      what `hf-gr prepare` writes; this and the next two are for all cells
    OUT/DATASET/vectors/RECIPE
    OUT/DATASET/catalogs/RECIPE-sSEED
    OUT/DATASET/SUITE/METHOD-sSEED/          sft/ grpo/ retrieve/ or lists.parquet, test/, row.json
"""

import fnmatch
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ..artifacts import fingerprint, settings_key
from ..errors import HfGrError
from .stations import Station, as_words
from .suite import Dataset, Entry, Method, Suite


LISTS = Path("benchmarks") / "baselines" / "lists.py"  # below the working directory
_UNSHAPING = {"batch_size"}  # keys of an evaluation that change nothing in it
_QUIET = {"disable_tqdm": True, "save_total_limit": 1}  # of trainings


@dataclass(frozen=True)
class Plan:
    """What the command line adds to a suite.

    Attributes:
        out: Folder of everything.
        data: What `{data}` stands for.
        python: Interpreter of the baselines.
        max_steps: Steps of every training, for a trial; none: as the recipes say.
    """

    out: Path
    data: Path | None = None
    python: str = "python"
    max_steps: int | None = None


@dataclass(frozen=True)
class Cell:
    """A data set, a method and a seed, and the stations that lead to its metrics."""

    suite: Suite
    dataset: Dataset
    method: Method
    seed: int
    stations: tuple[Station, ...]
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.dataset.name}/{self.method.name}-s{self.seed}"

    @property
    def key(self) -> str:
        """Of all settings that shape the result, 12 hex digits."""
        return settings_key("cell", {}, {station.name: station.key for station in self.stations})

    @property
    def source(self) -> str:
        return self.stations[0].source

    @property
    def row_file(self) -> Path:
        return self.folder / "row.json"

    @property
    def command(self) -> str:
        """What runs it again."""
        return f"hf-gr bench {relative(self.suite.file)} --data DATA --cells {self.name}"


def cells_of(suite: Suite, plan: Plan) -> list[Cell]:
    """All cells of a suite: data set by data set, seed by seed.

    Raises:
        HfGrError: If a recipe is missing, `{data}` is not known, or raw data does not exist.
    """
    cells = []
    for dataset in suite.datasets.values():
        source = _source(suite, dataset, plan)
        methods = [method for method in suite.methods.values() if method.name not in dataset.without]
        seeds = sorted({seed for method in methods for seed in suite.seeds_of(dataset, method)})
        for seed in seeds:
            road = _Road(suite, dataset, seed, plan, source)
            cells += [road.cell(method) for method in methods if seed in suite.seeds_of(dataset, method)]
    return cells


def choose(cells: Sequence[Cell], patterns: str | None) -> list[Cell]:
    """Those that one of the patterns, parted by commas, names: `scientific/flat-s0`, `*/flat-*`."""
    if patterns is None:
        return list(cells)
    chosen: set[str] = set()
    for pattern in patterns.split(","):
        found = fnmatch.filter([cell.name for cell in cells], pattern.strip())
        if not found:
            names = ", ".join(cell.name for cell in cells[:3])
            raise HfGrError(f"no cell is called {pattern.strip()!r}; --list shows them ({names} …).")
        chosen |= set(found)
    return [cell for cell in cells if cell.name in chosen]


def relative(path: Path) -> str:
    """A path as seen from the working directory, if it lies below that."""
    whole, here = Path(os.path.abspath(path)), Path.cwd()
    return str(whole.relative_to(here)) if whole.is_relative_to(here) else str(path)


@dataclass(frozen=True)
class _Road:
    """The way of one data set and seed from station to station."""

    suite: Suite
    dataset: Dataset
    seed: int
    plan: Plan
    source: str

    @property
    def home(self) -> Path:
        return self.plan.out / self.dataset.name

    def folder(self, method: Method) -> Path:
        trial = "" if self.plan.max_steps is None else "-trial"
        return self.home / f"{self.suite.name}{trial}" / f"{method.name}-s{self.seed}"

    def cell(self, method: Method) -> Cell:
        stations = self.trained(method)
        answers = stations[-1]
        for folder, seen in [("test", False), *([("unseen", True)] if self.suite.exclude_seen else [])]:
            if "baseline" in method.stations and seen:
                stations = [*stations, answers := self.lists(method, stations[0], seen)]
            stations = [*stations, self.evaluated(method, stations[0], answers, folder, seen)]
        return Cell(self.suite, self.dataset, method, self.seed, tuple(stations), self.folder(method))

    def trained(self, method: Method) -> list[Station]:
        """All up to the one whose model or lists are evaluated."""
        folder, made = self.folder(method), self.prepared()
        data = {"dataset": made[0].output}
        if "baseline" in method.stations:
            return [*made, self.lists(method, made[0], False)]
        if "retrieve" in method.stations:
            entry = self.entry(method, "retrieve")
            settings = {"seed": self.seed, **_QUIET}
            return [*made, self.station("retrieve", entry, folder / "retrieve", made, data, settings, trains=True)]
        if method.start is not None:
            start = self.suite.methods[method.start]
            made = [self.renamed(station, start) for station in self.trained(start)]
        else:
            made += self.coded(method, made[0])
            inputs = data | {"catalog": made[-1].output}
            entry, settings = self.entry(method, "sft"), {"seed": self.seed, **_QUIET}
            made += [self.station("sft", entry, folder / "sft", made, inputs, settings, trains=True)]
        if "grpo" in method.stations:
            inputs = data | {"model": made[-1].output / "model"}
            entry, settings = self.entry(method, "grpo"), {"seed": self.seed, **_QUIET}
            made += [self.station("grpo", entry, folder / "grpo", made, inputs, settings, trains=True)]
        return made

    def prepared(self) -> list[Station]:
        words = ["hf-gr", "prepare", *self.dataset.prepare, "--out", str(self.home / "dataset")]
        command = tuple(word.replace("{data}", str(self.plan.data)) for word in words)
        key = settings_key("prepare", {"words": self.dataset.prepare}, {})
        return [Station("prepare", command, self.home / "dataset", key, self.source)]

    def coded(self, method: Method, dataset: Station) -> list[Station]:
        """Item vectors and their catalogue."""
        entry = self.entry(method, "embed") if "embed" in method.stations else self.dataset.embed
        data = {"dataset": dataset.output}
        vectors = self.station("embed", entry, self.home / "vectors" / _label(entry), [dataset], data, {})
        entry = self.entry(method, "quantize")
        label = _label(entry) if "embed" not in method.stations else f"{_label(entry)}-of-{vectors.output.name}"
        output, inputs = self.home / "catalogs" / f"{label}-s{self.seed}", data | {"embeddings": vectors.output}
        return [vectors, self.station("quantize", entry, output, [dataset, vectors], inputs, {"seed": self.seed})]

    def lists(self, method: Method, dataset: Station, exclude_seen: bool) -> Station:
        """Lists of a system that is not ours."""
        entry, name = self.entry(method, "baseline"), "unseen-lists" if exclude_seen else "lists"
        settings = {
            "model": entry.recipe,
            **entry.changes,
            "seed": self.seed,
            "part": self.suite.part,
            "top-k": self.suite.evaluate.get("top_k", 50),
            "exclude-seen": exclude_seen,
        }
        output = self.folder(method) / f"{name}.parquet"
        words = as_words({"dataset": dataset.output, **settings, "out": output})
        key = settings_key("baseline", settings, {"dataset": dataset.key})
        command = (self.plan.python, str(LISTS), *words)
        return Station(name, command, output, key, self.source, trains=not exclude_seen)

    def evaluated(self, method: Method, dataset: Station, answers: Station, folder: str, exclude_seen: bool) -> Station:
        settings = self.suite.evaluate | method.evaluate
        settings |= self.dataset.changes.get(method.name, {}).get("evaluate", {})
        settings |= {"baselines": False, "seed": self.seed} | ({"exclude_seen": True} if exclude_seen else {})
        lists = "baseline" in method.stations
        inputs = {"predictions": answers.output} if lists else {"model": answers.output / "model"}
        words = as_words({"dataset": dataset.output, **inputs, "output_dir": self.folder(method) / folder, **settings})
        shaping = {key: value for key, value in settings.items() if key not in _UNSHAPING}
        key = settings_key("evaluate", shaping, {"dataset": dataset.key, "answers": answers.key})
        output = self.folder(method) / folder
        return Station(folder, ("hf-gr", "evaluate", *words), output, key, self.source)

    def station(
        self,
        name: str,
        entry: Entry,
        output: Path,
        made: Sequence[Station],
        inputs: Mapping[str, Path],
        settings: Mapping[str, Any],
        trains: bool = False,
    ) -> Station:
        """A station by its recipe; what it reads and where it writes are given, and so shape no key."""
        file = self.dataset.recipes / f"{entry.recipe}.yaml"
        changes = entry.changes | settings
        if trains and self.plan.max_steps is not None:
            changes |= {"max_steps": self.plan.max_steps}
        shaping = {
            key: value
            for key, value in (_recipe(self.suite, file) | changes).items()
            if key not in {*inputs, "output_dir", *_QUIET}
        }
        words = as_words({"config": relative(file), **inputs, "output_dir": output, **changes})
        key = settings_key(name, shaping, {station.name: station.key for station in made})
        return Station(name, ("hf-gr", name, *words), output, key, self.source, trains)

    def renamed(self, station: Station, start: Method) -> Station:
        """A station of the method that a cell goes on from; what all cells share keeps its name."""
        own = self.folder(start) in station.output.parents and ":" not in station.name
        return replace(station, name=f"{start.name}:{station.name}") if own else station

    def entry(self, method: Method, station: str) -> Entry:
        """The recipe of a method's station, with what is changed on this data set."""
        given = method.stations[station]
        changes = self.dataset.changes.get(method.name, {}).get(station, {})
        return Entry(changes.get("recipe", given.recipe), given.changes | _without_recipe(changes))


def _without_recipe(changes: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in changes.items() if key != "recipe"}


def _label(entry: Entry) -> str:
    """Name of what a recipe makes; changed keys give it one of its own."""
    return f"{entry.recipe}-{settings_key('', entry.changes, {})[:6]}" if entry.changes else entry.recipe


def _recipe(suite: Suite, file: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(file.read_text())
    except FileNotFoundError:
        raise HfGrError(f"{suite.file} names the recipe {file.stem!r}, but there is no {file}; add it.") from None
    except yaml.YAMLError as error:
        raise HfGrError(f"{file} is not valid YAML ({' '.join(str(error).split())}).") from None
    return found if isinstance(found, dict) else {}


def _source(suite: Suite, dataset: Dataset, plan: Plan) -> str:
    """Fingerprint of the raw files that `prepare` names."""
    if any("{data}" in word for word in dataset.prepare) and plan.data is None:
        raise HfGrError(f"{suite.file} reads raw data; say where it lies with --data FOLDER.")
    files = [Path(word.replace("{data}", str(plan.data))) for word in dataset.prepare if "{data}" in word]
    for file in files:
        if not file.exists():
            raise HfGrError(f"{file} does not exist; --data names the folder that {suite.file} reads raw data from.")
    return settings_key("source", {}, {str(place): fingerprint(file) for place, file in enumerate(files)})
