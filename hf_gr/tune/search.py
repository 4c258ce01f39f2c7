"""Trials of a recipe: each a training with a cap of CPU time, and a judgement on validation users."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from ..arguments import parse_config, recipe_file
from ..artifacts import check_output_file, read_json, replacing, write_json
from ..bench.steps import PROGRAM, Runner, Step
from ..environment import versions
from ..errors import HfGrError
from ..retrieval import RETRIEVE_CONFIGS
from ..settings import read_yaml
from ..sft import SFT_CONFIGS
from ..sft.config import check_together
from ..terminal import plain
from .space import Space, changed


STAGES: dict[str, tuple[type, ...]] = {"sft": SFT_CONFIGS, "retrieve": RETRIEVE_CONFIGS}
_FOLDER = Path(str(files(__package__) / "spaces"))
SPACES = {"sft": _FOLDER / "sft-small.yaml", "retrieve": _FOLDER / "retrieve.yaml"}
METRIC = "NDCG@10"
_BEST = "# The best of a search"  # how the file begins


@dataclass(frozen=True)
class Trial:
    """A trial and what came of it.

    Attributes:
        number: From 0; trial 0 is the recipe as it is.
        settings: What it changes.
        state: `"done"` or `"failed"`.
        reason: Why it failed.
        metrics: HR@10, HR@50 and NDCG@10 on the validation users.
        cpu_minutes: Of its training, over all attempts; `None` where that is not known.
        epochs: That it ran.
        stopped: What ended its training: `"cap"`, `"patience"` or `"epochs"` (all that were asked for).
    """

    number: int
    settings: dict[str, Any]
    state: str = "done"
    reason: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    cpu_minutes: float | None = None
    epochs: float | None = None
    stopped: str = ""


def tune(
    stage: str,
    base: str,
    space: Path,
    out: Path,
    *,
    trials: int = 20,
    cap_minutes: float = 30.0,
    jobs: int = 1,
    seed: int = 0,
    users: int = 4000,
    exclude_seen: bool = False,
    options: Sequence[str] = (),
    dry_run: bool = False,
) -> Trial | None:
    """Searches the settings of a recipe at random, which gives every method the same chance.

    A finished trial is not run again, a training that was cut short goes on from its last checkpoint. Writes
    `trials.json` after every trial, and the best recipe to `best.yaml`.

    Args:
        stage: `"sft"` or `"retrieve"`.
        base: The recipe: a YAML file, or the name of one that ships with the package.
        space: YAML file of a [`Space`].
        out: Folder of the trials; the same folder goes on.
        trials: How many, the recipe as it is among them.
        cap_minutes: CPU minutes of a training; past them it ends with what it has.
        jobs: Trials at a time, each on its share of the cores.
        seed: Of the trials that are drawn; trainings have the recipe's.
        users: Validation users that judge, the same of all trials.
        exclude_seen: Judge lists without the items of the history.
        options: Further options of the stage that all trials have, as words of a command line.
        dry_run: Show the trials and run nothing.

    Returns:
        The best trial; `None` of a dry run.

    Raises:
        HfGrError: On an unknown stage or option, before anything runs; if all trials failed.
    """
    if stage not in STAGES:
        raise HfGrError(f"tune cannot search {stage!r}; give one of {', '.join(STAGES)}.")
    if trials < 1 or cap_minutes <= 0 or jobs < 1:
        raise HfGrError(f"trials {trials}, cap_minutes {cap_minutes} and jobs {jobs} have to be above 0.")
    drawn = Space.load(space)
    settings = [{} if number == 0 else drawn.drawn(seed, number) for number in range(trials)]
    recipe = _recipe(stage, base, options)
    for number, chosen in enumerate(settings):
        _check(stage, changed(recipe, chosen), number)
    if dry_run:
        _show([Trial(number, chosen, state="open") for number, chosen in enumerate(settings)])
        return None
    for name, mark in (("trials.json", "["), ("best.yaml", _BEST)):
        check_output_file(out / name, partial(_begins, mark))
    runner = Runner(max(1, (os.cpu_count() or 1) // jobs))
    search = _Search(stage, recipe, out, cap_minutes, users, exclude_seen, runner)
    done = search.run(settings, jobs, print)
    _show(done)
    best = max((trial for trial in done if trial.state == "done"), key=lambda t: t.metrics[METRIC], default=None)
    if best is None:
        raise HfGrError(f"all {trials} trials failed, the first one: {done[0].reason}")
    told = {"trials": trials, "cap_minutes": cap_minutes, "seed": seed, "users": users, "exclude_seen": exclude_seen}
    _write_best(out / "best.yaml", changed(recipe, best.settings), best, base, space, told)
    print(f"[tune] trial {best.number} is the best: {out / 'best.yaml'}")
    return best


def _begins(mark: str, file: Path) -> bool:
    return file.read_text(encoding="utf-8", errors="replace").startswith(mark)


def _recipe(stage: str, base: str, options: Sequence[str]) -> dict[str, Any]:
    """A recipe's keys and values, with options of a command line in them."""
    words = list(options)
    if len(words) % 2 or not all(word.startswith("--") for word in words[::2]):
        raise HfGrError(f"options of all trials are --name VALUE, not {' '.join(words)}.")
    parse_config(STAGES[stage], ["--config", base, *words])  # raises on what the stage does not know
    recipe: dict[str, Any] = read_yaml(recipe_file(base).read_text(encoding="utf-8"))
    for name, value in zip(words[::2], words[1::2], strict=True):
        recipe[name.removeprefix("--")] = yaml.safe_load(value)
    return recipe


def _check(stage: str, recipe: dict[str, Any], number: int) -> None:
    known = {item.name for kind in STAGES[stage] for item in fields(kind)}
    try:
        if unknown := recipe.keys() - known:  # the parser would take a name cut short for the whole
            raise HfGrError(f"{stage} has no option {min(unknown)!r}.")
        configs = parse_config(STAGES[stage], _words(recipe))
        if stage == "sft":
            check_together(*configs)
    except HfGrError as error:
        raise HfGrError(f"trial {number} cannot be run: {error}") from None


def _words(recipe: dict[str, Any]) -> list[str]:
    """Keys and values as a command line has them."""
    words: list[str] = []
    for name, value in recipe.items():
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}", *(json.dumps(one) if isinstance(one, dict | bool) else str(one) for one in values)]
    return words


class _Search:
    """Runs trials in a folder, each a training and a judgement in processes of their own."""

    def __init__(
        self,
        stage: str,
        recipe: dict[str, Any],
        out: Path,
        cap_minutes: float,
        users: int,
        exclude_seen: bool,
        runner: Runner,
    ):
        self.stage, self.recipe, self.out, self.cap_minutes = stage, recipe, out, cap_minutes
        self.users, self.exclude_seen, self.runner = users, exclude_seen, runner

    def run(self, settings: list[dict[str, Any]], jobs: int, say: Callable[[str], None]) -> list[Trial]:
        done: dict[int, Trial] = {}

        def one(number: int) -> None:
            done[number] = trial = self._trial(number, settings[number])
            write_json(self.out / "trials.json", [asdict(done[known]) for known in sorted(done)])
            told = f"{METRIC} {trial.metrics[METRIC]:.4f}" if trial.metrics else trial.reason
            say(f"[tune] trial {number}: {told}")

        self.out.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(jobs) as pool:
            try:
                list(pool.map(one, range(len(settings))))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self.runner.stop()
                raise
        return [done[number] for number in range(len(settings))]

    def _trial(self, number: int, settings: dict[str, Any]) -> Trial:
        folder = self.out / f"trial-{number:03}"
        folder.mkdir(exist_ok=True)
        recipe = changed(self.recipe, settings) | {"cpu_minutes": self.cap_minutes}
        recipe |= {"memory": False} if self.stage == "sft" else {}  # the model alone is judged
        recipe["output_dir"] = str(folder / self.stage)
        train = self._step(self.stage, folder / self.stage / "model", [*_words(recipe), "--disable_tqdm", "true"])
        judge = ["--dataset", str(recipe["dataset"]), "--model", str(train.output), "--part", "validation"]
        judge += ["--max_users", str(self.users), "--baselines", "false", "--output_dir", str(folder / "validation")]
        judge += ["--exclude_seen", "true"] if self.exclude_seen else []
        try:
            cost = self.runner.run(train, folder / "log.txt")
            self.runner.run(self._step("evaluate", folder / "validation", judge, train.key), folder / "log.txt")
        except HfGrError as error:
            if self.runner.stopped:
                raise
            return Trial(number, settings, state="failed", reason=str(error))
        judged = next(iter(read_json(folder / "validation" / "metrics.json")["systems"].values()))["item"]
        metrics = {name: judged[name]["value"] for name in ("HR@10", "HR@50", METRIC)}
        minutes = None if cost["cpu_seconds"] is None else round(cost["cpu_seconds"] / 60, 2)
        log = read_json(train.output / "training_log.json")
        return Trial(number, settings, "done", "", metrics, minutes, *_ending(log, recipe))

    def _step(self, stage: str, output: Path, words: list[str], *read: str) -> Step:
        key = hashlib.sha256(json.dumps([stage, words, read]).encode()).hexdigest()[:12]
        return Step(stage, output, [*PROGRAM, stage, *words], key)


def _ending(log: list[dict[str, Any]], recipe: dict[str, Any]) -> tuple[float, str]:
    """How many epochs a training ran, and what ended it."""
    epochs = max(entry.get("epoch", 0.0) for entry in log)
    if any("cpu_minutes_stop" in entry for entry in log):
        return epochs, "cap"
    asked = recipe.get("num_train_epochs")
    early = asked is not None and not recipe.get("max_steps") and epochs < float(asked) - 1e-6
    return epochs, "patience" if early else "epochs"


def _show(trials: list[Trial]) -> None:
    table = Table("trial", METRIC, "HR@10", "epochs", "CPU min", "ended by", "settings")
    for trial in sorted(trials, key=lambda trial: -trial.metrics.get(METRIC, -1)):
        figures = [f"{trial.metrics[name]:.4f}" if trial.metrics else "" for name in (METRIC, "HR@10")]
        ran = "" if trial.epochs is None else f"{trial.epochs:.1f}"
        minutes = "" if trial.cpu_minutes is None else f"{trial.cpu_minutes:.1f}"
        told = ", ".join(f"{name} {value}" for name, value in trial.settings.items()) or "the recipe as it is"
        ended = trial.stopped or (trial.reason if trial.state == "failed" else "")
        table.add_row(str(trial.number), *figures, ran, minutes, plain(ended), plain(told))
    Console().print(table)


def _write_best(file: Path, recipe: dict[str, Any], best: Trial, base: str, space: Path, told: dict[str, Any]) -> None:
    made = ", ".join(f"{name} {value}" for name, value in told.items())
    commit = versions().get("commit", "")
    lines = [
        f"{_BEST} over {space.name} from {recipe_file(base).name}: {METRIC} "
        f"{best.metrics[METRIC]:.4f} on validation (trial {best.number}, ended by {best.stopped}).",
        f"# {made}; {datetime.now(UTC).date().isoformat()}{f', commit {commit}' if commit else ''}.",
        yaml.safe_dump(recipe, sort_keys=False),
    ]
    with replacing(file) as half:
        half.write_text("\n".join(lines), encoding="utf-8")
