"""What the tests of decoding share: tiny models with a catalog, and every answer scored by plain forward passes."""

from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
import torch
from tiny import tiny_catalog, tiny_lm, tiny_tokenizer
from torch import nn
from transformers import GemmaConfig, LlamaConfig, MistralConfig, PreTrainedModel, Qwen2Config, Qwen3Config

from hf_gr.catalog import SidCatalog
from hf_gr.grammar import SidGrammar
from hf_gr.models import IntRRForCausalLM, RecursionConfig, with_recursion
from hf_gr.vocabulary import SidVocabulary, add_vocabulary


TREE_ARCHITECTURES = [LlamaConfig, Qwen2Config, Qwen3Config, MistralConfig, GemmaConfig]
FORMS = ["flat", "stepwise", "unordered"]
RECURSIVE = "recursive"  # which `generate` cannot search


@dataclass
class Case:
    model: PreTrainedModel
    grammar: SidGrammar
    vocabulary: SidVocabulary
    catalog: SidCatalog

    def prompts(self, lengths: tuple[int, ...] = (5, 0, 3), seed: int = 0) -> list[list[int]]:
        """Histories of so many random items: prompts of different lengths that themselves end in SIDs."""
        random = np.random.default_rng(seed)
        items = [random.integers(0, len(self.catalog), length) for length in lengths]
        if self.vocabulary.first_item_id is not None:
            return [[self.vocabulary.start_id, *(own + self.vocabulary.first_item_id).tolist()] for own in items]
        tokens = self.vocabulary.item_tokens(self.catalog)
        return [[self.vocabulary.start_id, *tokens[own].ravel().tolist()] for own in items]


def build(
    config_class: type = LlamaConfig, form: str = "flat", catalog: SidCatalog | None = None, **overrides: object
) -> Case:
    if config_class is MistralConfig:
        overrides.setdefault("sliding_window", None)
    catalog = catalog or tiny_catalog()
    model = tiny_lm(config_class, **overrides)
    vocabulary = replace(add_vocabulary(tiny_tokenizer(), model, catalog, max_history=10), form=form)
    if form == RECURSIVE:
        model, vocabulary = recursive(model, vocabulary, catalog)
    return Case(model, vocabulary.grammar(catalog), vocabulary, catalog)


@torch.no_grad()
def recursive(
    model: PreTrainedModel, vocabulary: SidVocabulary, catalog: SidCatalog, **settings: object
) -> tuple[IntRRForCausalLM, SidVocabulary]:
    """The model around an LM, its recursion disturbed so that it is not at its start, and its vocabulary."""
    codes = torch.from_numpy(vocabulary.item_tokens(catalog))
    codebooks = [[ids[0], len(ids)] for ids in vocabulary.code_ids]
    found = with_recursion(model, codes, codebooks, RecursionConfig(**settings)).eval()
    for weight in (*found.model.recursion.parameters(), *found.model.items.parameters()):
        weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(7)) * 0.3)
    return found, replace(vocabulary, form=RECURSIVE, first_item_id=found.config.first_item_id)


def hybrid(share: float = 0.4, read: str = "sum", **settings: object) -> Case:
    """A model that ranks by item vectors too."""
    catalog, lm = tiny_catalog(), tiny_lm(Qwen3Config)
    vocabulary = add_vocabulary(tiny_tokenizer(), lm, catalog, max_history=10, form=RECURSIVE)
    settings = {"read": read, "dense": 1.0, "dense_share": share} | settings
    model, vocabulary = recursive(lm, vocabulary, catalog, **settings)
    return Case(model, vocabulary.grammar(catalog), vocabulary, catalog)


@torch.no_grad()
def every_sid(
    case: Case, prompt: list[int], live: list[int] | None = None, feed: nn.Linear | None = None
) -> dict[tuple[int, ...], float]:
    """{SID: log-probability} over the live items, one plain row for every way to write every SID."""
    codes = case.catalog.codes.tolist()
    sids = sorted({tuple(codes[item]) for item in (range(len(codes)) if live is None else live)})
    levels = range(len(sids[0]))
    orders = list(permutations(levels)) if case.vocabulary.form == "unordered" else [tuple(levels)]
    return {
        sid: float(np.logaddexp.reduce([_written(case, prompt, sid, order, sids, feed) for order in orders]))
        for sid in sids
    }


def _written(
    case: Case,
    prompt: list[int],
    sid: tuple[int, ...],
    order: tuple[int, ...],
    sids: list[tuple[int, ...]],
    feed: nn.Linear | None,
) -> float:
    """Log-probability of one SID with its codes in one order, renormalised over what some SID still allows."""
    ids, read, total = list(prompt), [], 0.0
    for step, codebook in enumerate(order):
        if case.vocabulary.form == "stepwise":
            ids.append(case.vocabulary.think_ids[step])
        read.append(len(ids) - 1)
        ids.append(case.vocabulary.code_ids[codebook][sid[codebook]])
    if case.vocabulary.form == RECURSIVE:
        read = list(range(len(sid)))
    logits = _logits(case, ids, feed).double()
    for step, codebook in enumerate(order):
        held = order[:step]
        rest = [other for other in sids if all(other[c] == sid[c] for c in held)]
        opened = [codebook] if case.vocabulary.form != "unordered" else [c for c in range(len(sid)) if c not in held]
        allowed = sorted({case.vocabulary.code_ids[c][other[c]] for c in opened for other in rest})
        row = torch.log_softmax(logits[read[step], allowed], -1)
        total += float(row[allowed.index(case.vocabulary.code_ids[codebook][sid[codebook]])])
    return total


def _logits(case: Case, ids: list[int], feed: nn.Linear | None) -> torch.Tensor:
    """Logits [tokens, vocabulary] of a row; with `feed`, each thinking token is fed the hidden state before it."""
    if isinstance(case.model, IntRRForCausalLM):
        return _recursive_logits(case.model, ids, case.vocabulary.num_levels)
    if feed is None:
        return case.model(torch.tensor([ids])).logits[0]
    embedded = case.model.get_input_embeddings()(torch.tensor([ids]))
    for place, token in enumerate(ids):
        if token in case.vocabulary.think_ids:
            before = case.model.base_model(inputs_embeds=embedded[:, :place]).last_hidden_state[:, -1]
            embedded[:, place] += feed(before)
    return case.model(inputs_embeds=embedded).logits[0]


def _recursive_logits(model: IntRRForCausalLM, ids: list[int], levels: int) -> torch.Tensor:
    """Logits [levels, vocabulary] of the codes at the end of a row, each from the one before it and the prompt."""
    prompt, codes = ids[:-levels], ids[-levels:]
    x = model.model(torch.tensor([prompt])).last_hidden_state[0, -1]
    read = model.get_input_embeddings()(torch.tensor(codes))  # as the backbone reads them: scaled in Gemma
    queries = [x]
    for mlp, row in zip(model.model.recursion.mlps, read, strict=False):
        queries.append(x + mlp(torch.cat([row, x])))
    return torch.stack(queries) @ model.get_output_embeddings().weight.T


def feed_of(case: Case) -> nn.Linear:
    """A feed that changes the scores of its model."""
    torch.manual_seed(1)
    feed = nn.Linear(case.model.config.hidden_size, case.model.config.hidden_size, bias=False)
    nn.init.normal_(feed.weight, std=0.3)
    return feed
