"""`pipeline("generative-recommendation", model=…)`: requests in words of the user, answers with items.

A request is a list of item ids, oldest first, or a dict; [`parse_request`] turns it into catalog rows and [`answer`]
lets the recommender search. The batch job shares both. Our modules that import transformers are imported where they
are used: this one is loaded with `transformers.pipelines`, whose own import one of them may have caused.
"""

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import fields
from importlib import import_module
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, Pipeline, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pipelines import PIPELINE_REGISTRY

from .answering import answer_each, histories_of
from .catalog import SidCatalog
from .dataset import Histories
from .errors import HfGrError
from .interests import Interests
from .interests.shared import SharedInterests
from .limits import Limits
from .requests import REQUEST_KEYS, Request, is_list, parse_request, warn_skipped
from .search_config import SearchConfig


if TYPE_CHECKING:
    from .models import ThinkingHeads
    from .paths import Path
    from .thoughts import Explanation
    from .vocabulary import SidVocabulary

TASK = "generative-recommendation"
_SEARCH_OPTIONS = [option.name for option in fields(SearchConfig)]

logger = logging.getLogger(__name__)

_Found = tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]  # items, scores, what explains each


class GenerativeRecommendationPipeline(Pipeline):
    """Recommends items of the model's catalog.

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
    batch. Arrays, Series and Arrow arrays are lists. Its answer is a list of `{"item_id", "title", "score", "sid"}`,
    best first: min(`top_k`, live items) distinct items. A batch gives a list of such lists; a request in it that is
    wrong or cannot be answered fails alone: `{"error": "…"}` stands in its place, and one warning counts them. (A
    request of its own raises [`HfGrError`].) `[]` is a batch of no requests; a user of whom nothing is known is
    `{"history": []}`. A generator or `torch.utils.data.Dataset` of requests is read and answered a batch at a time:
    what comes back is a generator.

    Parameters, here and in a call: `search`, a [`SearchConfig`], or its single options: `top_k` (10), `num_beams`
    (50), `method`, `score`, `temperature`, `reflection`, `graphs`, …; `max_per_category` (none; see [`answer`]),
    `batch_size` (16), `strict` (`False`): whether unknown ids are refused instead of skipped with a warning, and
    `explain` (`False`): whether every item gets its `path`,
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
        catalog_revision: Revision of the repo that they are read from, for a model that was loaded elsewhere and came
            here as an object. With the name of a repo, `revision` of `pipeline()` is that of everything.
        batch_size: Requests per call of the model.
        limits: Of what a request may ask; [`Limits`] if left out.
    """

    commit: str | None = None  # of the repo that the model is of, where its name alone is known
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
        limits: Limits | None = None,
        **kwargs: Any,
    ):
        from .decoding import Recommender, load_thinking
        from .paths import Paths
        from .scorers import load_scorers
        from .thoughts import Thoughts
        from .vocabulary import SidVocabulary

        super().__init__(model, tokenizer, **kwargs)  # moves the model to its device
        path, whole = str(model.config.name_or_path), vocabulary is None
        if vocabulary is None or catalog is None:
            path = repo_folder(path, catalog_revision or self.commit)
        vocabulary = vocabulary or SidVocabulary.load(path)
        catalog = catalog or _load_catalog(path, model)
        if whole and thinking is None:
            thinking = load_thinking(path, catalog, vocabulary)
        if whole and interests is None:
            interests = Interests.of_model(path)
        scorers, mixture = load_scorers(path, catalog) if whole else ({}, None)
        self.recommender = Recommender(
            model,
            tokenizer,
            catalog,
            vocabulary,
            thinking=thinking,
            limits=limits,
            scorers=scorers,
            mixture=mixture,
        )
        self.batch_size = batch_size
        self._paths = Paths(self.recommender)
        self._thoughts = None if thinking is None else Thoughts(self.recommender, thinking)
        self._shared = None if interests is None else SharedInterests(interests)

    def _sanitize_parameters(self, **parameters: Any) -> tuple[dict, dict, dict]:
        strict = {"strict": parameters.pop("strict")} if "strict" in parameters else {}
        options = {name: parameters.pop(name) for name in _SEARCH_OPTIONS if name in parameters}
        unknown = parameters.keys() - {"search", "max_per_category", "explain"}
        if misplaced := unknown & set(REQUEST_KEYS):
            name = min(misplaced)
            raise HfGrError(f'{name} belongs to a request; write {{"history": [...], "{name}": ...}}.')
        if unknown:
            known = ", ".join(["search", *_SEARCH_OPTIONS, "max_per_category", "batch_size", "strict", "explain"])
            raise HfGrError(f"the pipeline has no parameter {min(unknown)!r}; it has: {known}.")
        search = parameters.pop("search", None)
        if options or search is not None:
            parameters["search"] = SearchConfig.of(search, **options)
        return strict, parameters, {}

    def __call__(self, inputs: Any, *, batch_size: int | None = None, **parameters: Any) -> Any:
        """Answers one request with a list, a batch with a list of lists, a stream with a generator of lists."""
        if parameters.get("search") is None:  # single options change what the pipeline was made with
            parameters["search"] = self._forward_params.get("search")
        reading, searching, _ = self._sanitize_parameters(**parameters)
        reading = self._preprocess_params | reading
        size = self.batch_size if batch_size is None else batch_size
        searching = self._forward_params | {"batch_size": size} | searching
        if isinstance(inputs, Iterator | Dataset):
            stream = inputs if isinstance(inputs, Iterator) else (inputs[row] for row in range(len(inputs)))  # type: ignore[arg-type]
            return self._stream(stream, self.recommender.limits.number("batch_size", size), reading, searching)
        batch = _batch(inputs)
        if batch is not None:
            return self._answered(batch, reading, searching)
        (answers,) = self._results([inputs], reading, searching)
        if isinstance(answers, HfGrError):
            raise answers
        return answers

    def _stream(self, inputs: Iterator[Any], size: int, reading: dict, searching: dict) -> Iterator[list | dict]:
        while batch := list(islice(inputs, size)):
            yield from self._answered(batch, reading, searching)

    def _answered(self, batch: list[Any], reading: dict, searching: dict) -> list[list | dict[str, str]]:
        results = self._results(batch, reading, searching)
        failed = [(row, result) for row, result in enumerate(results) if isinstance(result, HfGrError)]
        if failed:
            logger.warning("%d of %d requests failed (index %d: %s)", len(failed), len(batch), *failed[0])
        return [{"error": str(result)} if isinstance(result, HfGrError) else result for result in results]

    def _results(self, batch: list[Any], reading: dict, searching: dict) -> list[list | HfGrError]:
        served = copy.copy(self)  # one state of the catalog from the request to the answer
        served.recommender = self.recommender.snapshot()
        return served.postprocess(served.forward(served.preprocess(batch, **reading), **searching))

    def preprocess(self, input_: Sequence[Any], strict: bool = False) -> list[Request | HfGrError]:
        recommender = self.recommender
        requests: list[Request | HfGrError] = []
        for value in input_:
            try:
                request = parse_request(
                    value,
                    recommender.catalog,
                    recommender.vocabulary.context,
                    strict=strict,
                    limits=recommender.limits,
                )
            except HfGrError as error:
                requests.append(error)
            else:
                requests.append(request)
        warn_skipped(requests)
        return requests

    def _forward(
        self,
        input_tensors: list[Request | HfGrError],
        batch_size: int = 16,
        explain: bool = False,
        **parameters: Any,
    ) -> list[_Found | HfGrError]:
        results = answer_each(self.recommender, input_tensors, batch_size=batch_size, **parameters)
        asked = [
            (request, result)
            for request, result in zip(input_tensors, results, strict=True)
            if isinstance(request, Request) and not isinstance(result, HfGrError)
        ]
        requests, found = [request for request, _ in asked], [result for _, result in asked]
        told: list[list[dict[str, Any]]] = [[{} for _ in items] for items, _ in found]
        if explain:
            paths = self._paths.serving(self.recommender)
            for rows, batch in self._found_batches(requests, found, batch_size):
                _tell(told[rows], "path", paths.explain(*batch))
                if self._thoughts is not None:
                    _tell(told[rows], "thoughts", self._thoughts.explain(*batch))
        if explain and self._shared is not None:
            ids = np.array(self.recommender.catalog.item_ids, object)
            for own, request, (items, _) in zip(told, requests, found, strict=True):
                shared = self._shared.between(ids[request.history].tolist(), ids[items].tolist())
                for entry, interests in zip(own, shared, strict=True):
                    entry["interests"] = interests
        answered = ((items, scores, own) for (items, scores), own in zip(found, told, strict=True))
        return [result if isinstance(result, HfGrError) else next(answered) for result in results]

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
            histories = histories_of(batch, self.recommender.vocabulary.context)
            yield rows, (histories, items, [request.query for request in batch])

    def postprocess(self, model_outputs: list[_Found | HfGrError]) -> list[list[dict[str, Any]] | HfGrError]:
        return [found if isinstance(found, HfGrError) else self._listed(*found) for found in model_outputs]

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

    def save_pretrained(self, save_directory: Any, **options: Any) -> None:
        """Writes a whole model repo. (The inherited one would declare this task as remote code.)

        Raises [`HfGrError`] on options, such as `push_to_hub`.
        """
        from .hub import carry, carry_scorers, save_repo

        if options:
            raise HfGrError(
                f"save_pretrained of this pipeline takes a folder alone, not {min(options)}; save, then upload the "
                "folder by hf_gr.push_to_hub(folder, repo)."
            )
        recommender, source = self.recommender, self.model.config.name_or_path
        save_repo(save_directory, self.model, self.tokenizer, recommender.catalog, recommender.vocabulary)
        if source:  # a model made on the spot came from nowhere
            carry(source, save_directory)
            carry_scorers(source, save_directory)


def _tell(told: list[list[dict[str, Any]]], name: str, found: "Sequence[Sequence[Path | Explanation]]") -> None:
    """Puts what was found of each user's items into the items' entries."""
    for own, explained in zip(told, found, strict=True):
        for entry, explanation in zip(own, explained, strict=True):
            entry[name] = explanation.described()


def _batch(inputs: Any) -> list[Any] | None:
    """The requests of a batch; `None` where the inputs are one request."""
    if not is_list(inputs) or isinstance(inputs, Set):
        return None
    values = inputs.to_pylist() if isinstance(inputs, pa.Array | pa.ChunkedArray) else list(inputs)
    if not values:
        logger.warning('[] is a batch of no requests; for a new user, of no events, give {"history": []}.')
    return values if not values or any(is_list(value) or isinstance(value, Mapping) for value in values) else None


class RepoModel(AutoModelForCausalLM):
    """Loads a model out of its repo's folder, which is fetched whole, at one commit: what the pipeline reads beside
    the weights is of the commit that they are of."""

    @classmethod
    def from_pretrained(cls, name: str, *args: Any, **kwargs: Any) -> PreTrainedModel:
        folder = repo_folder(name, kwargs.pop("revision", None), kwargs.get("token"))
        return AutoModelForCausalLM.from_pretrained(str(folder), *args, **kwargs)


def repo_folder(name: str, revision: str | None = None, token: str | bool | None = None) -> str:
    """Folder of a model's repo, or of a model on disk."""
    from .hub import READ_FILES
    from .offline import local_folder

    return str(local_folder(name, revision=revision, files=READ_FILES, token=token))


def _load_catalog(path: str, model: PreTrainedModel) -> SidCatalog:
    """The catalog of the model's repo, checked against the fingerprint that the model's config holds."""
    catalog = SidCatalog.load(path)
    expected = model.config.to_dict().get("catalog_fingerprint", catalog.fingerprint)
    if catalog.fingerprint != expected:
        raise HfGrError(
            f"{path}: the weights were made for catalog {expected}, but this is catalog {catalog.fingerprint}; take "
            "weights and catalog from one training, and of a Hub repo from one revision (revision=…)."
        )
    return catalog


import_module(".models", __package__)  # makes the Auto classes know IntRR
if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
    PIPELINE_REGISTRY.register_pipeline(TASK, GenerativeRecommendationPipeline, pt_model=RepoModel, type="text")
