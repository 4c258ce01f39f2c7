"""The stage: from dataset and catalog to a fine-tuned model."""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..adapters import tuned
from ..arguments import parse_config
from ..catalog import SidCatalog
from ..dataset import Histories, InteractionDataset
from ..decoding import Recommender, load_thinking
from ..errors import HfGrError
from ..hub import READ_FILES
from ..interests import Interests
from ..models import ThinkingHeads, from_scratch, recursion_settings, with_recursion
from ..offline import local_folder
from ..provenance import learned_from
from ..remember import write_memory
from ..runs import Run
from ..scorers import load_scorers
from ..scorers.saved import SAVED_FILES, drop_scorer, read_mixture
from ..search_config import MEMORY
from ..splits import Split
from ..tables import TimeKind
from ..training import load_lm, trained_model
from ..vocabulary import SidVocabulary, add_vocabulary, reads_text, text_ids
from .config import SFT_CONFIGS, SidDataConfig, SidModelConfig, SidSFTConfig, check_together
from .moving import MovingTokenizer
from .trainer import SidSFTTrainer


def sft(data: SidDataConfig, model: SidModelConfig, args: SidSFTConfig) -> Path:
    """Fine-tunes an LM to write the next item's SID; the finished model is `output_dir/model`.

    Continues from the last checkpoint of the same settings, and does nothing when the model is up to date.
    """
    check_together(data, model, args)
    inputs: dict[str, str | Path] = {name: _given(vars(data)[name], name) for name in ("dataset", "catalog")}
    if model.continue_from and Path(model.continue_from).is_dir():
        inputs["model"] = model.continue_from
    if data.interests:
        inputs["interests"] = data.interests
    if data.embeddings:
        inputs["embeddings"] = data.embeddings
    run = Run.of("sft", (data, model, args), inputs)
    with run.held():
        return run.model if run.is_current(data.force) else _sft(data, model, args, run)


def _sft(data: SidDataConfig, start: SidModelConfig, settings: SidSFTConfig, run: Run) -> Path:
    base = start.continue_from or ("scratch" if start.scratch else str(start.model))
    if start.continue_from:  # once: all of a repo is read of one commit
        start = replace(start, continue_from=str(local_folder(start.continue_from, files=READ_FILES)))
    catalog = SidCatalog.load(data.catalog)
    dataset = InteractionDataset.load(data.dataset).aligned(catalog.item_ids)
    split = dataset.split(data.split)
    made_of = (data.catalog, start.continue_from, data.interests)
    learned = learned_from(data.split, split.train, catalog.item_ids, *made_of)
    args = run.arguments(settings)
    args.eval_on_start = args.eval_on_start or bool(start.continue_from and args.keeps_best)  # it is a candidate
    model, tokenizer, vocabulary = starting_model(start, catalog, split.train, args.seed)
    heads = starting_heads(start, model, catalog, vocabulary, args.seed)
    interests = starting_interests(data.interests, start.continue_from)
    moving = None
    if data.embeddings is not None:
        moving = MovingTokenizer.of(data.catalog, catalog, data.embeddings, args.tokenizer_weight)
    model, adapter = tuned(model, vocabulary, start, run.base)
    trainer = SidSFTTrainer(
        model,
        args,
        catalog=catalog,
        vocabulary=vocabulary,
        processing_class=tokenizer,
        train_dataset=split.train,
        eval_dataset=split.validation if args.eval_strategy != "no" else None,
        heads=heads,
        interests=interests,
        moving=moving,
        peft_config=adapter,
    )
    trainer.train(resume_from_checkpoint=run.last_checkpoint())
    heads, trained = trainer.take_heads(), trained_model(trainer)
    quantizer = None if moving is None else moving.detach(trained)
    if trainer.start_is_best("sft", "a lower learning_rate"):
        trained, _, _ = starting_model(start, catalog, split.train, args.seed)
        heads, quantizer = starting_heads(start, trained, catalog, vocabulary, args.seed), None
    else:
        catalog, vocabulary = trainer.catalog, trainer.vocabulary  # a callback may have exchanged them
    if PartialState().is_main_process:
        log = trainer.state.log_history
        remembering = partial(
            _remember,
            tokenizer=tokenizer,
            catalog=catalog,
            vocabulary=vocabulary,
            heads=heads,
            split=split,
            time=dataset.time,
            args=settings,
        )
        run.finish(
            trained,
            tokenizer,
            catalog,
            vocabulary,
            log,
            base,
            data.catalog,
            heads,
            interests,
            learned,
            start.continue_from,
            remembering if settings.memory else None,
            quantizer,
        )
        run.report()
    PartialState().wait_for_everyone()
    return run.model


def _remember(
    folder: Path,
    model: PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase,
    catalog: SidCatalog,
    vocabulary: SidVocabulary,
    heads: ThinkingHeads | None,
    split: Split,
    time: TimeKind,
    args: SidSFTConfig,
) -> None:
    """Gives the model in a folder a memory of the training part."""
    drop_scorer(folder, MEMORY)  # that of the model it went on from
    scorers, mixture = load_scorers(folder, catalog)
    recommender = Recommender(model, tokenizer, catalog, vocabulary, thinking=heads, scorers=scorers, mixture=mixture)
    size: int = vars(args)["per_device_eval_batch_size"]
    settings = {"users": args.memory_users, "num_beams": args.eval_beams, "batch_size": size, "seed": args.seed}
    result = write_memory(folder, recommender, split, time, **settings)
    print(f"[sft] memory: {result.summary}", flush=True)


def starting_model(
    config: SidModelConfig, catalog: SidCatalog, train: Histories, seed: int = 42
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, SidVocabulary]:
    """The LM with the catalog's tokens: a plain one that gets them now, or one of ours that is to go on, perhaps in
    another form."""
    if config.continue_from:
        model, tokenizer = load_lm(config.continue_from, config.attention)
        vocabulary = SidVocabulary.load(config.continue_from)
        vocabulary.check(catalog, tokenizer, config.continue_from)
        # what is carried on at the end is there
        read_mixture(local_folder(config.continue_from, files=["config.json", *SAVED_FILES]), catalog)
        _check_going_on(config, model, tokenizer, vocabulary)
        return model, tokenizer, _in_form(config, vocabulary)
    if isinstance(config.model, dict):
        model, tokenizer = from_scratch(config.model, seed)
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
        seed=seed,
    )
    if config.prompt and not reads_text(tokenizer):
        raise HfGrError("prompt is set, but the model is of semantic IDs alone; give it text: true, or no prompt.")
    vocabulary = replace(vocabulary, prompt_ids=tuple(text_ids(tokenizer, config.prompt)))
    if vocabulary.sid_form.item_table:
        codebooks = [[ids[0], len(ids)] for ids in vocabulary.code_ids]
        codes = torch.from_numpy(vocabulary.item_tokens(catalog))
        recursive = with_recursion(model, codes, codebooks, config.recursion_config, seed)
        return recursive, tokenizer, replace(vocabulary, first_item_id=recursive.config.first_item_id)
    return model, tokenizer, vocabulary


def _in_form(config: SidModelConfig, vocabulary: SidVocabulary) -> SidVocabulary:
    """The vocabulary of a model that goes on, in the form that the config asks for."""
    asked = replace(vocabulary, form=config.form or vocabulary.form)
    if asked.sid_form.item_table != vocabulary.sid_form.item_table:
        raise HfGrError(
            f"form is {asked.form!r}, but {config.continue_from} reads items as {vocabulary.form!r} does, which is "
            "another way; leave it out, or train a new model."
        )
    asked.sid_form.check_model(asked.form, config)
    return asked


def _check_going_on(
    config: SidModelConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, vocabulary: SidVocabulary
) -> None:
    """Raises [`HfGrError`] where the config asks for other histories or another recursion than the model that goes on
    has; what it leaves at the default is as in the model."""
    default = SidModelConfig()
    same_prompt = tuple(text_ids(tokenizer, config.prompt)) == vocabulary.prompt_ids
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
    config: SidModelConfig, model: PreTrainedModel, catalog: SidCatalog, vocabulary: SidVocabulary, seed: int = 42
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
    return ThinkingHeads.start(config.heads, model.get_input_embeddings().embedding_dim, catalog, seed)


def starting_interests(folder: str | None, continue_from: str | None) -> Interests | None:
    """The interests that are named, or those of the model that goes on."""
    if folder:
        return Interests.load(folder)
    return Interests.of_model(continue_from) if continue_from else None


def _given(path: str, name: str) -> str:
    if not path:
        raise HfGrError(f"{name} is not set; give --{name} FOLDER or name it in the YAML file.")
    return path


def main(arguments: list[str] | None = None, command: str | None = None) -> Path:
    """Entry of `recipes/sft.py` and `hf-gr sft`: TRL's parser over the three configs, `--config FILE` included."""
    return sft(*parse_config(SFT_CONFIGS, arguments, command))
