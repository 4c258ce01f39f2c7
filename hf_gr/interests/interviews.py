"""The talk with one model about one subject: a question, and a second one if the answer cannot be read."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .answer_cache import Answer, AnswerCache, digest
from .answers import UnreadableAnswer, read_answer
from .prompts import Message, first_question, second_question, shown_text
from .subjects import Finding, Subject


@dataclass(frozen=True)
class Manner:
    """How a model is asked.

    Attributes:
        model: Its name in the cache.
        max_interests: How many interests of a subject are asked for.
        pictures: Whether it is shown pictures.
        options: What else shapes its answers (`max_answer_tokens`, temperature, …); part of the cache's key.
    """

    model: str
    max_interests: int
    pictures: bool
    options: dict[str, Any]


class Interview:
    """What a model was asked about a subject, and what came of it.

    Findings follow from the answers alone, so that a run that goes on after a kill comes to the same result.

    Attributes:
        answers: So far, two at most.
        finished: Whether nothing more is to be asked. If not, `failure` says why it could not be, or is `None` where
            nobody tried.
        findings: What was found.
        dropped: Findings of the answer that did not hold.
        failure: Why there are no findings, or `None`.
    """

    def __init__(self, subject: Subject, manner: Manner) -> None:
        self.subject = subject
        self.manner = manner
        self.answers: list[Answer] = []
        self.finished = False
        self.findings: list[Finding] = []
        self.dropped = 0
        self.failure: str | None = None
        self._error = ""

    def question(self) -> list[Message]:
        """Messages to send next. Raises [`HfGrError`] if the subject's picture cannot be sent."""
        most, picture = self.manner.max_interests, self.manner.pictures
        if not self.answers:
            return first_question(self.subject, most, picture=picture)
        return second_question(self.subject, most, self.answers[0].text, self._error, picture=picture)

    def key(self, question: list[Message]) -> str:
        """Of a question in the cache."""
        return digest(question, self.manner.options)

    def hear(self, answer: Answer) -> None:
        """Takes the answer to the question."""
        self.answers.append(answer)
        try:
            reading = read_answer(answer.text, shown_text(self.subject), self.manner.max_interests)
        except UnreadableAnswer as error:
            most = self.manner.options["max_answer_tokens"]
            self._error = str(error) + (f"; it was cut off after {most} tokens" if answer.tokens_out >= most else "")
            if len(self.answers) == 2:
                self.finished, self.failure = True, f"two answers, neither of use: {self._error}"
        else:
            self.findings, self.dropped, self.finished = reading.findings, reading.dropped, True

    def give_up(self, reason: str) -> None:
        """Notes why no answer could be had; a later run may ask again."""
        self.failure = reason


def hear_kept(interviews: Iterable[Interview], cache: AnswerCache) -> int:
    """Goes on with every interview as far as the cache knows the answers; returns how many it knew."""
    known = 0
    for interview in interviews:
        while not interview.finished:
            key = interview.key(interview.question())
            answer = cache.get(interview.manner.model, key, interview.subject)
            if answer is None:
                break
            interview.hear(answer)
            known += 1
    return known
