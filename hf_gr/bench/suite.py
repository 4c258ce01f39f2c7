"""A suite: data sets, methods and seeds, as a YAML file says them, and the cells that they make."""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from ..arguments import RECIPES
from ..errors import HfGrError, first_line
from ..splits import read_split


TRAINING = ("sft", "grpo", "retrieve", "lists")  # what a method may do after its items have vectors and codes
STAGES = ("mine", "label", "embed", "quantize", *TRAINING, "blend", "remember", "evaluate")
METHOD_KEYS = ("title", "seeds", "from", *STAGES, "estimate_minutes")
SUITES = Path(str(files(__package__) / "suites"))  # those that ship with the package


@dataclass(frozen=True)
class Data:
    """A data set of a suite.

    Attributes:
        name: What cells and folders call it.
        recipes: Folder with the stages' YAML files: one beside the suite, or one of the package's by its name.
        prepare: Arguments of `hf-gr prepare`, with `{data}` for the folder of raw files.
        seeds: Of its cells, in place of the suite's.
        changes: Method → stage → keys that are changed here.
    """

    name: str
    recipes: Path
    prepare: list[str]
    seeds: list[int] | None = None
    changes: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One training of one method on one data set, from raw data to metrics."""

    data: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.data}/{self.method}-s{self.seed}"


@dataclass(frozen=True)
class Suite:
    """What the YAML file of a suite says.

    Attributes:
        file: The YAML file.
        title, notes: Heading of its tables, and what stands above them.
        datasets: By name.
        methods: Method → what it does: a recipe, or a mapping of `recipe` and changed keys, for each of `embed`,
            `quantize`, `sft`, `grpo`, `retrieve`; for `lists` the name of a baseline of `benchmarks/baselines`.
            `mine` and `label` (recipes as well) make the interests that later recipes with a key `interests` read.
            Keys of `evaluate` are added to the suite's. `from` names the method whose model it goes on with, `blend`
            the `method` whose retriever that is blended with, its `share` and `rule`, `remember` the options of a
            memory for it; `seeds` are its own, such as one of a method without chance. A method of
            `evaluate: {baselines: true}` alone is item kNN.
        seeds: Of all data sets that do not name their own.
        evaluate: Keys of `hf-gr evaluate` for all.
        against: The methods that all others are compared with; a name or several.
        exclude_seen: Whether models are asked and judged a second time without what the history holds.
        prediction: Whether tables tell where another run of a row is to be expected.
        price_per_hour: Of a core (or of a GPU where there is one), in a currency of your own; no cost is told without.
    """

    file: Path
    title: str
    datasets: dict[str, Data]
    methods: dict[str, dict[str, Any]]
    seeds: list[int]
    evaluate: dict[str, Any] = field(default_factory=dict)
    against: tuple[str, ...] = ()
    notes: str = ""
    exclude_seen: bool = False
    prediction: bool = False
    price_per_hour: float | None = None

    @property
    def name(self) -> str:
        return self.file.stem

    @property
    def argument(self) -> str:
        """What `hf-gr bench` takes for it: the name of one that ships with the package, else the file's."""
        return self.name if self.file.parent == SUITES else self.file.name

    def cells(self) -> list[Cell]:
        """All cells, seeds last: the first seed of everything comes before the second of anything."""
        pairs = product(self.datasets.values(), self.methods)
        found = [
            Cell(data.name, method, seed)
            for data, method in pairs
            for seed in self.methods[method].get("seeds") or data.seeds or self.seeds
        ]
        places = {cell: number for number, cell in enumerate(found)}
        return sorted(found, key=lambda cell: (cell.seed, places[cell]))

    def chosen(self, patterns: Sequence[str]) -> list[Cell]:
        """The cells that one of some patterns such as `beauty/*-s0` names; all without a pattern.

        Raises [`HfGrError`] on a pattern that names none.
        """
        cells = self.cells()
        for pattern in patterns:
            if not any(fnmatch.fnmatch(cell.name, pattern) for cell in cells):
                raise HfGrError(f"suite {self.name} has no cell {pattern!r}; --list shows its {len(cells)} cells.")
        return [cell for cell in cells if not patterns or any(fnmatch.fnmatch(cell.name, p) for p in patterns)]

    def stage(self, data: Data, method: str, stage: str) -> dict[str, Any]:
        """Recipe (`recipe`) and changed keys of a stage of a method; empty where it has no such stage."""
        given = self.methods[method].get(stage)
        if given is None and stage == "embed" and "quantize" in self.methods[method]:
            given = "embed"
        if given is None:
            return {}
        named = {"recipe": given} if isinstance(given, str) else dict(given)
        return named | data.changes.get(method, {}).get(stage, {})


def shipped_suites() -> list[str]:
    """Names of the suites that ship with the package."""
    return sorted(file.stem for file in SUITES.glob("*.yaml"))


def load_suite(name: str | Path) -> Suite:
    """Reads a suite: a file, or one that ships with the package by its name.

    Raises:
        HfGrError: If there is none, or on what it does not know.
    """
    file = Path(name)
    if not file.is_file():
        file = SUITES / f"{name}.yaml"
    if not file.is_file():
        raise HfGrError(f"there is no suite {str(name)!r}; give a YAML file or one of: {', '.join(shipped_suites())}.")
    try:
        given = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise HfGrError(f"{file} is no YAML ({first_line(error)}); mend it.") from None
    _check_keys(given, [key for key in Suite.__dataclass_fields__ if key != "file"], file, "the suite")
    for key in ("title", "datasets", "methods", "seeds"):
        if not given.get(key):
            raise HfGrError(f"{file} names no {key}; a suite needs title, datasets, methods and seeds.")
    for key, kind in (("datasets", Mapping), ("methods", Mapping), ("seeds", list)):
        if not isinstance(given[key], kind):
            what = "a list of numbers" if kind is list else "names, each with keys and values"
            raise HfGrError(f"{file}: {key} is {given[key]!r}; give {what}.")
    datasets = {}
    for own_name, own in given["datasets"].items():
        _check_keys(own, ("recipes", "prepare", "seeds", "changes"), file, f"data set {own_name}")
        if not own.get("recipes") or not own.get("prepare"):
            raise HfGrError(f"{file}: data set {own_name} needs recipes and prepare.")
        if not isinstance(own["recipes"], str) or not isinstance(own["prepare"], list):
            raise HfGrError(f"{file}: data set {own_name} needs a folder as recipes, and a list of words as prepare.")
        beside = file.parent / own["recipes"]
        datasets[own_name] = Data(
            own_name, **own | {"recipes": beside if beside.is_dir() else RECIPES / own["recipes"]}
        )
    for method, own in given["methods"].items():
        _check_keys(own, METHOD_KEYS, file, f"method {method}")
        if "remember" in given["methods"].get(own.get("from"), {}):
            raise HfGrError(f"{file}: method {method} goes on from {own['from']}, whose memory it would lose.")
        if own.get("from", method) not in given["methods"]:
            raise HfGrError(f"{file}: method {method} goes on from {own['from']!r}, which is no method of the suite.")
        if "blend" in own:
            _check_keys(own["blend"], ("method", "share", "rule"), file, f"blend of method {method}")
            if "from" not in own or "retrieve" not in given["methods"].get(own["blend"].get("method"), {}):
                raise HfGrError(f"{file}: blend of method {method} needs from, and a method with retrieve.")
        if "remember" in own:
            _check_keys(own["remember"], ("users",), file, f"remember of method {method}")
        if ("mine" in own) != ("label" in own):
            raise HfGrError(f"{file}: method {method} has one of mine and label; give both or none.")
        knn = (own.get("evaluate") or {}).get("baselines") is True
        if not knn and "from" not in own and not any(stage in own for stage in TRAINING):
            raise HfGrError(
                f"{file}: method {method} does nothing; give it one of {', '.join(TRAINING)}, from, or "
                "evaluate: {baselines: true} for item kNN."
            )
    for method in given["methods"]:
        _check_way(method, given["methods"], file)
    against = given.get("against") or []
    against = tuple([against] if isinstance(against, str) else against)
    suite = Suite(file, **given | {"datasets": datasets, "evaluate": given.get("evaluate") or {}, "against": against})
    for settings in (suite.evaluate, *(own.get("evaluate") or {} for own in suite.methods.values())):
        _check_judging(settings, suite)
    for other in suite.against:
        if other not in suite.methods:
            raise HfGrError(f"{file}: against is {other!r}, which is no method of the suite.")
    return suite


def _check_way(method: str, methods: Mapping[str, Any], file: Path) -> None:
    """Refuses a method that goes on from itself, by way of others or not."""
    way = [method]
    while (source := methods[way[-1]].get("from")) is not None:
        if source in way:
            raise HfGrError(f"{file}: method {method} goes on from itself ({' from '.join([*way, source])}).")
        way.append(source)


def _check_judging(settings: Mapping[str, Any], suite: Suite) -> None:
    """Refuses what the tables cannot hold: they compare one case a user, and ask for seen items themselves."""
    split = settings.get("split", "leave_one_out")
    if read_split(split).kind != "leave_one_out":
        raise HfGrError(f"{suite.file}: split is {split}, but tables compare one case a user; use leave_one_out.")
    if "exclude_seen" in settings:
        raise HfGrError(f"{suite.file}: exclude_seen is a key of the suite, not of evaluate; it adds a second table.")


def _check_keys(given: Any, known: Sequence[str], file: Path, what: str) -> None:
    if not isinstance(given, Mapping):
        raise HfGrError(f"{file}: {what} is {given!r}; give keys and values.")
    for key in given:
        if key not in known:
            raise HfGrError(f"{file}: {what} has no key {key!r}; it may have {', '.join(known)}.")
