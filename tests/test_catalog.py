import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file
from tiny import tiny_catalog, tiny_items

from hf_gr.catalog import CATALOG_FILES, SidCatalog
from hf_gr.errors import HfGrError
from hf_gr.vocabulary import SidVocabulary


def assert_same(found: SidCatalog, expected: SidCatalog) -> None:
    assert found.codebook_sizes == expected.codebook_sizes
    assert found.items.to_pylist() == expected.items.to_pylist()
    assert found.fingerprint == expected.fingerprint
    for name in ("views", "codes", "popularity", "live"):
        one, other = getattr(found, name), getattr(expected, name)
        assert np.array_equal(one, other) and one.dtype == other.dtype, name
    assert len(found.code_vectors) == len(expected.code_vectors)
    for one, other in zip(found.code_vectors, expected.code_vectors, strict=True):
        assert np.array_equal(one, other) and one.dtype == np.float32


@pytest.mark.parametrize("sizes", [(4, 4, 4), (1,), tuple(range(2, 14))])
def test_what_is_saved_is_loaded(sizes, tmp_path):
    catalog = tiny_catalog(sizes=sizes).removed(["i003", "i017"])
    catalog.save(tmp_path / "new" / "catalog")
    assert sorted(p.name for p in (tmp_path / "new" / "catalog").iterdir()) == sorted(CATALOG_FILES)
    assert_same(SidCatalog.load(tmp_path / "new" / "catalog"), catalog)
    assert json.loads((tmp_path / "new" / "catalog" / "catalog.json").read_text())["live_items"] == 38


def test_a_catalog_says_how_collisions_were_resolved(tmp_path):
    catalog = tiny_catalog()
    made = SidCatalog.from_codes(catalog.codes, catalog.items, (4, 4, 4), collisions="sinkhorn")
    made.save(tmp_path)
    assert SidCatalog.load(tmp_path).collisions == made.removed(["i001"]).collisions == "sinkhorn"
    assert made.fingerprint == catalog.fingerprint
    description = json.loads((tmp_path / "catalog.json").read_text())
    del description["collisions"]  # as the first version wrote it
    (tmp_path / "catalog.json").write_text(json.dumps(description))
    assert SidCatalog.load(tmp_path).collisions == catalog.collisions == "keep"


def test_code_vectors_may_be_unknown_and_strided(tmp_path):
    catalog = tiny_catalog()
    wide = np.arange(64, dtype=np.float64).reshape(4, 16)
    strided = SidCatalog.from_codes(catalog.codes[:, ::-1], catalog.items, (4, 4, 4), None, [wide[:, ::2]] * 3)
    strided.save(tmp_path)
    assert np.array_equal(SidCatalog.load(tmp_path).codes, catalog.codes[:, ::-1])
    assert np.array_equal(SidCatalog.load(tmp_path).code_vectors[2], wide[:, ::2])
    bare = SidCatalog.from_codes(catalog.codes, catalog.items, (4, 4, 4))
    bare.save(tmp_path)
    assert SidCatalog.load(tmp_path).code_vectors == () and not SidCatalog.load(tmp_path).popularity.any()


def test_fingerprint_is_of_ids_and_sids_only():
    catalog = tiny_catalog()
    titles = catalog.items.set_column(1, "title", pa.array(["other"] * len(catalog)))
    same = [
        SidCatalog.from_codes(catalog.codes.astype(np.int64), titles, [4, 4, 4]),
        catalog.removed(["i000"]),
    ]
    assert {c.fingerprint for c in same} == {catalog.fingerprint}
    codes = catalog.codes.copy()
    codes[5, 1] = (codes[5, 1] + 1) % 4
    ids = catalog.items.set_column(0, "item_id", pa.array([f"j{row}" for row in range(len(catalog))]))
    others = [
        SidCatalog.from_codes(codes, catalog.items, (4, 4, 4)),
        SidCatalog.from_codes(catalog.codes, ids, (4, 4, 4)),
        SidCatalog.from_codes(catalog.codes, catalog.items, (4, 4, 5)),
    ]
    assert len({c.fingerprint for c in [catalog, *others]}) == 4


@pytest.mark.parametrize("name", ["items.parquet", "catalog.safetensors"])
def test_files_of_two_catalogs_are_refused(name, tmp_path):
    tiny_catalog(seed=0).save(tmp_path / "one")
    other = SidCatalog.from_codes(
        tiny_catalog(seed=1).codes, tiny_items(40).set_column(0, "item_id", pa.array(map(str, range(40)))), (4, 4, 4)
    )
    other.save(tmp_path / "two")
    shutil.copy(tmp_path / "two" / name, tmp_path / "one" / name)
    with pytest.raises(HfGrError, match=r"one: items.parquet and catalog.safetensors do not belong together") as error:
        SidCatalog.load(tmp_path / "one")
    assert tiny_catalog(seed=0).fingerprint in str(error.value) and "write the catalog again" in str(error.value)


@pytest.mark.parametrize("part", ["items.parquet", "codes", "popularity", "live", "code_vectors.1"])
def test_sizes_are_checked_before_a_table_is_read(part, tmp_path, monkeypatch):
    """A few bytes of Parquet may say millions of rows."""
    tiny_catalog().save(tmp_path)
    if part == "items.parquet":
        column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1_000_000, np.int32)), ["i000"])
        pq.write_table(pa.table({"item_id": column, "title": column}), tmp_path / part, compression="zstd")
    else:
        tensors = load_file(tmp_path / "catalog.safetensors")
        save_file(tensors | {part: np.concatenate([tensors[part]] * 2)}, tmp_path / "catalog.safetensors")
    monkeypatch.setattr(pq, "read_table", lambda *_: pytest.fail("the table was read"))
    with pytest.raises(HfGrError, match=rf"{part} is of size \(.*\), but catalog.json tells \(.*\); write"):
        SidCatalog.load(tmp_path)


def test_reordered_items_are_refused(tmp_path):
    catalog = tiny_catalog()
    catalog.save(tmp_path)
    pq.write_table(catalog.items.take(np.arange(len(catalog))[::-1]), tmp_path / "items.parquet")
    with pytest.raises(HfGrError, match="do not belong together"):
        SidCatalog.load(tmp_path)


@pytest.mark.parametrize("name", CATALOG_FILES)
def test_a_missing_file_is_named(name, tmp_path):
    tiny_catalog().save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(HfGrError, match=f"{name} is missing"):
        SidCatalog.load(tmp_path)


def test_removed_items_are_no_answer_but_keep_their_sid():
    catalog = tiny_catalog()
    fewer = catalog.removed(["i001", "i005"]).removed(["i001"])
    assert np.flatnonzero(~fewer.live).tolist() == [1, 5] and catalog.live.all()
    assert np.array_equal(fewer.codes, catalog.codes) and len(fewer) == 40
    assert fewer.fingerprint == catalog.fingerprint
    with pytest.raises(HfGrError, match="item 'nobody' is not in the catalog of 40 items; nothing was changed"):
        catalog.removed(["i001", "nobody"])


def test_rows_and_columns():
    catalog = tiny_catalog()
    assert catalog.num_levels == 3 and len(catalog) == 40
    assert [catalog.item_ids[row] for row in catalog.row_of.values()] == list(catalog.row_of)
    assert catalog.titles[7] == "Title 7" and catalog.categories[7] == ["odd"]
    bare = SidCatalog.from_codes(catalog.codes, catalog.items.drop_columns(["categories"]), (4, 4, 4))
    assert bare.categories == [[]] * 40


ITEMS = tiny_items(3)
CODES = np.array([[0, 1], [1, 1], [0, 0]])


def test_parts_that_do_not_agree_are_refused():
    for codes in (CODES[:2], CODES[:, :1], CODES[:, 0], CODES[..., None]):
        with pytest.raises(HfGrError, match="3 items on 2 levels are needed") as error:
            SidCatalog.from_codes(codes, ITEMS, (2, 2))
        assert f"shape {codes.shape}" in str(error.value)
    for bad, sid in ((2, r"\[1, 2\]"), (-1, r"\[1, -1\]")):
        codes = CODES.copy()
        codes[1, 1] = bad
        with pytest.raises(HfGrError, match=rf"item row 1 has SID {sid}, outside the codebook sizes \[2, 2\]"):
            SidCatalog.from_codes(codes, ITEMS, (2, 2))
    with pytest.raises(HfGrError, match="popularity has 2 entries, but there are 3 items"):
        SidCatalog.from_codes(CODES, ITEMS, (2, 2), popularity=np.zeros(2))
    for vectors in ([np.zeros((2, 5))], [np.zeros((2, 5)), np.zeros((3, 5))]):
        with pytest.raises(HfGrError, match=r"code vectors, but the codebook sizes are \[2, 2\]"):
            SidCatalog.from_codes(CODES, ITEMS, (2, 2), code_vectors=vectors)
    with pytest.raises(HfGrError, match="item_id 'i000' stands in rows 0 and 1"):
        SidCatalog.from_codes(CODES, ITEMS.set_column(0, "item_id", pa.array(["i000"] * 3)), (2, 2))
    assert_same(SidCatalog.from_codes(CODES, ITEMS, (2, 2)), SidCatalog.from_codes(CODES, ITEMS, [2, 2], np.zeros(3)))


def test_extended_puts_new_items_at_the_end():
    catalog = replace(tiny_catalog(), collisions="greedy").removed(["i002"])
    items = pa.table({"color": ["red", "blue"], "title": ["A", "B"], "item_id": ["a", "b"]})
    more = catalog.extended(items, np.array([[0, 1, 2], [3, 3, 3]]))
    assert len(more) == 42 and more.item_ids[-2:] == ["a", "b"] and more.titles[-2:] == ["A", "B"]
    assert more.codes[-2:].tolist() == [[0, 1, 2], [3, 3, 3]] and more.codes.dtype == np.int32
    assert more.items.schema == catalog.items.schema and more.categories[-2:] == [[], []]
    assert np.flatnonzero(~more.live).tolist() == [2] and more.popularity[-2:].tolist() == [0, 0]
    assert more.items.slice(0, 40).equals(catalog.items) and np.array_equal(more.codes[:40], catalog.codes)
    assert np.array_equal(more.popularity[:40], catalog.popularity) and more.collisions == "greedy"
    assert len(more.code_vectors) == 3
    for bad, message in (("i003", "'i003' are in the catalog already"), ("a", "outside the codebook sizes")):
        with pytest.raises(HfGrError, match=message):
            catalog.extended(pa.table({"item_id": [bad], "title": ["C"]}), np.array([[0, 4, 0]]))
    with pytest.raises(HfGrError, match="column 'categories' holds int64"):
        catalog.extended(items.append_column("categories", pa.array([1, 2])), np.zeros((2, 3)))


def test_updated_changes_what_is_given_and_brings_items_back():
    catalog = tiny_catalog().removed(["i002", "i005"])
    given = pa.table({"item_id": ["i005", "i001"], "title": ["five", "one"], "color": ["red", "blue"]})
    now = catalog.updated(given)
    assert (now.titles[1], now.titles[5]) == ("one", "five")
    assert [now.titles[row] for row in (0, 2, 39)] == ["Title 0", "Title 2", "Title 39"]
    assert now.items.schema == catalog.items.schema and now.categories == catalog.categories
    assert np.flatnonzero(~now.live).tolist() == [2] and np.flatnonzero(~catalog.live).tolist() == [2, 5]
    assert now.fingerprint == catalog.fingerprint
    with pytest.raises(HfGrError, match="item 'x' is not in the catalog"):
        catalog.updated(pa.table({"item_id": ["x"], "title": [""]}))


def test_features_number_prefixes_in_mixed_radix():
    codes = np.array([[2, 1, 5], [2, 1, 0], [0, 3, 7]])
    table = SidCatalog.from_codes(codes, tiny_items(3), (4, 4, 8)).features()
    assert table.column_names == ["item_id", "prefix_1", "prefix_2", "prefix_3"]
    assert table["item_id"].to_pylist() == ["i000", "i001", "i002"]
    assert [table[f"prefix_{n}"].to_pylist() for n in (1, 2, 3)] == [[2, 2, 0], [9, 9, 3], [77, 72, 31]]
    assert {str(kind) for kind in table.schema.types[1:]} == {"int64"}


@pytest.mark.parametrize("buckets", [None, 1000])
def test_features_stay_when_items_come_and_go(buckets):
    catalog = tiny_catalog()
    more = catalog.removed(["i004"]).extended(pa.table({"item_id": ["a"], "title": ["A"]}), np.array([[0, 1, 2]]))
    assert more.features(buckets).slice(0, 40).equals(catalog.features(buckets))


def test_hashed_features_keep_prefixes_together_and_spread_them():
    random = np.random.default_rng(0)
    codes = np.unique(random.integers(0, 256, (4000, 3)), axis=0)
    catalog = SidCatalog.from_codes(codes, tiny_items(len(codes)), (256, 256, 256))
    plain, hashed = catalog.features(), catalog.features(512)
    for name in plain.column_names[1:]:
        numbers, rows = plain[name].to_numpy(), hashed[name].to_numpy()
        assert rows.dtype == np.int64 and rows.min() >= 0 and rows.max() < 512
        _, first, group = np.unique(numbers, return_index=True, return_inverse=True)
        assert np.array_equal(rows, rows[first][group])  # equal prefixes, equal rows
        loads = np.bincount(rows[first], minlength=512)
        assert loads.var() / loads.mean() == pytest.approx(1, abs=0.3)  # as of rows drawn at random
    with pytest.raises(HfGrError, match="buckets is 0"):
        catalog.features(0)


def test_numbers_beyond_int64_need_buckets():
    catalog = SidCatalog.from_codes(np.full((3, 8), 255), tiny_items(3), (256,) * 8)
    with pytest.raises(HfGrError, match="outnumber int64; give buckets"):
        catalog.features()
    assert len(set(catalog.features(100)["prefix_8"].to_pylist())) == 1


def several_views(vectors: bool = True) -> SidCatalog:
    """Three views of 40 items on two levels."""
    random = np.random.default_rng(3)
    codes = np.stack([random.integers(0, size, (3, 40)) for size in (4, 5)], axis=2)
    tables = [random.normal(size=(size, 8)) for _ in range(3) for size in (4, 5)] if vectors else []
    return SidCatalog.from_codes(codes, tiny_items(), (4, 5), np.arange(40), tables)


@pytest.mark.parametrize("vectors", [True, False])
def test_several_views_are_saved_loaded_and_told_apart(tmp_path, vectors):
    catalog = several_views(vectors).removed(["i004"])
    catalog.save(tmp_path / "all")
    loaded = SidCatalog.load(tmp_path / "all", several_views=True)
    assert_same(loaded, catalog)
    assert loaded.views.shape == (3, 40, 2) and np.array_equal(loaded.codes, loaded.views[0])
    for number in range(3):
        view = loaded.view(number)
        tables = catalog.code_vectors[2 * number : 2 * number + 2]
        plain = SidCatalog.from_codes(catalog.views[number], tiny_items(), (4, 5), np.arange(40), tables)
        assert_same(view, plain.removed(["i004"]))
        view.save(tmp_path / str(number))
        assert_same(SidCatalog.load(tmp_path / str(number)), view)
    with pytest.raises(HfGrError, match=r"there is no view 3; the catalog has 3, counted from 0"):
        catalog.view(3)


def test_a_reader_of_one_view_refuses_several(tmp_path):
    several_views().save(tmp_path)
    with pytest.raises(HfGrError, match=r"holds 3 views of codes, of which one is read here; save one .*view\(0\)"):
        SidCatalog.load(tmp_path)
    vocabulary = SidVocabulary(((1, 2), (3, 4)), (), 0, "none", {}, 5, "")
    with pytest.raises(HfGrError, match=r"has 3 views of codes, and a model writes one; take catalog\.view"):
        vocabulary.grammar(several_views())


def test_one_view_is_written_as_ever(tmp_path):
    """So that older releases read it."""
    catalog = tiny_catalog()
    again = SidCatalog.from_codes(
        catalog.codes[None], catalog.items, (4, 4, 4), catalog.popularity, catalog.code_vectors
    )
    assert_same(again, catalog)
    for name, one in (("a", catalog), ("b", again)):
        one.save(tmp_path / name)
    assert "views" not in json.loads((tmp_path / "a" / "catalog.json").read_text())
    assert load_file(tmp_path / "a" / "catalog.safetensors")["codes"].shape == (40, 3)
    for name in CATALOG_FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_every_view_counts_in_the_fingerprint_and_grows():
    catalog = several_views()
    prints = {catalog.fingerprint, catalog.view(0).fingerprint}
    for view in range(3):
        codes = catalog.views.copy()
        codes[view, 7, 1] = (codes[view, 7, 1] + 1) % 5
        prints.add(SidCatalog.from_codes(codes, tiny_items(), (4, 5)).fingerprint)
    assert len(prints) == 5
    new = pa.table({"item_id": ["new"], "title": ["New"]})
    grown = catalog.extended(new, np.array([[[1, 2]], [[3, 4]], [[0, 0]]]))
    assert grown.views[:, 40].tolist() == [[1, 2], [3, 4], [0, 0]] and np.array_equal(
        grown.views[:, :40], catalog.views
    )
    assert grown.updated(pa.table({"item_id": ["new"], "title": ["Newer"]})).views.shape == (3, 41, 2)
    with pytest.raises(HfGrError, match=r"the new items have 1 view\(s\) of codes, the catalog 3"):
        catalog.extended(new, np.array([[1, 2]]))
    with pytest.raises(HfGrError, match=r"SID \[4, 0\], outside the codebook sizes \[4, 5\]"):
        catalog.extended(new, np.array([[[1, 2]], [[4, 0]], [[0, 0]]]))
    with pytest.raises(HfGrError, match="5 tables of code vectors for 3 views; give each as many"):
        SidCatalog.from_codes(catalog.views, tiny_items(), (4, 5), code_vectors=catalog.code_vectors[:5])
