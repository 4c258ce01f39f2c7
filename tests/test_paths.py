"""The path by which an item was written, against one plain row per prefix and a list of live items."""

import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny import tiny_items, tiny_lm, tiny_tokenizer
from transformers import LlamaConfig, MistralConfig, pipeline

from hf_gr.answering import answer as search
from hf_gr.branches import Row
from hf_gr.catalog import SidCatalog
from hf_gr.cli import main
from hf_gr.dataset import Histories
from hf_gr.decoding import Recommender
from hf_gr.errors import HfGrError
from hf_gr.hub import save_repo
from hf_gr.models import ThinkingConfig, ThinkingHeads
from hf_gr.models.feedback import read_thoughts
from hf_gr.packing import pack
from hf_gr.paths import Path, Paths
from hf_gr.vocabulary import add_vocabulary


NUM_ITEMS, SIZES = 40, (4, 5, 3)
COLOURS, SHAPES, KINDS = ("red", "green", "blue", "pink"), ("cube", "ball", "cone", "ring", "disc"), "abc"
HISTORIES = [[1, 2, 3, 4, 5, 6], [], [9, 8], [30]]
ITEMS = np.array([[3, 7, 21], [5, 0, -1], [-1, -1, -1], [12, -1, -1]])
REMOVED = [f"i{row:03d}" for row in range(22, 30)]


def a_catalog(collisions: str = "keep", removed: list[str] = REMOVED) -> SidCatalog:
    """Items whose title says their first two codes and whose categories the third, after one that all carry."""
    random = np.random.default_rng(0)
    codes = np.stack([random.integers(0, size, NUM_ITEMS) for size in SIZES], axis=1)
    titles = [f"{COLOURS[first]} {SHAPES[second]}" for first, second, _ in codes]
    categories = [["shop", "kind" + KINDS[third]] for *_, third in codes]
    items = pa.table({"item_id": tiny_items()["item_id"], "title": titles, "categories": categories})
    vectors = [random.normal(size=(size, 8)).astype(np.float32) for size in SIZES]
    catalog = SidCatalog.from_codes(codes, items, SIZES, random.integers(0, 9, NUM_ITEMS), vectors, collisions)
    return catalog.removed(removed)


def build(form="unordered", catalog=None, config_class=LlamaConfig, thinking=None, **overrides) -> Paths:
    """With logits so large that orders differ and probabilities are far from even."""
    catalog = catalog or a_catalog()
    tokenizer, model = tiny_tokenizer(), tiny_lm(config_class, **overrides)
    vocabulary = add_vocabulary(tokenizer, model, catalog, max_history=4)
    model.get_output_embeddings().weight.data *= 60
    heads = None if thinking is None else ThinkingHeads.start(thinking, 32, catalog, seed=0)
    return Paths(Recommender(model, tokenizer, catalog, replace(vocabulary, form=form), thinking=heads))


def histories_of(rows: list[list[int]]) -> Histories:
    items = np.array([item for row in rows for item in row], np.int64)
    ptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return Histories(np.array([str(row) for row in range(len(rows))], object), ptr, items, np.arange(len(items)))


@torch.no_grad()
def probabilities(paths: Paths, prompt: list[int], written: list[tuple[int, int]]) -> dict[tuple[int, int], float]:
    """Of every (codebook, code) that a live item has beside those written, by the model's own forward on one row."""
    recommender, form = paths.recommender, paths.recommender.vocabulary.form
    vocabulary, catalog, row = recommender.vocabulary, recommender.catalog, list(prompt)
    thinks = vocabulary.think_ids if form == "stepwise" else ()
    for step, (codebook, code) in enumerate(written):
        row += [*thinks[step : step + 1], vocabulary.code_ids[codebook][code]]
    row += thinks[len(written) : len(written) + 1]
    logits = recommender.model(torch.tensor([row])).logits[0, -1].tolist()
    alike = [sid for sid in catalog.codes[catalog.live].tolist() if all(sid[book] == code for book, code in written)]
    used = {codebook for codebook, _ in written}
    free = [book for book in range(3) if book not in used] if form == "unordered" else [len(written)]
    options = sorted({(book, sid[book]) for sid in alike for book in free})
    shares = torch.tensor([logits[vocabulary.code_ids[book][code]] for book, code in options]).softmax(0)
    return dict(zip(options, shares.tolist(), strict=True))


def listed(paths: Paths, prompt: list[int], item: int, in_order: bool) -> list[tuple[int, int, float]]:
    """Codebook, code and confidence of each step: the surest code of the item next, or codebook after codebook."""
    own = list(enumerate(paths.recommender.catalog.codes[item].tolist()))
    written: list[tuple[int, int]] = []
    found = []
    for codebook in range(3):
        options = probabilities(paths, prompt, written)
        left = [(book, code) for book, code in own if (book, code) not in written]
        chosen = own[codebook] if in_order else max(left, key=lambda pair: options[pair])
        found.append((*chosen, options[chosen]))
        written.append(chosen)
    return found


def check(paths: Paths, found: list[list[Path]], in_order: bool, queries: list[str | None] | None = None) -> set:
    """Also the orders that were met."""
    prompts, orders = paths.recommender.prompts(histories_of(HISTORIES), queries), set()
    for prompt, items, own in zip(prompts, ITEMS.tolist(), found, strict=True):
        assert [path.item for path in own] == [item for item in items if item >= 0]
        for path in own:
            expected = listed(paths, prompt, path.item, in_order)
            assert [(step.codebook - 1, step.code) for step in path.steps] == [entry[:2] for entry in expected]
            told = [step.confidence for step in path.steps]
            assert told == pytest.approx([entry[2] for entry in expected], abs=1e-5)
            orders.add(tuple(step.codebook for step in path.steps))
    return orders


SETTINGS = {
    "unordered": {},
    "flat": {"form": "flat"},
    "stepwise": {"form": "stepwise"},
    "upfront": {"form": "upfront"},
    "flat, no branches": {"form": "flat", "config_class": MistralConfig, "sliding_window": 4},
    "unordered, no branches": {"config_class": MistralConfig, "sliding_window": 4},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_order_and_confidence_are_those_of_one_row_a_prefix(name):
    paths = build(**SETTINGS[name])
    queries = ["something calm", None, None, None]
    orders = check(paths, paths.explain(histories_of(HISTORIES), ITEMS), name != "unordered")
    assert len(orders) > 2 if name == "unordered" else orders == {(1, 2, 3)}
    check(paths, paths.explain(histories_of(HISTORIES), ITEMS, queries), name != "unordered", queries)


def test_in_the_order_of_the_levels_confidences_make_the_score():
    paths = build("flat")
    items, scores = paths.recommender.recommend(histories_of(HISTORIES), top_k=4)
    for own, expected in zip(paths.explain(histories_of(HISTORIES), items), scores.tolist(), strict=True):
        told = [sum(np.log(step.confidence) for step in path.steps) for path in own]
        assert told == pytest.approx(expected, abs=1e-4)


def test_thoughts_that_are_fed_back_are_read_by_rounds():
    paths = build("stepwise", thinking=ThinkingConfig(clusters=3, interest=0, agreement=0, feedback="hidden"))
    recommender = paths.recommender
    feed = recommender.thinking.feed
    torch.nn.init.normal_(feed.weight, std=0.3, generator=torch.Generator().manual_seed(1))
    vocabulary, catalog = recommender.vocabulary, recommender.catalog
    prompt = recommender.prompts(histories_of(HISTORIES[:1]))[0]
    sid = vocabulary.item_tokens(catalog, np.array([7]))[0].tolist()
    answer = [token for pair in zip(vocabulary.think_ids, sid, strict=True) for token in pair]
    alone = Row(input_ids=prompt, attach=[len(prompt)], answers=[answer], labels=[answer], weights=[1.0])
    with torch.no_grad():
        hidden = read_thoughts(recommender.model, pack([alone], think_ids=vocabulary.think_ids), feed)[0]
        logits = recommender.model.get_output_embeddings()(hidden)
    for level, step in enumerate(paths.explain(histories_of(HISTORIES), ITEMS)[0][1].steps):
        alike = [
            other
            for other in catalog.codes[catalog.live].tolist()
            if other[:level] == catalog.codes[7].tolist()[:level]
        ]
        options = sorted({other[level] for other in alike})
        shares = logits[len(prompt) + 2 * level, [vocabulary.code_ids[level][code] for code in options]].softmax(0)
        assert step.confidence == pytest.approx(float(shares[options.index(step.code)]), abs=1e-5)


def test_codes_are_told_by_the_words_of_their_live_items(monkeypatch):
    monkeypatch.setattr("hf_gr.paths._TOLD_AT_ONCE", 2)
    first = a_catalog().codes[:, 0]
    told = build(catalog=a_catalog(removed=[f"i{row:03d}" for row in np.flatnonzero(first == 2)[:-1]]))
    named = {}
    for row in np.flatnonzero(told.recommender.catalog.live).tolist():
        ((path,),) = told.explain(histories_of([[1]]), np.array([[row]]))
        for step in path.steps:
            assert named.setdefault((step.codebook, step.code), step.words) == step.words
            assert len(step.words) <= 6
    for codebook, names in enumerate((COLOURS, SHAPES, ["kind" + letter for letter in KINDS]), start=1):
        for code, name in enumerate(names):
            if (codebook, code) != (1, 2):
                assert named[codebook, code][0] == name
    assert named[1, 2] == []  # a single item is left to it, which tells nothing of the code


def test_words_and_categories_are_read_when_first_asked_and_once_for_a_catalog(monkeypatch):
    paths, made = build(), []
    monkeypatch.setattr("hf_gr.paths._code_words", lambda catalog: made.append(catalog) or [[["x"]] * 5] * 3)
    assert paths.explain(histories_of([[1]]), np.full((1, 0), -1)) == [[]] and made == []
    for _ in range(2):
        paths.explain(histories_of([[1]]), np.array([[3]]))
        paths.serving(paths.recommender.snapshot()).explain(histories_of([[1]]), np.array([[3]]))
    first = paths.recommender.catalog
    assert made == [first]
    paths.recommender.swap(first.removed(["i000"]))
    paths.explain(histories_of([[1]]), np.array([[3]]))
    assert made == [first, paths.recommender.catalog]


@pytest.mark.parametrize("collisions", ["keep", "digit"])
def test_consistency_is_the_mean_cosine_of_the_codes_up_to_a_step(collisions):
    catalog = a_catalog(collisions)
    paths = build(catalog=catalog)

    def spread(codebook: int, code: int) -> np.ndarray:
        """How the items of a code spread over the categories that tell something; removed ones are items too."""
        own = [catalog.categories[row][1] for row in np.flatnonzero(catalog.codes[:, codebook - 1] == code)]
        counts = np.array([own.count("kind" + letter) for letter in KINDS], float)
        return counts / np.linalg.norm(counts)

    seen = set()
    for own in paths.explain(histories_of(HISTORIES), ITEMS):
        for path in own:
            for end, step in enumerate(path.steps, start=1):
                before = path.steps[:end]
                if collisions == "digit":
                    before = [other for other in before if other.codebook < 3]
                vectors = [spread(other.codebook, other.code) for other in before]
                cosines = [one @ other for one, other in combinations(vectors, 2)]
                assert step.consistency == pytest.approx(np.mean(cosines) if cosines else 1.0, abs=1e-5)
                seen.add(round(step.consistency, 3))
                assert not (collisions == "digit" and step.codebook == 3 and step.words)
    assert len(seen) > 5


def test_without_categories_nothing_is_said_of_consistency():
    catalog = a_catalog()
    paths = build(catalog=replace(catalog, items=catalog.items.drop_columns(["categories"])))
    steps = paths.explain(histories_of(HISTORIES), ITEMS)[0][0].steps
    assert [step.consistency for step in steps] == [None] * 3
    assert {step.codebook: bool(step.words) for step in steps} == {1: True, 2: True, 3: True}


def test_removed_items_have_no_path():
    with pytest.raises(HfGrError, match="item 'i022' was removed") as error:
        build().explain(histories_of([[1], [2]]), np.array([[3], [22]]))
    assert "\n" not in str(error.value)


def test_one_codebook_has_one_step():
    catalog = a_catalog()
    single = SidCatalog.from_codes(catalog.codes[:, 1:2], catalog.items, SIZES[1:2], catalog.popularity)
    ((path,),) = build(catalog=single).explain(histories_of([[1, 2]]), np.array([[3]]))
    assert [(step.codebook, step.code, step.consistency) for step in path.steps] == [(1, single.codes[3, 0], 1.0)]


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    paths = build()
    recommender, folder = paths.recommender, tmp_path_factory.mktemp("repo") / "model"
    save_repo(folder, recommender.model, recommender.tokenizer, recommender.catalog, recommender.vocabulary)
    return folder


def test_the_pipeline_gives_every_item_its_path(repo):
    recommend = pipeline("generative-recommendation", model=str(repo))
    requests = [["i001", "i002"], {"history": ["i003"], "query": "calm", "allow": ["i004", "i009"]}, [], ["i007"]]
    plain, told = recommend(requests, top_k=4), recommend(requests, top_k=4, explain=True, batch_size=3)
    assert [len(answers) for answers in told] == [4, 2, 4, 4]
    histories, queries = histories_of([[1, 2], [3], [], [7]]), [None, "calm", None, None]
    rows = recommend.recommender.catalog.row_of
    for row, (answers, others) in enumerate(zip(plain, told, strict=True)):
        items = np.full((4, 4), -1)
        items[row, : len(others)] = [rows[other["item_id"]] for other in others]
        expected = Paths(recommend.recommender).explain(histories, items, queries)[row]
        for answer, other, path in zip(answers, others, expected, strict=True):
            assert other.keys() == answer.keys() | {"path"} and "path" not in answer
            assert json.loads(json.dumps(other["path"])) == other["path"]
            for step, own in zip(other["path"], path.described(), strict=True):
                assert step == own | {"confidence": pytest.approx(own["confidence"], abs=1e-5)}
                assert list(step) == ["codebook", "code", "words", "confidence", "consistency"]
            assert [other["sid"][step["codebook"] - 1] for step in other["path"]] == [s["code"] for s in other["path"]]


def test_answers_are_explained_by_the_catalog_they_were_found_in(repo, monkeypatch):
    recommend = pipeline("generative-recommendation", model=str(repo))

    def search_while_all_is_removed(*arguments, **settings):
        found = search(*arguments, **settings)
        recommend.recommender.swap(recommend.recommender.catalog.removed([f"i{row:03d}" for row in range(39)]))
        return found

    expected = recommend(["i001"], top_k=5, explain=True)
    monkeypatch.setattr("hf_gr.answering.answer", search_while_all_is_removed)
    assert recommend(["i001"], top_k=5, explain=True) == expected


def test_the_command_line_prints_a_path_a_line(repo, capsys):
    main(["recommend", str(repo), "--history", "i001", "--top-k", "3", "--explain"])
    printed = capsys.readouterr().out
    assert "because" not in printed
    recommend = pipeline("generative-recommendation", model=str(repo))
    lines = [line for line in printed.splitlines() if "path: " in line]
    assert len(lines) == 3
    for rank, (line, answer) in enumerate(zip(lines, recommend(["i001"], top_k=3, explain=True), strict=True), 1):
        steps = answer["path"]
        told = " → ".join(
            f'{s["codebook"]}/{s["code"]} "{", ".join(s["words"][:3])}" ' + f"{s['confidence']:.2f}".removeprefix("0")
            for s in steps
        )
        assert line == f" {rank} path: {told} · consistency {steps[-1]['consistency']:.2f}".replace(" 0.", " .")
