"""The stage: from a dataset to a click model, and its report on the test part."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from transformers import set_seed

from ..arguments import parse_config
from ..artifacts import CARD, is_current, report, write_manifest, writing
from ..catalog import SidCatalog
from ..dataset import InteractionDataset, popularity
from ..errors import HfGrError
from ..fingerprints import fingerprint
from ..model_card import ranker_card
from ..models.click import ClickConfig, ClickModel
from ..provenance import learned_from
from ..runs import Run, changed_settings
from ..safeguards import check_finite
from ..validation import ValidatedTrainer, endings
from .config import RANK_CONFIGS, RankConfig, RankDataConfig, RankerConfig
from .features import Features
from .metrics import auc, gauc, row_losses
from .ranker import Ranker, click_probabilities
from .report import judge, write_report
from .rows import ClickRows, RowSettings, click_rows, first_seen


_EVALUATION = "rank-evaluation"


class ClickTrainer(ValidatedTrainer):
    """transformers' trainer for click models, measured by AUC and GAUC on validation rows.

    Args:
        model: A new one.
        args: Settings.
        train_dataset: Rows of the training part.
        validation: Rows that decide when to stop, and which checkpoint is the best.
    """

    def __init__(self, model: ClickModel, *, args: RankConfig, train_dataset: ClickRows, validation: ClickRows):
        super().__init__(
            model,
            args=args,
            data_collator=train_dataset.batch,
            train_dataset=train_dataset,
            eval_dataset=train_dataset,  # evaluate() is ours
            callbacks=endings(args),
        )
        self.validation = validation

    def lists(self) -> dict[str, float]:
        """AUC, GAUC and log-loss of the validation rows, on every process alike."""
        rows, plain = self.validation, self.accelerator.unwrap_model(self.model)
        scores = predicted(plain, rows, self.args.per_device_eval_batch_size)
        losses = row_losses(rows.labels, scores)
        measured = {"AUC": auc(rows.labels, scores), "GAUC": gauc(rows.labels, scores, rows.persons)}
        return measured | {"log_loss": float(losses.mean())}


def predicted(model: ClickModel, rows: ClickRows, batch_size: int) -> np.ndarray:
    """Probabilities of clicks of all rows, float32 [n]; the model is in evaluation mode."""
    order = np.argsort(rows.ends, kind="stable")  # alike long histories share a batch
    parts = (order[start : start + batch_size] for start in range(0, len(order), batch_size))
    scores = np.empty(len(rows), np.float32)
    scores[order] = click_probabilities(model, map(rows.batch, parts))
    return scores


def rank(data: RankDataConfig, model: RankerConfig, args: RankConfig) -> Path:
    """Trains a click model on the training part; the finished model is `output_dir/model`, and what the test part says
    of it `output_dir/evaluation`.

    Continues from the last checkpoint of the same settings, and does nothing when both are up to date.
    """
    if not data.dataset:
        raise HfGrError("dataset is not set; give --dataset FOLDER or name it in the YAML file.")
    if (model.item_as != "id") != (data.catalog is not None):
        raise HfGrError(
            f"item_as is {model.item_as} and catalog {data.catalog}; semantic IDs need --catalog FOLDER, and "
            "item_as: id reads none."
        )
    paths: dict[str, str | Path] = {"dataset": data.dataset}
    if data.catalog is not None:
        paths["catalog"] = data.catalog
    run = Run.of("rank", (data, model, args), paths)
    with run.held():
        if not run.is_current(data.force):
            _train(data, model, args, run)
        if PartialState().is_main_process:
            _evaluate(data, model, args, run)
    PartialState().wait_for_everyone()
    return run.model


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
    """What a training and its evaluation read alike."""

    dataset: InteractionDataset
    popularity: np.ndarray
    catalog: SidCatalog | None
    rows: dict[str, ClickRows]
    features: Features
    learned: Any

    @classmethod
    def of(cls, data: RankDataConfig, model: RankerConfig, args: RankConfig) -> "Loaded":
        catalog = None if data.catalog is None else SidCatalog.load(data.catalog)
        dataset = InteractionDataset.load(data.dataset)
        if catalog is not None and catalog.item_ids != dataset.item_ids:
            raise HfGrError(f"{data.catalog} holds other items than {data.dataset}; run `hf-gr quantize` on it.")
        split = dataset.split(data.split)
        labels = data.labels or ("drawn" if dataset.exposures is None else "exposures")
        if labels != "drawn" and data.negatives != RankDataConfig.negatives:
            raise HfGrError(f"negatives is {data.negatives}, but acts only with labels: drawn; leave it out.")
        settings = RowSettings(
            labels=labels,
            above=data.positive_rating,
            negatives=data.negatives,
            max_history=model.max_history,
            user_columns=tuple(data.user_columns or ()),
            event_columns=tuple(data.event_columns or ()),
            clock=data.clock,
            seed=args.seed,
        )
        rows, features = click_rows(dataset, split, data.split, settings)
        for name, part in rows.items():
            if len(np.unique(part.labels)) < 2:
                raise HfGrError(
                    f"{data.dataset}: the {len(part):,} {name} row(s) of split {data.split} are not of both kinds, "
                    "clicked and not; take another split, or other labels."
                )
        learned = learned_from(data.split, split.train, dataset.item_ids, data.catalog)
        if PartialState().is_main_process:
            told = ", ".join(f"{len(part):,} of {name}" for name, part in rows.items())
            print(f"[rank] labels: {labels}; rows: {told}", flush=True)
        return cls(dataset, popularity(split.train, dataset.num_items), catalog, rows, features, learned)


def _train(data: RankDataConfig, settings: RankerConfig, args: RankConfig, run: Run) -> None:
    loaded = Loaded.of(data, settings, args)
    set_seed(args.seed)
    model = new_model(settings, loaded.dataset.num_items, loaded.features, loaded.catalog)
    trainer = ClickTrainer(
        model,
        args=run.arguments(args),
        train_dataset=loaded.rows["train"],
        validation=loaded.rows["validation"],
    )
    trainer.train(resume_from_checkpoint=run.last_checkpoint())
    if PartialState().is_main_process:
        plain = trainer.accelerator.unwrap_model(trainer.model)
        check_finite(plain)
        with run.finishing(trainer.state.log_history) as folder:
            Ranker(plain, loaded.dataset.items, loaded.features).save_pretrained(folder, loaded.catalog)
            (folder / CARD).write_text(str(ranker_card(loaded.dataset.num_items)), encoding="utf-8")
            loaded.learned.save(folder)
        run.report()


def new_model(settings: RankerConfig, num_items: int, features: Features, catalog: SidCatalog | None) -> ClickModel:
    """An untrained model. Raises [`HfGrError`] where code vectors are asked for and the catalog has none."""
    tables: list[np.ndarray] = []
    vectors: tuple[np.ndarray, ...] = ()
    sizes, widths, levels = list[int](), list[int](), 0
    if catalog is not None:
        d = settings.hidden_size
        if settings.sid_as != "prefixes":
            levels, tables = catalog.num_levels, list(catalog.codes.astype(np.int64).T)
            sizes, widths = list(catalog.codebook_sizes), [d] * levels
            if settings.codes != "learned":
                if not catalog.code_vectors:
                    raise HfGrError(f"codes is {settings.codes}, but the catalog holds no code vectors; set learned.")
                vectors = catalog.code_vectors
                widths = [vector.shape[1] for vector in vectors]
        if settings.sid_as != "codes":
            prefixes = catalog.features(settings.buckets)
            tables += [column.to_numpy() for column in prefixes.columns[1:]]
            sizes, widths = sizes + [settings.buckets] * catalog.num_levels, widths + [d] * catalog.num_levels
    own = {name: value for name, value in vars(settings).items() if name not in ("sid_as", "buckets")}
    config = ClickConfig(
        num_items=num_items,
        sid_sizes=sizes,
        sid_widths=widths,
        num_levels=levels,
        category_sizes=features.category_sizes,
        num_numbers=features.num_numbers,
        **own,
    )
    model = ClickModel(config)
    model.start(np.stack(tables, axis=1) if tables else np.empty((num_items, 0), np.int64), vectors)
    return model


def _evaluate(data: RankDataConfig, settings: RankerConfig, args: RankConfig, run: Run) -> None:
    folder = run.output_dir / "evaluation"
    paths = {"model": run.model, **run.paths}
    inputs, made = {name: fingerprint(path) for name, path in paths.items()}, {"seed": args.seed}
    if is_current(folder, _EVALUATION, made, inputs):
        return
    loaded = Loaded.of(data, settings, args)
    ranker = Ranker.from_pretrained(run.model, device=args.device)
    test = loaded.rows["test"]
    scores = predicted(ranker.model, test, args.per_device_eval_batch_size)
    seen = first_seen(loaded.dataset) if loaded.dataset.time == "timestamp" else None
    metrics = judge(test, scores, loaded.popularity, seen, loaded.rows["train"], args.seed)
    told: dict[str, Any] = {"dataset": data.dataset, "catalog": data.catalog, "seed": args.seed}
    told |= {name: value for config in (data, settings, args) for name, value in changed_settings(config).items()}
    with writing(folder, _EVALUATION, paths.values()) as place:
        write_report(place, metrics, told)
        write_manifest(place, _EVALUATION, made, inputs)
    everything = metrics["all"]
    figures = ", ".join(f"{name} {everything[name]['value']:.4f}" for name in ("AUC", "GAUC", "log_loss"))
    print(f"[rank] test: {figures}, ECE {everything['ECE']:.4f}", flush=True)
    report(_EVALUATION, paths, folder)


def main(arguments: list[str] | None = None, command: str | None = None) -> Path:
    """Entry of `hf-gr rank` and `recipes/rank.py`: TRL's parser over the three configs, `--config FILE` included."""
    return rank(*parse_config(RANK_CONFIGS, arguments, command))
