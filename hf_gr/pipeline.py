"""`pipeline("generative-recommendation", model=…)`: requests in words of the user, answers with items.

A request is a list of item ids, oldest first, or a dict; [`parse_request`] turns it into catalogue rows and [`answer`]
lets the recommender search. The batch job shares both. Our modules that import transformers are imported where they
are used: this one is loaded with `transformers.pipelines`, whose own import one of them may have caused.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from huggingface_hub.errors import EntryNotFoundError
from transformers import AutoModelForCausalLM, Pipeline, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pipelines import PIPELINE_REGISTRY

from .catalog import SidCatalog
from .dataset import Histories
from .errors import HfGrError
from .interests import Interests
from .interests.shared import SharedInterests
from .requests import Request, check_skipped, parse_request, shown


if TYPE_CHECKING:
    from .decoding import Recommender
    from .grammar import ItemMask
    from .models import ThinkingHeads
    from .paths import Path
    from .thoughts import Explanation
    from .vocabulary import SidVocabulary

TASK = "generative-recommendation"

_Found = tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]  # items, scores, what explains each


def answer(
    recommender: "Recommender",
    requests: Sequence[Request],
    *,
    top_k: int = 10,
    num_beams: int = 50,
    max_per_category: int | None = None,
    batch_size: int = 16,
    reflection: float = 0.0,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Items (int64) and scores (float32) for every request, best first: min(top_k, live items) distinct items.

    Where filters leave no live item the list is empty, with a warning. All requests see one state of the catalogue.

    Args:
        recommender: The model.
        requests: Parsed for its catalogue.
        top_k: Items wanted.
        num_beams: Width of the search; raised to `top_k`.
        max_per_category: At most so many items of one category (our choice: an item counts for the first of its
            categories; items without any are not capped). While a list is short the search goes on without the items
            found and the categories that are full; the lists are shorter than `top_k` only when nothing is left.
            Scores are those without any filter; one rises only where a later search saw what few beams had missed.
        batch_size: Requests per call of the model; similar lengths go together.
        reflection: Paths whose codes agree less than this in their categories are dropped, from 0 (off) to 1 (CORP).
    """
    settings = {"top_k": top_k, "num_beams": num_beams, "batch_size": batch_size, "max_per_category": max_per_category}
    for name, number in settings.items():
        optional = name == "max_per_category" and number is None
        if not optional and (not isinstance(number, int) or number < 1):
            raise HfGrError(f"{name} is {shown(number)}; give a whole number of at least 1.")
    recommender = recommender.snapshot()
    wanted = {"top_k": top_k, "num_beams": num_beams, "reflection": reflection}
    category = None if max_per_category is None else _first_categories(recommender.catalog)
    answers: list[tuple[np.ndarray, np.ndarray]] = [(np.empty(0), np.empty(0))] * len(requests)
    order = np.argsort([-len(request.history) for request in requests], kind="stable")
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = [requests[row] for row in chosen]
        if category is None or max_per_category is None:
            found = _search(recommender, batch, [request.exclude for request in batch], wanted)
        else:
            found = _capped_search(recommender, batch, wanted, category, max_per_category)
        for row, result in zip(chosen, found, strict=True):
            answers[row] = result
    return answers


def _search(
    recommender: "Recommender", batch: Sequence[Request], exclude: Sequence[np.ndarray], wanted: Mapping[str, Any]
) -> list[tuple[np.ndarray, np.ndarray]]:
    allow, only = [request.allow for request in batch], _masks(recommender, batch)
    filtered = any(map(len, exclude)) or any(x is not None for x in (*allow, *only))
    items, scores = recommender.recommend(
        _histories(batch, recommender.vocabulary.context),
        **wanted,
        exclude=exclude if filtered else None,
        allow=allow if filtered else None,
        only=only if filtered else None,
        queries=[request.query for request in batch],
    )
    return [(row[row >= 0], score[row >= 0]) for row, score in zip(items, scores, strict=True)]


def _capped_search(
    recommender: "Recommender",
    batch: Sequence[Request],
    wanted: Mapping[str, Any],
    category: np.ndarray,
    cap: int,
) -> list[tuple[np.ndarray, np.ndarray]]:
    top_k = wanted["top_k"]
    found: list[list[tuple[int, float]]] = [[] for _ in batch]
    exclude = [request.exclude for request in batch]
    counts = np.zeros((len(batch), category.max() + 2), np.int64)  # the last column: items without a category (−1)
    unfinished = list(range(len(batch)))
    while unfinished:
        open_requests = [batch[row] for row in unfinished]
        results = _search(recommender, open_requests, [exclude[row] for row in unfinished], wanted)
        for row, (items, scores) in zip(unfinished, results, strict=True):
            for item, score in zip(items.tolist(), scores.tolist(), strict=True):
                kind = category[item]
                if len(found[row]) < top_k and (kind < 0 or counts[row, kind] < cap):
                    found[row].append((item, score))
                    counts[row, kind] += 1
            full = np.flatnonzero(counts[row, :-1] >= cap)
            exclude[row] = np.concatenate([exclude[row], items, np.flatnonzero(np.isin(category, full))])
        short = [row for row in unfinished if len(found[row]) < top_k]
        left = _live_items(recommender, [exclude[row] for row in short], [batch[row] for row in short])
        unfinished = [row for row, live in zip(short, left, strict=True) if live > 0]
    return [
        (np.array([item for item, _ in pairs], np.int64), np.array([score for _, score in pairs], np.float32))
        for pairs in found
    ]


def _live_items(recommender: "Recommender", exclude: Sequence[np.ndarray], batch: Sequence[Request]) -> list[int]:
    if not batch:
        return []
    allow = [request.allow for request in batch]
    return recommender.grammar.filter(exclude, allow, _masks(recommender, batch)).live.tolist()


def _masks(recommender: "Recommender", batch: Sequence[Request]) -> list["ItemMask | None"]:
    return [recommender.mask(r.category, r.where) if r.category or r.where else None for r in batch]


def _first_categories(catalog: SidCatalog) -> np.ndarray:
    """Number of every item's first category, int64 [N]; −1 where it has none."""
    first = np.array([names[0] if names else "" for names in catalog.categories], dtype=object)
    numbers = np.unique(first.astype(str), return_inverse=True)[1]
    return np.where([bool(names) for names in catalog.categories], numbers, -1)


def _histories(requests: Sequence[Request], context: str) -> Histories:
    events = np.concatenate([request.history for request in requests])
    values = None if context == "none" else np.concatenate([r.context for r in requests if r.context is not None])
    return Histories(
        user_ids=np.array([str(row) for row in range(len(requests))], dtype=object),
        ptr=np.concatenate([[0], np.cumsum([len(request.history) for request in requests])]).astype(np.int64),
        items=events,
        timestamps=np.arange(len(events)),
        ratings=values if context == "rating" else None,
        behaviors=values if context == "behavior" else None,
    )


class GenerativeRecommendationPipeline(Pipeline):
    """Recommends items of the model's catalogue.

    ```python
    import hf_gr
    from transformers import pipeline

    recommend = pipeline("generative-recommendation", model="user/model")
    recommend(["item 1", "item 2"], top_k=5)
    recommend({"history": ["item 1"], "exclude": ["item 7"], "query": "something calm"})
    recommend({"history": ["item 1"], "exclude_seen": True, "category": "Tea", "where": "in_stock"})
    recommend([["item 1"], ["item 2", "item 3"]])  # a batch
    recommend(["item 1"], explain=True)  # with the path by which each item was written, in words
    ```

    A request is a list of item ids, oldest first, or a dict (see [`parse_request`]); a list of lists or of dicts is a
    batch. Its answer is a list of `{"item_id", "title", "score", "sid"}`, best first: min(`top_k`, live items)
    distinct items. A batch gives a list of such lists. `[]` is the empty history of a user of whom nothing is known,
    and is answered as such. Parameters, here and in a call: `top_k` (10), `num_beams` (50), `max_per_category` (none;
    see [`answer`]), `reflection` (0; likewise), `batch_size` (16), `strict` (`False`): whether ids that are unknown or
    removed are refused instead of skipped with a warning, and `explain` (`False`): whether every item gets its `path`,
    the codes in the order written, with words, confidence and consistency (see [`Path.described`]); `thoughts`, the
    clusters of items that the model had in mind before each code and of the user as a whole (see
    [`Explanation.described`]), of a model with thinking heads; and `interests` that the item shares with the history
    (see [`SharedInterests.between`]), of a model with mined interests.

    Args:
        model: Causal LM with SID tokens.
        tokenizer: Of the model.
        catalog: Default: read from where the model came from.
        vocabulary: Likewise.
        thinking: Likewise, where there are thinking heads and the vocabulary is read too.
        interests: Likewise, where the model carries interests and the vocabulary is read too.
        catalog_revision: Revision of the repo that they are read from. transformers keeps the `revision` of
            `pipeline()` to itself; where catalogue and weights do not match, an error says so.
        batch_size: Requests per call of the model.
    """

    _load_tokenizer = True
    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        catalog: SidCatalog | None = None,
        vocabulary: "SidVocabulary | None" = None,
        thinking: "ThinkingHeads | None" = None,
        interests: Interests | None = None,
        catalog_revision: str | None = None,
        batch_size: int = 16,
        **kwargs: Any,
    ):
        from .decoding import Recommender, load_thinking
        from .paths import Paths
        from .thoughts import Thoughts

        super().__init__(model, tokenizer, **kwargs)  # moves the model to its device
        path, whole = model.config.name_or_path, vocabulary is None
        vocabulary = vocabulary or _load_vocabulary(path, catalog_revision)
        catalog = catalog or _load_catalog(model, catalog_revision)
        if whole and thinking is None:
            thinking = load_thinking(path, catalog, catalog_revision)
        if whole and interests is None:
            interests = Interests.of_model(path, catalog_revision)
        self.recommender = Recommender(model, tokenizer, catalog, vocabulary, thinking=thinking)
        self.batch_size = batch_size
        self._paths = Paths(self.recommender)
        self._thoughts = None if thinking is None else Thoughts(self.recommender, thinking)
        self._shared = None if interests is None else SharedInterests(interests)

    def _sanitize_parameters(self, **parameters: Any) -> tuple[dict, dict, dict]:
        strict = {"strict": parameters.pop("strict")} if "strict" in parameters else {}
        unknown = parameters.keys() - {"top_k", "num_beams", "max_per_category", "reflection", "explain"}
        if unknown:
            known = "top_k, num_beams, max_per_category, reflection, batch_size, strict, explain"
            raise HfGrError(f"the pipeline has no parameter {min(unknown)!r}; it has: {known}.")
        return strict, parameters, {}

    def __call__(self, inputs: Any, *, batch_size: int | None = None, **parameters: Any) -> list:
        """Answers one request with a list, a batch of requests with a list of lists."""
        reading, searching, _ = self._sanitize_parameters(**parameters)
        is_batch = isinstance(inputs, list | tuple) and any(isinstance(x, list | tuple | Mapping) for x in inputs)
        served = copy.copy(self)  # one state of the catalogue from the request to the answer
        served.recommender = self.recommender.snapshot()
        requests = served.preprocess(inputs if is_batch else [inputs], **(self._preprocess_params | reading))
        searching = self._forward_params | {"batch_size": batch_size or self.batch_size} | searching
        answers = served.postprocess(served.forward(requests, **searching))
        return answers if is_batch else answers[0]

    def preprocess(self, input_: Sequence[Any], strict: bool = False) -> list[Request]:
        recommender = self.recommender
        requests = [parse_request(value, recommender.catalog, recommender.vocabulary.context) for value in input_]
        check_skipped(requests, strict)
        return requests

    def _forward(
        self, input_tensors: list[Request], batch_size: int = 16, explain: bool = False, **parameters: Any
    ) -> list[_Found]:
        found = answer(self.recommender, input_tensors, batch_size=batch_size, **parameters)
        told: list[list[dict[str, Any]]] = [[{} for _ in items] for items, _ in found]
        if explain:
            paths = self._paths.serving(self.recommender)
            for rows, batch in self._found_batches(input_tensors, found, batch_size):
                _tell(told[rows], "path", paths.explain(*batch))
                if self._thoughts is not None:
                    _tell(told[rows], "thoughts", self._thoughts.explain(*batch))
        if explain and self._shared is not None:
            ids = np.array(self.recommender.catalog.item_ids, object)
            for own, request, (items, _) in zip(told, input_tensors, found, strict=True):
                shared = self._shared.between(ids[request.history].tolist(), ids[items].tolist())
                for entry, interests in zip(own, shared, strict=True):
                    entry["interests"] = interests
        return [(items, scores, own) for (items, scores), own in zip(found, told, strict=True)]

    def _found_batches(
        self, requests: list[Request], found: list[tuple[np.ndarray, np.ndarray]], batch_size: int
    ) -> Iterator[tuple[slice, tuple[Histories, np.ndarray, list[str | None]]]]:
        """Requests a batch at a time, and histories, items and queries as what explains them takes them."""
        for start in range(0, len(requests), batch_size):
            rows = slice(start, start + batch_size)
            batch, answers = requests[rows], [items for items, _ in found[rows]]
            items = np.full((len(batch), max(map(len, answers))), -1, np.int64)
            for row, own in enumerate(answers):
                items[row, : len(own)] = own
            histories = _histories(batch, self.recommender.vocabulary.context)
            yield rows, (histories, items, [request.query for request in batch])

    def postprocess(self, model_outputs: list[_Found]) -> list[list[dict[str, Any]]]:
        return [self._listed(*found) for found in model_outputs]

    def _listed(self, items: np.ndarray, scores: np.ndarray, told: list[dict[str, Any]]) -> list[dict[str, Any]]:
        catalog = self.recommender.catalog
        return [
            {
                "item_id": catalog.item_ids[item],
                "title": catalog.titles[item],
                "score": score,
                "sid": catalog.codes[item].tolist(),
            }
            | own
            for item, score, own in zip(items.tolist(), scores.tolist(), told, strict=True)
        ]

    def save_pretrained(self, save_directory: Any, **_: Any) -> None:
        """Writes a whole model repo. (The inherited one would declare this task as remote code.)"""
        from .hub import carry, save_repo

        recommender = self.recommender
        save_repo(save_directory, self.model, self.tokenizer, recommender.catalog, recommender.vocabulary)
        carry(self.model.config.name_or_path, save_directory)


def _tell(told: list[list[dict[str, Any]]], name: str, found: "Sequence[Sequence[Path | Explanation]]") -> None:
    """Puts what was found of each user's items into the items' entries."""
    for own, explained in zip(told, found, strict=True):
        for entry, explanation in zip(own, explained, strict=True):
            entry[name] = explanation.described()


def _load_vocabulary(path: str, revision: str | None) -> "SidVocabulary":
    from .vocabulary import SidVocabulary

    try:
        return SidVocabulary.load(path, revision)
    except EntryNotFoundError:
        raise HfGrError(f"{path} has no vocabulary.json: it is not a model made by hf_gr; train one first.") from None


def _load_catalog(model: PreTrainedModel, revision: str | None) -> SidCatalog:
    """The catalogue of the model's repo, checked against the fingerprint that the model's config holds."""
    path = model.config.name_or_path
    catalog = SidCatalog.load(path, revision)
    expected = model.config.to_dict().get("catalog_fingerprint", catalog.fingerprint)
    if catalog.fingerprint != expected:
        raise HfGrError(
            f"{path}: the weights were made for catalogue {expected}, but {revision or 'main'} holds catalogue "
            f"{catalog.fingerprint}; pass catalog_revision=… beside revision=…."
        )
    return catalog


import_module(".models", __package__)  # makes the Auto classes know IntRR
if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
    PIPELINE_REGISTRY.register_pipeline(
        TASK, GenerativeRecommendationPipeline, pt_model=AutoModelForCausalLM, type="text"
    )
