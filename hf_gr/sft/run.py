"""The station: from dataset and catalogue to a fine-tuned model."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..adapters import tuned
from ..arguments import parse_config
from ..catalog import SidCatalog
from ..dataset import Histories, InteractionDataset
from ..decoding import load_thinking
from ..errors import HfGrError
from ..interests import Interests
from ..models import ThinkingHeads, from_scratch, recursion_settings, with_recursion
from ..offline import resolve
from ..provenance import learned_from
from ..runs import Run
from ..training import load_lm, trained_model
from ..validation import Validation, drawn_cases
from ..vocabulary import SidVocabulary, add_vocabulary, encode_text, reads_text
from .config import SidSFTConfig
from .interest_tasks import INTEREST_TASKS, build_of_interests
from .tasks import TASKS, build, held_out, mixture
from .trainer import SidSFTTrainer


def sft(config: SidSFTConfig) -> Path:
    """Fine-tunes an LM to write the next item's SID; the finished model is `output_dir/model`.

    Continues from the last checkpoint of the same settings, and does nothing when the model is up to date.
    """
    inputs: dict[str, str | Path] = {name: _given(vars(config)[name], name) for name in ("dataset", "catalog")}
    if config.continue_from and Path(config.continue_from).is_dir():
        inputs["model"] = config.continue_from
    if config.interests:
        inputs["interests"] = config.interests
    run = Run.of("sft", config, inputs)
    with run.held():
        return run.model if run.is_current(config.force) else _sft(config, run)


def _sft(config: SidSFTConfig, run: Run) -> Path:
    catalog = SidCatalog.load(config.catalog)
    split = InteractionDataset.load(config.dataset).aligned(catalog.item_ids).split(config.split)
    made_of = (config.catalog, config.continue_from, config.interests)
    learned = learned_from(config.split, split.train, catalog.item_ids, *made_of)
    model, tokenizer, vocabulary = starting_model(config, catalog, split.train)
    heads = starting_heads(config, model, catalog, vocabulary)
    interests = starting_interests(config)
    rows = training_rows(config, split.train, catalog, vocabulary, tokenizer, interests)
    model, adapter = tuned(model, vocabulary, config, run.base)
    args, users, validation = run.arguments(config), None, None
    args.eval_on_start = args.eval_on_start or bool(config.continue_from and config.keeps_best)  # it is a candidate
    if config.eval_strategy != "no":
        users = drawn_cases(split.validation, config.eval_users, config.seed)
    if users is not None and config.measures_lists:
        width, batch = config.eval_beams, config.per_device_eval_batch_size
        validation = Validation.of(users, catalog, vocabulary, num_beams=width, batch_size=batch)
    trainer = SidSFTTrainer(
        model,
        vocabulary,
        vocabulary.grammar(catalog),
        args=args,
        heads=heads,
        peft_config=adapter,
        train_dataset=rows,
        eval_dataset=None if users is None else held_out(users, catalog, vocabulary),
        validation=validation,
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=run.last_checkpoint())
    heads, trained = trainer.take_heads(), trained_model(trainer)
    if trainer.start_is_best("sft", "a lower learning_rate"):
        trained, _, _ = starting_model(config, catalog, split.train)
        heads = starting_heads(config, trained, catalog, vocabulary)
    if PartialState().is_main_process:
        base = config.continue_from or ("scratch" if config.scratch else str(config.model))
        log = trainer.state.log_history
        run.finish(trained, tokenizer, catalog, vocabulary, log, base, config.catalog, heads, interests, learned)
        run.report()
    PartialState().wait_for_everyone()
    return run.model


def starting_model(
    config: SidSFTConfig, catalog: SidCatalog, train: Histories
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, SidVocabulary]:
    """The LM with the catalogue's tokens: a plain one that gets them now, or one of ours that is to go on, perhaps in
    another form."""
    if config.continue_from:
        model, tokenizer = load_lm(config.continue_from, config.attention)
        vocabulary = SidVocabulary.load(resolve(config.continue_from))
        vocabulary.check(catalog, tokenizer, config.continue_from)
        _check_going_on(config, model, tokenizer, vocabulary)
        return model, tokenizer, _in_form(config, vocabulary)
    if isinstance(config.model, dict):
        model, tokenizer = from_scratch(config.model, config.seed)
        if config.attention:
            model.set_attn_implementation(config.attention)
    else:
        model, tokenizer = load_lm(str(config.model), config.attention)
    vocabulary = add_vocabulary(
        tokenizer,
        model,
        catalog,
        max_history=config.max_history,
        context=config.context,
        histories=train,
        row_start=config.row_start,
        form=config.form or "flat",
        seed=config.seed,
    )
    if config.prompt and not reads_text(tokenizer):
        raise HfGrError("prompt is set, but the model is of semantic IDs alone; give it text: true, or no prompt.")
    vocabulary = replace(vocabulary, prompt_ids=tuple(encode_text(tokenizer, config.prompt)))
    if vocabulary.sid_form.item_table:
        codebooks = [[ids[0], len(ids)] for ids in vocabulary.code_ids]
        codes = torch.from_numpy(vocabulary.item_tokens(catalog))
        recursive = with_recursion(model, codes, codebooks, config.recursion_config, config.seed)
        return recursive, tokenizer, replace(vocabulary, first_item_id=recursive.config.first_item_id)
    return model, tokenizer, vocabulary


def _in_form(config: SidSFTConfig, vocabulary: SidVocabulary) -> SidVocabulary:
    """The vocabulary of a model that goes on, in the form that the config asks for."""
    asked = replace(vocabulary, form=config.form or vocabulary.form)
    if asked.sid_form.item_table != vocabulary.sid_form.item_table:
        raise HfGrError(
            f"form is {asked.form!r}, but {config.continue_from} reads items as {vocabulary.form!r} does, which is "
            "another way; leave it out, or train a new model."
        )
    asked.sid_form.check(asked.form, config)
    return asked


def _check_going_on(
    config: SidSFTConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, vocabulary: SidVocabulary
) -> None:
    """Raises [`HfGrError`] where the config asks for other histories or another recursion than the model that goes on
    has; what it leaves at the default is as in the model."""
    default = SidSFTConfig(output_dir="")
    same_prompt = tuple(encode_text(tokenizer, config.prompt)) == vocabulary.prompt_ids
    asked: dict[str, tuple[Any, Any]] = {
        "max_history": (config.max_history, vocabulary.max_history),
        "context": (config.context, vocabulary.context),
        "prompt": (config.prompt, config.prompt if same_prompt else tokenizer.decode(vocabulary.prompt_ids)),
    }
    own = recursion_settings(model)
    if config.recursion is not None and own is not None:
        given = asdict(config.recursion_config)
        asked["recursion"] = given, {name: own[name] for name in given}
    for name, (wanted, there) in asked.items():
        if wanted not in (there, vars(default)[name]):
            raise HfGrError(
                f"{name} is {wanted!r}, but {config.continue_from} goes on with its own, {there!r}; leave it out, or "
                "train a new model."
            )


def starting_heads(
    config: SidSFTConfig, model: PreTrainedModel, catalog: SidCatalog, vocabulary: SidVocabulary
) -> ThinkingHeads | None:
    """New thinking heads, or those of the model that goes on; `None` where thoughts are not supervised."""
    if not vocabulary.sid_form.thinks:
        return None
    if config.continue_from:
        heads = load_thinking(config.continue_from, catalog, vocabulary)
        if heads is not None and config.heads not in (None, heads.config):
            raise HfGrError(
                f"thinking asks for {config.heads}, but {config.continue_from} has heads of {heads.config}; ask for "
                "the same, or leave it out."
            )
        if heads is not None:
            return heads
    if config.heads is None:
        return None
    return ThinkingHeads.start(config.heads, model.get_input_embeddings().embedding_dim, catalog, config.seed)


def starting_interests(config: SidSFTConfig) -> Interests | None:
    """The interests that are named, or those of the model that goes on."""
    if config.interests:
        return Interests.load(config.interests)
    return Interests.of_model(config.continue_from) if config.continue_from else None


def training_rows(
    config: SidSFTConfig,
    train: Histories,
    catalog: SidCatalog,
    vocabulary: SidVocabulary,
    tokenizer: PreTrainedTokenizerBase,
    interests: Interests | None = None,
) -> Dataset:
    """The rows of all tasks, mixed by their weights."""
    assert isinstance(config.tasks, dict)
    built = {
        name: build(
            name,
            train,
            catalog,
            vocabulary,
            tokenizer,
            steps=config.target_steps,
            decay=config.target_decay,
            trunk_weight=config.trunk_weight,
            seed=config.seed,
        )
        for name in config.tasks
        if name in TASKS
    }
    for name in config.tasks:
        if interests is not None and name in INTEREST_TASKS:
            given = (interests, train, catalog, vocabulary, tokenizer)
            built[name] = build_of_interests(name, *given, seed=config.seed)
    return mixture(built, config.tasks, config.seed)


def _given(path: str, name: str) -> str:
    if not path:
        raise HfGrError(f"{name} is not set; give --{name} FOLDER or name it in the YAML file.")
    return path


def main(arguments: list[str] | None = None, command: str | None = None) -> Path:
    """Entry of `recipes/sft.py` and `hf-gr sft`: TRL's parser over [`SidSFTConfig`], `--config FILE` included."""
    return sft(parse_config(SidSFTConfig, arguments, command))
