"""The SID vocabulary: new tokens in tokenizer and LM, how their rows start, and prompts made of them.

New tokens are special tokens. Control tokens are put into prompts by id only; free text is encoded so that it can
never produce one, whatever it contains.
"""

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tokenizers import AddedToken
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .artifacts import read_json, write_json
from .catalog import SidCatalog
from .dataset import Histories
from .errors import HfGrError
from .forms import Form, form_named
from .grammar import SidGrammar
from .offline import local_folder


VOCABULARY_FILE = "vocabulary.json"
UNKNOWN = "unknown"  # context of an event without one, and of one whose value no training event has
START = "<items>"  # opens every history; a cold user's prompt is this token alone

ContextKind = Literal["none", "rating", "behavior"]
RowStart = Literal["random", "codes", "text", "mean"]


@dataclass(frozen=True)
class SidVocabulary:
    """The new tokens of a model and how histories are written in them.

    A history is `<items>` followed, oldest first, by each event's SID and, with `context`, one token for its rating or
    behavior. The next tokens after it are the next item's SID.

    Attributes:
        code_ids: Token ids of the codes, one list of K_l per level.
        think_ids: Token ids of the L thinking tokens.
        start_id: Token id of `<items>`.
        context: What stands after an item: nothing, its rating (rounded), or its behavior.
        context_ids: Token id of every context value of training events, and of `"unknown"` for all others (models of
            the first releases have none).
        max_history: Events of a history that a prompt keeps, the most recent ones.
        catalog_fingerprint: The catalog that these codes belong to.
        form: How the model writes an item, a name in [`~hf_gr.forms.FORMS`].
        prompt_ids: Token ids of a short text that stands before every history.
        first_item_id: Of models with an item table the id of the catalog's first item, above those of all tokens.
    """

    code_ids: tuple[tuple[int, ...], ...]
    think_ids: tuple[int, ...]
    start_id: int
    context: ContextKind
    context_ids: dict[str, int]
    max_history: int
    catalog_fingerprint: str
    form: str = "flat"
    prompt_ids: tuple[int, ...] = ()
    first_item_id: int | None = None

    @property
    def num_levels(self) -> int:
        return len(self.code_ids)

    @cached_property
    def sid_form(self) -> Form:
        """What `form` means."""
        return form_named(self.form)

    @property
    def opening(self) -> list[int]:
        """Token ids that open every history: the text of the prompt, if there is one, and `<items>`."""
        return [*self.prompt_ids, self.start_id]

    @cached_property
    def widths(self) -> tuple[int, int]:
        """Tokens of an event in a history, its context among them, and of an answer."""
        none, codes = np.empty(0, np.int64), np.empty((0, self.num_levels), np.int64)
        event = self.sid_form.events(self, none, codes).shape[1]
        return event + (self.context != "none"), self.sid_form.answers(self, codes)[0].shape[1]

    @cached_property
    def token_ids(self) -> list[int]:
        """All new token ids, ascending."""
        codes = [token for level in self.code_ids for token in level]
        return sorted([*codes, *self.think_ids, self.start_id, *self.context_ids.values()])

    def grammar(self, catalog: SidCatalog) -> SidGrammar:
        """What may be written: the live items of a catalog in this model's tokens."""
        return self.sid_form.grammar(self, catalog)

    def item_tokens(self, catalog: SidCatalog, items: np.ndarray | slice = slice(None)) -> np.ndarray:
        """SID tokens of some items (rows int64 [n]; default: all), int64 [n, L]."""
        levels = [np.array(ids)[catalog.codes[items, level]] for level, ids in enumerate(self.code_ids)]
        return np.stack(levels, axis=1)

    def answers(self, catalog: SidCatalog, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and labels of some items (rows int64 [n]) as answers, int64 [n, A] each; see [`Form.answers`]."""
        return self.sid_form.answers(self, self.item_tokens(catalog, items))

    def context_tokens(self, histories: Histories) -> np.ndarray | None:
        """Context token of every event, int64 [E], or `None` when the vocabulary has no context."""
        if self.context == "none":
            return None
        values = context_values(histories, self.context)
        known, inverse = np.unique(values, return_inverse=True)
        for value in known:
            if value not in self.context_ids and UNKNOWN not in self.context_ids:
                raise HfGrError(
                    f"{self.context} {str(value)!r} is not among those the model knows "
                    f"({', '.join(self.context_ids)}), and it is of a release whose models have no token for unknown "
                    "ones; train it again, or leave such events out."
                )
        ids = [self.context_ids.get(value, self.context_ids.get(UNKNOWN)) for value in known]
        return np.array(ids, np.int64)[inverse]

    def prompts(self, histories: Histories, catalog: SidCatalog) -> list[list[int]]:
        """Token ids of every history's prompt: the opening, its latest `max_history` events, and the form's ending."""
        tokens = self.event_tokens(histories, catalog)
        ends, lengths = histories.ptr[1:], np.minimum(histories.lengths, self.max_history)
        recent = [tokens[end - length : end] for end, length in zip(ends, lengths, strict=True)]
        ending = self.sid_form.ending(self)
        return [[*self.opening, *events.ravel().tolist(), *ending] for events in recent]

    def event_tokens(self, histories: Histories, catalog: SidCatalog) -> np.ndarray:
        """Tokens of every event, int64 [E, L] (items of one position: [E, 1]) or, with context, a column more."""
        tokens = self.sid_form.events(self, histories.items, self.item_tokens(catalog, histories.items))
        context = self.context_tokens(histories)
        return tokens if context is None else np.concatenate([tokens, context[:, None]], axis=1)

    def save(self, folder: str | Path) -> None:
        write_json(Path(folder) / VOCABULARY_FILE, asdict(self))

    @classmethod
    def load(cls, path: str | Path, revision: str | None = None) -> "SidVocabulary":
        """Reads the vocabulary of a model folder or Hub repo."""
        file = local_folder(path, revision=revision, files=[VOCABULARY_FILE]) / VOCABULARY_FILE
        if not file.is_file():
            raise HfGrError(f"{path} has no {VOCABULARY_FILE}: it is no model of hf_gr; {_remedy(path, file.parent)}.")
        data = read_json(file)
        data["code_ids"] = tuple(tuple(level) for level in data["code_ids"])
        lists = {name: tuple(data.get(name, ())) for name in ("think_ids", "prompt_ids")}
        form_named(data.get("form", "flat"), file)
        return cls(**data | lists)

    def check(self, catalog: SidCatalog, tokenizer: PreTrainedTokenizerBase, where: str | Path) -> None:
        """Raises [`HfGrError`] unless catalog, vocabulary and tokenizer of the model at `where` belong together."""
        if catalog.fingerprint != self.catalog_fingerprint:
            raise HfGrError(
                f"{where}: the catalog (fingerprint {catalog.fingerprint}) is not the one this model was trained on "
                f"({self.catalog_fingerprint}); use that catalog or train again."
            )
        expected = [START] + [_code_token(level, 0) for level in range(self.num_levels)]
        found = tokenizer.convert_ids_to_tokens([self.start_id] + [level[0] for level in self.code_ids])
        if found != expected or len(tokenizer) <= self.token_ids[-1]:
            raise HfGrError(
                f"{where}: the tokenizer does not hold the catalog's tokens (found {found}, expected {expected}); "
                "use the tokenizer that was saved with the model."
            )


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of free text, in which no special token is recognised: `<s0_17>` in a title stays plain characters."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def reads_text(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer has words, or is one of SIDs alone, to which all text is unknown."""
    return text_ids(tokenizer, "a") != [tokenizer.unk_token_id]


def context_values(histories: Histories, context: ContextKind) -> np.ndarray:
    """The value behind each event's context token, as strings [E]."""
    if context == "rating":
        if histories.ratings is None:
            raise HfGrError("context is 'rating', but the dataset has no rating column; set context: none.")
        return np.rint(np.nan_to_num(histories.ratings)).astype(np.int64).astype(str)
    if histories.behaviors is None:
        raise HfGrError("context is 'behavior', but the dataset has no behavior column; set context: none.")
    return np.array([value or UNKNOWN for value in histories.behaviors], dtype=object)


def add_vocabulary(
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    catalog: SidCatalog,
    *,
    max_history: int,
    form: str = "flat",
    context: ContextKind = "none",
    histories: Histories | None = None,
    row_start: RowStart = "random",
    seed: int = 0,
) -> SidVocabulary:
    """Adds the catalog's tokens to a tokenizer and an LM, in place.

    Args:
        tokenizer: Gets `<items>`, `<s{level}_{code}>`, `<think_{level}>` and the context tokens as special tokens.
        model: Its embedding (and LM head) grow by as many rows.
        catalog: Whose codes become tokens.
        max_history: Events that a prompt keeps.
        form: How the model writes an item, a name in [`~hf_gr.forms.FORMS`].
        context: What stands after each item of a history.
        histories: Training histories; needed only to know the context values.
        row_start: How the new rows start. `"random"`: drawn with the mean and the per-dimension standard deviation of
            the LM's own rows (a model of SIDs alone has none: as its other weights were drawn). `"codes"`: the code
            vectors, projected at random to the LM's width and brought to that mean and deviation. `"text"`: the mean
            embedding of the titles of the items that carry the code, brought to the same scale. `"mean"`:
            transformers' `mean_resizing` (near-identical rows; for comparison only).
        seed: Of the draw and the projection.

    Raises:
        HfGrError: If the tokenizer has SID tokens already, or there is no such form.
    """
    form_named(form)
    if START in tokenizer.get_vocab():
        raise HfGrError(
            f"the tokenizer of {tokenizer.name_or_path} already holds SID tokens; continue that model with --from, or "
            "start from a plain LM."
        )
    values: list[str] = []
    if context != "none" and histories is not None:
        values = np.unique([*context_values(histories, context), UNKNOWN]).tolist()
    codes = [[_code_token(level, code) for code in range(size)] for level, size in enumerate(catalog.codebook_sizes)]
    thinks = [f"<think_{level}>" for level in range(catalog.num_levels)]
    contexts = [f"<{context}_{value}>" for value in values]
    tokens = [START, *[token for level in codes for token in level], *thinks, *contexts]
    old_size = len(tokenizer)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True)
    ids = dict(zip(tokens, tokenizer.convert_tokens_to_ids(tokens), strict=True))
    vocabulary = SidVocabulary(
        code_ids=tuple(tuple(ids[token] for token in level) for level in codes),
        think_ids=tuple(ids[token] for token in thinks),
        start_id=ids[START],
        context=context,
        context_ids={value: ids[token] for value, token in zip(values, contexts, strict=True)},
        max_history=max_history,
        catalog_fingerprint=catalog.fingerprint,
        form=form,
    )
    size = max(len(tokenizer), model.config.get_text_config().vocab_size)
    model.resize_token_embeddings(size, mean_resizing=row_start == "mean")
    if row_start != "mean":
        _start_rows(model, vocabulary, catalog, tokenizer, old_size, row_start, seed)
    return vocabulary


@torch.no_grad()
def _start_rows(
    model: PreTrainedModel,
    vocabulary: SidVocabulary,
    catalog: SidCatalog,
    tokenizer: PreTrainedTokenizerBase,
    old_size: int,
    row_start: RowStart,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    for weight in dict.fromkeys(weights):  # one where the head is tied
        old = weight[:old_size].float().cpu()
        mean, std = old.mean(0), old.std(0)
        if not reads_text(tokenizer):
            mean, std = torch.zeros_like(mean), torch.full_like(std, model.config.get_text_config().initializer_range)
        rows = torch.randn(len(vocabulary.token_ids), weight.shape[1], generator=generator) * std + mean
        weight[vocabulary.token_ids] = rows.to(weight)
        if row_start == "random":
            continue
        for level, ids in enumerate(vocabulary.code_ids):
            if len(ids) == 1:
                continue  # one code has no spread to bring to scale: it stays drawn
            if row_start == "codes":
                directions = _projected(catalog, level, weight.shape[1], generator)
            else:
                directions = _title_means(catalog, level, old, tokenizer)
            spread = directions.std(0, keepdim=True).clamp(min=1e-6)
            scaled = (directions - directions.mean(0)) / spread * std + mean
            weight[list(ids)] = scaled.to(weight)


def _projected(catalog: SidCatalog, level: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """Code vectors of a level under a random projection to `width` dimensions, float32 [K_l, width]."""
    if not catalog.code_vectors:
        raise HfGrError("row_start is 'codes', but the catalog holds no code vectors; use random or text.")
    vectors = torch.from_numpy(catalog.code_vectors[level])
    return vectors @ torch.randn(vectors.shape[1], width, generator=generator) / vectors.shape[1] ** 0.5


def _title_means(
    catalog: SidCatalog, level: int, embedding: torch.Tensor, tokenizer: PreTrainedTokenizerBase
) -> torch.Tensor:
    """Mean token embedding of the titles of the items that carry each code; the overall mean for unused codes."""
    if not reads_text(tokenizer):
        raise HfGrError("row_start is 'text', but the model was made from SIDs alone; use random or codes.")
    titles = tokenizer(catalog.titles, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    overall = embedding.mean(0)
    per_item = torch.stack([embedding[ids].mean(0) if len(ids) else overall for ids in titles])
    codes = torch.from_numpy(catalog.codes[:, level]).long()
    sums = torch.zeros(catalog.codebook_sizes[level], embedding.shape[1]).index_add_(0, codes, per_item)
    counts = torch.bincount(codes, minlength=len(sums))[:, None]
    return torch.where(counts > 0, sums / counts.clamp(min=1), overall)


def _remedy(path: str | Path, folder: Path) -> str:
    """What to give instead of a folder that is no model."""
    if (folder / "model" / VOCABULARY_FILE).is_file():
        return f"its model is {Path(path) / 'model'}"
    if (folder / "interactions.parquet").is_file():
        return f"it is a dataset: train one with `hf-gr sft --dataset {path}` and give its folder `model`"
    if (folder / "catalog.json").is_file() and not (folder / "config.json").is_file():
        return f"it is a catalog: train one with `hf-gr sft --catalog {path}` and give its folder `model`"
    return "train one with `hf-gr sft`"


def _code_token(level: int, code: int) -> str:
    return f"<s{level}_{code}>"
