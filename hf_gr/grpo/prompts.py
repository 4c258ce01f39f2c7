"""What GRPO is asked: the latest training events of each user, whose histories are prompts."""

import numpy as np
from datasets import Dataset

from ..catalog import SidCatalog
from ..dataset import Histories
from ..vocabulary import SidVocabulary


def training_prompts(
    train: Histories, catalog: SidCatalog, vocabulary: SidVocabulary, per_user: int, steps: int = 1
) -> Dataset:
    """Prompts from the latest `per_user` training events of each user that have an earlier one.

    `target` is the event, or with `steps` above 1 the list of it and those after it, −1 where training events have
    ended; `history` are the items before it that the prompt shows.

    Events of items that were removed from the catalog are left out: no rollout can reach them.
    """
    users, ends = [], []
    for user, length in enumerate(train.lengths):
        latest = np.arange(max(1, length - per_user), length)
        users.append(np.full(len(latest), user))
        ends.append(latest)
    chosen, cut = np.concatenate(users), np.concatenate(ends)
    places = train.ptr[chosen][:, None] + cut[:, None] + np.arange(steps)
    inside = places < train.ptr[chosen + 1][:, None]
    targets = np.where(inside, train.items[np.where(inside, places, 0)], -1)
    live = catalog.live[targets[:, 0]]
    before = train.cut(chosen[live], cut[live])
    return Dataset.from_dict(
        {
            "prompt": vocabulary.prompts(before, catalog),
            "target": targets[live, 0] if steps == 1 else targets[live].tolist(),
            "history": [items[-vocabulary.max_history :].tolist() for items in before],
        }
    )
