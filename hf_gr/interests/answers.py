"""A model's answer, read with distrust: JSON found in prose, its shape checked, findings held against the text."""

import json
import math
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .subjects import Finding


MAX_WORDS = 8  # of an interest
MAX_LENGTH = 80  # characters of an interest
MAX_EVIDENCE = 300  # characters
_MAX_ANSWER = 100_000  # characters that are read
_MAX_TRIES = 100  # braces at which JSON may begin
_BETWEEN = set(" -'’&,.+/%()°")  # what stands between words in a name beside letters and digits; the rest is markup
_LINK = re.compile(r"://|\bwww\.|[^\W\d_]{2,}\.[^\W\d_]{2,}")
_MARKUP = re.compile(r"[<>{}`\\]|\[/?[A-Z_]+\]")
_CODE = re.compile(r"\b(?=\w*[^\W\d_])(?:\w*\d){3}\w*")  # B00X4WHP5E: letters and three digits or more


class UnreadableAnswer(ValueError):
    """What is wrong with an answer, in one line that the model may be told."""


@dataclass(frozen=True)
class Reading:
    """What an answer says.

    Attributes:
        findings: Those that hold, the answer's order kept.
        dropped: How many it gave besides.
    """

    findings: list[Finding]
    dropped: int


def read_answer(answer: str, text: str, max_interests: int) -> Reading:
    """Findings of an answer.

    An interest is 1 to 8 words in one line, at most 80 characters, without markup, links or codes; its evidence must
    be words of the text in their order (case, punctuation and width of characters aside), since it was not read there
    otherwise; its confidence must be a number from 0 to 1. Findings that break a rule are dropped, as are those
    beyond `max_interests`; of one interest named twice the surer remains. Keys that were not asked for are ignored.
    All of this is [ours].

    Args:
        answer: What the model wrote: JSON, perhaps in a fence or within prose.
        text: What it was shown.
        max_interests: How many findings count.

    Raises:
        UnreadableAnswer: If there is no JSON object with a list `interests` of objects, or none of the findings in it
            holds. No other error, whatever the answer is.
    """
    entries = _entries(answer[:_MAX_ANSWER])
    words = f" {' '.join(_words(text))} "
    found: dict[str, Finding] = {}
    wrong = ""
    for entry in entries:
        try:
            finding = _finding(entry, words)
        except UnreadableAnswer as error:
            wrong = wrong or str(error)
            continue
        name = finding.interest.casefold()
        if name in found and found[name].confidence >= finding.confidence:
            continue
        if name in found or len(found) < max_interests:
            found[name] = finding
    if wrong and not found:
        raise UnreadableAnswer(f"no interest holds; the first: {wrong}")
    return Reading(list(found.values()), len(entries) - len(found))


def _entries(answer: str) -> list[Any]:
    """The list `interests` of the answer's last JSON object that has one: models quote first and answer then."""
    objects = list(_objects(answer))
    if not objects:
        raise UnreadableAnswer("there is no JSON object in the answer")
    for found in reversed(objects):
        if isinstance(found.get("interests"), list):
            return found["interests"]
    raise UnreadableAnswer('the JSON object has no list "interests"')


def _objects(answer: str) -> Iterator[dict[str, Any]]:
    """Every JSON object that does not stand inside another, in order."""
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    start, tries = answer.find("{"), 0
    while start >= 0 and tries < _MAX_TRIES:
        tries += 1
        try:
            found, end = decoder.raw_decode(answer, start)
            yield found
        except (ValueError, RecursionError):  # no JSON from here on, or braces without end
            end = start + 1
        start = answer.find("{", end)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _finding(entry: Any, words: str) -> Finding:
    if not isinstance(entry, dict):
        raise UnreadableAnswer("an entry of interests is no object")
    return Finding(
        _interest(entry.get("interest")), _evidence(entry.get("evidence"), words), _confidence(entry.get("confidence"))
    )


def _interest(value: Any) -> str:
    if not isinstance(value, str):
        raise UnreadableAnswer("interest is no string")
    name = unicodedata.normalize("NFKC", value).strip(" .")
    if not name or "\n" in name or len(name) > MAX_LENGTH or len(name.split()) > MAX_WORDS:
        raise UnreadableAnswer(f"interest must have 1 to {MAX_WORDS} words, {MAX_LENGTH} characters at most")
    if not all(map(_in_names, name)) or _LINK.search(name) or _CODE.search(name):
        raise UnreadableAnswer("interest must be plain words, without markup, links or codes")
    return " ".join(name.split())


def _evidence(value: Any, words: str) -> str:
    if not isinstance(value, str):
        raise UnreadableAnswer("evidence is no string")
    evidence = " ".join(value.split())
    if len(evidence) > MAX_EVIDENCE or _MARKUP.search(unicodedata.normalize("NFKC", evidence)):
        raise UnreadableAnswer(f"evidence must be at most {MAX_EVIDENCE} characters without markup")
    if _LINK.search(evidence) or any(unicodedata.category(character).startswith("C") for character in evidence):
        raise UnreadableAnswer("evidence must have no links and no control characters")
    quoted = " ".join(_words(evidence))
    if not quoted or f" {quoted} " not in words:
        raise UnreadableAnswer("evidence must be words copied from the text")
    return evidence


def _confidence(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnreadableAnswer("confidence is no number")
    if not 0 <= value <= 1 or not math.isfinite(value):
        raise UnreadableAnswer("confidence must be a number from 0 to 1")
    return float(value)


def _in_names(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] in "LM" or category == "Nd" or character in _BETWEEN


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())
