import random
import zlib
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_gr.errors import HfGrError
from hf_gr.interests import merging
from hf_gr.interests.merging import lead, merge
from hf_gr.interests.subjects import Finding, Subject
from hf_gr.interests.table import SCHEMA


class Letters:
    """Pairs of letters, counted in a few places."""

    name, pooling = "letters", "none"

    def __call__(self, texts):
        vectors = np.zeros((len(texts), 64), np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            for pair in zip(f" {text}", f"{text} ", strict=True):
                vector[zlib.crc32("".join(pair).encode()) % 64] += 1
        return vectors


WORDS = ["oak table", "Oak  Tables", "oaken table", "bath mat", "bath mats", "yoga mat", "tea", "teas", "green tea"]
FINDING = st.builds(
    Finding,
    st.sampled_from(WORDS),
    st.sampled_from(["here", "there", "elsewhere"]),
    st.integers(0, 20).map(lambda step: step / 20),
)
SUBJECTS = [Subject("item", "1", "x"), Subject("user", "1", "y"), Subject("item", "2", "z"), Subject("user", "2", "")]
FINDINGS = st.dictionaries(
    st.sampled_from(["one", "two", "three"]),
    st.lists(st.lists(FINDING, max_size=5), min_size=len(SUBJECTS), max_size=len(SUBJECTS)),
)


def merged(findings, subjects=SUBJECTS, threshold=0.8):
    return merge(subjects, findings, Letters(), threshold, progress=False).table.to_pylist()


def reference(findings, subjects=SUBJECTS, threshold=0.8):
    """The rules one by one, everything compared with everything."""

    def plain(text):
        return " ".join(text.lower().split())

    having = defaultdict(set)
    for found in findings.values():
        for place, own in enumerate(found):
            for finding in own:
                having[plain(finding.interest)].add(place)
    ordered = sorted(having, key=lambda phrase: (-len(having[phrase]), len(phrase), phrase))
    vectors = {phrase: Letters()([phrase])[0].astype(np.float64) for phrase in ordered}
    name, leaders = {}, []
    for phrase in ordered:
        cosines = [
            vectors[phrase] @ vectors[other] / np.linalg.norm(vectors[phrase]) / np.linalg.norm(vectors[other])
            for other in leaders
        ]
        if cosines and max(cosines) >= threshold:
            name[phrase] = leaders[cosines.index(max(cosines))]
        else:
            name[phrase] = phrase
            leaders.append(phrase)
    rows = []
    for place, subject in enumerate(subjects):
        own = defaultdict(list)
        for miner, found in findings.items():
            for finding in found[place]:
                own[name[plain(finding.interest)]].append((finding.confidence, miner, finding))
        best = {}
        for interest, found in own.items():
            doubt = 1.0
            for miner in {miner for _, miner, _ in found}:
                doubt *= 1 - max(confidence for confidence, other, _ in found if other == miner)
            best[interest] = 1 - doubt
        for interest in sorted(own, key=lambda interest: (-round(best[interest], 6), interest)):
            top = max(confidence for confidence, _, _ in own[interest])
            told = {finding.evidence for confidence, _, finding in own[interest] if confidence == top}
            models = sorted({miner for _, miner, _ in own[interest]})
            rows.append((subject.kind, subject.id, interest, best[interest], models, told))
    return rows


@given(FINDINGS)
@settings(max_examples=100, deadline=None)
def test_merging_is_what_the_rules_say(findings):
    rows, expected = merged(findings), reference(findings)
    assert len(rows) == len(expected)
    for row, (kind, owner, interest, confidence, models, told) in zip(rows, expected, strict=True):
        other = "user" if kind == "item" else "item"
        assert (row[f"{kind}_id"], row[f"{other}_id"], row["interest"]) == (owner, None, interest)
        assert row["confidence"] == pytest.approx(confidence, abs=1e-5)
        assert row["models"] == models and row["evidence"] in told
        assert row["label"] is None and row["probability"] is None


@given(FINDINGS, st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_the_order_of_miners_subjects_and_findings_does_not_matter(findings, chance):
    miners = chance.sample(sorted(findings), len(findings))
    places = chance.sample(range(len(SUBJECTS)), len(SUBJECTS))
    mixed = {
        miner: [chance.sample(findings[miner][place], len(findings[miner][place])) for place in places]
        for miner in miners
    }
    rows = merged(mixed, [SUBJECTS[place] for place in places])
    back = [row for subject in SUBJECTS for row in rows if row[f"{subject.kind}_id"] == subject.id]
    assert back == merged(findings)


@given(FINDINGS, st.sampled_from(WORDS), st.integers(0, 20).map(lambda step: step / 20))
@settings(max_examples=50, deadline=None)
def test_another_miner_that_agrees_never_lowers_confidence(findings, interest, confidence):
    def of_the_first(sure):
        rows = merged({**findings, "other": [[Finding(interest, "so", sure)], [], [], []]})
        return {row["interest"]: row for row in rows if row["item_id"] == "1"}

    before, after = of_the_first(0.0), of_the_first(confidence)
    assert before.keys() == after.keys()
    for name, row in after.items():
        least = confidence if "other" in row["models"] else 0
        assert row["confidence"] >= max(before[name]["confidence"], least - 1e-6)


def test_agreement_of_miners_and_not_of_one_with_itself_raises_confidence():
    findings = {
        "b": [[Finding("Oak  Tables", "so it says", 0.5), Finding("oak table", "twice", 0.4)]],
        "a": [[Finding("oak table", "surely", 0.6), Finding("tea", "also", 0.9)]],
    }
    rows = merged(findings, SUBJECTS[:1])
    assert [row["interest"] for row in rows] == ["tea", "oak table"]
    assert rows[1]["confidence"] == pytest.approx(0.8)  # 1 − .5 × .4
    assert rows[1]["models"] == ["a", "b"] and rows[1]["evidence"] == "surely"
    assert rows[0]["models"] == ["a"] and rows[0]["confidence"] == pytest.approx(0.9)


def test_the_name_is_the_most_frequent_phrase_of_the_cluster():
    often = [[Finding("bath mats", "", 0.1)], [Finding("bath mats", "", 0.1)], [Finding("bath mat", "", 1.0)], []]
    assert {row["interest"] for row in merged({"a": often})} == {"bath mats"}
    # Two miners on one subject are one subject; of equals the shorter phrase gives the name.
    twice = {"a": [[Finding("bath mats", "", 0.1)], [Finding("bath mat", "", 0.1)], [], []]}
    twice["b"] = [[Finding("bath mats", "", 0.1)], [], [], []]
    assert {row["interest"] for row in merged(twice)} == {"bath mat"}
    equal = {"a": [[Finding("a yoga mat", "", 0.1)], [Finding("yoga mat", "", 0.1)], [], []]}
    assert {row["interest"] for row in merged(equal)} == {"yoga mat"}


def test_similarity_does_not_travel_along_a_chain():
    angles = np.radians([0, 20, 40, 60])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    assert lead(vectors, np.cos(np.radians(25))).tolist() == [0, 0, 2, 2]


@pytest.mark.parametrize("block", [1, 3, 7, 100])
def test_leaders_are_those_of_a_plain_loop(monkeypatch, block):
    monkeypatch.setattr(merging, "_BLOCK", block)
    vectors = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    expected, leaders = [], []
    for row, vector in enumerate(vectors):
        cosines = [vector @ vectors[leader] for leader in leaders]
        if cosines and max(cosines) >= 0.8:
            expected.append(leaders[int(np.argmax(cosines))])
        else:
            leaders.append(row)
            expected.append(row)
    assert 5 < len(leaders) < 40
    assert lead(vectors, 0.8).tolist() == expected


def test_names_stay_when_blocks_are_cut_elsewhere(monkeypatch):
    chance = random.Random(1)
    phrases = ["".join(chance.choices("abcd ", k=6)).strip() or "a" for _ in range(300)]
    findings = {"a": [[Finding(phrase, "", 0.5) for phrase in phrases[start::4]] for start in range(4)]}
    whole = merged(findings)
    monkeypatch.setattr(merging, "_BLOCK", 16)
    assert merged(findings) == whole


def test_nothing_found_is_an_empty_table():
    for findings in ({}, {"a": [[], [], [], []]}):
        found = merge(SUBJECTS, findings, Letters(), progress=False)
        assert len(found) == 0 and found.table.schema == SCHEMA


def test_what_comes_out_is_what_is_saved(tmp_path):
    found = merge(SUBJECTS[:1], {"a": [[Finding("tea", "so", 0.5)]]}, Letters(), progress=False)
    found.save(tmp_path)
    assert type(found).load(tmp_path).table.equals(found.table)


@pytest.mark.parametrize(
    ("findings", "message"),
    [
        ({"a": [[]]}, "miner 'a' has findings for 1 subjects, not for all 4"),
        ({"a": [[], [Finding(" \n", "", 0.5)], [], []]}, "miner 'a', user '1': ' .n' with confidence 0.5"),
        ({"a": [[Finding("tea", "", 1.5)], [], [], []]}, r"miner 'a', item '1': 'tea' with confidence 1\.5"),
        ({"a": [[Finding("tea", "", float("nan"))], [], [], []]}, "confidence nan"),
    ],
)
def test_findings_that_break_the_rules_are_refused(findings, message):
    with pytest.raises(HfGrError, match=message):
        merged(findings)
