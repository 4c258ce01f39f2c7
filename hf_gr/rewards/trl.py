"""Rewards as TRL calls them."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import numpy as np
import torch

from ..errors import HfGrError
from ..grammar import SidGrammar
from .knowledge import ItemKnowledge, Reward, Rollouts
from .mix import Weighted, reward_named
from .reasoning import over_horizon


TrlReward = Callable[..., list[float]]


def answered_items(completion_ids: list[list[int]], grammar: SidGrammar) -> np.ndarray:
    """The item each completion recommends, int64 [rows]; −1 where it is not a live item's SID.

    Reads ids through the grammar, never text: SID tokens are special, so decoded completions are empty.
    """
    length = grammar.answer_length
    padded = [[*ids[:length], *[-1] * (length - len(ids))] for ids in completion_ids]  # −1 is no token
    tokens = torch.tensor(padded, dtype=torch.int64, device=grammar.device)
    items = grammar.items(grammar.walk(tokens), limit=1)
    return items[:, 0].cpu().numpy() if items.shape[1] else np.full(len(items), -1)


class RolloutReader:
    """Reads TRL's batches as [`Rollouts`]; a batch is read once for all rewards that share the reader.

    Args:
        grammar: What an answer is.
        num_generations: G; the G rows of a prompt stand together.
    """

    def __init__(self, grammar: SidGrammar, num_generations: int):
        self._grammar, self._group = grammar, num_generations
        self._ids: list[list[int]] = []
        self._items = np.empty(0, np.int64)

    def __call__(
        self,
        completion_ids: list[list[int]],
        target: list[int] | list[list[int]],
        rollout_score: list[float],
        history: list[list[int]] | None = None,
    ) -> Rollouts:
        """The batch as P prompts with G rollouts each. Raises [`HfGrError`] where rows are no whole groups."""
        if completion_ids is not self._ids:  # kept, so that no other list can be at its place
            self._ids, self._items = completion_ids, answered_items(completion_ids, self._grammar)
        if len(self._items) % self._group:
            raise HfGrError(
                f"{len(self._items)} rollouts are no whole groups of {self._group}; give rewards the group size "
                "(num_generations) that they are called with."
            )
        targets = padded_rows(target).reshape(len(self._items) // self._group, self._group, -1)
        torn = (targets != targets[:, :1]).any(axis=(1, 2))
        if torn.any():
            raise HfGrError(
                f"the {self._group} rollouts of prompt {int(torn.argmax())} of the batch have different targets; give "
                "rewards the group size (num_generations) that they are called with."
            )
        if (targets[:, 0, 0] < 0).any():
            raise HfGrError(f"prompt {int(targets[:, 0, 0].argmin())} of the batch has no target; leave it out.")
        scores = np.array(rollout_score, np.float64)
        taken = None if history is None else padded_rows(history[:: self._group])
        return Rollouts(self._items.reshape(-1, self._group), targets[:, 0], scores.reshape(-1, self._group), taken)


def padded_rows(target: list[int] | list[list[int]]) -> np.ndarray:
    """A dataset column of an item, or of several, int64 [rows, n], −1 where a row has fewer."""
    rows = [entry if isinstance(entry, list) else [entry] for entry in target]
    width = max(map(len, rows), default=1)
    return np.array([[*row, *[-1] * (width - len(row))] for row in rows], np.int64)


def trl_reward(
    name: str | Reward,
    grammar: SidGrammar,
    items: ItemKnowledge,
    num_generations: int,
    *,
    parameters: Mapping[str, float] | None = None,
    decay: float = 1.0,
) -> TrlReward:
    """A reward in TRL's signature.

    It reads `completion_ids`, the dataset columns `target` (a catalog row, or the list of the next n) and, if there
    is one, `history` (the list of the prompt's items), and `rollout_score`, which the rollouts hand over.

    Args:
        name: One of `REWARDS`, or a function `(rollouts, items, **parameters) -> float64 [P, G]` of your own.
        grammar: What an answer is.
        items: What rewards know of the items.
        num_generations: G; the G rows of a prompt stand together, in training and evaluation alike.
        parameters: The reward's own.
        decay: Weight of each further target (see [`over_horizon`]); without effect on a single one.

    Returns:
        A function named as the reward. It raises [`HfGrError`], which names the reward and the sample, as soon as the
        reward raises, or gives anything but one finite number for each rollout.

    Raises:
        HfGrError: If there is no such reward, or the items lack what one of `REWARDS` needs (it is tried at once).
    """
    return _trl_reward(name, RolloutReader(grammar, num_generations), items, parameters or {}, decay)


def trl_rewards(
    mix: Mapping[str, Weighted], grammar: SidGrammar, items: ItemKnowledge, num_generations: int, decay: float = 1.0
) -> list[TrlReward]:
    """The rewards of a mix ([`parse_mix`]) as [`trl_reward`] makes them; each batch is read once for all of them.

    Their weights are TRL's to apply: `reward_weights`, in the same order.
    """
    reader = RolloutReader(grammar, num_generations)
    return [_trl_reward(name, reader, items, weighted.parameters, decay) for name, weighted in mix.items()]


def _trl_reward(
    name: str | Reward, reader: RolloutReader, items: ItemKnowledge, parameters: Mapping[str, float], decay: float
) -> TrlReward:
    function = reward_named(name) if isinstance(name, str) else name
    judge = over_horizon(checked(function), decay)
    if isinstance(name, str):  # what is missing is told now, and expensive parts are made now, not in the first step
        none = np.zeros((1, 1), np.int64)
        judge(Rollouts(none, none, np.zeros((1, 1)), none), items, **parameters)

    def reward(
        completion_ids: list[list[int]],
        target: list[int] | list[list[int]],
        rollout_score: list[float],
        history: list[list[int]] | None = None,
        **_: Any,
    ) -> list[float]:
        rollouts = reader(completion_ids, target, rollout_score, history)
        return judge(rollouts, items, **parameters).ravel().tolist()

    reward.__name__ = function.__name__
    return reward


def checked(reward: Reward) -> Reward:
    """`reward`, stopped by [`HfGrError`] where it raises, or gives anything but a finite number for each rollout."""

    @wraps(reward)
    def check(rollouts: Rollouts, items: ItemKnowledge, **parameters: Any) -> np.ndarray:
        found = _judged(reward, rollouts, items, parameters)
        if found.shape != rollouts.items.shape:
            missing = len(found) if found.ndim == 2 and 0 < len(found) < len(rollouts.items) else 0
            raise _stopped(
                reward, f"gave an array of shape {found.shape}, not {rollouts.items.shape}", rollouts, items, missing
            )
        if not np.isfinite(found).all():
            prompt, place = np.argwhere(~np.isfinite(found))[0]
            raise _stopped(reward, f"gave {found[prompt, place]}", rollouts, items, prompt, place)
        return found

    return check


def _judged(reward: Reward, rollouts: Rollouts, items: ItemKnowledge, parameters: dict[str, Any]) -> np.ndarray:
    try:
        return np.asarray(reward(rollouts, items, **parameters), np.float64)
    except HfGrError as error:
        raise HfGrError(f"reward {reward.__name__!r}: {error}") from error
    except Exception as error:
        prompt = _first_that_raises(reward, rollouts, items, parameters)
        told = " ".join(f"raised {type(error).__name__}: {error}".split())
        raise _stopped(reward, told, rollouts, items, prompt) from error


def _first_that_raises(reward: Reward, rollouts: Rollouts, items: ItemKnowledge, parameters: dict[str, Any]) -> int:
    """The first prompt on which the reward raises by itself; 0 if it takes several."""
    for prompt in range(len(rollouts.items)):
        one = slice(prompt, prompt + 1)
        taken = None if rollouts.taken is None else rollouts.taken[one]
        alone = Rollouts(rollouts.items[one], rollouts.targets[one], rollouts.scores[one], taken)
        try:
            np.asarray(reward(alone, items, **parameters), np.float64)
        except Exception:
            return prompt
    return 0


def _stopped(
    reward: Reward, what: str, rollouts: Rollouts, items: ItemKnowledge, prompt: int, place: int | None = None
) -> HfGrError:
    answers = rollouts.items[prompt] if place is None else rollouts.items[prompt, place : place + 1]
    where = f"prompt {prompt} of the batch" + ("" if place is None else f", rollout {place}")
    answered = ", ".join(items.name(row) for row in answers[:3]) + (", …" if len(answers) > 3 else "")
    return HfGrError(
        f"reward {reward.__name__!r} {what} at {where} (answer: {answered}; target: "
        f"{items.name(rollouts.targets[prompt, 0])}); correct that reward, or leave it out of rewards."
    )
