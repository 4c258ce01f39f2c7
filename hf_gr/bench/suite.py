"""A suite: data sets × methods × seeds in a YAML file, read and checked.

    title: Amazon Scientific
    datasets:
      scientific:
        recipes: ../amazon-scientific                     # folder of the recipes named below, from the suite's own
        prepare: [table, "{data}/interactions.csv.gz"]    # words of `hf-gr prepare`; {data} is what --data names
        seeds: [0]                                        # in place of the suite's
        changes: {flat: {sft: {num_train_epochs: 12}}}    # keys of a method's recipes, on this data set
        without: [hstu]                                   # methods that are not run on it
    methods:
      flat: {quantize: quantize, sft: sft-flat-small}     # recipes; {recipe: NAME, key: value, …} changes keys
      tuned: {from: flat, grpo: grpo-small}               # goes on from the trained model of another method
      strict: {from: tuned, evaluate: {reflection: 0.3}}  # or is that model, evaluated otherwise
      bsarec: {retrieve: retrieve-bsarec}
      ease: {baseline: ease, seeds: [0], estimate_minutes: 1}
    seeds: [0, 1, 2]
    evaluate: {num_beams: 50, top_k: 50}
    against: flat
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import HfGrError


FOLDER = Path("recipes") / "bench"
TRAINERS = ("sft", "retrieve", "baseline", "from")  # exactly one of them begins a method
_SUITE = {
    "title", "protocol", "notes", "datasets", "methods", "seeds", "evaluate", "also", "against", "prediction", "price"
}  # fmt: skip
_DATASET = {"title", "recipes", "prepare", "embed", "seeds", "changes", "without"}
_STATIONS = ("embed", "quantize", "sft", "grpo", "retrieve", "baseline")
_METHOD = {*_STATIONS, "from", "evaluate", "seeds", "estimate_minutes"}
_PRICE = {"cpu_hour", "gpu_hour"}
_NAME = re.compile(r"[A-Za-z0-9][\w.]*(-[\w.]+)*")


@dataclass(frozen=True)
class Entry:
    """A recipe and the keys that are changed in it."""

    recipe: str
    changes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """A data set of a suite: how it is made, and what is different on it."""

    name: str
    title: str
    recipes: Path
    prepare: tuple[str, ...]
    embed: Entry
    seeds: tuple[int, ...] | None
    changes: dict[str, dict[str, dict[str, Any]]]
    without: frozenset[str]


@dataclass(frozen=True)
class Method:
    """A method of a suite: the recipe of each of its stations, or the method that it goes on from."""

    name: str
    stations: dict[str, Entry]
    start: str | None
    evaluate: dict[str, Any]
    seeds: tuple[int, ...] | None
    estimate_minutes: float | None


@dataclass(frozen=True)
class Suite:
    """What a suite's file says.

    Attributes:
        prediction: Whether the page gives 95 % prediction intervals of a new seed's run.
        exclude_seen: Whether every cell is evaluated a second time without what a history holds.
        price: Of a `cpu_hour` and a `gpu_hour`, in any currency; empty: time is told alone.
    """

    name: str
    file: Path
    title: str
    protocol: str
    notes: str
    datasets: dict[str, Dataset]
    methods: dict[str, Method]
    seeds: tuple[int, ...]
    evaluate: dict[str, Any]
    exclude_seen: bool
    against: str
    prediction: bool
    price: dict[str, float]

    @property
    def part(self) -> str:
        """Which held-out part is judged."""
        return str(self.evaluate.get("part", "test"))

    def seeds_of(self, dataset: Dataset, method: Method) -> list[int]:
        """Seeds of a method on a data set: those that are its own, the data set's and, if neither has any, ours."""
        given = [seeds for seeds in (method.seeds, dataset.seeds) if seeds is not None]
        return [seed for seed in (given or [self.seeds])[0] if all(seed in seeds for seeds in given)]


def find_suite(name: str) -> Path:
    """The file of a suite: a path, or the bare name of one in `recipes/bench` below the working directory."""
    file = Path(name)
    if file.suffix not in (".yaml", ".yml"):
        file = FOLDER / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(found.stem for found in FOLDER.glob("*.yaml"))) or "none here"
        raise HfGrError(f"no suite {name!r}; give a YAML file, or the name of one in {FOLDER} ({known}).")
    return file


def read_suite(file: Path) -> Suite:
    """Reads and checks a suite.

    Raises:
        HfGrError: On YAML that cannot be read, unknown or missing keys, or methods and recipes that there are not.
    """
    try:
        given = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, OSError) as error:
        raise HfGrError(f"{file} cannot be read ({' '.join(str(error).split())}); give a YAML file.") from None
    _check(file, "the suite", given, _SUITE, ("datasets", "methods", "against"))
    methods = {name: _method(file, name, found) for name, found in _named(file, given, "methods").items()}
    datasets = {name: _dataset(file, name, found, methods) for name, found in _named(file, given, "datasets").items()}
    if given["against"] not in methods:
        raise _error(file, f"against is {given['against']!r}", "name one of its methods")
    if given.get("also") not in (None, "exclude_seen"):
        raise _error(file, f"also is {given['also']!r}", "give exclude_seen, or leave it out")
    evaluate = _mapping(file, "evaluate", given.get("evaluate"))
    if evaluate.get("split", "leave_one_out") != "leave_one_out":
        raise _error(file, "evaluate has another split", "suites leave one out, so that every user is one case")
    price = _mapping(file, "price", given.get("price"))
    _check(file, "price", price, _PRICE)
    for method in methods.values():
        _check_start(file, method, methods)
    return Suite(
        name=file.stem,
        file=file,
        title=str(given.get("title", file.stem)),
        protocol=str(given.get("protocol", "")).strip(),
        notes=str(given.get("notes", "")).strip(),
        datasets=datasets,
        methods=methods,
        seeds=_seeds(file, "the suite", given.get("seeds", [0])) or (),
        evaluate=evaluate,
        exclude_seen=given.get("also") == "exclude_seen",
        against=given["against"],
        prediction=bool(given.get("prediction", False)),
        price={name: float(value) for name, value in price.items()},
    )


def _method(file: Path, name: str, given: Any) -> Method:
    where = f"method {name}"
    _check(file, where, given, _METHOD)
    begins = [key for key in TRAINERS if key in given]
    if len(begins) != 1:
        raise _error(file, f"{where} has {' and '.join(begins) or 'no start'}", f"give one of {', '.join(TRAINERS)}")
    if "sft" in given and "quantize" not in given:
        raise _error(file, f"{where} has sft without quantize", "name the recipe of its codebook")
    if "grpo" in given and begins[0] not in ("sft", "from"):
        raise _error(file, f"{where} has grpo, but no model that it starts from", "give sft or from")
    minutes = given.get("estimate_minutes")
    if minutes is not None and (not isinstance(minutes, int | float) or minutes <= 0):
        raise _error(file, f"{where}: estimate_minutes is {minutes!r}", "give a number above 0")
    return Method(
        name,
        {key: _entry(file, f"{where}, {key}", given[key]) for key in _STATIONS if key in given},
        given.get("from"),
        _mapping(file, f"{where}, evaluate", given.get("evaluate")),
        _seeds(file, where, given.get("seeds")),
        minutes,
    )


def _dataset(file: Path, name: str, given: Any, methods: dict[str, Method]) -> Dataset:
    where = f"data set {name}"
    _check(file, where, given, _DATASET, ("recipes", "prepare"))
    recipes = file.parent / str(given["recipes"])
    if not recipes.is_dir():
        raise _error(file, f"{where}: there is no folder {recipes}", "name one from where the suite lies")
    if not isinstance(given["prepare"], list) or not given["prepare"]:
        raise _error(file, f"{where}: prepare is {given['prepare']!r}", "give the words of `hf-gr prepare` as a list")
    changes = _mapping(file, f"{where}, changes", given.get("changes"))
    for method, stations in changes.items():
        _check(file, f"{where}, changes", {method: stations}, set(methods))
        _check(file, f"{where}, changes of {method}", stations, {*methods[method].stations, "evaluate"})
        for station, keys in stations.items():
            _mapping(file, f"{where}, changes of {method}, {station}", keys)
    without = given.get("without", [])
    if not isinstance(without, list) or not set(without) <= set(methods):
        raise _error(file, f"{where}: without is {without!r}", "give a list of the suite's methods")
    return Dataset(
        name,
        str(given.get("title", name)),
        recipes,
        tuple(map(str, given["prepare"])),
        _entry(file, f"{where}, embed", given.get("embed", "embed")),
        _seeds(file, where, given.get("seeds")),
        changes,
        frozenset(without),
    )


def _check_start(file: Path, method: Method, methods: dict[str, Method]) -> None:
    """A method goes on from one that there is, has a model, and does not go on from this one."""
    passed, start = {method.name}, method.start
    while start is not None:
        if start not in methods or start in passed:
            raise _error(file, f"method {method.name} goes on from {start!r}", "name another of its methods")
        if "baseline" in methods[start].stations or "retrieve" in methods[start].stations:
            raise _error(file, f"method {method.name} goes on from {start!r}", "name one with sft, which has a model")
        passed.add(start)
        start = methods[start].start


def _entry(file: Path, where: str, given: Any) -> Entry:
    """`NAME`, or `{recipe: NAME, key: value, …}`."""
    if isinstance(given, str):
        return Entry(given)
    if not isinstance(given, dict) or not isinstance(given.get("recipe"), str):
        raise _error(file, f"{where} is {given!r}", "give the name of a recipe, or {recipe: NAME, key: value}")
    return Entry(given["recipe"], {key: value for key, value in given.items() if key != "recipe"})


def _seeds(file: Path, where: str, given: Any) -> tuple[int, ...] | None:
    if given is None:
        return None
    if not isinstance(given, list) or not given or not all(type(seed) is int and seed >= 0 for seed in given):
        raise _error(file, f"{where}: seeds is {given!r}", "give a list of whole numbers, such as [0, 1, 2]")
    return tuple(given)


def _named(file: Path, given: dict[str, Any], key: str) -> dict[str, Any]:
    found = _mapping(file, key, given[key])
    for name in found or [""]:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise _error(file, f"{key}: {name!r} is no name", "use letters, digits, '_', '.' and '-'")
    return found


def _mapping(file: Path, where: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, dict | None):
        raise _error(file, f"{where} is {given!r}", "give keys and values")
    return given or {}


def _check(file: Path, where: str, given: Any, known: set[str], needed: tuple[str, ...] = ()) -> None:
    if not isinstance(given, dict):
        raise _error(file, f"{where} is {given!r}", f"give keys and values ({', '.join(sorted(known))})")
    for key in given:
        if key not in known:
            raise _error(file, f"{where} has an unknown key {key!r}", f"use {', '.join(sorted(known))}")
    for key in needed:
        if key not in given:
            raise _error(file, f"{where} lacks {key!r}", "add it")


def _error(file: Path, what: str, remedy: str) -> HfGrError:
    return HfGrError(f"{file}: {what}; {remedy}.")
