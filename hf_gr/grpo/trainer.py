"""GRPO on TRL's trainer: constrained rollouts, constrained log-probabilities, shared prompts."""

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.models import unwrap_model_for_generation

from ..adapters import check_sharding, plain_lm
from ..catalog import SidCatalog
from ..dataset import Cases, Histories
from ..errors import HfGrError
from ..interests import Interests
from ..models import add_inner_call
from ..rewards import ItemKnowledge, Reward, answered_items, parse_mix, trl_reward, trl_rewards
from ..training import without_router_loss
from ..validation import Validation, drawn_cases, endings
from ..vocabulary import SidVocabulary
from .advantages import leave_one_out, without_replacement
from .config import SidGRPOConfig
from .internals import GroupedGRPOTrainer
from .policy import policy_log_probs
from .prompts import training_prompts
from .rollouts import draws_of, roll_out


_FLAT_LOGS = 10  # log lines without any variance of rewards before a warning; fewer in a shorter run


class SidGRPOTrainer(GroupedGRPOTrainer):
    """GRPO whose policy is the constrained one.

    Args:
        model: Causal LM with the SID tokens, not yet wrapped by PEFT.
        args: Settings, which stay as they are. A prompt's G rollouts stay in one micro-batch:
            `per_device_train_batch_size` must be a multiple of G, else [`HfGrError`].
        catalog: The items and their SIDs.
        vocabulary: Of the model.
        processing_class: The model's tokenizer.
        train_dataset: Training histories in rows of the catalog, of which prompts are made ([`training_prompts`]), and
            what rewards know of the items; or prompts that are made already, with `items`: columns `prompt` (token
            ids) and `target` (catalog row, or rows of the next n items).
        eval_dataset: Validation cases in rows of the catalog; `args.eval_users` of them are measured.
        rewards: Rewards of one's own beside those of `args.rewards`, each with its weight: functions as in
            `hf_gr/rewards`.
        embeddings: Folder of item vectors for the reward `semantic`; those of the codebook if left out.
        interests: For the reward `interest`; categories if left out.
        items: What rewards know of the items, where `train_dataset` holds prompts.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: SidGRPOConfig,
        *,
        catalog: SidCatalog,
        vocabulary: SidVocabulary,
        processing_class: PreTrainedTokenizerBase,
        train_dataset: Histories | Dataset,
        eval_dataset: Cases | None = None,
        rewards: Sequence[tuple[Reward, float]] = (),
        embeddings: str | None = None,
        interests: Interests | None = None,
        items: ItemKnowledge | None = None,
        **kwargs: Any,
    ):
        self.grammar, self.validation = vocabulary.grammar(catalog), None
        if eval_dataset is not None:
            users = drawn_cases(eval_dataset, args.eval_users, args.seed)
            self.validation = Validation.of_args(users, catalog, vocabulary, args)
        if isinstance(train_dataset, Histories):
            items = items or ItemKnowledge.of(catalog, train_dataset, embeddings, interests)
            counts = (args.prompts_per_user, args.target_steps)
            train_dataset = training_prompts(train_dataset, catalog, vocabulary, *counts)
        if items is None:
            raise HfGrError("train_dataset holds prompts, which say nothing of items; pass items=ItemKnowledge.of(…).")
        self._flat_logs = 0  # log lines so far, if in all of them every group had one reward; else negative
        self._turns = (-1, 0)  # step of the last generation, and how many there were in it
        add_inner_call(model)
        args = copy.copy(args)  # the caller's stays as it is
        args.max_completion_length = self.grammar.answer_length
        group = args.num_generations or 0  # TRL refuses fewer than two
        mix = parse_mix(args.rewards)
        functions = trl_rewards(mix, self.grammar, items, group, args.target_decay)
        functions += [trl_reward(own, self.grammar, items, group, decay=args.target_decay) for own, _ in rewards]
        args.reward_weights = [given.weight for given in mix.values()] + [weight for _, weight in rewards]
        with without_router_loss(model), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*'rollout_func'.*experimental")  # TRL's range is pinned for it
            super().__init__(
                model,
                functions,
                args=args,
                rollout_func=constrained_rollouts,
                processing_class=processing_class,
                train_dataset=train_dataset,
                eval_dataset=None if self.validation is None else train_dataset.select([0]),  # evaluate() is ours
                **kwargs,
            )
        check_sharding(self.accelerator, self.model)
        if self.args.per_device_train_batch_size % self.num_generations:
            raise HfGrError(
                f"per_device_train_batch_size is {self.args.per_device_train_batch_size}, no multiple of "
                f"num_generations = {self.num_generations}, so a prompt's rollouts would be torn apart; choose a "
                "multiple."
            )
        batch = self.args.generation_batch_size // self.num_generations
        if len(self.train_dataset) < batch:
            raise HfGrError(
                f"there are {len(self.train_dataset)} prompts, fewer than the {batch} of one generation; lower "
                "per_device_train_batch_size or steps_per_generation, or raise prompts_per_user."
            )
        if self.ref_model is not None:
            add_inner_call(self.accelerator.unwrap_model(self.ref_model))
        for callback in endings(self.args):
            self.add_callback(callback)

    # The policy

    def score(
        self, model: torch.nn.Module, prompts: torch.Tensor, prompt_mask: torch.Tensor, answers: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        plain = plain_lm(self.accelerator.unwrap_model(model))
        grammar = self.grammar.to(prompts.device)
        with self.accelerator.autocast():  # the reference is wrapped after accelerate: its forward enters none
            return policy_log_probs(model, plain, prompts, prompt_mask, answers, grammar, self.temperature)

    # Advantages

    def reweighed(self, inputs: list[dict[str, Any]], rewards: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
        shape = (-1, self.num_generations)
        if self.args.estimator == "leave_one_out":
            return leave_one_out(advantages.view(shape)).flatten()
        if self.args.estimator == "without_replacement":
            scores, keys = (
                torch.tensor([row[name] for row in inputs], device=rewards.device).view(shape)
                for name in ("fresh_score", "threshold")
            )
            return without_replacement(rewards.view(shape), scores, keys[:, 0]).flatten()
        return advantages

    def replacements(self, turn: int) -> list[dict[str, Any]] | None:
        if turn == self.args.max_refills:
            return None
        count = self.args.generation_batch_size // self.num_generations
        seeds = [self.args.seed, self.state.global_step, turn]
        chosen = np.random.default_rng(seeds).choice(len(self.train_dataset), count)
        mine = np.array_split(chosen, self.accelerator.num_processes)[self.accelerator.process_index]
        return [dict(self.train_dataset[int(row)]) for row in mine for _ in range(self.num_generations)]

    def measured(self, inputs: list[dict[str, Any]], completion_ids: list[list[int]]) -> dict[str, float]:
        items = answered_items(completion_ids, self.grammar).reshape(-1, self.num_generations)
        targets = np.array([np.atleast_1d(row["target"])[0] for row in inputs]).reshape(items.shape)
        return {
            "group_hit_rate": float((items == targets).any(axis=1).mean()),
            "distinct_items": float(np.mean([len(np.unique(group)) for group in items])),
        }

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        super().log(logs, *args, **kwargs)
        if "frac_reward_zero_std" in logs and self._flat_logs >= 0:
            self._flat_logs = self._flat_logs + 1 if logs["frac_reward_zero_std"] == 1 else -1
        if self._flat_logs == _FLAT_LOGS:
            self.warn_of_one_reward()

    def warn_of_one_reward(self) -> None:
        """Says so, once, if no group of rollouts so far has had different rewards."""
        if self._flat_logs > 0 and self.accelerator.is_main_process:
            print(
                "[grpo] warning: in every group of rollouts all had one reward, from which nothing is learned; take "
                "other rewards, a higher temperature, or a model that is right now and then.",
                flush=True,
            )
        self._flat_logs = -1

    # Validation

    def lists(self) -> dict[str, float]:
        if self.validation is None:
            raise HfGrError("no validation cases were given; pass eval_dataset=… or leave eval_strategy out.")
        with unwrap_model_for_generation(self.model_wrapped, self.accelerator) as model, self.accelerator.autocast():
            return self.validation.measure(plain_lm(model), self.grammar, self.accelerator)

    def next_draws(self) -> Any:
        """Random numbers of the next generation."""
        step = self.state.global_step
        self._turns = (step, self._turns[1] + 1 if self._turns[0] == step else 0)
        accelerator = self.accelerator
        parts = (accelerator.process_index, accelerator.num_processes)
        return draws_of(self.args.seed, *self._turns, accelerator.device, *parts)


def constrained_rollouts(prompts: list[list[int]], trainer: SidGRPOTrainer) -> dict[str, Any]:
    """TRL's `rollout_func`: G live items for every prompt, from its own constrained policy.

    Args:
        prompts: Token ids; the G rows of a prompt stand together.
        trainer: Whose policy rolls out.

    Returns:
        `prompt_ids`, `completion_ids` and `logprobs` as TRL wants them; `env_mask`, 0 on forced tokens, which leaves
        them out of the loss, its KL and its length; `rollout_score`, each rollout's log-probability, for rewards that
        rank; `fresh_score` and `threshold` for importance weights.
    """
    group, grammar = trainer.num_generations, trainer.grammar
    with (
        unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model,
        trainer.accelerator.autocast(),
    ):
        was_training = model.training
        model.eval()
        found = roll_out(
            plain_lm(model),
            prompts[::group],
            grammar,
            group,
            trainer.args.rollout,
            trainer.temperature,
            trainer.next_draws(),
        )
        model.train(was_training)
    answer = [int(place in grammar.code_columns) for place in range(grammar.answer_length)]
    return {
        "prompt_ids": prompts,
        "completion_ids": found.tokens.flatten(0, 1).tolist(),
        "logprobs": None,
        "env_mask": [answer] * len(prompts),
        "rollout_score": found.scores.flatten().tolist(),
        "fresh_score": found.fresh_scores.flatten().tolist(),
        "threshold": found.thresholds.repeat_interleave(group).tolist(),
    }
