"""Keys and values of prompts seen before, for prompts that begin alike."""

import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from itertools import count
from math import ceil

import torch
from transformers import DynamicCache, PreTrainedModel

from ..errors import HfGrError


@dataclass(frozen=True, eq=False)
class _Block:
    number: int  # no other block ever has it
    states: torch.Tensor  # [layers, 2 (keys, values), kv_heads, block, head_dim]


class PrefixCache:
    """Keys and values of earlier prompts, in blocks: a shared instruction or a user's older events are read once.

    A block is found by the block before it and its own token ids, so what is reused is a whole equal prefix. The least
    recently used blocks go first. (The idea of blocks by prefix is that of vLLM's prefix caching and SGLang's
    RadixAttention; taking only what spares the batch a column is our choice.)

    A cache belongs to the first model that uses it, and threads may share it. After that model's weights were changed
    in place, call [`clear`]: keys of the old weights would go unnoticed.

    Args:
        max_tokens: Tokens kept at most. Each takes layers × 2 × kv_heads × head_dim numbers on the model's device: in
            SmolLM2-135M under bf16 23 kB, and 1.5 GB for the default.
        block: Tokens of a block. The rest of a prompt that fills no block is not kept.

    Attributes:
        hits: Prompt tokens that were taken from the cache.
        misses: Prompt tokens that were read.
    """

    def __init__(self, max_tokens: int = 65536, block: int = 16):
        if not 1 <= block <= max_tokens:
            raise HfGrError(f"block is {block} and max_tokens {max_tokens}; a prefix cache holds at least one block.")
        self.max_tokens, self.block = max_tokens, block
        self.hits, self.misses = 0, 0
        self._blocks: OrderedDict[tuple[int, tuple[int, ...]], _Block] = OrderedDict()
        self._numbers = count(1)  # 0: the start of every prompt
        self._model: tuple[weakref.ref[PreTrainedModel], str] | None = None  # and its dtype and device
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple:
        """What another process gets is an empty one of the same size."""
        return type(self), (self.max_tokens, self.block)

    @property
    def tokens(self) -> int:
        """Tokens kept now."""
        return len(self._blocks) * self.block

    def clear(self) -> None:
        """Forgets all blocks."""
        with self._lock:
            self._blocks.clear()

    def load(self, prompts: list[list[int]], cache: DynamicCache, model: PreTrainedModel) -> list[int]:
        """Puts what is known of each prompt into an empty cache, on the right of as many columns as the longest has.

        The last token of a prompt is never taken: its hidden state is needed. A row takes only as many blocks as spare
        the batch a column, so a batch has less than one block of columns more than its longest prompt has tokens.

        Args:
            prompts: B lists of token ids, of any lengths ≥ 1.
            cache: Empty; gets keys and values [B, kv_heads, known, head_dim] a layer, 0 left of each row's own, unless
                nothing is known.
            model: Whose layers are all of full attention. A second model raises [`HfGrError`].

        Returns:
            Tokens taken of each prompt, B multiples of `block`; `known` is the largest.
        """
        with self._lock:
            self._bind(model)
            found = [self._held(prompt, len(prompt) - 1) for prompt in prompts]
            unread = max(len(p) - len(blocks) * self.block for p, blocks in zip(prompts, found, strict=True))
            useful = [ceil(max(0, len(prompt) - unread) / self.block) for prompt in prompts]
            found = [blocks[:number] for blocks, number in zip(found, useful, strict=True)]
            taken = [len(blocks) * self.block for blocks in found]
            self.hits += sum(taken)
            self.misses += sum(map(len, prompts)) - sum(taken)
        if known := max(taken):
            states = torch.stack([_joined(blocks, known, found) for blocks in found])
            for layer in range(states.shape[1]):
                cache.update(states[:, layer, 0], states[:, layer, 1], layer)
        return taken

    def store(self, prompts: list[list[int]], taken: list[int], cache: DynamicCache, model: PreTrainedModel) -> None:
        """Copies the blocks that are not kept yet.

        Args:
            prompts, model: As given to [`load`].
            taken: As returned by it.
            cache: After the rest of the prompts was read, padded on the left.
        """
        with self._lock:
            self._bind(model)
            known, end = max(taken), cache.get_seq_length()
            for row, (prompt, start) in enumerate(zip(prompts, taken, strict=True)):
                columns = [*range(known - start, known), *range(end - len(prompt) + start, end)]
                self._keep(prompt, row, columns, cache)

    def _bind(self, model: PreTrainedModel) -> None:
        now = f"{model.dtype} on {model.device}"
        if self._model is None:
            self._model = weakref.ref(model), now
        owner, then = self._model
        if owner() is not model or now != then:
            raise HfGrError(
                f"the prefix cache holds keys of another model, or of this one before it moved (now {now}, then "
                f"{then}); make a PrefixCache for each model."
            )

    def _held(self, prompt: list[int], end: int) -> list[_Block]:
        """The blocks kept of a prompt's first `end` tokens, which now count as used last."""
        keys: list[tuple[int, tuple[int, ...]]] = []
        number = 0
        for start in range(0, end - self.block + 1, self.block):
            key = number, tuple(prompt[start : start + self.block])
            if key not in self._blocks:
                break
            keys.append(key)
            number = self._blocks[key].number
        for key in reversed(keys):  # a block goes only after those that continue it
            self._blocks.move_to_end(key)
        return [self._blocks[key] for key in keys]

    def _keep(self, prompt: list[int], row: int, columns: list[int], cache: DynamicCache) -> None:
        """Adds the missing blocks of one prompt, whose tokens stand in `columns` of its row."""
        held = self._held(prompt, len(prompt))
        first, end = len(held) * self.block, len(prompt) // self.block * self.block
        if first == end:
            return
        index = torch.tensor(columns[first:end], device=cache.layers[0].keys.device)
        pairs = [torch.stack([layer.keys[row][:, index], layer.values[row][:, index]]) for layer in cache.layers]
        number = held[-1].number if held else 0
        for start, states in zip(range(first, end, self.block), torch.stack(pairs).split(self.block, 3), strict=True):
            block = _Block(next(self._numbers), states.clone())  # a view would keep the memory of all blocks
            self._blocks[number, tuple(prompt[start : start + self.block])] = block
            number = block.number
        self._held(prompt, len(prompt))
        while self.tokens > self.max_tokens:
            self._blocks.popitem(last=False)


def _joined(blocks: list[_Block], known: int, found: list[list[_Block]]) -> torch.Tensor:
    """A row's blocks one after the other, with zeros on the left: [layers, 2, kv_heads, known, head_dim]."""
    like = next(row[0].states for row in found if row)
    layers, two, heads, size, width = like.shape
    hole = like.new_zeros(layers, two, heads, known - len(blocks) * size, width)
    return torch.cat([hole, *(block.states for block in blocks)], dim=3)
