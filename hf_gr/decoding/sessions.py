"""Live sessions of many users within a memory budget."""

import threading
from collections import OrderedDict
from collections.abc import Sequence

from ..errors import HfGrError
from .session import Server, Session


class Sessions:
    """Live sessions of many users within a memory budget; the least recently used go first. Threads may share it.

    A user's session counts as used when it is asked for and when an event is appended to it. One that was dropped is
    made again from the history that its next request brings, with answers as from a new session. Ask for a session at
    every request instead of holding it: the memory of a dropped one is free when nobody holds it.

    Args:
        recommender: As for [`Session`].
        max_bytes: Of all sessions' keys, values and hidden states ([`Session.nbytes`]) on the model's device; at least
            one of a full window ([`HfGrError`]). Beside it each takes a few kilobytes of Python objects.
        block: As for [`Session`].

    Attributes:
        nbytes: Bytes kept now.
        found: Requests that found their session.
        made: Requests that made one.
    """

    def __init__(self, recommender: Server, max_bytes: int, *, block: int | None = None):
        self.recommender, self.max_bytes, self.block = recommender, max_bytes, block
        self.nbytes = self.found = self.made = 0
        self._kept: OrderedDict[str, tuple[Session, int]] = OrderedDict()  # and its bytes as counted
        self._lock = threading.Lock()
        cold = Session(recommender, block=block)
        self._opening, self._hidden = cold.positions, cold.state()[0].nbytes
        self._position = (cold.nbytes - self._hidden) // cold.positions
        full = self.bytes_of(recommender.vocabulary.max_history)
        if max_bytes < full:
            raise HfGrError(f"max_bytes is {max_bytes}, but a session of a full window takes {full}; give more.")

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, user_id: str) -> bool:
        return user_id in self._kept

    def bytes_of(self, num_events: int) -> int:
        """Bytes of a session whose window holds so many events."""
        width = 1 if self.recommender.vocabulary.context == "none" else 2
        return self._hidden + self._position * (self._opening + num_events * width)

    def get(self, user_id: str, history: Sequence[str], context: Sequence[float | str] | None = None) -> Session:
        """The user's live session, or a new one of `history` and `context` (as for [`Session`]).

        A live session has read what was appended to it: `history` is not looked at then. [`drop`] it first where
        events came by another way.
        """
        with self._lock:
            if user_id in self._kept:
                self.found += 1
                self._kept.move_to_end(user_id)
                return self._kept[user_id][0]
        session = Session(
            self.recommender,
            history,
            context=context,
            block=self.block,
            on_read=lambda session: self._account(user_id, session),
        )
        with self._lock:
            self.made += 1
            session, _ = self._kept.setdefault(user_id, (session, 0))  # another thread may have been faster
        self._account(user_id, session)
        return session

    def drop(self, user_id: str) -> None:
        """Forgets the user's session, if there is one."""
        with self._lock:
            self.nbytes -= self._kept.pop(user_id, (None, 0))[1]

    def _account(self, user_id: str, session: Session) -> None:
        """Counts what a session takes now, unless it was dropped, and drops others for it."""
        with self._lock:
            known, before = self._kept.get(user_id, (None, 0))
            if known is not session:
                return
            now = session.nbytes
            self._kept[user_id] = session, now
            self._kept.move_to_end(user_id)
            self.nbytes += now - before
            while self.nbytes > self.max_bytes:
                self.nbytes -= self._kept.popitem(last=False)[1][1]
