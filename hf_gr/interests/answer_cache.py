"""Answers of language models on disk, so that nothing is asked twice, whenever a run was killed."""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import HfGrError, first_line
from .prompts import PROMPT_VERSION, Message
from .subjects import Subject


_TABLE = """CREATE TABLE IF NOT EXISTS answers (
    model TEXT, question TEXT, kind TEXT, id TEXT, text TEXT NOT NULL, tokens_in INTEGER NOT NULL,
    tokens_out INTEGER NOT NULL, PRIMARY KEY (model, question, kind, id)
) WITHOUT ROWID"""


@dataclass(frozen=True)
class Answer:
    """What a model wrote, and the tokens that it read and wrote for it."""

    text: str
    tokens_in: int
    tokens_out: int


class AnswerCache:
    """SQLite file of answers by model, question and subject.

    Every answer is there as soon as [`keep`] returns, whatever happens to the process then; several processes may
    share the file. Questions are kept as digests alone. Used by one thread at a time.

    Args:
        path: File, made if it does not exist.

    Raises:
        HfGrError: If there is something else at `path`, or it cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # a run may ask from a thread of its own; its calls never overlap
            self._database = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")  # a killed process loses nothing
            self._database.execute(_TABLE)
        except (OSError, sqlite3.Error) as error:
            reason = first_line(error)
            raise HfGrError(f"{path} cannot hold answers ({reason}); name another file, or delete this one.") from None

    def get(self, model: str, question: str, subject: Subject) -> Answer | None:
        """The answer, if it was kept."""
        row = self._database.execute(
            "SELECT text, tokens_in, tokens_out FROM answers WHERE model=? AND question=? AND kind=? AND id=?",
            (model, question, subject.kind, subject.id),
        ).fetchone()
        return None if row is None else Answer(*row)

    def keep(self, model: str, answers: Iterable[tuple[str, Subject, Answer]]) -> None:
        """Writes answers (question, subject, answer), all or none of them."""
        rows = [
            (model, question, subject.kind, subject.id, answer.text, answer.tokens_in, answer.tokens_out)
            for question, subject, answer in answers
        ]
        try:
            with self._database:  # rolls back what fails
                self._database.execute("BEGIN IMMEDIATE")
                self._database.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        except sqlite3.Error as error:
            reason = first_line(error)
            raise HfGrError(f"{self.path} cannot keep answers ({reason}); free space, or name another file.") from None

    def __len__(self) -> int:
        return int(self._database.execute("SELECT COUNT(*) FROM answers").fetchone()[0])

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> "AnswerCache":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def digest(messages: Sequence[Message], options: dict[str, Any]) -> str:
    """32 hex digits of the prompt's version, the messages (pictures included) and how the answer is to be written."""
    text = json.dumps([PROMPT_VERSION, list(messages), options], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
