"""Negatives that a whole batch shares, for RecTools' networks: a matrix product instead of a gather for each position.

RecTools draws `n_negatives` for every position and gathers their vectors; on a CPU that is most of an epoch. One draw
for the whole batch gives more negatives in a fraction of the time. [ours, over RecTools' own extension points]
"""

from typing import Any

import torch
from rectools.models.nn.transformers.negative_sampler import CatalogUniformSampler
from rectools.models.nn.transformers.similarity import DistanceSimilarityModule


class SharedSampler(CatalogUniformSampler):
    """Draws uniformly from the catalog, once for a batch."""

    def get_negatives(
        self, batch_dict: dict, lowest_id: int, highest_id: int, session_len_limit: int | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """int64 [batch, length, n_negatives], the same at every place (a view, not copies)."""
        batch, length = batch_dict["x"].shape
        drawn = torch.randint(lowest_id, highest_id, (self.n_negatives,))
        return drawn.expand(batch, session_len_limit or length, -1)


class SharedSimilarity(DistanceSimilarityModule):
    """Dot products with the target of every position and with the negatives that all share; a negative that is the
    target counts for nothing."""

    def _get_pos_neg_logits(
        self, session_embs: torch.Tensor, item_embs: torch.Tensor, candidate_item_ids: torch.Tensor
    ) -> torch.Tensor:
        targets, negatives = candidate_item_ids[..., :1], candidate_item_ids[0, 0, 1:]
        of_target = (session_embs * item_embs[targets.squeeze(-1)]).sum(-1, keepdim=True)
        others = (session_embs @ item_embs[negatives].T).masked_fill(negatives == targets, -1e9)
        return torch.cat([of_target, others], dim=-1)
