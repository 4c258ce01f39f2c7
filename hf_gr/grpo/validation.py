"""What guards a run: HR and NDCG on validation cases, at 1, at 10 and at 50, while the policy moves.

Rewards of rollouts rise while lists of 50 get worse: that is the known failure of training on few rollouts.
"""

from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from ..catalog import SidCatalog
from ..dataset import Cases
from ..decoding import beam_search
from ..errors import HfGrError
from ..evaluation.metrics import MISSING, check_finite, hit_rate, ndcg, target_ranks
from ..grammar import SidGrammar
from ..vocabulary import SidVocabulary


VALIDATION_KS = (1, 10, 50)


@dataclass(frozen=True, eq=False)
class Validation:
    """Prompts, and the item each of them was followed by.

    Attributes:
        prompts: Token ids of each case's history.
        targets: int64 [cases], catalogue rows.
        num_beams: Width of the search; lists are as long as it, at most 50.
        batch_size: Cases a device searches at a time.
    """

    prompts: list[list[int]]
    targets: np.ndarray
    num_beams: int = 50
    batch_size: int = 128

    @classmethod
    def of(
        cls, cases: Cases, catalog: SidCatalog, vocabulary: SidVocabulary, users: int, seed: int, **settings: int
    ) -> "Validation":
        """Of at most `users` cases, drawn at random. Raises [`HfGrError`] where there is none."""
        if not len(cases.targets):
            raise HfGrError("the validation part has no case to measure on; use another split, or no eval_strategy.")
        chosen = np.random.default_rng(seed).permutation(len(cases.targets))[:users]
        drawn = cases.take(chosen)
        return cls(vocabulary.prompts(drawn.latest(vocabulary.max_history), catalog), drawn.targets, **settings)

    def measure(self, model: PreTrainedModel, grammar: SidGrammar, accelerator: Accelerator) -> dict[str, float]:
        """HR@k and NDCG@k of the model's beams, means over all cases; each process searches its share of them."""
        order = sorted(range(len(self.prompts)), key=lambda case: len(self.prompts[case]))
        share = -(-len(order) // accelerator.num_processes)  # the same on all, so that sharded weights meet
        mine = [
            order[place % len(order)]
            for place in range(share * accelerator.process_index, share * (accelerator.process_index + 1))
        ]
        counted = min(share, max(0, len(order) - share * accelerator.process_index))
        ks = [k for k in VALIDATION_KS if k <= self.num_beams]
        totals = torch.zeros(2 * len(ks) + 1, device=accelerator.device, dtype=torch.float32)
        for start in range(0, share, self.batch_size):
            cases = mine[start : start + self.batch_size]
            found = beam_search(
                model,
                [self.prompts[case] for case in cases],
                grammar,
                num_beams=self.num_beams,
                top_k=ks[-1],
            )
            items = found.items.cpu().numpy()
            check_finite(found.scores.float().cpu().numpy()[items != MISSING])
            ranks = target_ranks(items, self.targets[cases])[: max(0, counted - start)]
            sums = [measure(ranks, k).sum() for measure in (hit_rate, ndcg) for k in ks]
            totals += torch.tensor([*sums, len(ranks)], dtype=torch.float32, device=accelerator.device)
        *sums, count = accelerator.reduce(totals, reduction="sum").tolist()
        names = [f"{name}@{k}" for name in ("HR", "NDCG") for k in ks]
        return {name: value / count for name, value in zip(names, sums, strict=True)}
