"""Filters in words of the user (category, columns, what was seen), and catalogs swapped while requests run."""

import logging
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import tiny_catalog, tiny_items, tiny_lm, tiny_tokenizer
from transformers import pipeline

from hf_gr.answering import answer
from hf_gr.batch import recommend_batch
from hf_gr.catalog import SidCatalog
from hf_gr.cli import main
from hf_gr.dataset import Histories
from hf_gr.decoding import Recommender, recommender
from hf_gr.errors import HfGrError
from hf_gr.hub import save_repo
from hf_gr.pipeline import GenerativeRecommendationPipeline
from hf_gr.requests import parse_request
from hf_gr.vocabulary import add_vocabulary


REMOVED = ["i005", "i006"]
CATEGORIES = [[["even"], ["odd"]][row % 2] + ["Hair Care"] * (row % 5 == 0) for row in range(40)]
IN_STOCK = [row % 3 != 0 for row in range(39)] + [None]
ORGANIC = [row < 20 for row in range(40)]


def shop(in_stock=IN_STOCK) -> SidCatalog:
    items = tiny_items().drop_columns("categories").append_column("categories", [CATEGORIES])
    items = items.append_column("in_stock", [pa.array(in_stock, pa.bool_())]).append_column("organic", [ORGANIC])
    plain = tiny_catalog()
    return SidCatalog.from_codes(plain.codes, items.append_column("price", [range(40)]), (4, 4, 4), plain.popularity)


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop") / "model"
    model, tokenizer, catalog = tiny_lm(), tiny_tokenizer(), shop()
    vocabulary = add_vocabulary(tokenizer, model, catalog, max_history=5)
    save_repo(folder, model, tokenizer, catalog.removed(REMOVED), vocabulary)
    return folder


@pytest.fixture(scope="module")
def recommend(repo) -> GenerativeRecommendationPipeline:
    """Read from disk, so that the further columns have been written and read."""
    return pipeline("generative-recommendation", model=str(repo))


@pytest.fixture
def served(recommend) -> Recommender:
    """A recommender of its own, for tests that swap."""
    known = recommend.recommender
    return Recommender(known.model, known.tokenizer, known.catalog, known.vocabulary)


def ids(answers: list[dict]) -> list[str]:
    return [entry["item_id"] for entry in answers]


def wanted(category=None, where=None) -> set[str]:
    """By hand, from the lists above."""
    names = lambda value: [value] if isinstance(value, str) else value or []  # noqa: E731
    columns = {"in_stock": IN_STOCK, "organic": ORGANIC}
    return {
        f"i{row:03d}"
        for row in range(40)
        if (not names(category) or set(names(category)) & set(CATEGORIES[row]))
        and all(columns[name][row] for name in names(where))
    } - set(REMOVED)


def names_of(known: list[str]) -> st.SearchStrategy:
    return st.none() | st.sampled_from(known) | st.lists(st.sampled_from(known), min_size=1, max_size=3)


IDS = st.lists(st.sampled_from([f"i{row:03d}" for row in range(40) if f"i{row:03d}" not in REMOVED]), max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    history=IDS,
    exclude=IDS,
    allow=st.none() | IDS.filter(len),
    category=names_of(["even", "odd", "Hair Care"]),
    where=names_of(["in_stock", "organic"]),
    exclude_seen=st.booleans() | st.none(),
    cap=st.none() | st.integers(1, 5),
    top_k=st.integers(1, 45),
)
def test_filters_compose(recommend, history, exclude, allow, category, where, exclude_seen, cap, top_k):
    request = {"history": history, "exclude": exclude, "allow": allow, "category": category, "where": where}
    request["exclude_seen"] = exclude_seen
    left = wanted(category, where) - set(exclude)
    left &= left if allow is None else set(allow)
    left -= set(history) if exclude_seen else set()
    answers = ids(recommend([request, ["i001"]], top_k=top_k, num_beams=4, max_per_category=cap)[0])
    kinds = [sum(CATEGORIES[int(item[1:])][0] == kind for item in left) for kind in ("even", "odd")]
    count = len(left) if cap is None else sum(min(cap, kind) for kind in kinds)
    assert len(answers) == len(set(answers)) == min(top_k, count)
    assert set(answers) <= left


def test_a_filtered_list_is_the_full_list_without_the_rest(recommend):
    full = ids(recommend(["i001", "i002"], top_k=38, num_beams=64))
    assert len(full) == 38
    for request in (
        {"category": "Hair Care"},
        {"category": ["even", "Hair Care"], "where": "in_stock"},
        {"where": ["organic", "in_stock"]},
    ):
        expected = [item for item in full if item in wanted(**request)]
        assert 0 < len(expected) < 38
        found = ids(recommend({"history": ["i001", "i002"]} | request, top_k=40, num_beams=64))
        assert set(found) == set(expected)
    seen = ids(recommend({"history": ["i001", "i002", "i001"], "exclude": ["i009"], "exclude_seen": True}, top_k=40))
    assert set(seen) == set(full) - {"i001", "i002", "i009"}
    assert "i001" in ids(recommend({"history": ["i001"], "exclude_seen": False}, top_k=40))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"category": "evn"}, "no item is of category 'evn'; categories are: 'even', 'Hair Care', 'odd'."),
        ({"category": ["odd", ""]}, "no item is of category ''"),
        ({"category": []}, r"category is \[\] \(list\); give a name, or a list of at least one"),
        ({"category": [3]}, r"category is \[3\]"),
        ({"category": {"odd": 1}}, "category is {'odd': 1}"),
        ({"where": "stock"}, "where names 'stock', but .* is missing; boolean ones are: 'in_stock', 'organic'."),
        ({"where": ["in_stock", "price"]}, "where names 'price', but that column of the items is of type int64"),
        ({"where": True}, r"where is True \(bool\)"),
        ({"exclude_seen": "yes"}, r"exclude_seen is 'yes' \(str\); give true or false"),
    ],
)
def test_bad_filters_get_one_line(recommend, request_, message):
    with pytest.raises(HfGrError, match=message) as caught:
        recommend({"history": ["i001"]} | request_)
    assert "\n" not in str(caught.value)


def test_a_catalog_without_categories_or_flags_says_so():
    catalog = replace(shop(), items=tiny_items().select(["item_id", "title"]))
    with pytest.raises(HfGrError, match="no item is of category 'odd'; categories are: none"):
        parse_request({"category": "odd"}, catalog)
    with pytest.raises(HfGrError, match="boolean ones are: none"):
        parse_request({"where": "in_stock"}, catalog)
    many = tiny_items().drop_columns("categories").append_column("categories", [[[f"c{row}"] for row in range(40)]])
    with pytest.raises(HfGrError, match="categories are: 'c0', 'c1', 'c2', 'c3', 'c4', …"):
        parse_request({"category": "odd"}, replace(shop(), items=many))


def test_what_leaves_nothing_gives_an_empty_list_and_a_warning(recommend, caplog):
    request = {"category": "even", "exclude": [f"i{row:03d}" for row in range(0, 40, 2)]}
    for cap in (None, 2):
        with caplog.at_level(logging.WARNING, logger="hf_gr"):
            assert [len(found) for found in recommend([request, ["i001"]], max_per_category=cap, top_k=2)] == [0, 2]
        assert "1 request(s) leave no item to answer with" in caplog.text
        caplog.clear()


def test_a_mask_is_made_once_for_the_same_words(served, monkeypatch):
    mask = served.mask("even", ["in_stock", "organic"])
    assert mask.num_items == len(wanted("even", ["in_stock", "organic"]))
    assert served.mask(["even", "even"], where=("organic", "in_stock")) is mask
    assert served.snapshot().mask("even", ["in_stock", "organic"]) is mask
    assert served.mask("odd", ["in_stock", "organic"]) is not mask
    with pytest.raises(HfGrError, match="'evn'"):
        served.mask("evn")
    monkeypatch.setattr(recommender, "MAX_KEPT", 3)
    kept = served.mask("Hair Care")
    last = served.mask(where="organic")
    assert len(served._served.masks) == 3
    assert served.mask("Hair Care") is kept and served.mask(where="organic") is last
    assert served.mask("even", ["in_stock", "organic"]) is not mask  # the oldest went
    served.swap(shop())
    assert served.mask("Hair Care") is not kept
    assert served.mask("Hair Care").num_items == 8  # i005 is back


def one_history(rows: list[int]) -> Histories:
    items = np.array(rows, np.int64)
    return Histories(np.array(["u"], dtype=object), np.array([0, len(rows)]), items, np.arange(len(rows)))


def test_a_swapped_catalog_answers(served, repo):
    def found(**filters):
        request = parse_request({"history": ["i001"]} | filters, served.catalog)
        return {served.catalog.item_ids[row] for row in answer(served, [request], top_k=40)[0][0]}

    old = served.snapshot()
    assert found(where="in_stock") == wanted(where="in_stock")
    served.swap(shop([row < 4 for row in range(40)]).removed(["i002"]))
    assert found(where="in_stock") == {"i000", "i001", "i003"}
    assert len(found()) == 39
    assert old.catalog.item_ids == served.catalog.item_ids and old.catalog is not served.catalog
    masks = [old.mask(where="in_stock")]
    assert {f"i{row:03d}" for row in old.recommend(one_history([1]), top_k=40, only=masks)[0][0] if row >= 0} == (
        wanted(where="in_stock")
    )
    before = served.catalog, served.grammar
    with pytest.raises(HfGrError, match="is not the one this model was trained on"):
        served.swap(tiny_catalog(seed=1))
    with pytest.raises(HfGrError, match="no live item"):
        served.swap(shop().removed([f"i{row:03d}" for row in range(40)]))
    assert (served.catalog, served.grammar) == before


def test_a_batch_of_requests_finishes_on_the_catalog_it_began_with(served):
    class Swapping(Recommender):
        def recommend(self, *arguments, **settings):
            found = super().recommend(*arguments, **settings)
            original.swap(shop([row < 4 for row in range(40)]))
            return found

    original = Swapping(served.model, served.tokenizer, served.catalog, served.vocabulary)
    requests = [parse_request({"where": "in_stock"}, original.catalog) for _ in range(2)]
    for expected in (wanted(where="in_stock"), {"i000", "i001", "i002", "i003"}):
        for cap in (None, 40):
            original.swap(shop([row < 4 for row in range(40)]) if len(expected) == 4 else served.catalog)
            found = answer(original, requests, top_k=40, max_per_category=cap, batch_size=1)
            assert [{f"i{row:03d}" for row in rows} for rows, _ in found] == [expected] * 2


def test_requests_never_see_a_mix_of_two_catalogs(recommend):
    """Threads ask while the catalog is swapped to and fro: each list is whole, by the one or by the other state."""
    known = recommend.recommender
    ask = GenerativeRecommendationPipeline(
        known.model, known.tokenizer, catalog=known.catalog, vocabulary=known.vocabulary
    )
    states = []
    for part in range(2):  # in one state all of the first 20 items, in the other all of the last, with titles to match
        catalog = shop([row // 20 == part for row in range(40)]).removed([f"i{row:03d}" for row in range(part, 40, 4)])
        titles = pa.array([f"{part} {row}" for row in range(40)])
        states.append(replace(catalog, items=catalog.items.set_column(1, "title", titles)))
    expected = [
        {(f"i{row:03d}", f"{part} {row}") for row in range(40) if row // 20 == part and row % 4 != part}
        for part in range(2)
    ]
    ask.recommender.swap(states[0])
    seen, wrong, done = [0, 0], [], threading.Event()

    def asking():
        while not done.is_set():
            try:
                found = ask({"history": ["i002"], "where": "in_stock"}, top_k=40, max_per_category=40)
                seen[expected.index({(entry["item_id"], entry["title"]) for entry in found})] += 1
            except Exception as error:  # a list that is of neither state as well
                wrong.append(repr(error))

    interval, swaps = sys.getswitchinterval(), 0
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=asking, daemon=True) for _ in range(2)]
    try:
        for thread in threads:
            thread.start()
        end = time.monotonic() + 60
        while (swaps < 300 or min(seen) < 5) and not wrong and time.monotonic() < end:
            swaps += 1
            ask.recommender.swap(states[swaps % 2])
    finally:
        done.set()
        for thread in threads:
            thread.join(60)
        sys.setswitchinterval(interval)
    assert not wrong
    assert min(seen) >= 5


def test_further_columns_survive(tmp_path):
    shop().save(tmp_path)
    assert SidCatalog.load(tmp_path).items.equals(shop().items)
    np.testing.assert_array_equal(
        SidCatalog.load(tmp_path).matching(where=["in_stock"]), [x is True for x in IN_STOCK]
    )


def test_a_batch_takes_filters_from_the_file_and_for_everyone(repo, recommend, tmp_path):
    users = [
        {"user_id": "ann", "history": ["i001"], "category": "Hair Care", "where": "in_stock", "exclude_seen": True},
        {"user_id": "bob", "history": ["i001"], "category": None, "where": None, "exclude_seen": None},
        {"user_id": "cy", "history": ["i003"], "category": "odd", "where": None, "exclude_seen": False},
    ]
    parquet, csv = tmp_path / "users.parquet", tmp_path / "users.csv"
    pq.write_table(pa.Table.from_pylist(users), parquet)
    csv.write_text(
        "user_id,history,category,where,exclude_seen\n"
        "ann,i001,Hair Care,in_stock,true\nbob,i001,,,\ncy,i003,odd,,false\n"
    )
    quick = {"top_k": 40, "num_beams": 8}

    def batch(name: str, file=parquet, **options):
        return pq.read_table(recommend_batch(repo, file, tmp_path / f"{name}.parquet", **quick, **options))[
            "item_ids"
        ].to_pylist()

    for number, file in enumerate((parquet, csv)):
        ann, bob, cy = batch(f"{number}", file)
        assert set(ann) == wanted("Hair Care", "in_stock") and set(cy) == wanted("odd") and len(bob) == 38
    ann, bob, cy = batch("defaults", defaults={"exclude_seen": True, "category": ["even", "odd"]})
    assert set(bob) == wanted() - {"i001"} and set(cy) == wanted("odd")
    lists = tmp_path / "lists.parquet"
    pq.write_table(pa.Table.from_pylist([{"user_id": "di", "history": [], "category": ["odd", "Hair Care"]}]), lists)
    assert set(batch("of lists", lists)[0]) == wanted(["odd", "Hair Care"])
    with pytest.raises(HfGrError, match="no item is of category 'evn'"):
        batch("wrong", defaults={"category": "evn"})
    csv.write_text("user_id,history,exclude_seen\nann,i001,perhaps\n")
    with pytest.raises(HfGrError, match=r"users\.csv, user 'ann': exclude_seen is 'perhaps'"):
        batch("bad", csv)


def test_the_command_line_takes_categories(repo, tmp_path, capfd):
    command = ["recommend", str(repo), "--top-k", "40", "--category", "Hair Care", "--category", "odd"]
    main([*command, "--history", "i001", "--exclude-seen"])
    printed = capfd.readouterr().out
    shown = {f"i{row:03d}" for row in range(40) if f"i{row:03d}" in printed}
    assert shown == wanted(["Hair Care", "odd"]) - {"i001"}
    users, out = tmp_path / "users.csv", tmp_path / "out.parquet"
    users.write_text("user_id,history\nann,i001\n")
    main([*command, "--exclude-seen", "--users", str(users), "--out", str(out)])
    assert set(pq.read_table(out)["item_ids"].to_pylist()[0]) == shown
    with pytest.raises(SystemExit):
        main(["recommend", str(repo), "--history", "i001", "--category", "evn"])
    assert "error: no item is of category 'evn'; categories are: 'even'" in capfd.readouterr().err


@pytest.mark.parametrize("cap", [1, 3])
def test_a_capped_or_worded_list_is_the_whole_list_without_the_rest(recommend, cap):
    """Caps, categories, columns and what was seen are masks: items, order and scores stay."""
    history, beams = ["i003", "i011"], {"num_beams": 64}
    whole = recommend(history, top_k=40, **beams)
    expected, counts = [], {"even": 0, "odd": 0}
    for entry in whole:
        kind = CATEGORIES[int(entry["item_id"][1:])][0]
        counts[kind] += 1
        expected += [entry] if counts[kind] <= cap else []
    found = recommend(history, top_k=9, max_per_category=cap, **beams)
    assert ids(found) == ids(expected)
    assert [x["score"] for x in found] == pytest.approx([x["score"] for x in expected], abs=1e-4)
    request = {"history": history, "category": "odd", "where": "in_stock", "exclude_seen": True}
    left = [x for x in whole if x["item_id"] in wanted("odd", "in_stock") - set(history)]
    found = recommend(request, top_k=cap + 4, **beams)
    assert ids(found) == ids(left)[: cap + 4]
    assert [x["score"] for x in found] == pytest.approx([x["score"] for x in left[: cap + 4]], abs=1e-4)
