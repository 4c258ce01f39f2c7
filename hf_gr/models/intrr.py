"""IntRR: an item is one position of the backbone, and its codes come by a small recursion instead of more passes.

Known (METHODS: the paper and its released code): the unique-ID table, the assignment network q₁ = x,
qᵢ = MLPᵢ([cᵢ₋₁; x]), simᵢ = qᵢ Cᵢᵀ shared by input and output side, straight-through assignment, teacher forcing, and
the two-part loss. Ours: any pretrained decoder as backbone, whose token rows of the codes are the codebooks; all
positions of a history in one pass; MLPs that add to x, and unique-ID rows that start where they choose the item's SID.
"""

from dataclasses import asdict
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from ..errors import HfGrError
from .bsarec import BSARecConfig, BSARecModel
from .decoder import text_decoder_of
from .intrr_config import IntRRConfig, RecursionConfig


OWN_PARTS = ("model.items", "model.recursion")  # modules that are not the backbone's and train with it


class ItemTable(nn.Module):
    """A vector for every item: a row of its own, or the sum of two hashed ones."""

    def __init__(self, config: IntRRConfig):
        super().__init__()
        width = config.width
        self.rows, own = config.item_rows, config.item_width or width
        self.embedding = nn.Embedding(config.item_rows or config.num_items, own)
        self.project = nn.Linear(own, width, bias=False)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """float [n, d] of items int64 [n]."""
        if not self.rows:
            return self.project(self.embedding(items))
        return self.project(self.embedding(_hashed(items, self.rows)).sum(-2))


class Recursion(nn.Module):
    """qᵢ = x + MLPᵢ([cᵢ₋₁; x]) for the levels after the first, whose q is x itself."""

    def __init__(self, config: IntRRConfig):
        super().__init__()
        width = config.width
        self.mlps = nn.ModuleList(
            nn.Sequential(
                nn.Linear(2 * width, config.hidden * width), nn.SiLU(), nn.Linear(config.hidden * width, width)
            )
            for _ in config.codebooks[1:]
        )

    @torch.no_grad()
    def silence(self) -> None:
        """Lets every q be x."""
        for mlp in self.mlps:
            for value in list(mlp.children())[-1].parameters():
                value.zero_()

    def forward(self, step: int, context: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """What code number `step` (≥ 1) is read from, float [..., d], given the codebook row of the code before it
        and x, [..., d] each."""
        mlp = self.mlps[step - 1]
        own = next(mlp.parameters()).dtype  # trainers keep new parts in another one than a quantised backbone
        return x + mlp(torch.cat([context, x], dim=-1).to(own)).to(x.dtype)


class IntRRPreTrainedModel(PreTrainedModel):
    config_class = IntRRConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True


class IntRRModel(IntRRPreTrainedModel):
    """A decoder that reads items as one position each.

    `input_ids` from `config.first_item_id` on are items; below are the backbone's own tokens, as ever.
    """

    def __init__(self, config: IntRRConfig, backbone: PreTrainedModel | None = None):
        super().__init__(config)
        self.backbone = AutoModel.from_config(config.text_config) if backbone is None else backbone
        # the backbone's choice is the model's: a copy is asked for it by name (GRPO's reference)
        config._attn_implementation = self.backbone.config._attn_implementation
        self.items = ItemTable(config)
        self.recursion = Recursion(config)
        self.entry = nn.Identity()  # what the backbone reads passes here, for hooks
        # tokens of every item's SID, which the input side's loss pulls to
        self.register_buffer("sids", torch.zeros(config.num_items, len(config.codebooks), dtype=torch.int64))
        self.post_init()

    @property
    def token_rows(self) -> torch.Tensor:
        """Token rows float [V, d], the codebooks among them."""
        rows = self.backbone.get_input_embeddings().weight
        assert isinstance(rows, torch.Tensor)
        return rows

    def rows_of(self, tokens: torch.Tensor) -> torch.Tensor:
        """Rows float [..., d] of tokens int64 [...] as the backbone reads them: scaled in Gemma, adapters included."""
        return self.get_input_embeddings()(tokens)

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embeddings float [..., d] of tokens and items, int64 [...]."""
        items = input_ids >= self.config.first_item_id
        embedded = self.rows_of(input_ids.masked_fill(items, 0))
        rows, place = (input_ids[items] - self.config.first_item_id).unique(return_inverse=True)
        read = self.item_tokens(rows).to(embedded.dtype)[place]
        return self.entry(embedded.masked_scatter(items[..., None], read))

    def item_tokens(self, items: torch.Tensor) -> torch.Tensor:
        """What the backbone reads of items int64 [n], float [n, d]: the sum of their learned codes' rows, or with
        `read: sum` that of their own and their SIDs'."""
        if self.config.read == "sum":
            return self.vectors(items)
        return torch.stack([context for _, context in self._assign(items)]).sum(0)

    def vectors(self, items: torch.Tensor) -> torch.Tensor:
        """The row of its own of each of items int64 [n] plus the rows of its SID's codes, float [n, d]."""
        return self.items(items) + self.rows_of(self.sids[items]).sum(-2)

    def assigned(self, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The learned codes of items int64 [n], int64 [n, L], and the probability of each, float [n, L]."""
        logits = [sims for sims, _ in self._assign(items)]
        best = [level.softmax(-1).max(-1) for level in logits]
        return torch.stack([code.indices for code in best], 1), torch.stack([code.values for code in best], 1)

    def input_loss(self, items: torch.Tensor) -> torch.Tensor:
        """Σᵢ CE(simᵢ, sᵢ) of items int64 [n] and their own SIDs, float [n]."""
        first = [begin for begin, _ in self.config.codebooks]
        own = self.sids[items]
        losses = [
            F.cross_entropy(sims.float(), own[:, level] - first[level], reduction="none")
            for level, (sims, _) in enumerate(self._assign(items))
        ]
        return torch.stack(losses).sum(0)

    def _assign(self, items: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Of every level the similarities to its codes, float [n, K], and the straight-through row, float [n, d]."""
        x = self.items(items)
        query, found = x, list[tuple[torch.Tensor, torch.Tensor]]()
        for level, (first, size) in enumerate(self.config.codebooks):
            if level:
                query = self.recursion(level, found[-1][1], x)
            codebook = self.rows_of(torch.arange(first, first + size, device=items.device)).to(query.dtype)
            sims = F.linear(query, codebook)
            soft, hard = sims.softmax(-1) @ codebook, codebook[sims.argmax(-1)]
            found.append((sims, soft + (hard - soft).detach()))
        return found

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.embed(input_ids)
        return self.backbone(inputs_embeds=inputs_embeds, **kwargs)


class IntRRForCausalLM(IntRRPreTrainedModel, GenerationMixin):
    """[`IntRRModel`] with the recursion that tells the next item's codes; its head are the backbone's token rows."""

    def __init__(self, config: IntRRConfig, backbone: PreTrainedModel | None = None):
        super().__init__(config)
        self.model = IntRRModel(config, backbone)
        self.lm_head = nn.Linear(config.width, config.get_text_config().vocab_size, bias=False)
        rows = self.model.token_rows
        name = next(name for name, weight in self.model.backbone.named_parameters() if weight is rows)
        self._tied_weights_keys = {"lm_head.weight": f"model.backbone.{name}"}
        self.retriever: BSARecModel | None = None  # of blends by older releases; now it has a folder of its own
        if config.retriever:
            self.retriever = BSARecModel(BSARecConfig(config.num_items, **config.retriever)).requires_grad_(False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def query(self, step: int, before: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """What code number `step` is read from, float [..., d].

        Args:
            step: From 0.
            before: int64 [...], token of the code before it; not looked at for the first.
            x: float [..., d], the backbone's hidden state.
        """
        if step == 0:
            return x
        return self.model.recursion(step, self.model.rows_of(before).to(x.dtype), x)

    def forward(self, input_ids: torch.Tensor | None = None, **kwargs: Any) -> CausalLMOutputWithPast:
        """Logits over the backbone's tokens: of the next item's first code, or of text."""
        output = self.model(input_ids, **kwargs)
        logits = self.lm_head(output.last_hidden_state)
        return CausalLMOutputWithPast(
            logits=logits,
            past_key_values=output.get("past_key_values"),  # recurrent backbones have none
            hidden_states=output.get("hidden_states"),
        )

    def generate(self, *_: Any, **__: Any) -> NoReturn:
        """Not for this model: the codes after the first come by recursion, which `forward` knows nothing of.

        Raises:
            HfGrError: Always.
        """
        raise HfGrError(
            "generate() cannot write items of a model of form recursive, whose codes come by recursion; use "
            "hf_gr.beam_search or the pipeline."
        )


@torch.no_grad()
def with_recursion(
    lm: PreTrainedModel, codes: torch.Tensor, codebooks: list[list[int]], settings: RecursionConfig, seed: int = 0
) -> IntRRForCausalLM:
    """An LM that has the codes' tokens, as the backbone of a model that reads items as one position each.

    The rows of the unique-ID table start as the sums of the token rows of the item's codes, so that with an untrained
    recursion (whose MLPs begin at 0) the item's learned codes are its SID; with `read: sum`, where the codes' rows are
    added anyway, at 0; hashed ones, which several items share, as the LM's token rows are drawn. [ours]

    Args:
        lm: Its decoder is taken, not copied; an LM head of its own is left.
        codes: int64 [N, L], the tokens of every item's SID.
        codebooks: First token and number of tokens of every level.
        settings: Of the recursion.
        seed: Of the new weights.
    """
    torch.manual_seed(seed)
    text, backbone = lm.config.get_text_config(), text_decoder_of(lm)
    width = backbone.get_input_embeddings().weight.shape[1]
    if width != text.hidden_size:
        raise HfGrError(
            f"form: recursive reads items at the model's width, but {text.model_type} embeds tokens in {width} "
            f"dimensions and computes in {text.hidden_size}; take another model or another form."
        )
    config = IntRRConfig(
        text_config=text,
        codebooks=codebooks,
        first_item_id=text.vocab_size,
        num_items=len(codes),
        pad_token_id=text.pad_token_id,
        eos_token_id=text.eos_token_id,
        bos_token_id=text.bos_token_id,
        # the config hands both on to its text_config, None too: without its attention BLOOM masks nothing
        attn_implementation=text._attn_implementation,
        experts_implementation={"text_config": text._experts_implementation},
        **asdict(settings),
    )
    model = IntRRForCausalLM(config, backbone)
    model.model.sids.copy_(codes)
    model.model.recursion.silence()
    table, rows = model.model.items, model.model.token_rows
    narrow = table.embedding.weight.shape[1]
    start = torch.eye(width) if narrow == width else nn.init.orthogonal_(torch.empty(width, narrow))
    table.project.weight.copy_(start)
    if settings.read == "sum":
        table.embedding.weight.zero_()
    elif settings.item_rows:
        table.embedding.weight.normal_(0, float(rows.std()))
    else:
        for part in torch.arange(len(codes)).split(65536):
            table.embedding.weight[part] = rows[codes[part]].sum(1) @ table.project.weight
    return model


def recursion_of(model: nn.Module) -> IntRRForCausalLM | None:
    """The model, if its codes come by recursion."""
    return model if isinstance(model, IntRRForCausalLM) else None


def _hashed(items: torch.Tensor, rows: int) -> torch.Tensor:
    """Two rows for each of items int64 [n], int64 [n, 2]; two items have the same two with probability 1 / rows²."""
    spread = torch.stack([items * 0x9E3779B1 + 0x7F4A7C15, items * 0x85EBCA77 + 0x165667B1], -1)
    spread = (spread ^ (spread >> 15)) * 0x2C1B3C6D
    return ((spread ^ (spread >> 12)) & 0x7FFFFFFF) % rows


AutoConfig.register("intrr", IntRRConfig, exist_ok=True)  # `import hf_gr` has promised it
AutoModel.register(IntRRConfig, IntRRModel)
AutoModelForCausalLM.register(IntRRConfig, IntRRForCausalLM)
