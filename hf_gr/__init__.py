"""hf_gr turns any Hugging Face causal LM into a generative recommender.

Importing it makes `pipeline("generative-recommendation", model=…)` and models of type `intrr` known to transformers.
Neither torch nor transformers is imported for that: both are registered as soon as the modules of transformers that
keep such lists are imported. The names below are imported when they are first used.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
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
    from .search_config import Mixture, SearchConfig
    from .vocabulary import SidVocabulary, add_vocabulary

__version__ = "0.1.0"

_MODULE_OF = {
    "GenerativeRecommendationPipeline": "pipeline",
    "HfGrError": "errors",
    "Histories": "dataset",
    "InteractionDataset": "dataset",
    "Mixture": "search_config",
    "Recommender": "decoding",
    "SearchConfig": "search_config",
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
    "Mixture",
    "Recommender",
    "SearchConfig",
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


class _AfterImport(MetaPathFinder):
    """Lets something be done right after a module is imported, whoever imports it; looking for it changes nothing."""

    def __init__(self, name: str, do: Callable[[], object]):
        self.name, self.do = name, do

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_do(module: Any) -> None:
                execute(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                    self.do()

            spec.loader.exec_module = execute_and_do  # type: ignore[method-assign]
        return spec


def _register_task() -> None:
    import_module(f"{__name__}.pipeline")
    import_module(f"{__name__}.click_pipeline")


class _LazyIntRR(ModuleType):
    """What transformers takes the module of `intrr` for: imports ours, which registers its classes, when asked."""

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(f"{__name__}.models.intrr"), name)


def _register_intrr() -> None:
    """Makes `intrr` a model type of transformers, of which nothing is imported until a config names it."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    CONFIG_MAPPING._mapping = {**CONFIG_MAPPING._mapping, "intrr": "IntRRConfig"}
    CONFIG_MAPPING._modules["intrr"] = _LazyIntRR("intrr")


def _after_import(name: str, do: Callable[[], object]) -> None:
    if name in sys.modules:
        do()
    else:
        sys.meta_path.insert(0, _AfterImport(name, do))


_after_import("transformers.pipelines", _register_task)
_after_import("transformers.models.auto.configuration_auto", _register_intrr)
