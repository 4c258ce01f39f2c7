"""The last events of every user that a memory has counted, so that the next one finds what it follows.

They are of persons: they stay beside a model in a local file and never go to the Hub.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..artifacts import replacing
from ..errors import HfGrError, first_line
from ..histories import Histories
from ..tables import TimeKind, row_of


TAILS_FILE = "tails.parquet"
_TIME = b"hf_gr.time"


class Tails:
    """Of U users the last events that a memory has counted.

    Args:
        events: All that the memory has counted, of which the last `window` of each user are kept.
        window: Of the memory.
        time: Whether their `timestamps` are times or positions, which tell nothing of events of another log.
    """

    def __init__(self, events: Histories, window: int, time: TimeKind = "timestamp"):
        ends = events.lengths
        self.events = events.cut(np.arange(len(events)), ends, np.maximum(ends - window, 0))
        self.window, self.time = window, time

    @classmethod
    def none(cls, window: int) -> "Tails":
        """Of nobody."""
        empty = np.empty(0, np.int64)
        return cls(Histories(np.empty(0, object), np.zeros(1, np.int64), empty, empty), window)

    def save(self, folder: str | Path) -> None:
        """Writes `tails.parquet` into a folder."""
        events = self.events
        ptr = pa.array(events.ptr, pa.int64())
        columns = {
            "user_id": pa.array(events.user_ids.tolist(), pa.string()),
            "items": pa.LargeListArray.from_arrays(ptr, pa.array(events.items)),
            "timestamps": pa.LargeListArray.from_arrays(ptr, pa.array(events.timestamps)),
        }
        table = pa.table(columns).replace_schema_metadata({_TIME: self.time, b"window": str(self.window)})
        with replacing(Path(folder) / TAILS_FILE) as file:
            pq.write_table(table, file)

    @classmethod
    def load(cls, folder: str | Path) -> "Tails":
        """Reads what [`save`] has written. Raises [`HfGrError`] where it is something else."""
        file = Path(folder) / TAILS_FILE
        try:
            table = pq.read_table(file).combine_chunks()
            items, timestamps = table["items"].combine_chunks(), table["timestamps"].combine_chunks()
            ptr = items.offsets.to_numpy()
            users = np.array(table["user_id"].to_pylist(), object)
            events = Histories(users, ptr - ptr[0], items.flatten().to_numpy(), timestamps.flatten().to_numpy())
            metadata = table.schema.metadata
            return cls(events, int(metadata[b"window"]), "position" if metadata[_TIME] == b"position" else "timestamp")
        except (OSError, pa.ArrowException, AttributeError, KeyError, TypeError, ValueError) as error:
            raise HfGrError(
                f"{file} does not hold the last events of users ({first_line(error)}); make the memory again: "
                "hf-gr remember MODEL DATASET."
            ) from None

    def joined(self, new: Histories, num_items: int) -> tuple[Histories, np.ndarray, "Tails", int]:
        """New events behind those that are known.

        Args:
            new: In rows of the catalog. An event that is earlier than the last one of its user, or is it (the same
                item at the same time), is left out, so that a log that is given twice counts once; of positions
                nobody can tell.
            num_items: N of the catalog.

        Returns:
            Histories of the users with new events: their tail, then what is new; int64 [users], events of the tail;
            the tails as they are then; and how many events were left out.
        """
        old = self.events
        row = row_of(_column(new.user_ids), _column(old.user_ids))
        unknown = new.user_ids[row < 0]
        added = np.array(list(dict.fromkeys(unknown.tolist())), object)
        row[row < 0] = len(old) + row_of(_column(unknown), _column(added))
        users = np.concatenate([old.user_ids, added])
        owners = row[new.owners]
        is_later = np.ones(len(owners), bool)
        if self.time == "timestamp":
            last = np.full(len(users), np.iinfo(np.int64).min)
            filled = np.flatnonzero(old.lengths)
            last[filled] = old.timestamps[old.ptr[filled + 1] - 1]
            at_last = old.timestamps == last[old.owners]
            keys, known = owners * num_items + new.items, old.owners * num_items + old.items
            is_again = (new.timestamps == last[owners]) & np.isin(keys, known[at_last])
            is_later = (new.timestamps >= last[owners]) & ~is_again
        owners = np.concatenate([old.owners, owners[is_later]])
        order = np.argsort(owners, kind="stable")  # of each user the old events first
        joined = Histories(
            users,
            np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=len(users)))]),
            np.concatenate([old.items, new.items[is_later]])[order],
            np.concatenate([old.timestamps, new.timestamps[is_later]])[order],
        )
        before = np.append(old.lengths, np.zeros(len(added), np.int64))
        active = np.flatnonzero(joined.lengths > before)
        new_of_active = joined.cut(active, joined.lengths[active])
        return new_of_active, before[active], Tails(joined, self.window, self.time), int((~is_later).sum())


def _column(ids: np.ndarray) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(ids.tolist(), pa.string())])
