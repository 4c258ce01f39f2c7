"""Several miners' interests → one table: what means the same gets one name, and agreement counts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod

import faiss
import numpy as np
import pyarrow as pa
from sklearn.preprocessing import normalize

from ..embedding.text import Encoder, encode_text
from ..errors import HfGrError
from .subjects import Finding, Subject
from .table import SCHEMA, Interests


_BLOCK = 1024  # phrases compared at a time


def merge(
    subjects: Sequence[Subject],
    findings: Mapping[str, Sequence[Sequence[Finding]]],
    encoder: Encoder,
    threshold: float = 0.75,
    progress: bool = True,
) -> Interests:
    """Gives interests that mean the same one name, across subjects and miners, and joins them within a subject.

    That interests are merged by the similarity of their embeddings, and that agreement of models raises confidence, is
    the authors' (DeepInterestGR) [known]. How is ours:
    - Distinct phrases (in small letters, single spaces) are clustered in the order of how many subjects have them: a
      phrase joins the most similar phrase that leads a cluster, if their cosine reaches the threshold, else it leads
      one itself. So the name of a cluster is its most frequent phrase (of equals the shortest, then the first by
      alphabet), and every phrase is that close to its name: similarity does not travel along a chain.
    - Findings of one cluster in one subject become one row with confidence 1 − Π (1 − c), over the miners that found
      it, c the largest confidence of each (noisy-or); its evidence is that of the most confident finding.

    The result depends neither on the order of the miners nor, but for the order of its rows, on that of the subjects.

    Args:
        subjects: Each item and user once.
        findings: Miner → its findings of each of `subjects`, in their order.
        encoder: Sentence encoder.
        threshold: Cosine from which two phrases mean the same.
        progress: Whether to show a progress bar.

    Returns:
        Rows in the order of `subjects`, then the most confident first, then by name; `label` and `probability` are
        null, `models` the sorted names of the miners.

    Raises:
        HfGrError: If a miner has findings for another number of subjects, or one without words or with a confidence
            outside [0, 1].
    """
    for miner, found in findings.items():
        _check(miner, found, subjects)
    owners = Counter(
        phrase
        for own in zip(*findings.values(), strict=True)
        for phrase in {normalized(finding.interest) for found in own for finding in found}
    )
    names = cluster_names(owners, encoder, threshold, progress)
    rows = [row for place, subject in enumerate(subjects) for row in _rows(subject, place, findings, names)]
    return Interests(pa.Table.from_pylist(rows, SCHEMA))


def normalized(interest: str) -> str:
    """In small letters, words parted by single spaces."""
    return " ".join(interest.casefold().split())


def cluster_names(
    frequency: Mapping[str, int], encoder: Encoder, threshold: float, progress: bool = True
) -> dict[str, str]:
    """Phrase → name of its cluster, as [`merge`] describes.

    Args:
        frequency: Phrase → how many subjects have it.
        encoder: Sentence encoder.
        threshold: Cosine from which two phrases mean the same.
        progress: Whether to show a progress bar.
    """
    if not frequency:
        return {}
    phrases = sorted(frequency, key=lambda phrase: (-frequency[phrase], len(phrase), phrase))
    by_length = sorted(phrases, key=lambda phrase: (len(phrase), phrase))  # batches with little padding
    row = {phrase: place for place, phrase in enumerate(by_length)}
    vectors = normalize(encode_text(by_length, encoder, progress=progress))
    leaders = lead(vectors[[row[phrase] for phrase in phrases]], threshold)
    return {phrase: phrases[leader] for phrase, leader in zip(phrases, leaders, strict=True)}


def lead(vectors: np.ndarray, threshold: float) -> np.ndarray:
    """Leader clustering (Hartigan 1975), exact: each vector follows the most similar leader before it whose cosine
    reaches the threshold, of equals the first, or becomes a leader itself.

    Args:
        vectors: float32 [n, d] of length 1, the most important first.
        threshold: Cosine.

    Returns:
        int64 [n], the row of each vector's leader; its own for a leader.
    """
    leaders = np.empty(0, np.int64)
    leader_of = np.arange(len(vectors))
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK]
        closest, of = _closest(block, vectors[leaders])
        within = block @ block.T
        new: list[int] = []
        for place, similar in enumerate(within):
            best = new[int(np.argmax(similar[new]))] if new else None
            if best is not None and similar[best] >= threshold and similar[best] > closest[place]:
                leader_of[start + place] = start + best
            elif closest[place] >= threshold:
                leader_of[start + place] = leaders[of[place]]
            else:
                new.append(place)
        leaders = np.concatenate([leaders, start + np.array(new, np.int64)])
    return leader_of


def _closest(queries: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest inner product of each query with a point, and the point's row; −inf where there are no points."""
    if not len(points):
        return np.full(len(queries), -np.inf), np.zeros(len(queries), np.int64)
    values, rows = faiss.knn(queries, points, 1, metric=faiss.METRIC_INNER_PRODUCT)
    return values[:, 0], rows[:, 0]


def _rows(
    subject: Subject, place: int, findings: Mapping[str, Sequence[Sequence[Finding]]], names: Mapping[str, str]
) -> list[dict[str, object]]:
    clusters: dict[str, list[tuple[str, Finding]]] = {}
    for miner, found in findings.items():
        for finding in found[place]:
            clusters.setdefault(names[normalized(finding.interest)], []).append((miner, finding))
    joined = [(*_joined(found), name) for name, found in clusters.items()]
    return [
        {
            "item_id": subject.id if subject.kind == "item" else None,
            "user_id": subject.id if subject.kind == "user" else None,
            "interest": name,
            "evidence": evidence,
            "confidence": confidence,
            "models": models,
        }
        for confidence, models, evidence, name in sorted(joined, key=lambda row: (-row[0], row[-1]))
    ]


def _joined(found: list[tuple[str, Finding]]) -> tuple[float, list[str], str]:
    """Confidence, miners and evidence of the findings of one cluster in one subject."""
    ordered = sorted(found, key=lambda one: (-one[1].confidence, one[0], one[1].interest, one[1].evidence))
    best: dict[str, float] = {}
    for miner, finding in ordered:
        best.setdefault(miner, finding.confidence)
    # Rounded to what float32 tells apart, so that the order of the rows is that of the numbers on disk.
    confidence = round(1 - prod(1 - one for one in best.values()), 6)
    return confidence, sorted(best), ordered[0][1].evidence


def _check(miner: str, found: Sequence[Sequence[Finding]], subjects: Sequence[Subject]) -> None:
    if len(found) != len(subjects):
        raise HfGrError(f"miner {miner!r} has findings for {len(found)} subjects, not for all {len(subjects)}.")
    for subject, own in zip(subjects, found, strict=True):
        for finding in own:
            if not finding.interest.strip() or not 0 <= finding.confidence <= 1:
                raise HfGrError(
                    f"miner {miner!r}, {subject.kind} {subject.id!r}: {finding.interest!r} with confidence "
                    f"{finding.confidence}; an interest has words, and a confidence in [0, 1]."
                )
