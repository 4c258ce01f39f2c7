import pyarrow as pa

from hf_gr.interests import Interests
from hf_gr.interests.shared import SharedInterests
from hf_gr.interests.table import SCHEMA


def row(item, interest, label=True, user=None):
    return {"item_id": item, "user_id": user, "interest": interest, "confidence": 0.5, "label": label}


ROWS = [
    row("a", "hiking"), row("b", "hiking"), row("c", "hiking"), row("a", "rain"), row("b", "rain"),
    row("a", "gift", label=False), row("b", "gift"), row(None, "rain", user="u"), row("d", "tea"),
]  # fmt: skip


def test_what_an_item_shares_with_a_history():
    shared = SharedInterests(Interests(pa.Table.from_pylist(ROWS, SCHEMA)))
    assert shared.between(["c", "b", "x", "b", "d"], ["a", "d", "x"]) == [
        [{"interest": "rain", "items": ["b"]}, {"interest": "hiking", "items": ["b", "c"]}],  # the rarer one first
        [{"interest": "tea", "items": ["d"]}],
        [],
    ]
    assert shared.between([], ["a"]) == [[]]
