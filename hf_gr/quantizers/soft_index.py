"""The soft index: codes as distributions, so that what is said of an item's codes teaches the quantizer.

A recommender that reads `index @ embeddings` in place of `embeddings[code]` sends a gradient to every code and to the
encoder (MMQ, stage 2) [known]. Methods whose codes are chosen by cosine have it.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from .neural import NeuralQuantizer


class SoftIndexOutput(NamedTuple):
    """What [`SoftIndexQuantizer.forward`] gives for n items.

    Attributes:
        indexes: By level, float32 [n, K_l]: ind, one-hot in value, the softmax of ratings in gradient.
        losses: The weighted parts of the quantizer's own loss, each float32 [].
    """

    indexes: list[torch.Tensor]
    losses: dict[str, torch.Tensor]


class SoftIndexQuantizer(NeuralQuantizer):
    """A neural quantizer that rates codes by cosine. A method implements `_level_ratings`; its config has τ."""

    @property
    def codebooks_learn(self) -> bool:
        """Whether codebooks follow the gradient, and not moving averages of what chose them."""
        return True

    def _level_ratings(self, batch: torch.Tensor) -> list[torch.Tensor]:
        """By level, cosines float32 [n, K_l] of vectors float32 [n, d] with the codes; the largest is the code."""
        raise NotImplementedError

    def soft_codes(self, vectors: torch.Tensor, straight_through: bool = False) -> list[torch.Tensor]:
        """By level, a distribution over codes that gradients pass.

        soft = softmax(cos(z, C)/τ); with `straight_through` ind = soft + sg(onehot(argmax) − soft).

        Args:
            vectors: float32 [n, d], on the model's device.
            straight_through: Whether to give ind, which is one-hot in value and soft in gradient.

        Returns:
            L tensors float32 [n, K_l]. The argmax of each row is what [`encode`] gives. Encoder and codebooks get a
            gradient; not codebooks that follow moving averages.

        Raises:
            HfGrError: If the quantizer was never fitted.
        """
        self.check_fitted()
        soft = [(ratings / self._temperature()).softmax(1) for ratings in self._level_ratings(vectors)]
        return [one_hot_through(level) for level in soft] if straight_through else soft

    def _temperature(self) -> float:
        raise NotImplementedError

    def forward(self, vectors: torch.Tensor) -> SoftIndexOutput:
        """Indexes and losses of vectors float32 [n, d]: what a training beside another loss needs of a batch of items.

        The sum of the losses is what a fit lowers; whoever trains on may weigh the parts by name.
        """
        return SoftIndexOutput(self.soft_codes(vectors, straight_through=True), self._losses(vectors))


def one_hot_through(soft: torch.Tensor) -> torch.Tensor:
    """ind = soft + sg(onehot(argmax soft) − soft), float32 [n, K] (MMQ) [known]."""
    hard = torch.zeros_like(soft).scatter_(1, soft.argmax(1, keepdim=True), 1.0)
    return soft + (hard - soft).detach()


def cosines(points: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """[n, w], [K, w] → cos, [n, K]; 0 where a vector is 0."""
    return F.normalize(points, dim=1) @ F.normalize(codebook, dim=1).T
