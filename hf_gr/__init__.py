"""hf_gr turns any Hugging Face causal LM into a generative recommender.

Importing it makes `pipeline("generative-recommendation", model=…)` known to transformers. Neither torch nor
transformers is imported for that: the task is registered as soon as `transformers.pipelines` is imported. The names
below are imported when they are first used.
"""

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .batch import recommend_batch
    from .catalog import SidCatalog
    from .dataset import Histories, InteractionDataset, write_dataset
    from .decoding import Recommender, beam_search
    from .errors import HfGrError
    from .grammar import SidGrammar, SidLogitsProcessor
    from .hub import push_to_hub, save_repo, update_card
    from .pipeline import GenerativeRecommendationPipeline
    from .vocabulary import SidVocabulary, add_vocabulary

__version__ = "0.1.0"

_MODULE_OF = {
    "GenerativeRecommendationPipeline": "pipeline",
    "HfGrError": "errors",
    "Histories": "dataset",
    "InteractionDataset": "dataset",
    "Recommender": "decoding",
    "SidCatalog": "catalog",
    "SidGrammar": "grammar",
    "SidLogitsProcessor": "grammar",
    "SidVocabulary": "vocabulary",
    "add_vocabulary": "vocabulary",
    "beam_search": "decoding",
    "push_to_hub": "hub",
    "recommend_batch": "batch",
    "save_repo": "hub",
    "update_card": "hub",
    "write_dataset": "dataset",
}

__all__ = [
    "GenerativeRecommendationPipeline",
    "HfGrError",
    "Histories",
    "InteractionDataset",
    "Recommender",
    "SidCatalog",
    "SidGrammar",
    "SidLogitsProcessor",
    "SidVocabulary",
    "__version__",
    "add_vocabulary",
    "beam_search",
    "push_to_hub",
    "recommend_batch",
    "save_repo",
    "update_card",
    "write_dataset",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__


class _WhenPipelinesAreImported(MetaPathFinder):
    """Lets `hf_gr.pipeline`, which registers the task, be imported right after `transformers.pipelines`."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != _PIPELINES:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: Any) -> None:
                execute(module)
                import_module(f"{__name__}.pipeline")

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


_PIPELINES = "transformers.pipelines"
if _PIPELINES in sys.modules:
    import_module(f"{__name__}.pipeline")
else:
    sys.meta_path.insert(0, _WhenPipelinesAreImported())
