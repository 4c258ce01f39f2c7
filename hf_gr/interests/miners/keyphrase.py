"""The miner that needs no language model: phrases of a subject's own text, by a sentence encoder (KeyBERT)."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import scipy.sparse as sp
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer
from sklearn.preprocessing import normalize

from ...embedding.text import Encoder, encode_text
from ...errors import HfGrError
from ..subjects import Finding, Subject


_LEAD = 128  # characters of a line that are encoded: what something is stands at its beginning
_ENCODED = 12  # phrases of a subject that are encoded
_LEAST = 0.3  # relevance below which a phrase is beside the point
_MOST = 0.2  # share of the subjects above which a phrase tells nobody apart
_EVIDENCE = 120  # characters

_LABEL = re.compile(r"^\w+: ")  # as `hf_gr.embedding.text.DEFAULT_TEMPLATE` writes it
_REVIEW = " | review: "
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\s*[;•]\s*")
# Letters and digits; a single letter belongs to what a hyphen ties it to (o-ring, x-ray).
_WORD = re.compile(r"[^\W\d_]-[^\W\d_]{2,}|[^\W_]+(?:['’][^\W\d_]+)?")
_TIE = re.compile(r"[ -]")  # what may stand between two words of a phrase
_PLAIN = re.compile(r"[^\W\d_](?:-?[^\W\d_]){2,}")
_SHORT_MIX = re.compile(r"(?=.*\d)[^\W_]{2,3}")  # 3d, n95, mk8; longer ones are model numbers
_MEASURE = re.compile(r"\d+[^\W\d_]?|\d+(?:mm|cm|in|ft|yd|oz|lb|kg|mg|ml|pc|pk|ct|hz|st|nd|rd|th)")
# What no phrase holds besides scikit-learn's English stop words: units and sizes, and what shops say of anything.
_UNITS = """
mm cm dm km inch inches feet foot ft yard yards yd yds mil mils micron microns ounce ounces oz pound pounds lb lbs gram
grams kg mg ml liter liters litre litres gallon gallons gal quart quarts qt pint pints volt volts watt watts amp amps
ohm ohms hz khz mhz ghz psi rpm cfm dpi ppm pcs pc piece pieces pack packs pk count ct qty dozen degree degrees
fahrenheit celsius minute minutes hour hours day days year years percent length width height thick thickness diameter
dia id od wide long tall size sizes dimension dimensions weight meter meters metre metres rpms
"""
_SHOP_TALK = """
product products item items description feature features featured include includes included including note
specification specifications sold separately brand new please available use uses used using make makes made ideal great
good best easy easily perfect excellent high quality designed design provides provide offers help helps need needs want
like just come comes works work name model number http https www com youll youre theres dont wont its thats isnt doesnt
cant youve weve ill innovation customer customers consumer consumers solution solutions
"""
# What a phrase may hold, but not alone (heavy duty).
_VAGUE_ALONE = """
accessories accessory application applications assorted assortment automatic black blue box brown capacity clean color
compact complete depth dry extra flexible gauge gauges general genuine goods gray green grey heavy home industrial
inside kit large light material materials maximum medium mini minimum office original outside parts patented portable
premium professional purpose range red replacement round safe set single small solid standard straight strength strong
supplies system technology temperature universal white yellow
"""
_SAY_NOTHING = ENGLISH_STOP_WORDS.union(_UNITS.split(), _SHOP_TALK.split())
_SAY_LITTLE = frozenset(_VAGUE_ALONE.split())
_DIMENSION = {"2d", "3d", "4d"}


class KeyphraseMiner:
    """Finds the phrases of a text that are closest to the text as a whole.

    Known, from KeyBERT (Grootendorst 2020): candidates are phrases of the text itself, text and candidates are
    embedded by one sentence encoder, relevance is their cosine, and maximal marginal relevance picks phrases that
    differ from each other (see [`mmr`]).

    Ours:
    - The words of a phrase stand next to each other in a sentence, with no stop word, number, unit, model number or
      field label among them.
    - What people want is seldom told by one item alone and never by all of them. So candidates are phrases that at
      least two items have, and at most 20 % of them; what users have are titles, so there it is two different lines
      of all users. Only subjects without any such phrase keep those that are theirs alone.
    - The vector of a text is the mean over its lines, weighted by their lengths, of the vector of a line's first 128
      characters. So a line that many subjects have is encoded once, as is a phrase. Only the 12 phrases of a subject
      that the mean vectors of their words tell to be most relevant are encoded at all.
    - Of two phrases one of which holds all words of the other, one is picked.
    - Relevance is 1 − (1 − cosine)^(1 + ln n), with negative cosines as 0 and n lines of the subject that have the
      phrase: what a user comes back to counts more. It is the confidence, too, and depends on the subject alone. What
      has less than 0.3 is left out.

    What is shared depends on the subjects of one call, items and users each among themselves: mine all of them at
    once.

    Args:
        encoder: Sentence encoder.
        max_interests: Interests of one subject, at most.
        ngram: The least and the most words of a phrase.
        diversity: Weight of being different from what was picked, from 0 (relevance alone) to 1.
        progress: Whether to show a progress bar.

    Raises:
        HfGrError: If one of the numbers makes no sense.
    """

    name = "keyphrase"

    def __init__(
        self,
        encoder: Encoder,
        max_interests: int = 6,
        ngram: tuple[int, int] = (1, 3),
        diversity: float = 0.4,
        progress: bool = True,
    ) -> None:
        if max_interests < 1 or not 1 <= ngram[0] <= ngram[1] or not 0 <= diversity <= 1:
            raise HfGrError(
                f"keyphrase: max_interests={max_interests}, ngram={ngram}, diversity={diversity}; ask for at least "
                "one interest, of one word or more, with a diversity between 0 and 1."
            )
        self._encoder = encoder
        self._max_interests = max_interests
        self._ngram = ngram
        self._diversity = diversity
        self._progress = progress

    def mine(self, subjects: Sequence[Subject]) -> list[list[Finding]]:
        """Findings of each subject, in the order they were picked; none where its text has no phrase.

        `evidence` is the sentence in which the phrase stands first, cut to 120 characters around it.
        """
        vectors = _Vectors(self._encoder, self._progress)
        found: list[list[Finding]] = [[] for _ in subjects]
        for kind in ("item", "user"):
            rows = [row for row, subject in enumerate(subjects) if subject.kind == kind]
            for row, findings in zip(rows, self._mine_kind([subjects[row] for row in rows], vectors), strict=True):
                found[row] = findings
        return found

    def _mine_kind(self, subjects: Sequence[Subject], vectors: "_Vectors") -> list[list[Finding]]:
        lines_of = [lines(subject) for subject in subjects]
        distinct = sorted({line for own in lines_of for line in own})
        spoken = [list(phrases(line, self._ngram)) for line in distinct]
        if not any(spoken):
            return [[] for _ in subjects]
        counter = CountVectorizer(analyzer=list, dtype=np.int32)
        contains = counter.fit_transform(spoken)  # [lines, phrases]
        names = counter.get_feature_names_out()
        holds = _incidence(lines_of, distinct)  # [subjects, lines]
        counts = (holds @ contains).tocsr()  # lines of each subject that have each phrase
        texts = _text_vectors(holds, distinct, vectors)
        candidates = _candidates(counts, counts if subjects[0].kind == "item" else contains)
        candidates = _most_relevant(candidates, names, texts, vectors)
        vectors.encode(names[np.unique(np.concatenate([own for own, _ in candidates]))])  # all at once
        return [
            self._pick(own_lines, names[own].tolist(), held, text, vectors)
            for own_lines, (own, held), text in zip(lines_of, candidates, texts, strict=True)
        ]

    def _pick(
        self, own_lines: list[str], names: Sequence[str], held: np.ndarray, text: np.ndarray, vectors: "_Vectors"
    ) -> list[Finding]:
        if not len(names):
            return []
        chosen = vectors(names)
        relevance = 1 - (1 - np.clip(chosen @ text, 0, 1)) ** (1 + np.log(held))
        similarity = np.where(_nested(names), np.inf, chosen @ chosen.T)
        picked = mmr(relevance, similarity, self._max_interests, self._diversity)
        stands: dict[str, tuple[str, int, int]] = {}
        for line in reversed(own_lines):
            stands |= {phrase: (line, *span) for phrase, span in phrases(line, self._ngram).items()}
        return [
            Finding(names[place], excerpt(*stands[names[place]]), round(float(relevance[place]), 4))
            for place in picked
            if relevance[place] >= _LEAST
        ]


def lines(subject: Subject) -> list[str]:
    """The lines of a subject's text without field labels, in their order; a review is a line of its own."""
    if subject.kind == "user":
        return [part.strip() for line in subject.text.splitlines() for part in line.split(_REVIEW) if part.strip()]
    return [line for line in (_LABEL.sub("", line).strip() for line in subject.text.splitlines()) if line]


def phrases(line: str, ngram: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """Phrases of a line in small letters, words joined by single spaces, and where each stands first.

    A phrase ends where a sentence does, at punctuation, and before a word that says nothing. One word of it has three
    letters or more and tells something by itself.
    """
    found: dict[str, tuple[int, int]] = {}
    run: list[re.Match[str]] = []
    for word in _WORD.finditer(line):
        if run and not _TIE.fullmatch(line[run[-1].end() : word.start()]):
            run = []
        run = [*run, word][-ngram[1] :] if _says_something(word[0].lower()) else []
        for start in range(len(run) - ngram[0] + 1):
            words = [match[0].lower() for match in run[start:]]
            if any(_tells(word) for word in words):
                found.setdefault(" ".join(words), (run[start].start(), word.end()))
    return found


def excerpt(line: str, start: int, end: int) -> str:
    """The sentence around `line[start:end]`, or of a long one the whole words within 120 characters."""
    first = max((mark.end() for mark in _SENTENCE_END.finditer(line) if mark.end() <= start), default=0)
    last = min((mark.start() for mark in _SENTENCE_END.finditer(line) if mark.start() >= end), default=len(line))
    if last - first > _EVIDENCE:
        room = max(_EVIDENCE - (end - start), 0) // 2
        if start - first > room:
            first = line.find(" ", start - room, start) + 1 or start
        if last - end > room:
            last = max(line.rfind(" ", end, end + room + 1), end)
    return line[first:last].strip()


def mmr(relevance: np.ndarray, similarity: np.ndarray, count: int, diversity: float) -> list[int]:
    """Places of at most `count` candidates by maximal marginal relevance (Carbonell & Goldstein 1998, eq. 1), each the
    argmax of (1 − diversity)·relevance − diversity·(largest similarity to those picked); the earlier one of equals.

    Args:
        relevance: float [n].
        similarity: float [n, n]; `inf` for two that must not both be picked.
        count: How many to pick.
        diversity: From 0 (relevance alone) to 1.
    """
    picked: list[int] = []
    closest = np.zeros(len(relevance))  # nothing is picked yet: the first is the most relevant
    left = np.ones(len(relevance), bool)
    while left.any() and len(picked) < count:
        score = (1 - diversity) * relevance - diversity * np.where(left, closest, 0)
        best = int(np.argmax(np.where(left, score, -np.inf)))
        closest = np.maximum(closest, similarity[best]) if picked else similarity[best]
        left &= np.isfinite(closest)
        left[best] = False
        picked.append(best)
    return picked


class _Vectors:
    """Vectors of length 1, float32, each text encoded once."""

    def __init__(self, encoder: Encoder, progress: bool) -> None:
        self._encoder = encoder
        self._progress = progress
        self._of: dict[str, np.ndarray] = {}

    def encode(self, texts: Iterable[str]) -> None:
        """Encodes those that are not known yet."""
        # By length, so that a batch has little padding.
        new = sorted(set(texts) - self._of.keys(), key=lambda text: (len(text), text))
        if new:
            self._of.update(zip(new, normalize(encode_text(new, self._encoder, progress=self._progress)), strict=True))

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [n, d] of n texts, one at least."""
        self.encode(texts)
        return np.stack([self._of[text] for text in texts])


@lru_cache(maxsize=1 << 16)
def _says_something(word: str) -> bool:
    """Whether a phrase may hold it."""
    if len(word) < 2 or word in _SAY_NOTHING:
        return False
    if any(letter.isdigit() for letter in word):
        return word in _DIMENSION or bool(_SHORT_MIX.fullmatch(word) and not _MEASURE.fullmatch(word))
    return True


@lru_cache(maxsize=1 << 16)
def _tells(word: str) -> bool:
    """Whether it makes a phrase of what it stands in."""
    return bool(_PLAIN.fullmatch(word)) and word not in _SAY_LITTLE


def _nested(names: Iterable[str]) -> np.ndarray:
    """Whether one of two phrases holds all words of the other, in the singular or the plural, bool [n, n]."""
    words = [{word.rstrip("s") for word in name.split()} for name in names]
    return np.array([[own <= other or other <= own for other in words] for own in words])


def _incidence(rows: Sequence[Sequence[str]], columns: Sequence[str]) -> sp.csr_array:
    """How often each row has each of the columns, int32 [rows, columns]."""
    place = {name: column for column, name in enumerate(columns)}
    indices = np.array([place[name] for row in rows for name in row], np.int64)
    owners = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    shape = (len(rows), len(columns))
    return sp.coo_array((np.ones(len(indices), np.int32), (owners, indices)), shape=shape).tocsr()


def _text_vectors(holds: sp.csr_array, distinct: Sequence[str], vectors: _Vectors) -> np.ndarray:
    leads = [line[:_LEAD] for line in distinct]
    weights = sp.diags_array(np.array([len(lead) for lead in leads], np.float32))
    return normalize(holds @ weights @ vectors(leads))


def _candidates(counts: sp.csr_array, documents: sp.csr_array) -> list[tuple[np.ndarray, np.ndarray]]:
    """The phrases that each subject keeps, and in how many of its lines each stands."""
    frequency = np.bincount(documents.indices, minlength=documents.shape[1])
    frequent = np.bincount(counts.indices, minlength=counts.shape[1]) > max(2, _MOST * counts.shape[0])
    shared = (frequency >= 2) & ~frequent
    kept = []
    for start, end in zip(counts.indptr[:-1], counts.indptr[1:], strict=True):
        own = start + np.argsort(counts.indices[start:end])
        good = own[shared[counts.indices[own]]]
        if not len(good):
            good = own[~frequent[counts.indices[own]]]
        kept.append((counts.indices[good], counts.data[good]))
    return kept


def _most_relevant(
    candidates: list[tuple[np.ndarray, np.ndarray]], names: np.ndarray, texts: np.ndarray, vectors: _Vectors
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each subject's candidates the 12 whose words' mean vector is closest to the text."""
    many = [row for row, (own, _) in enumerate(candidates) if len(own) > _ENCODED]
    if not many:
        return candidates
    concerned = np.unique(np.concatenate([candidates[row][0] for row in many]))
    split = [name.split() for name in names[concerned]]
    words = sorted({word for own in split for word in own})
    made_of, meanings = _incidence(split, words), vectors(words)
    kept = list(candidates)
    for row in many:
        own, held = candidates[row]
        rough = normalize(made_of[np.searchsorted(concerned, own)] @ meanings) @ texts[row]
        best = np.sort(np.argsort(-rough, kind="stable")[:_ENCODED])
        kept[row] = own[best], held[best]
    return kept
