"""Resumable trainings: the key of their settings, their checkpoints, and the finished model."""

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from .adapters import merge_adapter
from .artifacts import (
    MARKER,
    check_output,
    claimed,
    discard,
    fingerprint,
    is_current,
    mark,
    report,
    settings_key,
    write_json,
    write_manifest,
    writing,
)
from .catalog import SidCatalog
from .hub import carry, carry_scorers, save_repo
from .interests import Interests
from .models import ThinkingHeads
from .options import RUN_ONLY, default_of
from .provenance import TrainingData
from .quantizers import Quantizer
from .safeguards import check_finite, is_whole
from .vocabulary import SidVocabulary


Arguments = TypeVar("Arguments", bound=TrainingArguments)

# Of our own settings those that do not change the model a run ends with: inputs count by their content.
_RUN_ONLY = RUN_ONLY | {"force", "dataset", "catalog", "attention"}


@dataclass(frozen=True)
class Run:
    """A resumable training run.

    `output_dir/model` is the finished model; `output_dir/run-<key>` holds the checkpoints of these very settings, so
    that a changed setting never goes on from a foreign checkpoint.
    """

    stage: str
    output_dir: Path
    settings: dict[str, Any]
    inputs: dict[str, str]
    paths: dict[str, str | Path]

    @classmethod
    def of(cls, stage: str, configs: Sequence[Any], inputs: dict[str, str | Path]) -> "Run":
        """The run of some configs, of which the last is the trainer's: its `output_dir` is the folder the user
        named."""
        found = {name: fingerprint(path) for name, path in inputs.items()}
        paths = {str(path) for path in inputs.values()}  # an input counts by its content, not by where it lies
        names = {*inputs, "continue_from"}
        settings = {
            name: value
            for config in configs
            for name, value in changed_settings(config).items()
            if not (name in names and isinstance(value, str) and value in paths)
        }
        return cls(stage, Path(configs[-1].output_dir), settings, found, inputs)

    def arguments(self, config: Arguments) -> Arguments:
        """A trainer's own copy of a config, whose `output_dir` is the run folder: the config that was given may be run
        again."""
        own = copy.copy(config)
        own.output_dir = str(self.folder)
        return own

    @property
    def model(self) -> Path:
        return self.output_dir / "model"

    @property
    def folder(self) -> Path:
        return self.output_dir / f"run-{settings_key(self.stage, self.settings, self.inputs)}"

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Holds the output for this run, on the main process."""
        if not PartialState().is_main_process:
            yield
            return
        with claimed(self.model):
            mark(self.folder)
            try:
                yield
            finally:
                if not any(path.name != MARKER for path in self.folder.glob("*")):  # nothing to go on from
                    discard(self.folder)

    def is_current(self, force: bool) -> bool:
        """Whether the finished model is there already, of these settings and inputs; says so.

        Raises [`HfGrError`], before anything is trained, where something else is that may not be replaced.
        """
        current = not force and is_current(self.model, self.stage, self.settings, self.inputs)
        if current:
            self.report(current=True)
        else:
            check_output(self.model, self.stage, self.paths.values())
        return current

    def report(self, *, current: bool = False) -> None:
        """Says what was read and written, on the main process."""
        if PartialState().is_main_process:
            report(self.stage, self.paths, self.model, current=current)

    def last_checkpoint(self) -> str | None:
        """The newest whole checkpoint; one that a kill or a full disk has cut short is none, and is told."""
        # the trainer's state is what it writes last
        written = [path.parent for path in self.folder.glob("checkpoint-*/trainer_state.json")]
        main = PartialState().is_main_process
        for checkpoint in sorted(written, key=lambda path: int(path.name.split("-")[1]), reverse=True):
            if is_whole(checkpoint):
                if main:
                    print(f"[{self.stage}] resuming from {checkpoint}", flush=True)
                return str(checkpoint)
            if main:
                print(f"[{self.stage}] {checkpoint} was cut short and is left out", flush=True)
        return None

    @contextlib.contextmanager
    def finishing(self, log: list[dict[str, Any]]) -> Iterator[Path]:
        """Yields the folder to put the finished model in; it becomes [`model`] atomically, with the log, and what only
        a resume would need is cleared."""
        with writing(self.model, self.stage, self.paths.values()) as folder:
            yield folder
            write_json(folder / "training_log.json", log)
            write_manifest(folder, self.stage, self.settings, self.inputs)
        discard(self.folder)  # only its own: another run-… folder may be the user's

    def finish(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        catalog: SidCatalog,
        vocabulary: SidVocabulary,
        log: list[dict[str, Any]],
        base_model: str | None,
        source: str | Path | None = None,
        heads: ThinkingHeads | None = None,
        interests: Interests | None = None,
        learned: TrainingData | None = None,
        ranked_with: str | Path | None = None,
        then: Callable[[Path, PreTrainedModel], None] | None = None,
        quantizer: Quantizer | None = None,
    ) -> None:
        """Writes the finished model atomically, keeps the log, and clears what only a resume would need.

        `source` is the catalog or model whose quantizer, if it has one, the model carries on, and so its thinking
        heads and interests of items, unless `heads` or `interests` are given; `learned` is what taught the model, and
        `ranked_with` the model whose scorers beside the weights it carries on. `then` is called with the folder, which
        is not in its place yet, and the model without adapters. `quantizer` takes the place of the one carried on.
        """
        plain = merge_adapter(model, self.base)
        check_finite(plain)
        with self.finishing(log) as folder:
            save_repo(folder, plain, tokenizer, catalog, vocabulary, base_model=base_model)
            if source is not None:
                carry(source, folder)
            if quantizer is not None:
                quantizer.save_pretrained(folder / "quantizer")
            if ranked_with is not None:
                carry_scorers(ranked_with, folder)
            if then is not None:
                then(folder, plain)
            if heads is not None:
                heads.save(folder)
            if interests is not None:
                interests.items.save(folder)  # with what was turned down, of which q is made
            if learned is not None:
                learned.save(folder)


def changed_settings(config: Any) -> dict[str, Any]:
    """Fields of a config that differ from its defaults and shape the result, and always the split.

    Where the best checkpoint is taken, when checkpoints are written shapes it too.
    """
    keeps_best = isinstance(config, TrainingArguments) and config.load_best_model_at_end
    run_only = _RUN_ONLY - ({"save_strategy", "save_steps"} if keeps_best else set())
    settings = {}
    for item in dataclasses.fields(config):
        if item.name in run_only or item.name.startswith("_"):
            continue
        value = vars(config)[item.name]
        changed = item.name == "split" or value != default_of(item)
        if changed and isinstance(value, (str, int, float, bool, list, dict, type(None))):
            settings[item.name] = value
    return settings
