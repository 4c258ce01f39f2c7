"""A search as one graph: nothing in it may wait for the device, and replaying it must equal a search of its own."""

import pytest
import torch
from searching import build
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, Qwen3Config

from hf_gr.decoding import Call, SearchGraphs, beam_search, graphs, tree_search
from hf_gr.decoding.padding import pad_left
from hf_gr.decoding.tree import search_from
from hf_gr.decoding.trunk import Trunk
from hf_gr.errors import HfGrError
from hf_gr.search_config import SearchConfig


class NoWaiting(TorchDispatchMode):
    """Fails on operators whose result, or its shape, the host has to wait for."""

    waiting = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero", "bincount")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::").split(".")[0]
        assert not name.strip("_").startswith(self.waiting) and name != "_local_scalar_dense", f"{name} waits"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("form", ["flat", "stepwise"])
@pytest.mark.parametrize("config_class", [LlamaConfig, Qwen3Config])
@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("method", ["beam", "gumbel"])
def test_nothing_in_a_search_waits(config_class, form, filtered, method):
    case = build(config_class, form)
    ids, mask = pad_left(case.prompts(), 0, "cpu")
    only = [case.grammar.mask(torch.arange(40).numpy() % 2 == 0), None, None]
    item_filter = case.grammar.filter([[3, 4], None, [1]], [None, [5, 6, 7], None], only) if filtered else None
    with NoWaiting():
        beams = search_from(
            Trunk(case.model, ids, mask),
            case.grammar,
            SearchConfig(num_beams=5, method=method),
            Call(item_filter=item_filter),
        )
    assert torch.isfinite(beams.scores[:, 0]).all()


def test_the_watch_itself_sees_waiting():
    with NoWaiting(), pytest.raises(AssertionError, match="waits"):
        torch.tensor([0, 1]).nonzero()
    with NoWaiting(), pytest.raises(AssertionError, match="waits"):
        bool(torch.tensor([1]).sum())


def test_a_replayed_search_is_the_search(monkeypatch):
    """On a CPU, with a stand-in that runs the search again into the same place."""

    def capture(search):
        beams = search()

        def run():
            for name, value in vars(search()).items():
                if value is not None:
                    getattr(beams, name).copy_(value)

        captures.append(run)
        return run, beams

    captures: list = []
    monkeypatch.setattr(graphs, "capture", capture)
    monkeypatch.setattr(graphs, "check_device", lambda model: None)
    for form in ("flat", "stepwise"):
        case, kept = build(form=form), SearchGraphs(multiple=24, max_graphs=2)
        captures.clear()
        for lengths in ((5, 0, 3), (4, 4, 4), (1, 2, 5)):  # all within 24 tokens
            prompts = case.prompts(lengths)
            replayed = tree_search(case.model, prompts, case.grammar, num_beams=6, graphs=kept)
            plain = tree_search(case.model, prompts, case.grammar, num_beams=6)
            assert torch.equal(replayed.tokens, plain.tokens)
            assert torch.allclose(replayed.scores, plain.scores, atol=1e-5)
        assert len(captures) == 1
        found = beam_search(case.model, case.prompts((6, 6)), case.grammar, num_beams=6, top_k=4, graphs=kept)
        assert len(captures) == 2 and (found.items >= 0).all()
        first = tree_search(case.model, case.prompts((1, 2, 5)), case.grammar, num_beams=6, graphs=kept)
        assert torch.equal(first.tokens, plain.tokens), "a result stays when its graph runs again"
        tree_search(case.model, case.prompts((5, 0, 3)), case.grammar, num_beams=4, graphs=kept)
        tree_search(case.model, case.prompts((6, 6)), case.grammar, num_beams=6, graphs=kept)
        assert len(captures) == 4, "the graph used least was dropped"


def test_graphs_need_a_gpu():
    case = build()
    with pytest.raises(HfGrError, match="need a model on a GPU; this one is on cpu"):
        tree_search(case.model, case.prompts(), case.grammar, num_beams=2, graphs=SearchGraphs())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("form", ["flat", "stepwise"])
def test_a_graph_on_a_gpu_gives_the_same_answers(form):
    case, kept = build(form=form), SearchGraphs(multiple=8)
    case.model.cuda()
    for lengths in ((5, 0, 3), (4, 4, 4)):
        prompts = case.prompts(lengths)
        replayed = tree_search(case.model, prompts, case.grammar, num_beams=6, graphs=kept)
        plain = tree_search(case.model, prompts, case.grammar, num_beams=6)
        assert torch.equal(replayed.tokens, plain.tokens)
        assert torch.allclose(replayed.scores, plain.scores, atol=1e-3)


def test_a_recursive_model_is_refused_since_it_waits(monkeypatch):
    monkeypatch.setattr(graphs, "check_device", lambda model: None)
    case = build(form="recursive")
    ids, mask = pad_left(case.prompts(), 0, "cpu")
    with NoWaiting(), pytest.raises(AssertionError, match="waits"):
        Trunk(case.model, ids, mask)
    with pytest.raises(HfGrError, match="not for models of form recursive"):
        tree_search(case.model, case.prompts(), case.grammar, num_beams=2, graphs=SearchGraphs())
