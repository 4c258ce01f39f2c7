import json
import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny import tiny_items, tiny_lm, tiny_tokenizer
from transformers import LlamaConfig, MistralConfig

from hf_gr.branches import Row
from hf_gr.catalog import SidCatalog
from hf_gr.dataset import Histories
from hf_gr.decoding import Recommender
from hf_gr.errors import HfGrError
from hf_gr.models import ThinkingConfig, ThinkingHeads
from hf_gr.models.feedback import read_thoughts
from hf_gr.packing import pack
from hf_gr.thoughts import Explanation, Thoughts
from hf_gr.vocabulary import add_vocabulary


NUM_ITEMS, SIZES, D = 40, (8, 6, 5), 32
CONFIG = ThinkingConfig(clusters=4, interest_width=16)
HISTORIES = [[1, 2, 3, 4, 5, 6], [], [9, 8], [30]]
ITEMS = np.array([[3, 7, 21], [5, 0, -1], [-1, -1, -1], [12, -1, -1]])
COLOURS = ("red", "green", "blue", "pink", "black", "white", "gold", "grey")


def words_of(codes: np.ndarray) -> pa.Table:
    """Items whose title tells the first code and whose category the second."""
    table = tiny_items(len(codes)).drop_columns(["title", "categories"])
    table = table.append_column("title", [[f"{COLOURS[code]} thing" for code in codes[:, 0]]])
    return table.append_column("categories", [[["kind" + "abcdef"[code]] for code in codes[:, 1]]])


def a_catalog(collisions: str = "keep") -> SidCatalog:
    random = np.random.default_rng(0)
    codes = np.stack([random.integers(0, size, NUM_ITEMS) for size in SIZES], axis=1)
    vectors = [random.normal(size=(size, 8)).astype(np.float32) for size in SIZES]
    popularity = random.integers(0, 9, NUM_ITEMS)
    return SidCatalog.from_codes(codes, words_of(codes), SIZES, popularity, vectors, collisions)


def build(form="stepwise", config=CONFIG, catalog=None, config_class=LlamaConfig, **overrides) -> Thoughts:
    catalog = catalog or a_catalog()
    tokenizer, model = tiny_tokenizer(), tiny_lm(config_class, **overrides)
    vocabulary = add_vocabulary(tokenizer, model, catalog, max_history=4)
    recommender = Recommender(model, tokenizer, catalog, replace(vocabulary, form=form))
    return Thoughts(recommender, ThinkingHeads.start(config, D, catalog, seed=0))


def histories_of(rows: list[list[int]]) -> Histories:
    items = np.array([item for row in rows for item in row], np.int64)
    ptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return Histories(
        np.array([f"u{row}" for row in range(len(rows))], dtype=object), ptr, items, np.arange(len(items))
    )


@torch.no_grad()
def by_hand(thoughts: Thoughts, history: list[int], item: int, query: str | None = None):
    """Probabilities of one item's thoughts and of the interest: one row of its own, no branches."""
    recommender, heads = thoughts.recommender, thoughts.heads
    vocabulary = recommender.vocabulary
    sid = vocabulary.item_tokens(recommender.catalog, np.array([item]))[0].tolist()
    prompt = replace(vocabulary, form="stepwise").prompts(histories_of([history]), recommender.catalog)[0]
    prompt = (recommender.tokenizer(query)["input_ids"] if query else []) + prompt
    if vocabulary.form == "upfront":
        answer, places = [*vocabulary.think_ids, *sid], [0, 1, 2]
    else:
        answer, places = [t for pair in zip(vocabulary.think_ids, sid, strict=True) for t in pair], [0, 2, 4]
    ids = torch.tensor([prompt + answer])
    hidden = recommender.model(ids, output_hidden_states=True).hidden_states[-1][0]
    levels = [heads.points_at(n, hidden[len(prompt) + places[n]]) for n in range(heads.num_levels)]
    if heads.interest is None:
        return levels, None
    alone = pack([Row(input_ids=prompt, attach=[len(prompt)], answers=[answer[:1]], labels=[[0]], weights=[1.0])])
    return levels, heads.interest_points_at(heads.interest_of(hidden[: len(prompt)], alone))[0]


def check(thoughts: Thoughts, explanation: Explanation, history: list[int], item: int, query: str | None = None):
    levels, interest = by_hand(thoughts, history, item, query)
    assert explanation.item == item and len(explanation.levels) == len(levels)
    codes = thoughts.recommender.catalog.codes[item]
    told = thoughts.words()
    own = [int(thoughts.heads.clusters_of(level)[codes[level]]) for level in range(len(levels))]
    pairs = list(zip(explanation.levels, levels, own, told.by_level, strict=True))
    if interest is not None:
        own_interest = int(thoughts.heads.interest_clusters_of(torch.tensor(codes[None]).long())[0])
        pairs.append((explanation.interest, interest, own_interest, told.interest))
    else:
        assert explanation.interest is None
    for thought, probabilities, cluster, words in pairs:
        assert [at.cluster for at in thought.clusters] == probabilities.argsort(descending=True)[:3].tolist()
        for at in thought.clusters:
            assert at.probability == pytest.approx(float(probabilities[at.cluster]), abs=1e-5)
            assert at.words == words[at.cluster]
        assert thought.own.cluster == cluster and thought.own.words == words[cluster]
        assert thought.own.probability == pytest.approx(float(probabilities[cluster]), abs=1e-5)
        assert thought.agrees == (thought.clusters[0].cluster == cluster)


KINDS = {
    "stepwise": {},
    "upfront": {"form": "upfront"},
    "digit": {"catalog": a_catalog("digit")},
    "no interest": {"config": replace(CONFIG, interest=0, agreement=0)},
    "no branches": {"config_class": MistralConfig, "sliding_window": 4},
}


@pytest.mark.parametrize("kind", KINDS)
def test_thoughts_are_those_of_one_pass_per_item(kind):
    thoughts = build(**KINDS[kind])
    found = thoughts.explain(histories_of(HISTORIES), ITEMS)
    assert [len(own) for own in found] == [3, 2, 0, 1]
    for history, items, own in zip(HISTORIES, ITEMS.tolist(), found, strict=True):
        for item, explanation in zip(items, own, strict=False):
            check(thoughts, explanation, history, item)


def test_queries_stand_before_the_histories():
    thoughts = build()
    queries = ["something calm", None, None, None]
    found = thoughts.explain(histories_of(HISTORIES), ITEMS, queries)
    plain = thoughts.explain(histories_of(HISTORIES), ITEMS)
    check(thoughts, found[0][1], HISTORIES[0], 7, queries[0])
    assert found[0][1] != plain[0][1] and found[1][0].levels[0].own.cluster == plain[1][0].levels[0].own.cluster


def test_thoughts_that_are_fed_back_are_read_by_rounds():
    thoughts = build(config=replace(CONFIG, feedback="hidden"))
    heads, recommender = thoughts.heads, thoughts.recommender
    check(thoughts, thoughts.explain(histories_of(HISTORIES), ITEMS)[0][1], HISTORIES[0], 7)  # a feed of zeros
    torch.nn.init.normal_(heads.feed.weight, std=0.3, generator=torch.Generator().manual_seed(1))
    found = thoughts.explain(histories_of(HISTORIES), ITEMS)[0][1]
    prompt = recommender.prompts(histories_of(HISTORIES[:1]))[0]
    sid = recommender.vocabulary.item_tokens(recommender.catalog, np.array([7]))[0].tolist()
    answer = [token for pair in zip(recommender.vocabulary.think_ids, sid, strict=True) for token in pair]
    alone = Row(input_ids=prompt, attach=[len(prompt)], answers=[answer], labels=[answer], weights=[1.0])
    packed = pack([alone], think_ids=recommender.vocabulary.think_ids)
    with torch.no_grad():
        hidden = read_thoughts(recommender.model, packed, heads.feed)[0]
    for level, thought in enumerate(found.levels):
        probabilities = heads.points_at(level, hidden[len(prompt) + 2 * level])
        assert thought.own.probability == pytest.approx(probabilities[thought.own.cluster].item(), abs=1e-5)
    plain, _ = by_hand(thoughts, HISTORIES[0], 7)
    own = found.levels[0].own
    assert own.probability != pytest.approx(float(plain[0][own.cluster]), abs=1e-3)


def test_nobody_to_explain():
    assert build().explain(histories_of([[], [1]]), np.full((2, 3), -1)) == [[], []]


def test_clusters_are_told_by_the_words_of_their_live_items():
    """Class-based TF-IDF over the titles and categories of the items whose code lies in a cluster, by hand."""
    catalog = a_catalog().removed([f"i{row:03d}" for row in range(10)])
    thoughts = build(catalog=catalog)
    told = thoughts.words()
    titles, categories = catalog.titles, catalog.categories
    item_words = [{*titles[row].split(), *categories[row]} for row in range(NUM_ITEMS)]
    codes = torch.tensor(catalog.codes).long()
    classes = [thoughts.heads.clusters_of(level)[codes[:, level]].tolist() for level in range(3)]
    classes.append(thoughts.heads.interest_clusters_of(codes).tolist())
    for found, of_item in zip([*told.by_level, told.interest], classes, strict=True):
        live = [(of_item[row], item_words[row]) for row in range(10, NUM_ITEMS)]
        total = sum(len(words) for _, words in live) / len({cluster for cluster, _ in live})
        for cluster, words in enumerate(found):
            own = [word for at, words in live if at == cluster for word in words]
            weights = {
                word: own.count(word) / len(own) * math.log1p(total / sum(word in words for _, words in live))
                for word in set(own)
                if own.count(word) > 1
            }
            assert words == sorted(weights, key=lambda word: (-weights[word], word))[:6]
    assert any("red" in words for words in told.by_level[0])
    for level_words, code_words in ((told.by_level[0], COLOURS), (told.by_level[1], ["kind" + c for c in "abcdef"])):
        assert all(words and words[0] in (*code_words, "thing") for words in level_words)


def test_words_are_counted_once_for_a_catalog_that_is_served():
    thoughts = build()
    first = thoughts.words()
    assert thoughts.words() is first
    catalog = thoughts.recommender.catalog
    thoughts.recommender.swap(
        replace(
            catalog, items=catalog.items.drop_columns(["title"]).append_column("title", [["new words"] * NUM_ITEMS])
        )
    )
    assert thoughts.words() is not first and all("words" in words for words in thoughts.words().by_level[0])


def test_descriptions_speak_json():
    (own, *_) = build().explain(histories_of([[1, 2]]), np.array([[3]]))
    described = own[0].described()
    assert json.loads(json.dumps(described)) == described
    assert described.keys() == {"levels", "interest"} and [level["level"] for level in described["levels"]] == [
        1,
        2,
        3,
    ]
    level, thought = described["levels"][1], own[0].levels[1]
    assert level.keys() == {"level", "clusters", "code_cluster", "agrees"}
    assert level["agrees"] is thought.agrees
    for cluster, told in ((thought.clusters[0], level["clusters"][0]), (thought.own, level["code_cluster"])):
        assert told == {"cluster": cluster.cluster, "probability": cluster.probability, "words": cluster.words}
    assert described["interest"].keys() == {"clusters", "item_cluster", "agrees"}
    (own, *_) = build(config=replace(CONFIG, interest=0, agreement=0)).explain(histories_of([[1]]), np.array([[3]]))
    assert own[0].described()["interest"] is None


@pytest.mark.parametrize("form", ["flat", "unordered"])
def test_models_without_thoughts_are_refused(form):
    with pytest.raises(HfGrError, match=f"form '{form}', without thoughts"):
        build(form=form)
