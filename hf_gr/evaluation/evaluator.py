"""The evaluation stage: gets the lists of a model and of its baselines, judges them and writes the report."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..artifacts import (
    check_output,
    fingerprint,
    is_current,
    read_json,
    report,
    write_json,
    write_manifest,
    writing,
)
from ..dataset import Cases, Histories, InteractionDataset, in_history
from ..environment import hardware, versions
from ..errors import HfGrError
from ..offline import local_folder
from ..processes import joined, launched
from ..provenance import check_judged
from ..terminal import plain
from . import metrics as m
from .config import EvaluateConfig
from .judging import compare, judge, usable_ks, user_numbers
from .predictions import write_predictions
from .report import Example, notes, write_report
from .systems import all_lists


if TYPE_CHECKING:
    from accelerate import PartialState

STAGE = "evaluate"
_EXAMPLES = 20
_DEFINITION = 2  # of what is judged and how: to be raised where the same settings and inputs give other numbers


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Judges a model, another system's lists and the baselines, and writes the folder `config.output_dir`.

    Under Accelerate the cases are shared between the processes; the first one judges and writes, all return the same.
    A folder that these settings and inputs have already made is left alone.

    Returns:
        What stands in `metrics.json`.
    """
    world = _world(config)
    main = world is None or world.is_main_process
    output = Path(config.output_dir)
    paths = _inputs(config)
    inputs = {name: fingerprint(path) for name, path in paths.items()}
    settings = _settings(config)
    current = is_current(output, STAGE, settings, inputs)
    if not current:
        check_output(output, STAGE, paths.values())
    dataset = InteractionDataset.load(config.dataset)
    split = dataset.split(config.split)
    # asked before an earlier result is shown again: a release without this check may have made it
    if config.model and (warning := check_judged(config.model, config.split, split.train, dataset.item_ids)) and main:
        print(f"[evaluate] {warning}", flush=True)
    if current:
        result = read_json(output / "metrics.json")
        if main:
            report(STAGE, paths, output, current=True)
            print_table(result, output)
        return result
    held_out = split.test if config.part == "test" else split.validation
    cases = _sample(held_out, config)
    seen = float(in_history(cases, cases.targets).mean())
    if config.exclude_seen and seen == 1:
        raise HfGrError(
            "every target stands in its own history, so with exclude_seen no list can hold one; leave it out."
        )
    lists, codes, figures = all_lists(config, paths, dataset, split, cases, world)
    if main:
        result = _judge_all(lists, codes, dataset, split.train, cases, config) | figures
        result |= {"sampled": len(cases) < len(held_out), "seen_targets": seen}
        with writing(output, STAGE, paths.values()) as folder:
            write_json(folder / "metrics.json", result)
            first = next(iter(lists.values()))
            write_predictions(folder / "predictions.parquet", first, cases, dataset.item_ids)
            examples = _examples(first, cases, dataset, config.seed)
            write_report(folder / "report.html", result, examples, _read_logs(config))
            write_manifest(folder, STAGE, settings, inputs, cases=len(cases))
        report(STAGE, paths, output)
        print_table(result, output)
    if world is not None:
        world.wait_for_everyone()
    return result if main else read_json(output / "metrics.json")


def print_table(result: dict[str, Any], output: Path, *, console: Console | None = None) -> None:
    """Prints the systems side by side, with 95 % intervals, and where the report is."""
    console = console or Console()
    settings = result["settings"]
    judged = f"{result['cases']:,} cases of {result['users']:,} users" + (" (a sample)" if result["sampled"] else "")
    seen = "removed" if settings["exclude_seen"] else "not removed"
    title = f"{settings['split']}, {settings['part']}: {judged}, full ranking, seen items {seen}"
    table = Table(title=plain(title), caption="95 % intervals over users, without the noise of training")
    table.add_column("metric")
    for system in result["systems"]:
        table.add_column(plain(system), justify="right")
    names = list(next(iter(result["systems"].values()))["item"])
    for name in (n for n in names if n.split("@")[1] in ("1", "5", "10", "50") or len(names) < 7):
        cells = []
        for system, judged_system in result["systems"].items():
            v = judged_system["item"][name]
            style = "bold" if result["best"][name] == system else ""
            interval = f" {v['low']:.4f}–{v['high']:.4f}".replace(" 0.", " .").replace("–0.", "–.")
            cells.append(Text.assemble((f"{v['value']:.4f}", style), (interval, "dim")))
        table.add_row(name, *cells)
    shares = {"invalid": "invalid_rate", "duplicates": "duplicate_rate", "seen item first": "seen_first"}
    for label, key in shares.items():
        table.add_row(label, *(f"{judged_system[key]:.2%}" for judged_system in result["systems"].values()))
    if "pruned" in result:
        share = f"{result['pruned']:.2%}"
        table.add_row("pruned paths", *(share if system == "model" else "" for system in result["systems"]))
    console.print(table)
    for line in notes(result):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    console.print(f"report: {output / 'report.html'}", soft_wrap=True, highlight=False, markup=False)


def _settings(config: EvaluateConfig) -> dict[str, Any]:
    """What shapes the result. Inputs are told apart by fingerprint, not path, and batches shape nothing."""
    left_out = {"dataset", "model", "predictions", "logs", "output_dir", "batch_size"}
    settings = {name: value for name, value in asdict(config).items() if name not in left_out}
    return settings | {"definition": _DEFINITION}


def _inputs(config: EvaluateConfig) -> dict[str, Path]:
    paths = {"dataset": Path(config.dataset)}
    if config.model:
        paths["model"] = local_folder(config.model)
    if config.predictions:
        paths["predictions"] = Path(config.predictions)
    for number, folder in enumerate(config.logs or []):
        paths[f"log {number}"] = Path(folder) / "training_log.json"
    return paths


def _world(config: EvaluateConfig) -> "PartialState | None":
    """The processes that share the work, if there is a model: nothing else is worth sharing or needs torch."""
    if config.model:
        return joined()
    if launched() > 1:
        raise HfGrError("without a model there is nothing to share between processes; start a single one.")
    return None


def _sample(cases: Cases, config: EvaluateConfig) -> Cases:
    """All cases of a seeded sample of users."""
    users = user_numbers(cases)
    total = int(users.max()) + 1
    if config.max_users is None or config.max_users >= total:
        return cases
    chosen = np.random.default_rng(config.seed).choice(total, config.max_users, replace=False)
    rows = np.flatnonzero(np.isin(users, chosen))
    return cases.take(rows)


def _judge_all(
    lists: dict[str, np.ndarray],
    codes: np.ndarray | None,
    dataset: InteractionDataset,
    train: Histories,
    cases: Cases,
    config: EvaluateConfig,
) -> dict[str, Any]:
    ks = usable_ks(m.KS, config.top_k)
    systems = {
        name: judge(rows, cases, train, dataset.num_items, codes=codes, ks=ks, seed=config.seed)
        for name, rows in lists.items()
    }
    return {
        "cases": len(cases),
        "users": len(np.unique(user_numbers(cases))),
        "ks": list(ks),
        "settings": asdict(config),
        "systems": systems,
        "provenance": _provenance(config),
        **compare(lists, cases, ks, config.seed),
    }


def _examples(lists: np.ndarray, cases: Cases, dataset: InteractionDataset, seed: int) -> list[Example]:
    """A random sample of the cases, not a choice of the good ones."""
    rows = np.random.default_rng(seed).permutation(len(cases))[:_EXAMPLES]
    titles = [*dataset.titles, "(not an item)"]
    chosen = cases.take(rows)
    return [
        Example(
            user=str(user),
            history=[titles[i] for i in history],
            recommended=[
                titles[i] if 0 <= i < dataset.num_items else titles[-1] for i in lists[row][:10] if i != m.MISSING
            ],
            truth=titles[cases.targets[row]],
            rank=int(m.target_ranks(lists[[row]], cases.targets[[row]])[0]),
        )
        for row, user, history in zip(rows, chosen.user_ids, chosen.latest(10), strict=True)
    ]


def _read_logs(config: EvaluateConfig) -> dict[str, list[dict[str, Any]]]:
    logs = {}
    for folder in config.logs or []:
        file = Path(folder) / "training_log.json"
        log = read_json(file)
        if not isinstance(log, list) or not all(isinstance(entry, dict) and "step" in entry for entry in log):
            raise HfGrError(f"{file} is not a list of log entries ({json.dumps(log)[:40]}…); train again to write it.")
        logs[folder] = log
    return logs


def _provenance(config: EvaluateConfig) -> dict[str, str]:
    """Versions, hardware and time of the run."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {**versions(), "date": date, "hardware": hardware(gpus=bool(config.model))}
