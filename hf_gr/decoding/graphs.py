"""Whole searches as CUDA graphs: one launch instead of some thousand, for small models and small batches on a GPU.

A search has fixed shapes once prompts are padded to few lengths, and nothing in it waits for the device, so that all
of it (reading the prompts, every step, the grammar, the choice of beams) is captured at once and replayed.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from ..errors import HfGrError
from ..grammar import SidGrammar
from ..models import reader_of
from ..search_config import SearchConfig
from .beams import Beams
from .padding import pad_left


_Search = Callable[[torch.Tensor, torch.Tensor], Beams]  # of token ids and attention mask


class SearchGraphs:
    """Graphs of [`tree_search`] by model, grammar, settings, and shape of the batch.

    A graph keeps its model's and its grammar's tensors where they are; weights changed in place are seen, a model that
    moved is not. Threads may share them and wait for each other: a graph's inputs are one place in memory.

    Args:
        multiple: Prompts are padded to a multiple of so many tokens.
        max_graphs: Graphs kept, those used last; each holds the memory of a search.
    """

    def __init__(self, multiple: int = 64, max_graphs: int = 16):
        self.multiple, self.max_graphs = multiple, max_graphs
        self._graphs: OrderedDict[tuple, _Graph] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple:
        """What another process gets has no graph yet."""
        return type(self), (self.multiple, self.max_graphs)

    def search(
        self,
        model: PreTrainedModel,
        prompts: list[list[int]],
        grammar: SidGrammar,
        config: SearchConfig,
        whole: _Search,
    ) -> Beams:
        """What `whole` finds: a search of prompts padded on the left, under these settings.

        Raises [`HfGrError`] off a GPU, and for models of `form: recursive`, whose reading of items waits for the
        device.
        """
        check_device(model)
        if not reader_of(model).captured:
            raise HfGrError(
                "CUDA graphs are not for models of form recursive, which wait for the device; leave graphs out."
            )
        ids, mask = pad_left(prompts, 0, model.device, self.multiple)
        key = id(model), id(grammar), ids.shape, config
        with self._lock:
            if key not in self._graphs:
                self._graphs[key] = _Graph((model, grammar), ids, mask, whole)
            self._graphs.move_to_end(key)
            while len(self._graphs) > self.max_graphs:
                self._graphs.popitem(last=False)
            return self._graphs[key].replay(ids, mask)


class _Graph:
    """One captured search. Keeps model and grammar, so that no other object takes their place under the same id."""

    def __init__(
        self, parts: tuple[PreTrainedModel, SidGrammar], ids: torch.Tensor, mask: torch.Tensor, whole: _Search
    ):
        self.parts = parts
        self.ids, self.mask = ids.clone(), mask.clone()
        self.run, self.beams = capture(lambda: whole(self.ids, self.mask))

    def replay(self, ids: torch.Tensor, mask: torch.Tensor) -> Beams:
        self.ids.copy_(ids)
        self.mask.copy_(mask)
        self.run()
        beams = self.beams
        return Beams(beams.tokens.clone(), beams.states.clone(), beams.scores.clone(), beams.log_probs.clone())


def check_device(model: PreTrainedModel) -> None:
    if model.device.type != "cuda":
        raise HfGrError(f"CUDA graphs need a model on a GPU; this one is on {model.device}: leave graphs out.")


def capture(search: Callable[[], Beams]) -> tuple[Callable[[], None], Beams]:
    """A function that runs the search again, and where its result then lies."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # kernels load and libraries allocate before the capture
        for _ in range(2):
            search()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        beams = search()
    return graph.replay, beams
