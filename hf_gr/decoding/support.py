"""Which LMs take the tree path (shared prompt, ancestor mask), which take `generate`, and which none."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from ..errors import HfGrError, first_line
from ..grammar import check_scores
from ..models import TREE_MODEL_TYPES, code_logits, last_hidden, reader_of


TREE_ATTENTION = ("sdpa", "eager")

_Result = TypeVar("_Result")


def tree_support(model: PreTrainedModel, longest_row: int, *, training: bool = False) -> tuple[bool, str]:
    """Whether branches and tree beams may be used with this model, and why (not).

    They need full attention that takes an additive 4-D mask. A mask of our own silently replaces a sliding window, so
    a window shorter than the longest row excludes a model, and so do linear attention and implementations that take no
    such mask. A model whose answers are not fed ([`Reader`]) needs nothing of that.

    Args:
        model: Any causal LM.
        longest_row: Tokens of the longest row that will be fed, prompt and answer together.
        training: Whether rows are fed at once, without a cache: then FlexAttention with its block mask will do too.
    """
    if not training and not reader_of(model).branches:
        return True, "codes are read after the prompt alone"
    config = model.config.get_text_config().to_dict()
    if config["model_type"] not in TREE_MODEL_TYPES:
        return False, f"architecture {config['model_type']!r} is not among {', '.join(TREE_MODEL_TYPES)}"
    attention = model.config.get_text_config()._attn_implementation
    if attention not in TREE_ATTENTION and not (training and attention == "flex_attention"):
        return False, f"attention implementation {attention!r} takes no 4-D mask"
    window = config.get("sliding_window")
    slides = config.get("use_sliding_window", True) and window is not None
    if slides and window < longest_row:
        return False, f"its sliding window of {window} is shorter than a row of {longest_row} tokens"
    return True, f"{config['model_type']} with full attention under {attention}"


@torch.no_grad()
def check_model(model: PreTrainedModel, tokens: Sequence[int]) -> None:
    """Raises [`HfGrError`] for a model that would be trained on one distribution and searched on another.

    Two short rows are read in every way that training and searching read them: logits are those of the model's own
    forward, and no token sees one after it. Where a model takes `generate`, its beams over prompts of different
    lengths have the log-probabilities that the forward gives their tokens (tried in float32, as training loads
    models). Takes some ten passes over a few tokens.

    Args:
        model: Any causal LM; in evaluation mode meanwhile.
        tokens: Ids that answers are written with, at least two.
    """
    training = model.training
    flex = model.config.get_text_config()._attn_implementation == "flex_attention"
    model.eval()
    if flex:  # is compiled for long rows: a minute for these few tokens, and not on every CPU
        model.set_attn_implementation("sdpa")
    try:
        _Check(model, tokens).run()
    finally:
        model.train(training)
        if flex:
            model.set_attn_implementation("flex_attention")


def _only(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [rows, V] with −inf at all but some tokens."""
    return torch.full_like(logits, -torch.inf).index_copy(1, tokens, logits[:, tokens])


class _Only(LogitsProcessor):
    """Lets beams hold some tokens alone, by log-probabilities among them."""

    def __init__(self, tokens: torch.Tensor):
        self.tokens = tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return _only(scores.float(), self.tokens).log_softmax(-1)


class _Check:
    """A model and two rows of six and four tokens."""

    def __init__(self, model: PreTrainedModel, tokens: Sequence[int]):
        self.model, self.name = model, model.config.get_text_config().model_type
        self.exact, self.scale = model.dtype == torch.float32, 1.0
        if model.device.type == "meta":
            raise HfGrError(
                "the model's first weights are offloaded; load it onto a device whole, without device_map."
            )
        rows = model.config.get_text_config().vocab_size
        if max(tokens) >= rows:
            raise HfGrError(
                f"the vocabulary has token {max(tokens)}, but the model has {rows} tokens; take weights and "
                "vocabulary from one model folder."
            )
        chosen = [tokens[place * (len(tokens) - 1) // 5] for place in range(6)]  # the first, the last, some between
        self.tokens = torch.tensor(sorted(set(chosen)), device=model.device)
        self.ids = torch.tensor([chosen[place] for place in (0, 3, 5, 1, 4, 2)], device=model.device)

    def run(self) -> None:
        logits = self._tried("read tokens alone", lambda: self.model(input_ids=self.ids[None]).logits[0])
        logits = self._tried("tell the new tokens", lambda: logits[:, self.tokens])
        check_scores(logits)
        self.scale = max(1.0, float(logits.abs().max()))
        earlier = self._tried("read tokens alone", lambda: self.model(input_ids=self.ids[None, :3]).logits[0])
        self._compare("it reads what comes after a token", earlier[:, self.tokens], logits[:3])
        ours = self._tried("give its hidden states", self._ours)
        self._compare("its logits are not those of its head on its last hidden states", ours, logits)
        rows = reader_of(self.model).branches and not tree_support(self.model, 10)[0]
        if rows and self.exact:  # rounded logits, and experts chosen by them, may differ from pass to pass
            self._tried("search with generate()", self._check_beams)

    def _ours(self) -> torch.Tensor:
        ids = self.ids[None]
        hidden = last_hidden(self.model, input_ids=ids, attention_mask=torch.ones_like(ids))[0]
        return code_logits(self.model, hidden, self.tokens)

    def _check_beams(self) -> None:
        """Two beams of three tokens after each prompt, the shorter one padded on the left."""
        prompts = [self.ids, self.ids[:4]]
        padded = torch.stack([self.ids, torch.cat([self.ids.new_zeros(2), self.ids[:4]])])
        mask = torch.ones_like(padded)
        mask[1, :2] = 0
        output = self.model.generate(
            input_ids=padded,
            attention_mask=mask,
            generation_config=GenerationConfig(
                num_beams=2,
                num_return_sequences=2,
                max_new_tokens=3,
                do_sample=False,
                pad_token_id=0,
                length_penalty=0.0,
                return_dict_in_generate=True,
                output_scores=True,
            ),
            logits_processor=LogitsProcessorList([_Only(self.tokens)]),
        )
        for row, answer in enumerate(output.sequences[:, 6:]):
            ids = torch.cat([prompts[row // 2], answer])
            logits = self.model(input_ids=ids[None]).logits[0, len(ids) - 4 : -1].float()
            log_probs = _only(logits, self.tokens).log_softmax(-1).gather(1, answer[:, None])
            what = "its cache or its padding changes what it answers"
            self._compare(what, output.sequences_scores[row], log_probs.sum())

    def _tried(self, what: str, attempt: Callable[[], _Result]) -> _Result:
        try:
            return attempt()
        except (HfGrError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever a family's code raises
            reason = first_line(error)[:200]
            raise HfGrError(
                f"{self.name} is not for hf_gr: it cannot {what} ({type(error).__name__}: {reason}); take another LM."
            ) from error

    def _compare(self, what: str, values: torch.Tensor, expected: torch.Tensor) -> None:
        difference = float((values.float() - expected.float()).abs().max())
        if not difference <= (1e-4 if self.exact else 5e-2) * self.scale:
            raise HfGrError(
                f"{self.name} is not for hf_gr: {what} (by {difference:.2g}), so that it would be trained on one "
                "distribution and searched on another; take another LM."
            )
