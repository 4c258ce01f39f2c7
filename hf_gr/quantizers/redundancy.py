"""How much the codebooks of a SID say of each other."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import normalized_mutual_info_score


_TOLD = 100_000  # items that it is told from, at most


def redundancy(codes: np.ndarray, seed: int = 0) -> dict[str, float | None] | None:
    """How much one codebook says of what another has said [known: the measure; the correction as below is ours].

    Normalised mutual information I(a; b) / ((H(a) + H(b)) / 2) of the codes of two codebooks, the mean over pairs of
    codebooks; lower is better. Of few items it is far above 0 even where nothing is shared: of 12 thousand items on
    two codebooks of 256 some 0.45. So it is told beside what the same codes give dealt to the items at random.

    Args:
        codes: int [N, L]. Of more than 100 thousand items, as many drawn at random.
        seed: Of the dealing and the drawing.

    Returns:
        `information`: as above, 0 to 1;
        `chance`: the same with the codes of one of the two dealt at random, once for each pair;
        `adjusted`: (information − chance) / (1 − chance), 0 by chance and 1 where one codebook repeats the other;
            `None` where chance leaves nothing to tell.
        `None` for a single codebook.
    """
    if codes.shape[1] < 2:
        return None
    return _mean(_of_pairs(codes, seed))


def redundancy_by_group(codes: np.ndarray, groups: Sequence[str], seed: int = 0) -> list[dict[str, Any]]:
    """[`redundancy`] of the pairs of codebooks within each group and between each two, as of experts by modality.

    Args:
        codes: int [N, L].
        groups: L names, which group a codebook is of.
        seed: As in [`redundancy`].

    Returns:
        In the order of the groups, for what has a pair: `groups` (the two names, twice the same within a group),
        `pairs` (how many) and the values of [`redundancy`], means over these pairs.
    """
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    named = itertools.combinations(groups, 2)
    for names, values in zip(named, _of_pairs(codes, seed), strict=True):
        found.setdefault(names, []).append(values)
    return [{"groups": list(names), "pairs": len(values)} | _mean(values) for names, values in found.items()]


def _of_pairs(codes: np.ndarray, seed: int) -> list[tuple[float, float]]:
    """Of every pair of codebooks, its information and that by chance."""
    random = np.random.default_rng(seed)
    if len(codes) > _TOLD:
        codes = codes[random.choice(len(codes), _TOLD, replace=False)]
    return [
        (normalized_mutual_info_score(one, other), normalized_mutual_info_score(one, random.permutation(other)))
        for one, other in itertools.combinations(codes.T, 2)
    ]


def _mean(found: list[tuple[float, float]]) -> dict[str, float | None]:
    information, chance = (float(value) for value in np.mean(found, axis=0))
    adjusted = (information - chance) / (1 - chance) if chance < 1 else None
    return {"information": information, "chance": chance, "adjusted": adjusted}
