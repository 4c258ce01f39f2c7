"""The station: from a model of `hf_gr.sft` to one that learned from rewards."""

import copy
from pathlib import Path

import numpy as np
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..adapters import tuned
from ..arguments import parse_config
from ..catalog import SidCatalog
from ..dataset import Histories, InteractionDataset
from ..decoding import load_thinking
from ..errors import HfGrError
from ..hub import READ_FILES
from ..interests import Interests
from ..offline import local_folder
from ..provenance import learned_from
from ..rewards import ItemKnowledge
from ..runs import Run
from ..training import load_lm, trained_model
from ..validation import Validation, drawn_cases
from ..vocabulary import SidVocabulary
from .config import SidGRPOConfig
from .trainer import SidGRPOTrainer


def grpo(config: SidGRPOConfig) -> Path:
    """Trains a model of `hf-gr sft` with recommendation rewards; the finished model is `output_dir/model`.

    Continues from the last checkpoint of the same settings, and does nothing when the model is up to date.
    """
    for name in ("dataset", "model"):
        if not vars(config)[name]:
            raise HfGrError(f"{name} is not set; give --{name} FOLDER or name it in the YAML file.")
    inputs: dict[str, str | Path] = {"dataset": config.dataset}
    if Path(config.model).is_dir():
        inputs["model"] = config.model
    if config.embeddings:
        inputs["embeddings"] = config.embeddings
    if config.interests:
        inputs["interests"] = config.interests
    run = Run.of("grpo", config, inputs)
    with run.held():
        return run.model if run.is_current(config.force) else _grpo(config, run)


def _grpo(config: SidGRPOConfig, run: Run) -> Path:
    path = str(local_folder(config.model, files=READ_FILES))
    catalog, vocabulary = SidCatalog.load(path), SidVocabulary.load(path)
    model, tokenizer = load_lm(path, config.attention)
    vocabulary.check(catalog, tokenizer, config.model)
    thinking = load_thinking(path, catalog, vocabulary)
    if thinking is not None and thinking.feed is not None:
        raise HfGrError(
            f"{config.model} feeds hidden states back (thinking.feedback: hidden), which GRPO does not score; take "
            "one with feedback: token."
        )
    interests = Interests.load(config.interests) if config.interests else Interests.of_model(path)
    split = InteractionDataset.load(config.dataset).aligned(catalog.item_ids).split(config.split)
    made_of = (path, config.embeddings, config.interests)
    learned = learned_from(config.split, split.train, catalog.item_ids, *made_of)
    policy, adapter = tuned(model, vocabulary, config, run.base)
    validation = None
    if config.eval_strategy != "no":
        users = drawn_cases(split.validation, config.eval_users, config.seed)
        width, batch = config.eval_beams, config.per_device_eval_batch_size
        validation = Validation.of(users, catalog, vocabulary, num_beams=width, batch_size=batch)
    trainer = SidGRPOTrainer(
        policy,
        vocabulary.grammar(catalog),
        args=run.arguments(config),
        items=ItemKnowledge.of(catalog, split.train, config.embeddings, interests),
        validation=validation,
        train_dataset=training_prompts(split.train, catalog, vocabulary, config.prompts_per_user, config.target_steps),
        processing_class=padding(tokenizer, vocabulary),
        peft_config=adapter,
    )
    trainer.train(resume_from_checkpoint=run.last_checkpoint())
    trainer.warn_of_one_reward()
    remedies = "a lower learning_rate, a larger beta, or other rewards"
    trained = load_lm(path)[0] if trainer.start_is_best("grpo", remedies) else trained_model(trainer)
    if tokenizer.pad_token_id is None and trained.config.get_text_config().pad_token_id == vocabulary.start_id:
        trained.config.get_text_config().pad_token_id = None  # it was for the trainer alone
    if PartialState().is_main_process:
        log = trainer.state.log_history
        run.finish(trained, tokenizer, catalog, vocabulary, log, config.model, path, learned=learned)
        run.report()
    PartialState().wait_for_everyone()
    return run.model


def padding(tokenizer: PreTrainedTokenizerBase, vocabulary: SidVocabulary) -> PreTrainedTokenizerBase:
    """The tokenizer or, where it has neither a padding nor an end-of-text token, a copy that pads with `<items>`:
    what pads is outside of attention and loss."""
    if tokenizer.pad_token_id is not None or tokenizer.eos_token_id is not None:
        return tokenizer
    padded = copy.deepcopy(tokenizer)
    padded.pad_token = padded.convert_ids_to_tokens(vocabulary.start_id)
    return padded


def training_prompts(
    train: Histories, catalog: SidCatalog, vocabulary: SidVocabulary, per_user: int, steps: int = 1
) -> Dataset:
    """Prompts from the latest `per_user` training events of each user that have an earlier one.

    `target` is the event, or with `steps` above 1 the list of it and those after it, −1 where training events have
    ended; `history` are the items before it that the prompt shows.

    Events of items that were removed from the catalogue are left out: no rollout can reach them.
    """
    users, ends = [], []
    for user, length in enumerate(train.lengths):
        latest = np.arange(max(1, length - per_user), length)
        users.append(np.full(len(latest), user))
        ends.append(latest)
    chosen, cut = np.concatenate(users), np.concatenate(ends)
    places = train.ptr[chosen][:, None] + cut[:, None] + np.arange(steps)
    inside = places < train.ptr[chosen + 1][:, None]
    targets = np.where(inside, train.items[np.where(inside, places, 0)], -1)
    live = catalog.live[targets[:, 0]]
    before = train.cut(chosen[live], cut[live])
    return Dataset.from_dict(
        {
            "prompt": vocabulary.prompts(before, catalog),
            "target": targets[live, 0] if steps == 1 else targets[live].tolist(),
            "history": [items[-vocabulary.max_history :].tolist() for items in before],
        }
    )


def main(arguments: list[str] | None = None, command: str | None = None) -> Path:
    """Entry of `recipes/grpo.py` and `hf-gr grpo`: TRL's parser over [`SidGRPOConfig`], `--config FILE` included."""
    return grpo(parse_config(SidGRPOConfig, arguments, command))
