import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_gr.errors import HfGrError
from hf_gr.quantizers import collision_report, print_collisions


CODES = np.array([[0, 1], [0, 1], [0, 1], [2, 0], [2, 1], [2, 1]])


def test_the_report_counts_what_there_is():
    report = collision_report(CODES, [4, 2], targets=np.array([3, 3, 0, 4]), popularity=np.array([1, 0, 0, 8, 1, 0]))
    assert report["items"] == 6
    assert report["distinct_sids"] == 3
    assert report["collision_rate"] == 5 / 6
    assert report["largest_bucket"] == 3
    assert report["targets_on_shared_sid"] == 0.5
    assert report["events_on_shared_sid"] == 0.2
    first, second = report["levels"]
    assert (first["size"], first["used"], first["use"]) == (4, 2, 0.5)
    assert first["perplexity"] == pytest.approx(2)
    entropy = -(5 / 6 * math.log(5 / 6) + 1 / 6 * math.log(1 / 6))
    assert second["perplexity"] == pytest.approx(math.exp(entropy))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
def test_the_report_equals_brute_force(sids: list[tuple[int, int]]):
    report = collision_report(np.array(sids), [3, 3])
    counts = Counter(sids)
    assert report["distinct_sids"] == len(counts)
    assert report["largest_bucket"] == max(counts.values())
    assert report["collision_rate"] == pytest.approx(sum(counts[sid] > 1 for sid in sids) / len(sids))
    assert [level["used"] for level in report["levels"]] == [len({sid[i] for sid in sids}) for i in range(2)]


def test_codes_out_of_range_are_refused():
    with pytest.raises(HfGrError, match="item row 3"):
        collision_report(CODES, [2, 2])


def test_the_report_is_printed(capsys):
    print_collisions(collision_report(CODES, [4, 2], targets=np.array([0, 3])))
    printed = capsys.readouterr().out
    assert "6 items on 3 SIDs; 83.33% of items share theirs, at most 3 one SID" in printed
    assert "50.00% of test targets" in printed
    assert "level 0: 2 of 4 codes used (50.0%), perplexity 2.0" in printed
    assert "training events" not in printed
