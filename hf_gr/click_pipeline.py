"""`pipeline("click-ranking", model=…)`: a history and candidates, which come back with scores, in order.

What it loads a model with is imported when it is used: this module is loaded with `transformers.pipelines`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import AutoModel, Pipeline, PreTrainedModel
from transformers.pipelines import PIPELINE_REGISTRY

from .errors import HfGrError
from .offline import local_folder


CLICK_TASK = "click-ranking"
_KEYS = ("history", "candidates", "user", "request")


class ClickRankingPipeline(Pipeline):
    """Orders candidates by how likely the user is to click them.

    ```python
    import hf_gr
    from transformers import pipeline

    rank = pipeline("click-ranking", model="user/ranker")
    rank({"history": ["item 1"], "candidates": ["item 7", "item 8"]})
    ```

    A request holds `history` and `candidates` (lists of item ids), and `user` and `request` (names and values) where
    the model reads columns. Its answer is a list of `{"item_id", "title", "score"}`, best first; a list of requests
    gives a list of answers. A wrong request raises [`HfGrError`].
    """

    _load_tokenizer = False
    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False

    def __init__(self, model: PreTrainedModel, **kwargs: Any):
        from .ranking.ranker import Ranker, beside

        super().__init__(model, **kwargs)
        self.ranker = Ranker(model, *beside(local_folder(str(model.config.name_or_path))))

    def _sanitize_parameters(self, **parameters: Any) -> tuple[dict, dict, dict]:
        if parameters:
            raise HfGrError(f"this pipeline has no parameter {min(parameters)!r}; requests say all there is to say.")
        return {}, {}, {}

    def __call__(self, inputs: Any, **parameters: Any) -> Any:
        self._sanitize_parameters(**parameters)
        if isinstance(inputs, Mapping):
            return self._answer(inputs)
        if not isinstance(inputs, Sequence) or isinstance(inputs, str):
            raise HfGrError(f'a request is {inputs!r}; give {{"history": [...], "candidates": [...]}}, or a list.')
        return [self._answer(request) for request in inputs]

    def _answer(self, request: Any) -> list[dict[str, Any]]:
        return self.postprocess(self.forward(self.preprocess(request)))

    def preprocess(self, input_: Any) -> Mapping[str, Any]:
        if not isinstance(input_, Mapping) or not {"history", "candidates"} <= input_.keys():
            raise HfGrError(f'a request is {input_!r}; give {{"history": [...], "candidates": [...]}}.')
        if unknown := [key for key in input_ if key not in _KEYS]:
            raise HfGrError(f"a request has no key {unknown[0]!r}; it may have: {', '.join(_KEYS)}.")
        return input_

    def _forward(self, input_tensors: Mapping[str, Any], **_: Any) -> list[dict[str, Any]]:
        return self.ranker.rank(**input_tensors)

    def postprocess(self, model_outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return model_outputs


if CLICK_TASK not in PIPELINE_REGISTRY.get_supported_tasks():
    PIPELINE_REGISTRY.register_pipeline(CLICK_TASK, ClickRankingPipeline, pt_model=AutoModel, type="text")
