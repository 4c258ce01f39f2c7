import re
from html.parser import HTMLParser

from hf_gr.evaluation.thoughts_page import thoughts_section


EVIL = """<img src=x onerror="alert(1)"> & 'quoted'"""


def share(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.05, "high": value + 0.05}


def shares(value: float) -> dict:
    return {
        "top_item": share(value + 0.2),
        "truth": share(value),
        "most_frequent": share(0.11),
        "difference": share(value - 0.11),
    }


def cluster(number: int, probability: float, *words: str) -> dict:
    return {"cluster": number, "probability": probability, "words": list(words)}


def judged(interest: bool = True) -> dict:
    first = [cluster(4, 0.61, "soap", "bath"), cluster(2, 0.2, EVIL), cluster(7, 0.05)]
    thoughts = {
        "levels": [
            {"level": 1, "clusters": first, "code_cluster": first[0], "agrees": True},
            {"level": 2, "clusters": first, "code_cluster": cluster(9, 0.01, "nails"), "agrees": False},
        ],
        "interest": {"clusters": first, "item_cluster": first[2], "agrees": False} if interest else None,
    }
    example = {"user": EVIL, "history": [EVIL, "Comb"], "recommended": "Brush", "truth": EVIL, "hit": False}
    examples = [example | {"thoughts": thoughts}, example | {"history": [], "hit": True, "thoughts": thoughts}]
    return {
        "cases": 2000,
        "levels": [{"level": 1} | shares(0.34), {"level": 2} | shares(0.05)],
        "interest": shares(0.21) if interest else None,
        "examples": examples,
    }


class Tags(HTMLParser):
    """Every tag is closed, and none comes from the data."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        if tag not in ("br", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_models_without_thoughts_have_no_section():
    assert thoughts_section(None) == ""


def test_numbers_stand_with_their_intervals():
    text = thoughts_section(judged())
    rows = re.findall(r"<tr><th>(.*?)</th>(.*?)</tr>", text)
    assert [name for name, _ in rows][-3:] == ["thought 1", "thought 2", "global interest"]
    cells = re.findall(r'<td class="number">(.*?)</td>', rows[-3][1])
    assert cells == [
        "54.0%<br><small>49.0% – 59.0%</small>",
        "34.0%<br><small>29.0% – 39.0%</small>",
        "11.0%<br><small>6.0% – 16.0%</small>",
        "+23.0%<br><small>+18.0% – +28.0%</small>",
    ]
    assert "-6.0%" in rows[-2][1]
    assert "2,000 cases" in text
    assert "global interest" not in thoughts_section(judged(interest=False)).lower()


def test_clusters_are_shown_in_words_and_what_was_written_is_marked():
    text = thoughts_section(judged())
    first = text[text.index("<h4>Thought 1") : text.index("<h4>Thought 2")]
    assert re.findall(r"width:([\d.]+)%", first) == ["61.0", "20.0", "5.0"]
    assert re.findall(r'<b class="hit">(.*?)</b>', first) == ["soap, bath"] and "cluster 7" in first
    second = text[text.index("<h4>Thought 2") : text.index("<h3>", text.index("<h4>Thought 2"))]
    assert re.findall(r"width:([\d.]+)%", second) == ["61.0", "20.0", "5.0", "1.0"]  # the code's own comes last
    assert re.findall(r'<b class="hit">(.*?)</b>', second) == ["nails"]
    assert text.count('<span class="hit">the same</span>') == 1


def test_titles_and_words_are_escaped():
    text = thoughts_section(judged())
    tags = Tags(text)
    assert tags.open == [] and "img" not in tags.seen
    assert "&lt;img src=x" in text
