"""The head that reads a user's global interest off the trunk."""

import torch
from torch import nn

from ..branches import Packed


_HEADS = 4


class InterestHead(nn.Module):
    """A light causal transformer over the last hidden states of every trunk's own columns, read at the anchors.

    So an answer's interest knows what its history told, and nothing of the branches [half as deep as the LM in a
    reader's account of S²GR; a few layers over the trunk are our choice]. Positions are in the hidden states already.

    Args:
        hidden_size: d, of the LM.
        out: Width of an interest.
        width: Of the transformer.
        layers: Of the transformer.
    """

    def __init__(self, hidden_size: int, out: int, width: int, layers: int) -> None:
        super().__init__()
        self.into = nn.Linear(hidden_size, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, _HEADS, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, out)

    def forward(self, hidden: torch.Tensor, packed: Packed) -> torch.Tensor:
        """Interests float32 [n, out] of the answers.

        Args:
            hidden: float [B·T, d], last hidden states of all columns.
            packed: Whose columns they are.
        """
        trunk, position = packed.trunk.flatten(), packed.position_ids.flatten()
        columns = ((trunk >= 0) & (packed.branch.flatten() == 0)).nonzero()[:, 0]
        trunk_of, place = trunk[columns], position[columns]
        states = self.into(hidden[columns].float())
        grid = states.new_zeros(int(trunk_of.max()) + 1, int(place.max()) + 1, states.shape[1])
        grid = grid.index_put((trunk_of, place), states)
        # Trunks are padded at their ends, which no earlier position sees.
        mask = nn.Transformer.generate_square_subsequent_mask(grid.shape[1], device=grid.device)
        for layer in self.layers:
            grid = layer(grid, src_mask=mask, is_causal=True)
        return self.out(self.norm(grid[trunk[packed.anchors], position[packed.anchors]]))
