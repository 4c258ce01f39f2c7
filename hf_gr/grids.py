"""Commands of the command line that run many trainings: `hf-gr bench`, `hf-gr tune`."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer


def bench(
    suite: Annotated[str | None, typer.Argument(help="A suite's YAML file or name; without it, all names.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the raw data that the suite names as {data}.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of all artifacts; the same folder goes on.")] = Path("bench"),
    cells: Annotated[str, typer.Option(help="Patterns by commas, such as 'beauty/*-s0'; all if left out.")] = "",
    jobs: Annotated[int, typer.Option(help="Cells at a time, each on its share of the cores.")] = 1,
    report: Annotated[Path | None, typer.Option(help="Page to write, rows beside it; default: in --out.")] = None,
    baselines_python: Annotated[str, typer.Option(help="Python of the environment with RecTools.")] = sys.executable,
    max_steps: Annotated[int, typer.Option(help="Steps of every training, for a trial.")] = 0,
    list_only: Annotated[bool, typer.Option("--list", help="Show the cells and run nothing.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Hold results against those of the report.")] = False,
    missing: Annotated[bool, typer.Option("--missing", help="Only cells without a row in the report.")] = False,
) -> None:
    """Run a grid of data sets, methods and seeds from raw data to tables; a killed one goes on."""
    from .bench import bench as run
    from .bench import show_suites

    if suite is None:
        return show_suites()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # schedulers and `timeout` end a grid as Ctrl-C does
    patterns = [pattern.strip() for pattern in cells.split(",") if pattern.strip()]
    run(
        suite,
        out=out,
        data=data,
        cells=patterns,
        jobs=jobs,
        report=report,
        baselines_python=baselines_python,
        max_steps=max_steps,
        list_only=list_only,
        check=check,
        missing=missing,
    )


def tune(
    context: typer.Context,
    stage: Annotated[str, typer.Argument(help="What is tuned: sft or retrieve.")],
    base: Annotated[str, typer.Argument(help="The recipe: a YAML file, or a name such as amazon-beauty/sft-flat.")],
    space: Annotated[Path | None, typer.Option(help="YAML file of what may change; default: the shipped one.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of all trials; the same folder goes on.")] = Path("tune"),
    trials: Annotated[int, typer.Option(help="Trials, the recipe as it is among them.")] = 20,
    cap_minutes: Annotated[float, typer.Option("--cap_minutes", help="CPU minutes of a training, at most.")] = 30.0,
    jobs: Annotated[int, typer.Option(help="Trials at a time, each on its share of the cores.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the settings that are drawn.")] = 0,
    users: Annotated[int, typer.Option(help="Validation users that judge, the same of all trials.")] = 4000,
    exclude_seen: Annotated[bool, typer.Option("--exclude_seen", help="Judge lists without seen items.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry_run", help="Show the trials and run nothing.")] = False,
) -> None:
    """Search the settings of a recipe, judged on validation users. Other options go to the stage, in all trials."""
    from .tune import SPACES
    from .tune import tune as run

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run(
        stage,
        base,
        space or SPACES.get(stage, Path()),
        out,
        trials=trials,
        cap_minutes=cap_minutes,
        jobs=jobs,
        seed=seed,
        users=users,
        exclude_seen=exclude_seen,
        options=context.args,
        dry_run=dry_run,
    )
