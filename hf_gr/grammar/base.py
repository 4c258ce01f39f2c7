"""What every grammar has: the tokens of an answer, and how partial answers are read."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch

from ..errors import HfGrError
from .filters import ItemFilter, ItemMask


DEAD = -2  # in a state: no item begins so


@dataclass(frozen=True, eq=False)
class Successors:
    """What may follow each row's state: D options a row.

    Attributes:
        index: int64 [rows, D], which of the step's tokens each option is; `None`: option i is token i.
        allowed: bool [rows, D]; options that are False are padding or have no live item below them.
        possible: bool [rows, D], what would be allowed without the request's filter: probabilities are shares of all
            of it, so that a filter takes answers away and leaves the others as they were. `None`: there is no filter.
    """

    index: torch.Tensor | None
    allowed: torch.Tensor
    possible: torch.Tensor | None = None

    def masked(self, logits: torch.Tensor) -> torch.Tensor:
        """The options' logits [rows, D], −inf where not allowed, from those of the step's tokens [rows, K]."""
        return self._options(logits).masked_fill(~self.allowed, -torch.inf)

    def log_probs(self, logits: torch.Tensor) -> torch.Tensor:
        """The options' log-probabilities [rows, D] among all that is possible, −inf where not allowed, from the logits
        of the step's tokens [rows, K]."""
        possible = self.allowed if self.possible is None else self.possible
        log_probs = torch.log_softmax(self._options(logits).masked_fill(~possible, -torch.inf), -1)
        # rows without any option are beams that died before: they stay −inf instead of NaN
        return log_probs.masked_fill(~self.allowed, -torch.inf)

    def _options(self, logits: torch.Tensor) -> torch.Tensor:
        return logits if self.index is None else logits.gather(1, self.index)

    def option_of(self, token_index: torch.Tensor) -> torch.Tensor:
        """Number of the option that is the step's token `token_index` (int64 [rows]), int64 [rows]; −1 if none is."""
        columns = torch.arange(self.allowed.shape[1], device=self.allowed.device)
        match = ((columns if self.index is None else self.index) == token_index[:, None]) & self.allowed
        return torch.where(match.any(1), match.int().argmax(1), -1)


def check_scores(scores: torch.Tensor) -> None:
    """Raises [`HfGrError`] where a score (float, any shape) is NaN or +inf; −inf says that something may not be."""
    if (scores.isnan() | scores.isposinf()).any():
        raise HfGrError(
            "the model's scores are not finite (NaN or inf), so it can recommend nothing: its weights diverged in "
            "training (train again with a lower learning_rate), or overflow (load it with dtype float32 or bfloat16)."
        )


class SidGrammar(ABC):
    """A state machine over partial answers, for a whole batch at once, on the model's device.

    An answer has one code of each of the C codebooks. Step t chooses a code; with `think_ids` the forced token
    `think_ids[t]` stands before it, so that an answer has 2·C tokens instead of C. A *state* is an int64 row of S
    numbers, S = 1 on a trie and S = C where codebooks come in any order. Rows may be a multiple of a filter's rows:
    the beams of one request stand together.

    Args:
        codes: int [N, C], SIDs of the catalog.
        token_ids: LM token ids of every codebook, C lists of K_c.
        think_ids: Token ids of the C thinking tokens, or none.
        popularity: int [N]; on a shared SID the more popular item is returned first, then the lower row.
        items: Rows that can be an answer (default: all).

    Attributes:
        any_order: Whether an item's codes may be written in any order. Every step then chooses among the codes of all
            codebooks, and [`set_keys`] says which partial answers hold the same ones.
        identity: What masks and filters are known by to be of this grammar; its copies on other devices have the same.

    Raises [`HfGrError`] where tokens and SIDs do not match, or no row can be an answer.
    """

    any_order: ClassVar[bool] = False

    def __init__(
        self,
        codes: np.ndarray,
        token_ids: Sequence[Sequence[int]],
        *,
        think_ids: Sequence[int] = (),
        popularity: np.ndarray | None = None,
        items: np.ndarray | None = None,
    ):
        self.codebook_sizes = tuple(len(ids) for ids in token_ids)
        if codes.shape[1] != len(token_ids) or (think_ids and len(think_ids) != len(token_ids)):
            raise HfGrError(
                f"SIDs have {codes.shape[1]} codes, but tokens are given for {len(token_ids)} codebooks and "
                f"{len(think_ids)} thinking tokens."
            )
        self.identity = object()
        self._copies: dict[torch.device, SidGrammar] = {}  # shared by the copies
        self.think_ids = tuple(think_ids)
        self.catalog_size = len(codes)
        flat = [token for ids in token_ids for token in ids]
        self._tokens = torch.tensor(flat)
        code_of = torch.full((max([*flat, *think_ids]) + 2,), -1)  # the last entry: any other token
        code_of[self._tokens] = torch.arange(len(flat))
        self._code_of = code_of
        self._offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(self.codebook_sizes)]).astype(np.int64))
        self._offset = self._offsets.tolist()
        self._think = torch.tensor(self.think_ids, dtype=torch.int64)

    @property
    def num_codes(self) -> int:
        """Codes of an answer, C."""
        return len(self.codebook_sizes)

    @property
    def stride(self) -> int:
        """Tokens of an answer for each of its codes: 2 with thinking, else 1."""
        return 2 if self.think_ids else 1

    @property
    def answer_length(self) -> int:
        """Tokens of an answer."""
        return self.num_codes * self.stride

    @property
    def code_columns(self) -> range:
        """Where the codes stand in an answer."""
        return range(self.stride - 1, self.answer_length, self.stride)

    @property
    def device(self) -> torch.device:
        return self._tokens.device

    def to(self, device: torch.device | str) -> Self:
        """The grammar on another device (this one if it is there already), moved once and kept."""
        device = torch.device(device)
        if device == self.device:
            return self
        if device not in self._copies:
            moved = copy.copy(self)
            vars(moved).update({name: _moved(value, device) for name, value in vars(self).items()})
            self._copies |= {self.device: self, device: moved, moved.device: moved}  # "cuda" is "cuda:0"
        return cast(Self, self._copies[device])

    @property
    @abstractmethod
    def num_items(self) -> int:
        """Number of items that can be an answer."""

    @property
    @abstractmethod
    def num_sids(self) -> int:
        """Number of distinct SIDs among them."""

    @property
    @abstractmethod
    def item_codes(self) -> np.ndarray:
        """SIDs of the items that can be an answer, int32 [items, C], sorted."""

    @property
    def option_keys(self) -> torch.Tensor:
        """Of grammars with `any_order`: a key for every code, int64 [ΣK]. Two sets of codes are equal if and only if
        the sums of their keys are."""
        raise NotImplementedError

    def set_keys(self, state: torch.Tensor) -> torch.Tensor:
        """Of grammars with `any_order`: the sum of the keys of the codes that are written, int64 [rows], from states
        int64 [rows, S]."""
        raise NotImplementedError

    def codebook_tokens(self, codebook: int) -> torch.Tensor:
        """LM token ids of a codebook, int64 [K_c]."""
        return self._tokens[self._offset[codebook] : self._offset[codebook + 1]]

    @abstractmethod
    def step_tokens(self, step: int) -> torch.Tensor:
        """LM token ids that step `step` (from 0) chooses from, int64 [K]."""

    @abstractmethod
    def initial(self, rows: int) -> torch.Tensor:
        """State before the first code, int64 [rows, S]."""

    @abstractmethod
    def successors(self, state: torch.Tensor, step: int, item_filter: ItemFilter | None = None) -> Successors:
        """What may follow `state` (int64 [rows, S], after `step` codes); after a dead row, nothing may."""

    @abstractmethod
    def advance(self, state: torch.Tensor, step: int, option: torch.Tensor) -> torch.Tensor:
        """State after option `option` (int64 [rows]) of `successors(state, step)`, int64 [rows, S]; −1 kills a row."""

    def alive(self, state: torch.Tensor) -> torch.Tensor:
        """Whether some item begins so, bool [rows]."""
        return state[:, 0] != DEAD

    def killed(self, state: torch.Tensor, dead: torch.Tensor) -> torch.Tensor:
        """`state` with the rows of `dead` (bool [rows]) dead."""
        return state.masked_fill(dead[:, None], DEAD)

    @abstractmethod
    def items(
        self, state: torch.Tensor, item_filter: ItemFilter | None = None, limit: int | None = None
    ) -> torch.Tensor:
        """Live items of complete SIDs in bucket order, int64 [rows, n]; −1 where there is none.

        n is the largest bucket among the rows; with `limit`, every row's first `limit` live items are among them.
        """

    @abstractmethod
    def live(self, item_filter: ItemFilter | None = None) -> torch.Tensor:
        """Which rows of the catalog may be answers, bool [R, N] for the requests of a filter, else [1, N]."""

    @property
    @abstractmethod
    def sids(self) -> torch.Tensor:
        """SIDs by row of the catalog, int64 [N, C] on the grammar's device; −1 of rows that can be no answer."""

    @property
    @abstractmethod
    def sharing(self) -> torch.Tensor:
        """How many items stand on the SID of each row of the catalog, int64 [N]; 0 of rows that can be no answer."""

    def written(self, items: torch.Tensor) -> torch.Tensor:
        """Rows of the catalog as they are written, codebook by codebook, int64 [..., T] of int64 [...]; rows that can
        be no answer, and −1, as some other item."""
        codes = self.sids[items.clamp(min=0)].clamp(min=0)
        columns = [self.codebook_tokens(codebook)[codes[..., codebook]] for codebook in range(self.num_codes)]
        if self.think_ids:
            thoughts = [torch.full_like(columns[0], think) for think in self.think_ids]
            columns = [column for pair in zip(thoughts, columns, strict=True) for column in pair]
        return torch.stack(columns, -1)

    @abstractmethod
    def filter(
        self,
        deny: Sequence[np.ndarray | None] | None = None,
        allow: Sequence[np.ndarray | None] | None = None,
        only: Sequence[ItemMask | None] | None = None,
    ) -> ItemFilter:
        """Filters of a batch of requests.

        Args:
            deny: Per request, catalog rows that are no answer (`None`: nothing is denied).
            allow: Per request, catalog rows that alone may be (`None`: all).
            only: Per request, a mask of the items that may be (`None`: all); see [`mask`]. The three compose.
        """

    @abstractmethod
    def mask(self, live: np.ndarray) -> ItemMask:
        """A filter that many requests share, from bool [N] over the catalog's rows (a category, what is in stock).

        It belongs to this grammar, and any other refuses it: after [`with_items`] it has to be made again.
        """

    def step(self, state: torch.Tensor, step: int, token_index: torch.Tensor) -> torch.Tensor:
        """State after the step's token `token_index` (int64 [rows]); dead where no item continues so."""
        return self.advance(state, step, self.successors(state, step).option_of(token_index))

    def walk(self, answer: torch.Tensor) -> torch.Tensor:
        """State after the tokens of partial answers (int64 [rows, t], t ≤ `answer_length`), int64 [rows, S]."""
        state, index = self.initial(len(answer)), self.step_index(answer)
        for step, column in enumerate(self.code_columns):
            if column >= answer.shape[1]:
                break
            state = self.step(state, step, index[:, column])
        if self.think_ids:
            thoughts = answer[:, ::2]
            state = self.killed(state, (thoughts != self._think[: thoughts.shape[1]]).any(1))
        return state

    def codes(self, answer: torch.Tensor) -> torch.Tensor:
        """SIDs of complete answers: int64 [..., C], code by codebook; −1 where the answer has none of a codebook."""
        numbers = self._numbers(answer)[..., list(self.code_columns)]
        codebook = torch.searchsorted(self._offsets, numbers, right=True) - 1
        found = torch.full((*numbers.shape[:-1], self.num_codes + 1), -1, device=answer.device)
        slot = torch.where(numbers >= 0, codebook, self.num_codes)
        return found.scatter(-1, slot, numbers - self._offsets[codebook.clamp(min=0)])[..., :-1]

    def code_numbers(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns the number of each token's code, int64 of any shape, counted through the catalog's codebooks; −1
        where it is no code.

        A grammar whose codebooks stand in another order than the catalog's overrides this."""
        return self._numbers(tokens)

    def _numbers(self, tokens: torch.Tensor) -> torch.Tensor:
        """The same, counted through the grammar's own codebooks."""
        last = len(self._code_of) - 1
        return self._code_of[torch.where((tokens < 0) | (tokens > last), last, tokens)]

    def step_index(self, answer: torch.Tensor) -> torch.Tensor:
        """Of each token of an answer, its number among its step's tokens; negative where it is none of them."""
        return self._numbers(answer)


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, torch.Tensor | SidGrammar):
        return value.to(device)
    return [_moved(entry, device) for entry in value] if isinstance(value, list) else value
