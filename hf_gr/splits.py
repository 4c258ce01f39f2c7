"""How events are split: what teaches, and what is only ever predicted. One text says it, wherever a `split` is taken.

| split | training | validation | test |
|---|---|---|---|
| `leave_one_out` | all but a user's last two events | the last but one | the last |
| `temporal`, `temporal:0.7,0.15` | the first 80 % (70 %) of all events by time | the next 10 % (15 %) | the rest |
| `temporal:2014-01-01,2014-06-01` | events before the first date (UTC) | those before the second | those from it on |
| `session` | all but a user's last two sessions | the last but one | the last |
| `column:NAME` | events of which the column says `train` | `validation` | `test` |

Behind any of them `@buy` or `@buy,cart` names the behaviors whose events are predicted: the targets. In every split a
user's training, validation and test follow one another in time.
"""

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from .errors import HfGrError
from .histories import Cases, Histories
from .tables import TimeKind, row_of, texts


SplitKind = str  # as in the table above

_SHARES = (0.8, 0.1)
_DATE = re.compile(r"\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d)?)?")
_PARTS = {"train": 0, "validation": 1, "test": 2}
_DAY = 86_400 * 10**6
_NEVER = int(np.iinfo(np.int64).min)


@dataclass(frozen=True, eq=False)
class Split:
    """`train` is all that may teach; `validation` and `test` are only ever predicted.

    Attributes:
        train: Events of the users who have any in training.
        validation: Cases that choose.
        test: Cases that judge.
        until: The last moment that training may know of every user of the events, int64 [U]: that of a temporal split
            is the same for all, in the others it is that of the user's last training event, and before the first one
            held out. The smallest number there is where a user has no training event.
        until_others: The same for users without events.
        validated: As `until`, of training and validation: what comes later belongs to the test part, int64 [U].
        validated_others: The same for users without events.
    """

    train: Histories
    validation: Cases
    test: Cases
    until: np.ndarray
    until_others: int
    validated: np.ndarray
    validated_others: int

    def teaches(self, user_ids: pa.ChunkedArray, timestamps: np.ndarray) -> np.ndarray:
        """Tells which of E things that happened to users belong to the training part, such as what they were shown.

        Args:
            user_ids: E strings; users without events may be among them.
            timestamps: int64 [E], as those of the events.

        Returns:
            bool [E], whether the moment is not later than the user's `until`.
        """
        return self.parts(user_ids, timestamps) == _PARTS["train"]

    def parts(self, user_ids: pa.ChunkedArray, timestamps: np.ndarray) -> np.ndarray:
        """The part of each of E such things, int64 [E]: 0 for training, 1 for validation, 2 for test."""
        rows = row_of(user_ids, pa.chunked_array([pa.array(self.validation.events.user_ids, pa.string())]))
        ends = ((self.until, self.until_others), (self.validated, self.validated_others))
        # row -1, a user without events, is the one appended
        return np.sum([timestamps > np.append(users, others)[rows] for users, others in ends], axis=0)


@dataclass(frozen=True)
class SplitRule:
    """What the text of a split says.

    Attributes:
        kind: One of the four kinds.
        shares: Of training and validation, of a temporal split.
        dates: When validation and test begin, microseconds since 1970 (UTC), instead of shares.
        column: Name of the column that says the part.
        targets: Behaviors whose events are predicted, in order; none named: all.
    """

    kind: Literal["leave_one_out", "temporal", "session", "column"]
    shares: tuple[float, float] = _SHARES
    dates: tuple[int, int] | None = None
    column: str = ""
    targets: tuple[str, ...] = ()

    @property
    def base(self) -> str:
        """The one name of the split without its targets: of `temporal:.80,.1` it is `temporal`."""
        if self.kind == "column":
            return f"column:{self.column}"
        if self.dates is not None:
            return "temporal:{},{}".format(*map(_date_text, self.dates))
        return self.kind if self.shares == _SHARES else "temporal:{},{}".format(*self.shares)

    @property
    def name(self) -> str:
        """The one name of all texts that say the same split."""
        return self.base + ("@" + ",".join(self.targets) if self.targets else "")

    @property
    def training_name(self) -> str:
        """The one name of all splits of the same training part: targets move it in leave-one-out alone."""
        return self.name if self.kind == "leave_one_out" else self.base


def read_split(split: SplitKind) -> SplitRule:
    """Reads the text of a split. Raises [`HfGrError`] where it says none."""
    base, at, names = split.rpartition("@")
    if not at:
        base, names = split, ""
    targets = tuple(sorted({name.strip() for name in names.split(",")})) if at else ()
    kind, colon, rest = base.partition(":")
    if "" in targets or (kind in ("leave_one_out", "session") and colon) or (colon and not rest):
        raise _unknown(split)
    match kind:
        case "leave_one_out" | "session":
            return SplitRule(kind, targets=targets)
        case "column" if rest:
            return SplitRule("column", column=rest, targets=targets)
        case "temporal":
            return _temporal_rule(split, rest, targets)
    raise _unknown(split)


def _temporal_rule(split: str, bounds: str, targets: tuple[str, ...]) -> SplitRule:
    if not bounds:
        return SplitRule("temporal", targets=targets)
    words = [word.strip() for word in bounds.split(",")]
    if len(words) != 2:
        raise _unknown(split)
    try:
        if all(map(_DATE.fullmatch, words)):
            first, second = (int(np.datetime64(word, "us").astype(np.int64)) for word in words)
            if first >= second:
                raise HfGrError(
                    f"split {split!r}: validation begins on the first date, test on the second, later one."
                )
            return SplitRule("temporal", dates=(first, second), targets=targets)
        train, validation = map(float, words)
    except ValueError:
        raise _unknown(split) from None
    if not (0 < train < 1 and 0 < validation < 1 - train):
        raise HfGrError(f"split ratios {train}, {validation} must be positive and leave a share for the test.")
    return SplitRule("temporal", (train, validation), targets=targets)


def _unknown(split: str) -> HfGrError:
    return HfGrError(
        f"unknown split {split!r}; use 'leave_one_out', 'temporal', 'temporal:0.7,0.15' (shares of training and "
        "validation), 'temporal:2014-01-01,2014-06-01' (when validation and test begin), 'session' or 'column:NAME', "
        "each with '@buy' behind it to predict that behavior alone."
    )


def _date_text(moment: int) -> str:
    return str(np.datetime64(moment, "us").astype("datetime64[D]" if moment % _DAY == 0 else "datetime64[s]"))


def split_events(events: Histories, rule: SplitRule, time: TimeKind, where: object) -> Split:
    """Derives the parts of a split. Every held-out event of a target behavior, of a user with an earlier event, is a
    case; leave-one-out judges one a user and part.

    Args:
        events: Of all users, E in all.
        rule: From [`read_split`].
        time: What the time stamps of the events are.
        where: Their folder, for messages.

    Raises:
        HfGrError: If the events do not allow the split, or a part of it is empty.
    """
    targets, moments = _targets(events, rule.targets, where), None
    match rule.kind:
        case "leave_one_out":
            part = _leave_one_out(events, targets, rule, where)
        case "temporal":
            moments = _moments(events, rule, time, where)
            part = np.sum([events.timestamps >= moment for moment in moments], axis=0)
        case "session":
            part = _by_session(events, where)
        case "column":
            part = _by_column(events, rule.column, where)
    owners = events.owners
    known = np.bincount(owners[part == 0], minlength=len(events))
    taught = np.flatnonzero(known)
    if not len(taught):
        raise HfGrError(f"{where}: the {rule.kind} split leaves nothing for training; {_REMEDIES[rule.kind]}.")

    def cases(name: str) -> Cases:
        rows = np.flatnonzero((part == _PARTS[name]) & targets)
        before = rows - events.ptr[owners[rows]]
        rows, before = rows[before > 0], before[before > 0]
        if not len(rows):
            of = f" of behavior {' or '.join(map(repr, rule.targets))}" if rule.targets else ""
            raise HfGrError(
                f"{where}: the {rule.kind} split leaves no {name} event{of} of a user with an earlier one; "
                f"{_REMEDIES[rule.kind]}."
            )
        return Cases(events, events.items[rows], owners[rows], before)

    if moments is None:
        both = np.bincount(owners[part <= 1], minlength=len(events))
        ends = [(_last_known(events, counts), _NEVER) for counts in (known, both)]
    else:
        ends = [(np.full(len(events), moment - 1), moment - 1) for moment in moments]
    return Split(events.cut(taught, known[taught]), cases("validation"), cases("test"), *ends[0], *ends[1])


def _last_known(events: Histories, known: np.ndarray) -> np.ndarray:
    """Time of every user's last training event, int64 [U]; just before it where the first one held out is of the same
    time. What a user is shown between the two may be what led to the event held out: it does not teach."""
    until = np.full(len(events), _NEVER)
    taught, judged = np.flatnonzero(known), np.flatnonzero(known < events.lengths)
    until[taught] = events.timestamps[events.ptr[taught] + known[taught] - 1]
    until[judged] = np.minimum(until[judged], events.timestamps[events.ptr[judged] + known[judged]] - 1)
    return until


_REMEDIES = {
    "leave_one_out": "take another split",
    "temporal": "try other shares (--split temporal:TRAIN,VALIDATION) or dates, or use leave_one_out",
    "session": "take another split",
    "column": "name other events in that column, or take another split",
}


def _targets(events: Histories, behaviors: tuple[str, ...], where: object) -> np.ndarray:
    """Which events may be predicted, bool [E]."""
    if not behaviors:
        return np.ones(len(events.items), bool)
    if events.behaviors is None:
        raise HfGrError(f"{where} has no column 'behavior', so that no event is a {behaviors[0]!r}; leave the @ out.")
    masks = {name: events.behaviors == name for name in behaviors}
    for name, mask in masks.items():
        if not mask.any():
            there = sorted({str(behavior) for behavior in events.behaviors if behavior is not None})
            listed = ", ".join(there[:10]) + (", …" if len(there) > 10 else "")
            raise HfGrError(f"{where}: no event is of behavior {name!r}; the behaviors are: {listed}.")
    return np.logical_or.reduce(list(masks.values()))


def _leave_one_out(events: Histories, targets: np.ndarray, rule: SplitRule, where: object) -> np.ndarray:
    """A user's last target is the test, the target before it validation, where anything stands before both; others
    only teach. Part of every event, int64 [E]."""
    rows, owners = np.flatnonzero(targets), events.owners
    counts = np.bincount(owners[rows], minlength=len(events))
    ends = np.cumsum(counts)
    judged = np.flatnonzero(counts >= 2)
    judged = judged[rows[ends[judged] - 2] > events.ptr[judged]]
    if not len(judged) and rule.targets:
        raise HfGrError(
            f"{where}: none of {len(events)} user(s) has an event and then two of behavior "
            f"{' or '.join(map(repr, rule.targets))}, as leave-one-out needs; take another split, or other targets."
        )
    if not len(judged):
        raise HfGrError(
            f"{where}: none of {len(events)} user(s) has 3 events, but leave-one-out needs one each for training, "
            "validation and test; take a longer log, or one whose user ids say who comes back."
        )
    part = np.zeros(len(targets), np.int64)
    for back in (2, 1):
        first = np.full(len(events), len(targets))
        first[judged] = rows[ends[judged] - back]
        part += np.arange(len(targets)) >= first[owners]
    return part


def _moments(events: Histories, rule: SplitRule, time: TimeKind, where: object) -> tuple[int, int]:
    """When validation and test of a temporal split begin: events at one time stay together, in the later part."""
    if time == "position":
        raise HfGrError(
            f"{where} has only positions, no clock: a temporal split would mix users' times; use the leave_one_out "
            "split, or prepare the data with time stamps."
        )
    times = events.timestamps
    if rule.dates is not None:
        first, second = rule.dates
        if not (times.min() < first and second <= times.max()):
            span = " to ".join(_date_text(int(moment) // _DAY * _DAY) for moment in (times.min(), times.max()))
            raise HfGrError(f"{where}: the events are of {span}; let validation and test of {rule.base} begin within.")
    else:
        ordered, (train, validation) = np.sort(times), rule.shares
        first = int(ordered[int(train * len(ordered))])
        second = int(ordered[int((train + validation) * len(ordered))])
        if first == ordered[0]:
            pile = float((times == first).mean())
            raise HfGrError(
                f"{where}: the temporal split leaves nothing for training, as the first {pile:.1%} of the events are "
                "at one time; give training a larger share (--split temporal:TRAIN,VALIDATION), or use leave_one_out."
            )
    return first, second


def _by_session(events: Histories, where: object) -> np.ndarray:
    """A user's last session is the test, the one before it validation; users with fewer than three only teach. A
    session is a run of a user's events with one id [ours]: none overlap. Part of every event, int64 [E]."""
    sessions = events.sessions
    if sessions is None:
        raise HfGrError(
            f"{where} has no column 'session_id', which the session split needs; prepare the data with it."
        )
    missing = np.array([session is None for session in sessions])
    if missing.any():
        user = events.user_ids[events.owners[missing.argmax()]]
        raise HfGrError(
            f"{where}: 'session_id' is empty in {int(missing.sum()):,} event(s) (first: of user {user!r}), but the "
            "session split needs it; give every event one, or take another split."
        )
    begins = np.append(True, sessions[1:] != sessions[:-1])
    begins[events.ptr[:-1][events.lengths > 0]] = True
    runs = np.cumsum(begins)
    last = runs[events.ptr[1:] - 1]
    judged = last - runs[np.minimum(events.ptr[:-1], len(runs) - 1)] >= 2
    if not judged.any():
        raise HfGrError(
            f"{where}: none of {len(events)} user(s) has 3 sessions, but the session split needs one each for "
            "training, validation and test; take another split."
        )
    owners = events.owners
    return np.where(judged[owners], np.maximum(2 - (last[owners] - runs), 0), 0)


def _by_column(events: Histories, name: str, where: object) -> np.ndarray:
    """The part that a column says of every event, int64 [E]; of no user may it go back in time."""
    if events.columns is None or name not in events.columns.column_names:
        there = ", ".join(events.columns.column_names) if events.columns is not None else "none"
        raise HfGrError(
            f"{where} has no column {name!r} to split by (further columns of the events: {there}); bring it in with "
            f"hf-gr prepare … --keep {name}."
        )
    column = events.columns[name]
    said = texts(column.cast(pa.string()) if not pa.types.is_nested(column.type) else column)
    part = np.full(len(said), -1)
    for value, number in _PARTS.items():
        part[said == value] = number
    owners = events.owners
    if (part < 0).any():
        row = int((part < 0).argmax())
        raise HfGrError(
            f"{where}: column {name!r} says {said[row]!r} of an event of user {events.user_ids[owners[row]]!r} "
            f"({int((part < 0).sum()):,} such event(s)); write train, validation or test."
        )
    back = np.flatnonzero((part[1:] < part[:-1]) & (owners[1:] == owners[:-1]))
    if len(back):
        earlier, later = (list(_PARTS)[part[row]] for row in (back[0], back[0] + 1))
        raise HfGrError(
            f"{where}: by column {name!r} an event of {later} comes after one of {earlier} of user "
            f"{events.user_ids[owners[back[0]]]!r}: what is learned would be later than what is predicted; let each "
            "user's training come first, then validation, then test."
        )
    return part


def check_split(split: SplitKind) -> None:
    """Raises [`HfGrError`] if there is no such split."""
    read_split(split)


def split_name(split: SplitKind) -> SplitKind:
    """One name for all that say the same split: `"temporal:.80,.1"` is `"temporal"`. Raises as [`check_split`]."""
    return read_split(split).name
