"""What the codes of an answer are read from: the one thing that searches must know of a model."""

import inspect

import torch
from transformers import PreTrainedModel

from .intrr import IntRRForCausalLM, recursion_of


class Reader:
    """How the codes of a plain LM's answers are read.

    The first code is read from the prompt's last hidden state. Each later one is read from the hidden state of the
    token before it, which is fed to the decoder as a branch of the prompt.

    Attributes:
        branches: Whether answers are fed. If not, [`next`] tells what each code is read from, and the prompt's last
            hidden state is all that a search needs.
        captured: Whether a search can be captured as a CUDA graph: nothing in it waits for the device.
    """

    branches = True
    captured = True

    def __init__(self, model: PreTrainedModel):
        self.model = model

    def next(self, step: int, before: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """What code number `step` is read from where answers are not fed, float [..., d].

        Args:
            step: From 0.
            before: int64 [...], token of the code before it; not looked at for the first.
            x: float [..., d], the prompt's last hidden state.
        """
        raise NotImplementedError("answers are fed, and read from their own hidden states")

    def all(self, x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """What each of the codes int64 [n, C] of given answers is read from, float [n, C, d], from x float [n, d]."""
        steps = range(codes.shape[1])
        return torch.stack([self.next(step, codes[:, max(step - 1, 0)], x) for step in steps], dim=1)

    def cache_support(self) -> tuple[bool, str]:
        """Whether prompts that take our mask may be kept in a cache and extended, and why (not)."""
        return True, "full attention keeps keys and values"


class RecursionReader(Reader):
    """How codes that come by recursion are read (IntRR): from the prompt's hidden state and the code before."""

    branches = False
    captured = False  # reading items waits for the device

    def __init__(self, model: IntRRForCausalLM):
        super().__init__(model)
        self.recursive = model

    def next(self, step: int, before: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.recursive.query(step, before, x)

    def cache_support(self) -> tuple[bool, str]:
        """The backbone must be of attention alone, and be told positions."""
        config = self.recursive.config.get_text_config()
        kind, layers = config.model_type, config.to_dict().get("layer_types") or []
        other = sorted(set(layers) - {"full_attention", "sliding_attention"})
        if other:
            return False, f"{kind} has layers of {', '.join(other)}, which keep a state instead of keys"
        if "position_ids" not in inspect.signature(self.recursive.model.backbone.forward).parameters:
            return False, f"{kind} takes no positions"
        return True, f"{kind} keeps keys and values"


def reader_of(model: PreTrainedModel) -> Reader:
    """How the codes of this model's answers are read."""
    recursive = recursion_of(model)
    return Reader(model) if recursive is None else RecursionReader(recursive)
