"""GRPO on TRL's trainer: constrained rollouts, constrained log-probabilities, shared prompts.

Uses one internal of TRL (1.16): `_get_per_token_logps_and_entropies`, replaced so that policy and reference are scored
under the grammar's mask. Rollouts, rewards and columns go through TRL's public hooks.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation

from ..arguments import parse_config
from ..artifacts import is_current, report
from ..branches import share_prompts
from ..catalog import SidCatalog
from ..dataset import Histories, InteractionDataset
from ..decoding import load_thinking, search, tree_support
from ..errors import HfGrError
from ..grammar import SidGrammar
from ..models import add_inner_call, answer_logits, last_hidden
from ..offline import resolve
from ..rewards import trl_reward
from ..training import Run, check_sharding, load_lm, plain_lm, trained_model, tuned
from ..vocabulary import SidVocabulary
from .config import SidGRPOConfig


class SidGRPOTrainer(GRPOTrainer):
    """GRPO whose policy is the constrained one.

    Args:
        model: Causal LM with the SID tokens, not yet wrapped by PEFT.
        grammar: What may follow.
        args: A prompt's G rollouts must fit on one device: `per_device_train_batch_size × steps_per_generation` must
            be a multiple of G, else [`HfGrError`].
        train_dataset: Columns `prompt` (token ids) and `target` (catalogue row).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        grammar: SidGrammar,
        *,
        args: SidGRPOConfig,
        **kwargs: Any,
    ):
        self.grammar = grammar
        add_inner_call(model)
        args.max_completion_length = grammar.answer_length
        group = args.num_generations or 0  # TRL refuses fewer than two
        rewards = [trl_reward(name, grammar, group) for name in args.rewards]
        super().__init__(model, rewards, args=args, rollout_func=constrained_rollouts, **kwargs)
        check_sharding(self.accelerator, self.args.finetune)
        rows = self.args.per_device_train_batch_size * self.args.steps_per_generation
        if rows % self.num_generations:
            raise HfGrError(
                f"per_device_train_batch_size × steps_per_generation = {rows} is no multiple of num_generations = "
                f"{self.num_generations}, so a prompt's rollouts would be torn apart; choose a multiple."
            )
        if self.ref_model is not None:
            add_inner_call(self.accelerator.unwrap_model(self.ref_model))

    def _get_per_token_logps_and_entropies(
        self,
        model: torch.nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        prompts, answers = input_ids[:, :-logits_to_keep], input_ids[:, -logits_to_keep:]
        log_probs, entropies = policy_log_probs(
            model,
            plain_lm(self.accelerator.unwrap_model(model)),
            prompts,
            attention_mask[:, :-logits_to_keep],
            answers,
            self.grammar.to(input_ids.device),
            self.temperature,
        )
        return log_probs, entropies if compute_entropy else None, None


def policy_log_probs(
    model: torch.nn.Module,
    plain: PreTrainedModel,
    prompts: torch.Tensor,
    prompt_mask: torch.Tensor,
    answers: torch.Tensor,
    grammar: SidGrammar,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability and entropy of every answer token under the grammar, float32 [R, L] each.

    Equal prompts are computed once where the architecture allows it ([`tree_support`]).

    Args:
        model: The (possibly wrapped) model to call; `plain` is the same one unwrapped.
        prompts: int64 [R, P], padded on the left; `prompt_mask` int64 [R, P].
        answers: int64 [R, L], complete SIDs.
        temperature: Divides the logits.
    """
    if tree_support(plain, prompts.shape[1] + answers.shape[1])[0]:
        shared = share_prompts(prompts, prompt_mask, answers)
        predictors, inputs = shared.predictors, shared.inputs(plain.config._attn_implementation, plain.dtype)
    else:
        ids = torch.cat([prompts, answers], dim=1)
        inputs = {"input_ids": ids, "attention_mask": torch.cat([prompt_mask, torch.ones_like(answers)], dim=1)}
        columns = torch.arange(ids.numel(), device=ids.device).view_as(ids)
        predictors = columns[:, prompts.shape[1] - 1 : -1]
    places = list(grammar.code_columns)

    def score() -> tuple[torch.Tensor, torch.Tensor]:
        hidden = last_hidden(plain, **inputs)
        log_probs = torch.zeros(answers.shape, device=answers.device)  # a forced token has log-probability 0
        entropies = torch.zeros_like(log_probs)
        read, codes = hidden.flatten(0, 1)[predictors[:, places]], answers[:, places]
        for place, logits, option in zip(places, *answer_logits(plain, read, codes, grammar), strict=True):
            policy = torch.log_softmax(logits / temperature, dim=1)
            log_probs[:, place] = policy.gather(1, option[:, None])[:, 0]
            finite = policy.masked_fill(logits.isneginf(), 0.0)
            entropies[:, place] = -(finite.exp() * finite).sum(1)
        return log_probs, entropies

    return model(inner=score)


def constrained_rollouts(prompts: list[list[int]], trainer: SidGRPOTrainer) -> dict[str, Any]:
    """TRL's `rollout_func`: G live items for every prompt, from its own constrained policy.

    Args:
        prompts: Token ids; the G rows of a prompt stand together.
        trainer: Whose policy rolls out.

    Returns:
        `prompt_ids`, `completion_ids` and `logprobs` as TRL wants them, and `rollout_score`, each rollout's
        log-probability, for rewards that rank.
    """
    group = trainer.num_generations if trainer.model.training else trainer.num_generations_eval
    with (
        unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model,
        trainer.accelerator.autocast(),
    ):
        was_training = model.training
        model.eval()
        beams = search(
            plain_lm(model),
            prompts[::group],
            trainer.grammar,
            num_beams=group,
            method=trainer.args.rollout,
            temperature=trainer.temperature,
        )
        model.train(was_training)
    tokens, scores = _filled(beams.tokens, beams.scores, group)
    return {
        "prompt_ids": prompts,
        "completion_ids": tokens.flatten(0, 1).tolist(),
        "logprobs": None,
        "rollout_score": scores.flatten().tolist(),
    }


def _filled(tokens: torch.Tensor, scores: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`group` answers a prompt: where there are fewer SIDs than that, the prompt's first one is repeated.

    That is the best one of beams, and with Gumbel keys a draw from the policy.
    """
    missing = group - scores.shape[1]
    tokens = torch.nn.functional.pad(tokens, (0, 0, 0, missing))
    scores = torch.nn.functional.pad(scores, (0, missing), value=-torch.inf)
    dead = scores.isneginf()
    return torch.where(dead[..., None], tokens[:, :1], tokens), torch.where(dead, scores[:, :1], scores)


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
    run = Run.of("grpo", config, inputs)
    main = PartialState().is_main_process
    if not config.force and is_current(run.model, "grpo", run.settings, run.inputs):
        if main:
            report("grpo", inputs, run.model, current=True)
        return run.model
    path = resolve(config.model)
    catalog, vocabulary = SidCatalog.load(path), SidVocabulary.load(path)
    model, tokenizer = load_lm(path, config.attention)
    vocabulary.check(catalog, tokenizer, config.model)
    thinking = load_thinking(path, catalog)
    if thinking is not None and thinking.feed is not None:
        raise HfGrError(
            f"{config.model} feeds hidden states back (thinking.feedback: hidden), which GRPO does not score; take "
            "one with feedback: token."
        )
    train = InteractionDataset.load(config.dataset).aligned(catalog.item_ids).split(config.split).train
    rows = training_prompts(train, catalog, vocabulary, config.prompts_per_user)
    policy, adapter = tuned(model, vocabulary, config, run.base)
    trainer = SidGRPOTrainer(
        policy,
        vocabulary.grammar(catalog),
        args=config,
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=adapter,
    )
    trainer.train(resume_from_checkpoint=run.last_checkpoint())
    trained = trained_model(trainer)
    if main:
        run.finish(trained, tokenizer, catalog, vocabulary, trainer.state.log_history, config.model, path)
        report("grpo", inputs, run.model)
    PartialState().wait_for_everyone()
    return run.model


def training_prompts(train: Histories, catalog: SidCatalog, vocabulary: SidVocabulary, per_user: int) -> Dataset:
    """Prompts from the latest `per_user` training events of each user that have an earlier one; `target` is the event.

    Events of items that were removed from the catalogue are left out: no rollout can reach them.
    """
    users, ends = [], []
    for user, length in enumerate(train.lengths):
        latest = np.arange(max(1, length - per_user), length)
        users.append(np.full(len(latest), user))
        ends.append(latest)
    chosen, cut = np.concatenate(users), np.concatenate(ends)
    targets = train.items[train.ptr[chosen] + cut]
    live = catalog.live[targets]
    prompts = vocabulary.prompts(train.cut(chosen[live], cut[live]), catalog)
    return Dataset.from_dict({"prompt": prompts, "target": targets[live]})


def main(arguments: list[str] | None = None) -> Path:
    """Entry of `recipes/grpo.py` and `hf-gr grpo`: TRL's parser over [`SidGRPOConfig`], `--config FILE` included."""
    return grpo(parse_config(SidGRPOConfig, arguments))
