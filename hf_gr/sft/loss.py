"""The cross-entropy of answers: semantic IDs over what the grammar allows, titles over the vocabulary."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..branches import IGNORED, Packed
from ..grammar import SidGrammar
from ..models import ThinkingHeads, answer_logits, token_logits


LossKind = Literal["constrained", "full"]
Credit = Literal["next", "any"]


@dataclass
class SidOutput(ModelOutput):
    """Sums over the predicted tokens of a batch (scalars); a `ModelOutput`, so that wrappers find the tensors in it.

    Attributes:
        loss: Weighted cross-entropy.
        count: Predicted tokens.
        hits: Codes that were the most likely one.
        codes: Predicted codes.
        side: What is added to it: by thinking heads, L = Σ CE + λ_a Σ Align + λ_g InfoNCE + λ_r reg less its first
            part; or by a recursion, the input side of L = Σ CE + λ Σ CE(input) and the dense output's cross-entropy.
        terms: Means of each term of that, by the name that the log gives it.
    """

    loss: torch.Tensor = None  # type: ignore[assignment]
    count: torch.Tensor = None  # type: ignore[assignment]
    hits: torch.Tensor = None  # type: ignore[assignment]
    codes: torch.Tensor = None  # type: ignore[assignment]
    side: torch.Tensor | None = None
    terms: dict[str, torch.Tensor] | None = None


def answer_loss(
    model: PreTrainedModel,
    hidden: torch.Tensor,
    packed: Packed,
    grammar: SidGrammar,
    kind: LossKind = "constrained",
    heads: ThinkingHeads | None = None,
    credit: Credit = "next",
) -> SidOutput:
    """Cross-entropy of a batch's answers.

    Args:
        model: For its LM head.
        hidden: float [B, T, d], last hidden states.
        packed: The batch. Answers that begin with a code are semantic IDs, others are text.
        grammar: What may follow; of the form that the answers are written in, on the device of `hidden`.
        kind: Softmax of semantic IDs over what the grammar allows after each prefix, or over the full vocabulary.
        heads: Thinking heads, whose loss is added.
        credit: Of unordered sets, what counts at a step: `"next"`, the code that its order has next (CRSS), or
            `"any"`, all codes of the set that are not written yet together, −log Σ p. Along orders drawn in proportion
            to p, the sum of these is a bound on −log of the set's probability over all orders, which is what a
            search that merges them ranks by [ours].
    """
    columns = hidden.flatten(0, 1)
    wanted = packed.labels != IGNORED
    is_sid = sids_among(packed, grammar)
    codes = packed.labels[is_sid][:, : grammar.num_codes]
    read = columns[packed.predictors[is_sid][:, : grammar.num_codes]]
    credit = credit if grammar.any_order else "next"
    loss, hits = _code_loss(model, read, codes, packed.weights[is_sid], grammar, kind, credit)
    text = wanted & ~is_sid[:, None]
    if text.any():
        logits = token_logits(model, columns[packed.predictors[text]])
        losses = F.cross_entropy(logits, packed.labels[text], reduction="none")
        loss = loss + (losses * packed.weights[:, None].expand_as(text)[text]).sum()
    output = SidOutput(loss=loss, count=wanted.sum(), hits=hits, codes=torch.tensor(codes.numel()).to(hits))
    if heads is not None:
        levels = torch.full((len(is_sid), grammar.num_codes), -1, device=codes.device)
        levels[is_sid] = grammar.codes(codes.repeat_interleave(grammar.stride, dim=1))
        thought = is_sid & (packed.thoughts >= 0).all(1)
        means = heads(columns, packed, levels, thought)
        scale = {"align": heads.config.align, "interest": heads.config.interest, "agreement": heads.config.agreement}
        terms = [factor * means[name] for name, factor in scale.items() if name in means]
        output.side = torch.stack(terms).sum() * packed.weights[thought].sum()
        output.terms = {f"thinking/{name}": mean for name, mean in means.items()}
    return output


def dense_pairs(hidden: torch.Tensor, packed: Packed, grammar: SidGrammar) -> tuple[torch.Tensor, torch.Tensor]:
    """For every answer that is a semantic ID what it is read from, float [n, d], and its item, int64 [n] rows of the
    catalog: on a shared semantic ID the first of the bucket."""
    is_sid = sids_among(packed, grammar)
    states = grammar.walk(packed.labels[is_sid][:, : grammar.answer_length])
    return hidden.flatten(0, 1)[packed.predictors[is_sid][:, 0]], grammar.items(states, limit=1)[:, 0]


def sids_among(packed: Packed, grammar: SidGrammar) -> torch.Tensor:
    """Which answers are semantic IDs, bool [n]: those that begin with a code."""
    if not packed.labels.numel():
        return torch.zeros(len(packed.labels), dtype=torch.bool, device=packed.labels.device)
    return grammar.code_numbers(packed.labels[:, 0]) >= 0


def _code_loss(
    model: PreTrainedModel,
    read: torch.Tensor,
    codes: torch.Tensor,
    weights: torch.Tensor,
    grammar: SidGrammar,
    kind: LossKind,
    credit: Credit,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed loss of code tokens [n, C], read from hidden states [n, C, d], and how many were the most likely one."""
    if kind == "full":
        logits = [token_logits(model, read[:, step]) for step in range(grammar.num_codes)]
        chosen = list(codes.unbind(1))
    else:
        logits, chosen = answer_logits(model, read, codes, grammar)
    if credit == "next":
        losses = [F.cross_entropy(*pair, reduction="none") for pair in zip(logits, chosen, strict=True)]
        hits = [(step.argmax(1) == target).sum() for step, target in zip(logits, chosen, strict=True)]
    else:
        left = [torch.stack(chosen[step:], 1) for step in range(len(chosen))]  # codes that are not written yet
        own = [step.gather(1, codes).logsumexp(1) for step, codes in zip(logits, left, strict=True)]
        losses = [step.logsumexp(1) - right for step, right in zip(logits, own, strict=True)]
        hits = [(step.argmax(1, keepdim=True) == codes).any(1).sum() for step, codes in zip(logits, left, strict=True)]
    return (torch.stack(losses, 1) * weights[:, None]).sum(), torch.stack(hits).sum()
