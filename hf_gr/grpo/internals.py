"""What is not to be had by TRL's public hooks. The one file that overrides its internals (tested against 1.16).

`tests/grpo/test_internals.py` fails where TRL changes what is overridden here.
"""

from typing import Any

import torch
from trl import GRPOTrainer
from trl.trainer.utils import split_tensor_dict

from ..validation import ValidatedTrainer
from .advantages import uniform_groups


class GroupedGRPOTrainer(ValidatedTrainer, GRPOTrainer):
    """TRL's trainer with openings: how answers are scored, what their advantages are, what is logged of them, and what
    becomes of groups that teach nothing. A prompt's rollouts stay together in one micro-batch."""

    # What a subclass fills in

    def score(
        self,
        model: torch.nn.Module,
        prompts: torch.Tensor,
        prompt_mask: torch.Tensor,
        answers: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities and entropies float32 [R, T] of the answers' tokens."""
        raise NotImplementedError

    def reweighed(self, inputs: list[dict[str, Any]], rewards: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
        """Advantages [R] of the rollouts that are here, given their rewards [R] and TRL's advantages [R]."""
        raise NotImplementedError

    def measured(self, inputs: list[dict[str, Any]], completion_ids: list[list[int]]) -> dict[str, float]:
        """What is logged of a batch of rollouts beside its rewards, means of what is here."""
        raise NotImplementedError

    def replacements(self, turn: int) -> list[dict[str, Any]] | None:
        """Other prompts' rows, as many as a batch has, in place of groups without variance; `None`: no more."""
        raise NotImplementedError

    # What is overridden

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
        size = batch_size or len(input_ids)
        parts = [
            self.score(
                model,
                input_ids[start : start + size, :-logits_to_keep],
                attention_mask[start : start + size, :-logits_to_keep],
                input_ids[start : start + size, -logits_to_keep:],
            )
            for start in range(0, len(input_ids), size)
        ]
        log_probs, entropies = (torch.cat(part) for part in zip(*parts, strict=True))
        return log_probs, entropies if compute_entropy else None, None

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """TRL's, less its shuffling of rows, which tears groups apart; the sampler has shuffled the prompts."""
        every = self.args.steps_per_generation * self.num_iterations
        if self._step % every == 0 or self._buffered_inputs is None:  # type: ignore[has-type]
            batch = self._generate_and_score_completions(generation_batch)
            self._buffered_inputs = split_tensor_dict(batch, self.args.steps_per_generation)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """TRL's, less its figures of lengths: semantic IDs are all as long, and never end as texts do."""
        for metrics in self._metrics.values():
            for name in [name for name in metrics if name.startswith("completions/")]:
                del metrics[name]
        super().log(logs, *args, **kwargs)

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids: Any) -> torch.Tensor:
        for name, value in self.measured(inputs, completion_ids).items():
            self._log_metric(name, value)
        self._rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids)
        return self._rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch, rewards = self._generation(inputs)
        policy = self.args.zero_variance
        if policy == "keep":
            return batch
        flat = self._repeat(uniform_groups(rewards.view(-1, self.num_generations)))
        turn = 0
        while policy == "refill" and self._anywhere(flat) and (others := self.replacements(turn)) is not None:
            more, more_rewards = self._generation(others)
            batch, flat = _refilled(
                batch,
                flat,
                more,
                self._repeat(uniform_groups(more_rewards.view(-1, self.num_generations))),
                self.num_generations,
                self._tokenizer.pad_token_id,
            )
            turn += 1
        self._metrics["train"]["groups_without_variance"].append(self.accelerator.gather(flat.float()).mean().item())
        return self._without(batch, flat)

    def _generation(self, inputs: list[dict[str, Any]]) -> tuple[dict[str, Any], torch.Tensor]:
        """TRL's batch with our advantages, and the rewards [R] of the rollouts that are here."""
        batch = super()._generate_and_score_completions(inputs)
        start = self.accelerator.process_index * len(inputs)
        weights = self.reward_weights.to(self._rewards.device)
        rewards = (self._rewards * weights).nansum(1)[start : start + len(inputs)]
        batch["advantages"] = self.reweighed(inputs, rewards, batch["advantages"])
        return batch, rewards

    def _repeat(self, groups: torch.Tensor) -> torch.Tensor:
        return groups.repeat_interleave(self.num_generations)

    def _anywhere(self, flags: torch.Tensor) -> bool:
        return bool(self.accelerator.gather(flags.any()[None]).any())

    def _without(self, batch: dict[str, Any], left_out: torch.Tensor) -> dict[str, Any]:
        """The batch with rows out of the loss, its KL and what the loss is divided by."""
        taught = batch["completion_mask"] if "tool_mask" not in batch else batch["tool_mask"]
        taught = taught * ~left_out[:, None]
        total = self.accelerator.gather((batch["completion_mask"] * taught).sum()).sum()
        return batch | {"tool_mask": taught, "num_items_in_batch": total}


def _refilled(
    batch: dict[str, Any],
    flat: torch.Tensor,
    more: dict[str, Any],
    more_flat: torch.Tensor,
    group: int,
    padding: int,
) -> tuple[dict[str, Any], torch.Tensor]:
    """Groups of `more` that have variance in place of those of `batch` that have none, as far as they go."""
    length = max(batch["prompt_ids"].shape[1], more["prompt_ids"].shape[1])
    places, sources = flat[::group].nonzero()[:, 0], (~more_flat[::group]).nonzero()[:, 0]
    count = min(len(places), len(sources))
    into, taken = _rows(places[:count], group), _rows(sources[:count], group)
    result = dict(batch)
    for name, value in batch.items():
        if not torch.is_tensor(value) or value.ndim == 0:
            continue
        kept, other = value, more[name]
        if name in ("prompt_ids", "prompt_mask"):
            fill = padding if name == "prompt_ids" else 0
            kept, other = (torch.nn.functional.pad(t, (length - t.shape[1], 0), value=fill) for t in (kept, other))
        result[name] = kept.clone()
        result[name][into] = other[taken]
    left = flat.clone()
    left[into] = False
    return result, left


def _rows(groups: torch.Tensor, size: int) -> torch.Tensor:
    return (groups[:, None] * size + torch.arange(size, device=groups.device)).flatten()
