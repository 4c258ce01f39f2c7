"""Prompts in a model's cache: read once, then extended by branches."""

import torch
from transformers import DynamicCache, PreTrainedModel

from ..branches import additive_mask
from ..errors import HfGrError
from ..grammar import ItemFilter, SidGrammar, Successors
from ..models import code_logits, decoder_of, last_hidden, reader_of, token_logits
from ..search_config import SearchConfig
from .padding import pad_left
from .prefix_cache import PrefixCache
from .support import tree_support


class Trunk:
    """B prompts of any lengths ≥ 1 in P columns, padded on the left, and the branches fed since.

    The cache only ever grows: an additive mask tells every new token which columns it sees.

    Attributes:
        hidden: float [B, 1, d], what each prompt's next token is read from.
        columns: Columns fed since the prompts.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        ids: torch.Tensor,
        mask: torch.Tensor,
        known: torch.Tensor | None = None,
        cache: DynamicCache | None = None,
    ):
        """Reads prompts: ids and mask int64 [B, n]; `known` bool [B, m] tells which columns `cache` holds already."""
        self.model, self.device, self.reader = model, model.device, reader_of(model)
        # plain layers: a window never matters here, but would count the beams' columns
        self.cache = DynamicCache() if cache is None else cache
        self.real = mask.new_empty(len(ids), 0, dtype=torch.bool) if known is None else known
        self.lengths, self.columns = self.real.sum(1, keepdim=True), 0
        self.extend(ids, mask)

    def extend(self, ids: torch.Tensor, mask: torch.Tensor) -> None:
        """Reads more of the prompts, ids and mask int64 [B, n], n ≥ 1; of a trunk without branches ([`drop`])."""
        known, new = self.real, ids.shape[1]
        positions = (self.lengths + mask.cumsum(1) - 1).clamp(min=0)
        causal = torch.ones(new, new, dtype=torch.bool, device=ids.device).tril()
        visible = torch.cat([known[:, None].expand(-1, new, -1), causal & mask.bool()[:, None]], dim=2)
        self.lengths = self.lengths + mask.sum(1, keepdim=True)
        self.real = torch.cat([known, mask.bool()], dim=1)
        # a view would keep the states of all positions
        self.hidden = self._forward(ids, positions, visible)[:, -1:].clone()

    @classmethod
    def of(cls, model: PreTrainedModel, prompts: list[list[int]], prefix_cache: PrefixCache | None = None) -> "Trunk":
        """Reads prompts that are lists of token ids, or what a prefix cache does not know of them."""
        reader = reader_of(model)
        if prefix_cache is None:
            if reader.branches or tree_support(model, max(map(len, prompts)), training=True)[0]:
                return cls(model, *pad_left(prompts, 0, model.device))
            return PromptEnds.read(model, prompts)
        supported, reason = reader.cache_support()
        if not supported:
            raise HfGrError(f"a prefix cache is not for this model: {reason}; leave it out.")
        cache = DynamicCache()
        taken = prefix_cache.load(prompts, cache, model)
        ids, mask = pad_left([prompt[n:] for prompt, n in zip(prompts, taken, strict=True)], 0, model.device)
        place = torch.arange(max(taken), device=model.device)
        known = place >= max(taken) - torch.tensor(taken, device=model.device)[:, None]
        trunk = cls(model, ids, mask, known, cache)
        prefix_cache.store(prompts, taken, cache, model)
        return trunk

    def feed(
        self, ids: torch.Tensor, depths: torch.Tensor, visible: torch.Tensor, added: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Last hidden states [B, n, d] of n new tokens a prompt.

        Args:
            ids: int64 [B, n].
            depths: int64 [n], how many tokens after the prompt's end each one stands, from 0.
            visible: bool [B, n, columns + n], which of the columns since the prompts each token sees; all see their
                prompt.
            added: float [B, n, d], what is added to the tokens' embeddings, if anything.
        """
        prompt = self.real[:, None].expand(-1, ids.shape[1], -1)
        hidden = self._forward(ids, self.lengths + depths, torch.cat([prompt, visible], dim=2), added)
        self.columns += ids.shape[1]
        return hidden

    def drop(self) -> None:
        """Forgets everything after the prompts."""
        if self.columns:
            for layer in self.cache.layers:  # `crop` of the cache changed its meaning between versions
                layer.keys = layer.keys[:, :, : -self.columns]
                layer.values = layer.values[:, :, : -self.columns]
        self.columns = 0

    def _forward(
        self, ids: torch.Tensor, positions: torch.Tensor, visible: torch.Tensor, added: torch.Tensor | None = None
    ) -> torch.Tensor:
        plain = {"input_ids": ids}
        output = decoder_of(self.model)(
            **(plain if added is None else {"inputs_embeds": self.model.get_input_embeddings()(ids) + added}),
            position_ids=positions,
            # where nothing follows the prompt no mask of ours is needed
            attention_mask=additive_mask(visible, self.model.dtype) if self.reader.branches else self.real.long(),
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.last_hidden_state


class PromptEnds(Trunk):
    """B prompts that were read elsewhere, by their last hidden states alone: enough where a search feeds nothing.

    Args:
        model: One whose answers are not fed ([`Reader`]).
        hidden: float [B, 1, d].
    """

    def __init__(self, model: PreTrainedModel, hidden: torch.Tensor):
        self.model, self.device, self.reader, self.hidden = model, model.device, reader_of(model), hidden
        self.lengths = torch.zeros(len(hidden), 1, dtype=torch.int64, device=model.device)

    @classmethod
    def read(cls, model: PreTrainedModel, prompts: list[list[int]]) -> "PromptEnds":
        """Reads prompts as training does, padded on the right and without a cache: any backbone takes that."""
        columns = max(map(len, prompts))
        ids = torch.tensor([prompt + [0] * (columns - len(prompt)) for prompt in prompts], device=model.device)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
        mask = torch.arange(columns, device=model.device) < lengths[:, None]
        hidden = last_hidden(model, input_ids=ids, attention_mask=mask.long())
        return cls(model, hidden[torch.arange(len(ids), device=model.device), lengths - 1][:, None])


def step_log_probs(
    model: PreTrainedModel,
    hidden: torch.Tensor,
    grammar: SidGrammar,
    step: int,
    options: Successors,
    config: SearchConfig,
) -> torch.Tensor:
    """Log-probabilities float32 [rows, D] of the options of a step, −inf where not allowed.

    Args:
        hidden: float [rows, d], what the step's code is read from.
        config: Of the search, whose `score` and `temperature` count. `"constrained"`: among the codes that the grammar
            allows without a filter, which takes only the step's rows of the LM head; `"model"`: among the whole
            vocabulary. A request's filter masks afterwards.
    """
    tokens = grammar.step_tokens(step)
    if config.score == "model":
        logits = token_logits(model, hidden) / config.temperature
        return options.masked(torch.log_softmax(logits, -1)[:, tokens])
    return options.log_probs(code_logits(model, hidden, tokens) / config.temperature)


def path_log_probs(
    model: PreTrainedModel,
    read: torch.Tensor,
    index: torch.Tensor,
    grammar: SidGrammar,
    config: SearchConfig,
    item_filter: ItemFilter | None = None,
) -> torch.Tensor:
    """Summed log-probabilities float32 [rows] of given answers; −inf where the filter leaves no item of one.

    Args:
        read: float [rows, C, d], what each code is read from.
        index: int64 [rows, C], each code's number among its step's tokens.
        config: As for [`step_log_probs`].
        item_filter: Of R requests, whose rows stand together.
    """
    state, total = grammar.initial(len(read)), torch.zeros(len(read), device=read.device)
    for step in range(grammar.num_codes):
        options = grammar.successors(state, step, item_filter)
        log_probs = step_log_probs(model, read[:, step], grammar, step, options, config)
        option = options.option_of(index[:, step])
        chosen = log_probs.gather(1, option.clamp(min=0)[:, None])[:, 0]
        total = total + torch.where(option >= 0, chosen, -torch.inf)
        state = grammar.advance(state, step, option)
    return total
