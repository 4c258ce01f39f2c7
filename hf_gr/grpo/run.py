"""The stage: from a model of `hf_gr.sft` to one that learned from rewards."""

import copy
from pathlib import Path

from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from ..adapters import tuned
from ..arguments import parse_config
from ..catalog import SidCatalog
from ..dataset import InteractionDataset
from ..decoding import load_thinking
from ..errors import HfGrError
from ..hub import READ_FILES
from ..interests import Interests
from ..offline import local_folder
from ..provenance import learned_from
from ..runs import Run
from ..scorers.saved import read_mixture
from ..training import load_lm, trained_model
from ..vocabulary import SidVocabulary
from .config import GRPO_CONFIGS, GRPODataConfig, PolicyConfig, SidGRPOConfig
from .trainer import SidGRPOTrainer


def grpo(data: GRPODataConfig, policy: PolicyConfig, args: SidGRPOConfig) -> Path:
    """Trains a model of `hf-gr sft` with recommendation rewards; the finished model is `output_dir/model`.

    Continues from the last checkpoint of the same settings, and does nothing when the model is up to date.
    """
    for name, value in (("dataset", data.dataset), ("model", policy.model)):
        if not value:
            raise HfGrError(f"{name} is not set; give --{name} FOLDER or name it in the YAML file.")
    inputs: dict[str, str | Path] = {"dataset": data.dataset}
    if Path(policy.model).is_dir():
        inputs["model"] = policy.model
    if data.embeddings:
        inputs["embeddings"] = data.embeddings
    if data.interests:
        inputs["interests"] = data.interests
    run = Run.of("grpo", (data, policy, args), inputs)
    with run.held():
        return run.model if run.is_current(data.force) else _grpo(data, policy, args, run)


def _grpo(data: GRPODataConfig, start: PolicyConfig, args: SidGRPOConfig, run: Run) -> Path:
    path = str(local_folder(start.model, files=READ_FILES))
    catalog, vocabulary = SidCatalog.load(path), SidVocabulary.load(path)
    model, tokenizer = load_lm(path, start.attention)
    vocabulary.check(catalog, tokenizer, start.model)
    read_mixture(Path(path), catalog)  # what is carried on at the end is there
    thinking = load_thinking(path, catalog, vocabulary)
    if thinking is not None and thinking.feed is not None:
        raise HfGrError(
            f"{start.model} feeds hidden states back (thinking.feedback: hidden), which GRPO does not score; take "
            "one with feedback: token."
        )
    split = InteractionDataset.load(data.dataset).aligned(catalog.item_ids).split(data.split)
    made_of = (path, data.embeddings, data.interests)
    learned = learned_from(data.split, split.train, catalog.item_ids, *made_of)
    policy, adapter = tuned(model, vocabulary, start, run.base)
    trainer = SidGRPOTrainer(
        policy,
        run.arguments(args),
        catalog=catalog,
        vocabulary=vocabulary,
        processing_class=padding(tokenizer, vocabulary),
        train_dataset=split.train,
        eval_dataset=split.validation if args.eval_strategy != "no" else None,
        embeddings=data.embeddings,
        interests=Interests.load(data.interests) if data.interests else Interests.of_model(path),
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
        run.finish(trained, tokenizer, catalog, vocabulary, log, start.model, path, learned=learned, ranked_with=path)
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


def main(arguments: list[str] | None = None, command: str | None = None) -> Path:
    """Entry of `recipes/grpo.py` and `hf-gr grpo`: TRL's parser over the three configs, `--config FILE` included."""
    return grpo(*parse_config(GRPO_CONFIGS, arguments, command))
