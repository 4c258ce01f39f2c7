"""A tokenizer that moves: the quantizer trains along with the LM that reads its codes (MMQ, stage 2).

An item of a history is read through its codes' distribution, so that the recommendation loss reaches the quantizer:

    ind = soft + sg(onehot(argmax soft) − soft),   token = ind · E_level,   L = L_next item + w · L_quantizer   [known]

What is ours: answers stay hard; E takes no second gradient from the soft part; after every epoch the codes of all
items are computed anew, shared semantic IDs are resolved, and rows, grammar and evaluations follow; for the last part
of the training codes and quantizer stand still, so that the LM learns the ones that it will be asked for.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from safetensors.torch import load_model, save_model
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..branches import Packed
from ..catalog import SidCatalog
from ..embedding.store import ItemVectors, items_fingerprint
from ..errors import HfGrError
from ..quantizers import load_quantizer
from ..quantizers.collisions import CollisionMethod, resolve_collisions
from ..quantizers.soft_index import SoftIndexQuantizer
from ..references import FIRST


NAME = "tokenizer_quantizer"  # of the module in the LM, while it trains
LIVE_FILE = "tokenizer_quantizer.safetensors"  # in checkpoints: the quantizer as it trains
AS_CODED = "quantizer"  # in checkpoints: the quantizer as it gave the items their codes


class MovingTokenizer:
    """A quantizer with the vectors of a catalog's items, which gives them codes while it trains.

    Args:
        quantizer: Fitted, with a soft index and codebooks that follow the gradient.
        vectors: float32 [N, d], in rows of the catalog.
        weight: w.
    """

    def __init__(self, quantizer: SoftIndexQuantizer, vectors: np.ndarray, weight: float = 0.5):
        self.quantizer, self.vectors, self.weight = quantizer, torch.from_numpy(np.array(vectors)), weight
        self.moves, self._coded = True, _copied(quantizer)

    @classmethod
    def of(
        cls, catalog_folder: str | Path, catalog: SidCatalog, embeddings: str | Path, weight: float
    ) -> "MovingTokenizer":
        """The quantizer of a catalog's folder. Raises [`HfGrError`] where it cannot move with behavior, or the vectors
        are not of the catalog's items."""
        quantizer = load_quantizer(Path(catalog_folder) / "quantizer")
        method = quantizer.config.model_type.removeprefix("hf_gr_")
        if not isinstance(quantizer, SoftIndexQuantizer):
            raise HfGrError(
                f"tokenizer is trainable, but the catalog's quantizer is {method}, whose codes have no gradient; "
                "quantize with method: mmq or r3_vae."
            )
        if not quantizer.codebooks_learn:
            raise HfGrError(
                f"tokenizer is trainable, but the codebooks of this {method} are moving averages, which no gradient "
                'reaches; quantize with method_config: {"codebook_update": "gradient"}.'
            )
        if catalog.collisions == "digit":
            raise HfGrError(
                "tokenizer is trainable, but collisions of the catalog are told apart by a digit, of which moving "
                "items may need more; quantize with collisions: greedy."
            )
        vectors = ItemVectors.load(embeddings)
        recorded = vectors.info.get("items_fingerprint")
        if len(vectors) != len(catalog) or recorded not in (None, items_fingerprint(catalog.item_ids)):
            raise HfGrError(
                f"{embeddings} does not hold the vectors of the catalog's {len(catalog)} items in their order; name "
                "the folder that the catalog was quantized from."
            )
        return cls(quantizer, vectors.vectors, weight)

    def attach(self, model: PreTrainedModel) -> None:
        """Makes the quantizer a part of the LM, so that optimizer and DDP know it."""
        model.add_module(NAME, self.quantizer.to(model.device).train())
        self.vectors = self.vectors.to(model.device)

    def detach(self, model: PreTrainedModel) -> SoftIndexQuantizer:
        """The quantizer that gave the items their codes; the LM is a plain one again."""
        delattr(model, NAME)
        self.quantizer.load_state_dict(self._coded)
        return self.quantizer.eval()

    def read(
        self, model: PreTrainedModel, packed: Packed, inputs: dict[str, Any], code_ids: Sequence[Sequence[int]]
    ) -> tuple[dict[str, Any], torch.Tensor]:
        """A batch as it is read while the tokenizer moves.

        Args:
            model: The LM.
            packed: The batch with its references ([`~hf_gr.references`]).
            inputs: Arguments of the LM's forward for it, with tokens.
            code_ids: Token ids of the codes, by level.

        Returns:
            The arguments with embeddings in place of tokens, equal to theirs in value, and w · L_quantizer of the
            items that were read.
        """
        if not self.moves:
            return inputs, _nothing(self.quantizer)
        embeddings = model.get_input_embeddings()
        read = embeddings(inputs["input_ids"])
        places = ((packed.input_ids >= FIRST) & (packed.branch == 0)).nonzero(as_tuple=True)
        if not len(places[0]):
            return inputs, _nothing(self.quantizer)
        reference, levels = packed.input_ids[places] - FIRST, len(code_ids)
        items, row = (reference // levels).unique(return_inverse=True)
        indexes, losses = self.quantizer(self.vectors[items])
        soft = [
            (index - index.detach()).to(read.dtype) @ embeddings.weight[list(ids)].detach()
            for index, ids in zip(indexes, code_ids, strict=True)
        ]
        read = read.index_put(places, torch.stack(soft, 1)[row, reference % levels], accumulate=True)
        others = {name: value for name, value in inputs.items() if name != "input_ids"}
        return {"inputs_embeds": read, **others}, self.weight * torch.stack(list(losses.values())).sum()

    def coded(self, catalog: SidCatalog) -> SidCatalog:
        """The catalog with the codes that the quantizer gives its items now."""
        vectors, training = self.vectors.cpu().numpy(), self.quantizer.training
        self.quantizer.eval()
        codes = self.quantizer.encode(vectors)
        codes, _ = resolve_collisions(codes, vectors, self.quantizer, cast(CollisionMethod, catalog.collisions))
        centres = tuple(self.quantizer.code_vectors(level) for level in range(self.quantizer.num_levels))
        self.quantizer.train(training)
        self._coded = _copied(self.quantizer)
        return replace(catalog, codes=codes, code_vectors=centres)

    def save(self, folder: Path) -> None:
        """Writes the quantizer into a checkpoint, as it trains and as it gave the items their codes."""
        save_model(self.quantizer, str(folder / LIVE_FILE))
        live = _copied(self.quantizer)
        self.quantizer.load_state_dict(self._coded)
        self.quantizer.save_pretrained(folder / AS_CODED)
        self.quantizer.load_state_dict(live)

    def load(self, checkpoint: Path) -> None:
        """Reads what [`save`] wrote."""
        self._coded = _copied(load_quantizer(checkpoint / AS_CODED))
        load_model(self.quantizer, checkpoint / LIVE_FILE)


class Coded(Protocol):
    """A trainer whose items have codes, which may be exchanged."""

    catalog: SidCatalog
    first_catalog: SidCatalog

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None: ...


class Moves(TrainerCallback):
    """Gives the items of a trainer their codes anew after every epoch, until a share of all steps is done.

    Args:
        trainer: Whose catalog moves.
        moving: Its tokenizer.
        until: The share; from there on quantizer and codes stand still.
    """

    def __init__(self, trainer: Coded, moving: MovingTokenizer, until: float):
        self.trainer, self.moving, self.until = trainer, moving, until

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.moving.moves = state.global_step < self.until * state.max_steps

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not self.moving.moves:  # else Adam's moments would go on moving it
            for parameter in self.moving.quantizer.parameters():
                parameter.grad = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.moving.moves and state.global_step >= self.until * state.max_steps:
            self._exchange()
            self.moving.moves = False

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.moving.moves:
            self._exchange()

    def _exchange(self) -> None:
        old = self.trainer.catalog
        new = self.moving.coded(old)
        changed, first = new.codes != old.codes, new.codes != self.trainer.first_catalog.codes
        self.trainer.catalog = new
        moved = {"moved": changed, "moved_since_start": first}
        self.trainer.log({f"tokenizer/{name}": float(levels.any(1).mean()) for name, levels in moved.items()})


def with_own_rate(optimizer: torch.optim.Optimizer, module: nn.Module, rate: float) -> None:
    """Gives the parameters of a module a learning rate of their own, and no weight decay."""
    own = {id(parameter) for parameter in module.parameters()}
    taken = []
    for group in optimizer.param_groups:
        taken += [parameter for parameter in group["params"] if id(parameter) in own]
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
    optimizer.add_param_group({"params": taken, "lr": rate, "weight_decay": 0.0})


def _copied(quantizer: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in quantizer.state_dict().items()}


def _nothing(quantizer: nn.Module) -> torch.Tensor:
    """0, of all parameters, as DDP waits for a gradient of each."""
    return torch.stack([0 * parameter.sum() for parameter in quantizer.parameters()]).sum()
