import random
import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_gr.errors import HfGrError
from hf_gr.interests.miners.keyphrase import KeyphraseMiner, excerpt, lines, mmr, phrases
from hf_gr.interests.subjects import Subject


class Letters:
    """Pairs of letters, counted in a few places; remembers what it was asked."""

    name, pooling = "letters", "none"

    def __init__(self):
        self.asked = Counter()

    def __call__(self, texts):
        self.asked.update(texts)
        vectors = np.zeros((len(texts), 64), np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            for pair in zip(f" {text.lower()}", f"{text.lower()} ", strict=True):
                vector[zlib.crc32("".join(pair).encode()) % 64] += 1
        return vectors


def miner(**settings):
    return KeyphraseMiner(Letters(), progress=False, **settings)


def item(name, text):
    return Subject("item", name, text)


ITEMS = [
    item("1", "title: Oak Table 40x40 cm\nbrand: Woody\ndescription: A table of oak. Seats four people."),
    item("2", "title: Pine Table\nbrand: Woody\ndescription: Seats two people; an oak table seats more."),
    item("3", "title: Yoga Mat\ncategories: Sport, Yoga\ndescription: Keeps you from slipping."),
    item("4", "title: Bath Mat, slipping proof\ncategories: Home"),
    item("5", "title: Rolling Pin\ncategories: Home, Kitchen"),
    item("6", "title: Rolling Pin of Oak\ncategories: Home, Kitchen"),
]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Oak table", {"oak", "table", "oak table"}),
        ("made of solid brass", {"brass", "solid brass"}),  # "solid" says nothing by itself, "made of" never
        ("tape, glue", {"tape", "glue"}),
        ("Strong. Tape", {"tape"}),
        ("3D printer filament", {"printer", "filament", "3d printer", "printer filament", "3d printer filament"}),
        ("Neiko 50484A wrench 3/4 in 5mm 12V M6x20 #8", {"neiko", "wrench"}),
        ("N95 mask", {"mask", "n95 mask"}),
        ("O-Ring seal", {"o-ring", "seal", "o-ring seal"}),
        ("Heat-Resistant", {"heat", "resistant", "heat resistant"}),
        ("Heavy duty kit, portable black box", {"duty", "heavy duty", "duty kit", "heavy duty kit"}),
        ("x ab", set()),
        ("", set()),
    ],
)
def test_phrases_of_a_line(line, expected):
    assert set(phrases(line, (1, 3))) == expected


@given(st.text(st.sampled_from("ab oak Tea the 5mm 3d-,.\n"), max_size=60), st.integers(1, 2), st.integers(2, 4))
@settings(max_examples=200, deadline=None)
def test_phrases_stand_in_the_line(line, least, most):
    for phrase, (start, end) in phrases(line, (least, most)).items():
        assert line[start:end].lower().replace("-", " ") == phrase.replace("-", " ")
        assert least <= len(phrase.split()) <= most


def test_ngram_bounds_the_words():
    assert set(phrases("oak table lamp", (2, 2))) == {"oak table", "table lamp"}
    assert set(phrases("oak table lamp", (1, 1))) == {"oak", "table", "lamp"}


def test_lines_have_no_labels():
    assert lines(item("1", "title: A: b\n\nreview: good")) == ["A: b", "good"]
    assert lines(Subject("user", "1", "Note: a\nb | review: so what\n")) == ["Note: a", "b", "so what"]


def test_excerpt_is_the_sentence_or_120_characters_of_it():
    line = "First one. Then the oak table here; more. Last."
    start = line.index("oak")
    assert excerpt(line, start, start + 9) == "Then the oak table here"
    assert excerpt("oak", 0, 3) == "oak"
    long = " ".join(["word"] * 50 + ["oak table"] + ["more"] * 50)
    start = long.index("oak")
    cut = excerpt(long, start, start + 9)
    assert "oak table" in cut and 100 < len(cut) <= 120
    assert set(cut.split()) == {"word", "oak", "table", "more"}


@given(st.integers(1, 9), st.integers(1, 6), st.integers(0, 10), st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_mmr_is_the_plain_loop(size, count, tenths, seed):
    chance = np.random.default_rng(seed)
    relevance = chance.random(size)
    similarity = chance.random((size, size))
    similarity = (similarity + similarity.T) / 2
    barred = np.triu(chance.random((size, size)) < 0.1)
    similarity[barred | barred.T | np.eye(size, dtype=bool)] = np.inf
    diversity = tenths / 10
    picked = [max(range(size), key=lambda place: (1 - diversity) * relevance[place])]
    while len(picked) < count:
        scores = {
            place: (1 - diversity) * relevance[place] - diversity * max(similarity[place][other] for other in picked)
            for place in range(size)
            if place not in picked and all(similarity[place][other] < np.inf for other in picked)
        }
        if not scores:
            break
        picked.append(max(scores, key=lambda place: (scores[place], -place)))
    if diversity < 1:  # else nothing tells the first ones apart
        assert mmr(relevance, similarity, count, diversity) == picked[:count]


def test_what_is_picked_is_what_the_rules_say():
    """Without pruning (no item has 13 phrases that others share), everything once more by hand."""
    encoder = Letters()

    def vector(text):
        return encoder([text])[0] / np.linalg.norm(encoder([text])[0])

    found = miner(max_interests=3).mine(ITEMS)
    having = {subject.id: [set(phrases(line, (1, 3))) for line in lines(subject)] for subject in ITEMS}
    for subject, findings in zip(ITEMS, found, strict=True):
        own = lines(subject)
        text = sum(len(line) * vector(line) for line in own)
        text = text / np.linalg.norm(text)
        shared = [
            phrase
            for phrase in sorted(set().union(*having[subject.id]))
            if sum(any(phrase in line for line in other) for other in having.values()) == 2  # 20 % of 6 is less
        ]
        assert 0 < len(shared) <= 12
        relevance = np.array(
            [
                1 - (1 - vector(phrase) @ text) ** (1 + np.log(sum(phrase in line for line in having[subject.id])))
                for phrase in shared
            ]
        )
        similarity = np.array([[nested_or_cosine(one, other, vector) for other in shared] for one in shared])
        expected = [place for place in mmr(relevance, similarity, 3, 0.4) if relevance[place] >= 0.3]
        assert [finding.interest for finding in findings] == [shared[place] for place in expected]
        assert [finding.confidence for finding in findings] == pytest.approx(list(relevance[expected]), abs=1e-3)
        for finding in findings:
            assert finding.interest in finding.evidence.lower() and len(finding.evidence) <= 120
            assert finding.evidence in subject.text


def nested_or_cosine(one, other, vector):
    a, b = ({word.rstrip("s") for word in phrase.split()} for phrase in (one, other))
    return np.inf if a <= b or b <= a else vector(one) @ vector(other)


def test_only_phrases_of_several_but_not_of_most():
    texts = ["oak table", "oak chair", "oak table", "oak lamp", *(f"oak {name}" for name in ("bed", "box", "bin"))]
    found = miner().mine([item(str(row), f"title: {text}") for row, text in enumerate(texts)])
    told = [{finding.interest for finding in findings} for findings in found]
    assert told[0] == told[2] == {"oak table"}  # not "oak", which all have
    assert told[1] == {"oak chair"}  # nothing is shared: its own


def test_a_user_shares_by_lines_and_what_recurs_counts_more():
    users = [
        Subject("user", "1", "Red oak table\nOak table top\nTea pot"),
        Subject("user", "2", "Red oak table\nTea pot"),
        Subject("user", "3", "Green tea"),
        Subject("user", "4", "Yoga mat\nBath mat"),
        *(Subject("user", f"more {place}", "Cup") for place in range(10)),
    ]
    first, second, *_ = miner().mine(users)
    sure = {finding.interest: finding.confidence for finding in first}
    assert "oak table" in sure and "tea pot" not in sure  # two users have "Tea pot", but it is one line
    alone = miner().mine([Subject("user", "1", "Red oak table\nOak table top"), *users[1:]])
    assert {finding.interest for finding in alone[0]} >= {"oak table"}
    assert {finding.interest for finding in second} >= {"oak table"}
    vector = Letters()
    text = sum(len(line) * unit(vector([line])[0]) for line in users[0].text.splitlines())
    cosine = unit(vector(["oak table"])[0]) @ unit(text)
    assert sure["oak table"] == pytest.approx(1 - (1 - cosine) ** (1 + np.log(2)), abs=1e-3)


def unit(vector):
    return vector / np.linalg.norm(vector)


def test_confidence_does_not_depend_on_the_others():
    more = [item(f"more {place}", "title: Cup") for place in range(20)] + [item("7", "title: Oak Pin")]
    users = [Subject("user", "1", "Oak Table")]
    before = {finding.interest: finding.confidence for finding in miner().mine(ITEMS)[0]}
    after = {finding.interest: finding.confidence for finding in miner().mine(more + ITEMS + users)[len(more)]}
    both = before.keys() & after.keys()
    assert both
    for name in both:
        assert before[name] == pytest.approx(after[name], abs=1e-4)


def test_order_of_the_subjects_does_not_matter():
    subjects = [*ITEMS, Subject("user", "1", "Oak Table\nTea pot"), Subject("user", "2", "Pine table\nBlack tea")]
    mixed = random.Random(0).sample(subjects, len(subjects))
    found = dict(zip([(subject.kind, subject.id) for subject in mixed], miner().mine(mixed), strict=True))
    assert [found[subject.kind, subject.id] for subject in subjects] == miner().mine(subjects)


def test_every_text_is_encoded_once():
    encoder = Letters()
    users = [Subject("user", str(place), "Oak Table 40x40 cm\nYoga Mat") for place in range(3)]
    KeyphraseMiner(encoder, progress=False).mine([*ITEMS, *users])
    assert set(encoder.asked.values()) == {1}


def test_few_phrases_of_a_long_text_are_encoded():
    words = [
        f"{a}{b}" for a in ("tea", "oak", "mat", "pin") for b in ("pot", "lid", "cup", "bed", "box", "bin", "jar")
    ]
    text = "title: Mat cup\ndescription: " + ", ".join(words)
    encoder = Letters()
    others = [item(str(place), "title: Lamp") for place in range(9)]
    found = KeyphraseMiner(encoder, progress=False).mine([item("a", text), item("b", text), *others])
    # Of single words the mean of the words' vectors is the vector itself, so pruning loses nothing.
    best = sorted(words, key=lambda word: -(unit(encoder([word])[0]) @ text_vector(encoder, text)))
    assert found[0][0].interest == best[0]
    assert {finding.interest for finding in found[0]} <= set(best[:12])


def text_vector(encoder, text):
    own = [line[:128] for line in lines(item("", text))]
    return unit(sum(len(line) * unit(encoder([line])[0]) for line in own))


def test_subjects_without_phrases_have_no_findings():
    assert miner().mine([]) == []
    assert miner().mine([item("1", ""), Subject("user", "1", "5 mm")]) == [[], []]
    found = miner().mine([item("1", "title: 40 x 40 cm"), item("2", "title: Oak table")])
    assert found[0] == [] and found[1]


@pytest.mark.parametrize("settings", [{"max_interests": 0}, {"ngram": (2, 1)}, {"ngram": (0, 1)}, {"diversity": 1.5}])
def test_settings_without_sense_are_refused(settings):
    with pytest.raises(HfGrError, match="ask for at least one interest"):
        miner(**settings)
