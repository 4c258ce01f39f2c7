"""The stage: from a dataset to a trained dense retriever."""

from pathlib import Path

import pyarrow.parquet as pq
from accelerate import PartialState
from transformers import set_seed

from ..arguments import parse_config
from ..artifacts import CARD
from ..dataset import InteractionDataset
from ..errors import HfGrError
from ..model_card import retriever_card
from ..models import BSARecModel
from ..provenance import learned_from
from ..runs import Run
from ..safeguards import check_finite
from ..training import DataConfig
from .config import RETRIEVE_CONFIGS, RetrieveConfig, RetrieverConfig
from .data import training_rows
from .retriever import ITEMS_FILE
from .trainer import RetrieverTrainer


def retrieve(data: DataConfig, model: RetrieverConfig, args: RetrieveConfig) -> Path:
    """Trains a retriever of item ids on the training part; the finished model is `output_dir/model`.

    Continues from the last checkpoint of the same settings, and does nothing when the model is up to date.
    """
    if not data.dataset:
        raise HfGrError("dataset is not set; give --dataset FOLDER or name it in the YAML file.")
    run = Run.of("retrieve", (data, model, args), {"dataset": data.dataset})
    with run.held():
        return run.model if run.is_current(data.force) else _retrieve(data, model, args, run)


def _retrieve(data: DataConfig, settings: RetrieverConfig, args: RetrieveConfig, run: Run) -> Path:
    dataset = InteractionDataset.load(data.dataset)
    split = dataset.split(data.split)
    learned = learned_from(data.split, split.train, dataset.item_ids)
    set_seed(args.seed)
    model = BSARecModel(settings.model_config(dataset.num_items))
    trainer = RetrieverTrainer(
        model,
        args=run.arguments(args),
        train_dataset=training_rows(split.train, dataset.num_items, settings.max_history, settings.causal),
        validation=split.validation,
    )
    trainer.train(resume_from_checkpoint=run.last_checkpoint())
    if PartialState().is_main_process:
        check_finite(trainer.accelerator.unwrap_model(trainer.model))
        with run.finishing(trainer.state.log_history) as folder:
            trainer.accelerator.unwrap_model(trainer.model).save_pretrained(folder)
            pq.write_table(dataset.items, folder / ITEMS_FILE)
            (folder / CARD).write_text(str(retriever_card(dataset.num_items)), encoding="utf-8")
            learned.save(folder)
        run.report()
    PartialState().wait_for_everyone()
    return run.model


def main(arguments: list[str] | None = None, command: str | None = None) -> Path:
    """Entry of `hf-gr retrieve` and `recipes/retrieve.py`: TRL's parser over the three configs, `--config FILE`
    included."""
    return retrieve(*parse_config(RETRIEVE_CONFIGS, arguments, command))
