"""The stage: from a dataset to a trained dense retriever."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from accelerate import PartialState
from transformers import set_seed

from ..arguments import parse_config
from ..artifacts import CARD
from ..dataset import Cases, Histories, InteractionDataset, popularity
from ..errors import HfGrError
from ..model_card import retriever_card
from ..models import BSARecModel, RetrieverModel, TowersModel
from ..models.bsarec import user_vectors
from ..models.item_features import ID, FeatureRecipe
from ..provenance import learned_from
from ..runs import Run
from ..safeguards import check_finite
from ..training import DataConfig
from .config import RETRIEVE_CONFIGS, RetrieveConfig, RetrieverConfig
from .data import training_rows
from .features import carry_recipe, training_features
from .index import VectorIndex, kind_for
from .retriever import ITEMS_FILE
from .trainer import RetrieverTrainer


_QUERIES = 1000  # validation histories that an index is measured on


def retrieve(data: DataConfig, model: RetrieverConfig, args: RetrieveConfig) -> Path:
    """Trains a retriever on the training part; the finished model is `output_dir/model`.

    Continues from the last checkpoint of the same settings, and does nothing when the model is up to date.
    """
    if not data.dataset:
        raise HfGrError("dataset is not set; give --dataset FOLDER or name it in the YAML file.")
    inputs = {"dataset": data.dataset, "vectors": model.vectors, "catalog": model.catalog}
    run = Run.of("retrieve", (data, model, args), {name: path for name, path in inputs.items() if path is not None})
    with run.held():
        return run.model if run.is_current(data.force) else _retrieve(data, model, args, run)


def _retrieve(data: DataConfig, settings: RetrieverConfig, args: RetrieveConfig, run: Run) -> Path:
    dataset = InteractionDataset.load(data.dataset)
    split = dataset.split(data.split)
    learned = learned_from(data.split, split.train, dataset.item_ids, settings.vectors, settings.catalog)
    model, recipe = _new_model(settings, args, dataset, split.train)
    trainer = RetrieverTrainer(
        model,
        args=run.arguments(args),
        train_dataset=training_rows(split.train, dataset.num_items, settings.max_history, settings.causal),
        validation=split.validation,
    )
    trainer.train(resume_from_checkpoint=run.last_checkpoint())
    if PartialState().is_main_process:
        trained = trainer.accelerator.unwrap_model(trainer.model)
        check_finite(trained)
        if isinstance(trained, TowersModel):
            trained.refresh()
        with run.finishing(trainer.state.log_history) as folder:
            trained.save_pretrained(folder)
            pq.write_table(dataset.items, folder / ITEMS_FILE)
            if recipe is not None:
                carry_recipe(folder, recipe, settings.vectors, settings.catalog)
            _write_index(folder, trained, args, split.validation)
            features = settings.item_features
            (folder / CARD).write_text(str(retriever_card(dataset.num_items, features)), encoding="utf-8")
            learned.save(folder)
        run.report()
    PartialState().wait_for_everyone()
    return run.model


def _new_model(
    settings: RetrieverConfig, args: RetrieveConfig, dataset: InteractionDataset, train: Histories
) -> tuple[RetrieverModel, FeatureRecipe | None]:
    """A plain table of ids where that is all that is asked for, else two towers and how their features are made."""
    cosine = args.loss == "info_nce"
    if settings.item_features == [ID] and not cosine:
        set_seed(args.seed)
        return BSARecModel(settings.model_config(dataset.num_items)), None
    recipe, features = training_features(settings.item_features, dataset, settings.vectors, settings.catalog)
    set_seed(args.seed)
    model = TowersModel(settings.towers_config(dataset.num_items, recipe, args.temperature if cosine else None))
    model.features = features
    model.without_id(np.flatnonzero(popularity(train, dataset.num_items) == 0))
    return model, recipe


def _write_index(folder: Path, model: RetrieverModel, args: RetrieveConfig, validation: Cases) -> None:
    """Writes the index of an approximate kind, measured on the latest of the validation histories."""
    if kind_for(args.index, model.config.num_items) == "flat":
        return
    histories = list(validation)[-_QUERIES:]
    if not histories:
        raise HfGrError(f"index: {args.index} is measured on validation, which has no case; set index: flat.")
    users = user_vectors(model.eval(), histories).float().cpu().numpy()
    index = VectorIndex.build(model.catalog.detach().float().cpu().numpy(), args.index, users, args.index_recall)
    print(f"[retrieve] {index.said()}", flush=True)
    index.save(folder)


def main(arguments: list[str] | None = None, command: str | None = None) -> Path:
    """Entry of `hf-gr retrieve` and `recipes/retrieve.py`: TRL's parser over the three configs, `--config FILE`
    included."""
    return retrieve(*parse_config(RETRIEVE_CONFIGS, arguments, command))
