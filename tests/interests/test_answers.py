import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_gr.interests.answers import UnreadableAnswer, read_answer
from hf_gr.interests.subjects import Finding


TEXT = "title: Safety Goggles\ndescription: Keeps dust out of your eyes, even in  heavy sanding."


def answer(*findings, **more):
    return json.dumps({"steps": "…", "interests": list(findings), **more})


def finding(interest="eye protection", evidence="dust out of your eyes", confidence=0.8, **more):
    return {"interest": interest, "evidence": evidence, "confidence": confidence, **more}


def names(text, most=5):
    return [found.interest for found in read_answer(text, TEXT, most).findings]


def test_a_plain_answer():
    reading = read_answer(answer(finding()), TEXT, 5)
    assert reading.findings == [Finding("eye protection", "dust out of your eyes", 0.8)]
    assert reading.dropped == 0


def test_nothing_found_is_an_answer():
    assert read_answer('{"interests": []}', TEXT, 5).findings == []


@pytest.mark.parametrize(
    "text",
    [
        "```json\n{}\n```",
        "Sure! Here it is:\n\n{}\n\nI hope that helps {{:-)",
        '<think>maybe {{eyes}} or {{"interests": [1]}}</think>\n{}',
        "{{not json}} {}",
        "[{}]",
    ],
)
def test_json_is_found_in_fences_and_prose(text):
    assert names(text.format(answer(finding()))) == ["eye protection"]


def test_the_last_object_counts():
    quoted, own = answer(finding("quoted")), answer(finding("own"))
    assert names(f"The text says {quoted}, but I say {own}") == ["own"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no JSON object"),
        ("I cannot help with that.", "no JSON object"),
        ('{"interests": "none"}', 'no list "interests"'),
        ('{"answer": {"interests": []}}', 'no list "interests"'),
        ('{"interests": [', "no JSON object"),
        ("{" * 100_000, "no JSON object"),
        ('{"interests":' + "[" * 100_000, "no JSON object"),
        (answer("eyes"), "no object"),
        (answer(finding(confidence=None)), "confidence is no number"),
        ('{"interests": [{"interest": "a", "evidence": "dust", "confidence": NaN}]}', "no JSON object"),
        ('{"interests": [{"interest": "a", "evidence": "dust", "confidence": 1e999}]}', "from 0 to 1"),
        (answer(finding(confidence=True)), "confidence is no number"),
        (answer(finding(confidence="0.5")), "confidence is no number"),
        (answer(finding(confidence=-0.1)), "from 0 to 1"),
        (answer(finding(confidence=85)), "from 0 to 1"),
    ],
)
def test_what_cannot_be_read(text, reason):
    with pytest.raises(UnreadableAnswer, match=reason):
        read_answer(text, TEXT, 5)


@pytest.mark.parametrize(
    "interest",
    [
        "",
        " \t",
        "a b c d e f g h i",
        "x" * 81,
        "two\nlines",
        "bell\x07",
        "<b>bold</b>",
        "＜s0_17＞",  # wide brackets, which normalise to < and >
        "<s0_17>",
        "s0_17",
        "**strong**",
        "see https://evil.example",
        "www.evil.example",
        "visit evil.example",
        "{json}",
        "[INST]",
        "`code`",
        "right\u202eto left",
        "zero\u200bwidth",
        "lone \ud800 half",
        "item B00X4WHP5E",
        5,
        None,
        ["eye protection"],
    ],
)
def test_interests_that_are_no_plain_words_are_dropped(interest):
    reading = read_answer(answer(finding(interest), finding("kept")), TEXT, 5)
    assert [found.interest for found in reading.findings] == ["kept"]
    assert reading.dropped == 1


@pytest.mark.parametrize(
    "interest",
    ["rock 'n' roll", "DIY & repairs", "sci-fi", "3D printing", "café culture", "हिन्दी फ़िल्में", "U.S. history"],
)
def test_plain_words_of_any_language_hold(interest):
    assert names(answer(finding(interest))) == [unicodedata.normalize("NFKC", interest)]


def test_spaces_are_evened_out():
    assert names(answer(finding("  eye   protection. "))) == ["eye protection"]


@pytest.mark.parametrize(
    "evidence",
    ["dust out of your eyes", "DUST OUT\nof your eyes!", "even in heavy sanding", "goggles description keeps"],
)
def test_evidence_is_words_of_the_text_in_their_order(evidence):
    assert names(answer(finding(evidence=evidence))) == ["eye protection"]


@pytest.mark.parametrize(
    "evidence",
    [
        "",
        "…",
        "protects from sawdust",
        "eyes your of out dust",
        "ust out of your eye",
        "dust eyes",
        7,
        None,
        "dust " * 80,
    ],
)
def test_evidence_from_elsewhere_is_dropped(evidence):
    assert names(answer(finding(evidence=evidence), finding("kept"))) == ["kept"]


@pytest.mark.parametrize("evidence", ["<s0_17> dust", "dust [INST]", "http://x.example", "dust\u202e", "{dust}"])
def test_evidence_with_markup_is_dropped_though_the_text_has_it(evidence):
    reading = read_answer(answer(finding(evidence=evidence), finding("kept", "plain")), f"plain {evidence}", 5)
    assert [found.interest for found in reading.findings] == ["kept"]


def test_the_surer_of_two_remains_and_the_surplus_goes():
    given_twice = answer(finding("A", confidence=0.2), finding("a", confidence=0.9), finding("b"), finding("c"))
    reading = read_answer(given_twice, TEXT, 2)
    assert [(found.interest, found.confidence) for found in reading.findings] == [("a", 0.9), ("b", 0.8)]
    assert reading.dropped == 2


def test_other_keys_are_ignored():
    text = answer(finding(item_id="other", label=True), item_id="other", probability=1)
    assert read_answer(text, TEXT, 5).findings == [Finding("eye protection", "dust out of your eyes", 0.8)]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def check(text):
    """Nothing but the one error, and nothing that breaks a rule."""
    try:
        reading = read_answer(text, TEXT, 3)
    except UnreadableAnswer as error:
        assert "\n" not in str(error)
        return
    assert len(reading.findings) <= 3 and reading.dropped >= 0
    for found in reading.findings:
        assert 0 <= found.confidence <= 1
        assert 1 <= len(found.interest.split()) <= 8 and found.interest.isprintable()
        assert not set(found.interest) & set("<>{}[]`|\\")


@settings(max_examples=150, deadline=None)
@given(st.text() | st.text(alphabet='{}[]",:interests 0123eE.-NaN\\u'))
def test_any_text_is_read_or_refused(text):
    check(text)


@settings(max_examples=150, deadline=None)
@given(json_values, st.sampled_from(["interest", "evidence", "confidence", "interests"]))
def test_any_json_is_read_or_refused(value, key):
    check(json.dumps(value))
    check(json.dumps({"interests": value}))
    check(json.dumps({"interests": [finding() | {key: value}]}))
    check(json.dumps({"interests": [value, finding()]}))


@settings(max_examples=60, deadline=None)
@given(
    st.text(alphabet=st.characters(exclude_characters="{}")), st.text(alphabet=st.characters(exclude_characters="{}"))
)
def test_a_sound_answer_survives_any_prose_around_it(before, after):
    assert names(f"{before}{answer(finding())}{after}") == ["eye protection"]
