import io
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from hf_gr.catalog import SidCatalog
from hf_gr.cli import main
from hf_gr.dataset import InteractionDataset, popularity
from hf_gr.embedding import EmbedConfig, ItemVectors, embed
from hf_gr.embedding.behavior import cooccurrence
from hf_gr.errors import HfGrError
from hf_gr.quantizers import QuantizeConfig, load_quantizer, quantize
from hf_gr.quantizers.inspection import headline, inspect, print_inspection
from hf_gr.quantizers.inspection_page import write_inspection_page
from hf_gr.quantizers.metrics import codebook_report


EVIL = """<script>alert("1")</script> & 'quoted' $x$"""


@pytest.fixture
def config(dataset_folder: Path, tmp_path: Path) -> QuantizeConfig:
    vectors = EmbedConfig(
        str(dataset_folder), str(tmp_path / "vectors"), sources=["behavior"], weights=[1.0], behavior_dim=8
    )
    return QuantizeConfig(str(dataset_folder), str(embed(vectors)), str(tmp_path / "sids"), levels=2, codebook_size=8)


def test_numbers_are_those_of_the_catalog_and_of_the_quantizers_own_codes(config: QuantizeConfig):
    folder = quantize(replace(config, window=2))
    found = inspect(folder, config.embeddings, config.dataset, k=3)
    dataset, catalog = InteractionDataset.load(config.dataset), SidCatalog.load(folder)
    split, vectors = dataset.split(), ItemVectors.load(config.embeddings).vectors
    quantizer = load_quantizer(folder / "quantizer")
    given = {
        "vectors": vectors,
        "quantizer": quantizer,
        "graph": cooccurrence(split.train, dataset.num_items, 2),
        "targets": split.test.targets,
        "popularity": popularity(split.train, dataset.num_items),
    }
    assert found.catalog == codebook_report(catalog.codes, [8, 8], **given, k=3)
    assert found.quantizer == codebook_report(quantizer.encode(vectors), [8, 8], **given, k=3)
    assert found.catalog["collision_rate"] != found.quantizer["collision_rate"]
    assert found.items_per_code == [np.bincount(column, minlength=8).tolist() for column in catalog.codes.T]
    assert found.settings["window"] == 2


@pytest.mark.parametrize("method", ["rq_kmeans", "rq_vae"])
def test_a_digit_is_a_level_of_the_catalog_alone(config: QuantizeConfig, method: str, tmp_path: Path):
    options = {"method_config": {"epochs": 3}} if method == "rq_vae" else {}
    folder = quantize(replace(config, method=method, collisions="digit", **options))
    found = inspect(folder, config.embeddings, config.dataset)
    assert len(found.catalog["levels"]) == len(found.items_per_code) == 3
    assert len(found.quantizer["levels"]) == 2
    assert found.catalog["error"] == found.quantizer["error"]
    assert len(found.fit_log) == (3 if method == "rq_vae" else 0)
    page = write_inspection_page(tmp_path / "page.html", found).read_text()
    assert ("How it was fitted" in page) == (method == "rq_vae")
    assert printed(found).count("–") > 0  # what a level has no number of


def test_a_catalog_alone_gives_what_codes_allow(config: QuantizeConfig, tmp_path: Path):
    SidCatalog.load(quantize(config)).save(tmp_path / "alone")
    found = inspect(tmp_path / "alone")
    assert found.quantizer is None and found.settings == {} and found.fit_log == []
    assert "events_on_shared_sid" in found.catalog  # the catalog keeps the popularity
    assert not {"error", "semantic_cohesion", "nearest_overlap", "cooccurrence_overlap"} & found.catalog.keys()
    page = write_inspection_page(tmp_path / "page.html", found).read_text()
    assert "What codes keep of the items" not in page and "How this came about" not in page
    assert "error" not in printed(found)


def test_a_method_that_needs_the_graph_is_judged_with_the_dataset_only(config: QuantizeConfig):
    folder = quantize(replace(config, method="coba", method_config={"epochs": 2}))
    without = inspect(folder, config.embeddings)
    assert without.quantizer is None and "error" not in without.catalog and "nearest_overlap" in without.catalog
    assert "error" in inspect(folder, config.embeddings, config.dataset).quantizer


def test_items_that_came_later_have_no_events(config: QuantizeConfig, tmp_path: Path):
    catalog = SidCatalog.load(quantize(config))
    new = pa.table({"item_id": ["new"], "title": ["New"]})
    items = pa.concat_tables([catalog.items.select(["item_id", "title"]), new])
    codes = np.concatenate([catalog.codes, catalog.codes[:1]])
    SidCatalog.from_codes(codes, items, [8, 8]).save(tmp_path / "more")
    found = inspect(tmp_path / "more", dataset=config.dataset)
    assert found.catalog["cooccurrence_overlap"]["items"] <= len(catalog) < found.catalog["items"]


def printed(found) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    print_inspection(found, console=console)
    return console.export_text()


def test_the_headline_says_what_is_wrong(config: QuantizeConfig):
    found = inspect(quantize(replace(config, collisions="keep")), config.embeddings)
    rate, largest = found.catalog["collision_rate"], found.catalog["largest_bucket"]
    assert f"{rate:.1%} share theirs, at most {largest} the same one." in headline(found)[0]
    level = {"size": 256, "used": 48, "use": 48 / 256, "perplexity": 20.0, "skew": 31.0}
    collapsed = replace(found, catalog=found.catalog | {"levels": [level]})
    lines = headline(collapsed)
    assert "Level 1 uses only 48 of its 256 codes." in lines
    assert (
        "The load of level 1 is uneven: as varied as 20 of 256 codes, and the fullest has 31 times its share." in lines
    )
    overlap, chance = (found.catalog["nearest_overlap"][name][0] for name in ("overlap", "chance"))
    assert f"{overlap:.0%} of an item's 10 nearest neighbours have its first code; by chance {chance:.1%}." in lines


class Reader(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.text = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_loads_nothing_and_shows_titles_as_they_are(config: QuantizeConfig, tmp_path: Path):
    folder = quantize(config)
    catalog = SidCatalog.load(folder)
    titles = pa.array([EVIL] * len(catalog))
    replace(catalog, items=catalog.items.set_column(1, "title", titles)).save(folder)
    found = inspect(folder, config.embeddings, config.dataset)
    page = write_inspection_page(tmp_path / "pages" / "page.html", replace(found, name=EVIL)).read_text()
    reader = Reader()
    reader.feed(page)
    assert not reader.open
    assert not {"script", "img", "link", "iframe", "object", "image", "base"} & set(reader.tags)
    for name, value in reader.attributes:
        assert not name.startswith("on") and name not in ("src", "srcset")
        assert name not in ("href", "xlink:href") or value.startswith("#")
    assert "".join(reader.text).count(EVIL) > 5
    assert reader.tags.count("svg") == 2 + 2 + 4  # strips, balance and buckets, what codes keep
    assert "mathdefault" not in page and "#010203" not in page


def test_the_command_prints_and_writes(config: QuantizeConfig, tmp_path: Path, capsys):
    folder = quantize(config)
    files = [tmp_path / "new" / name for name in ("page.html", "numbers.json")]
    given = ["--embeddings", config.embeddings, "--dataset", config.dataset]
    main(["inspect", str(folder), *given, "--out", str(files[0]), "--json", str(files[1])])
    assert "semantic cohesion" in capsys.readouterr().out.replace("\n", " ")
    assert "Semantic IDs of" in files[0].read_text()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    numbers = json.loads(files[1].read_text(), parse_constant=refuse)
    found = inspect(folder, config.embeddings, config.dataset)
    assert numbers == json.loads(json.dumps(found.as_json()))


def test_bad_input_is_refused_in_one_line(config: QuantizeConfig, dataset_folder: Path, tmp_path: Path, capsys):
    folder = quantize(config)
    vectors = ItemVectors.load(config.embeddings)
    ItemVectors(vectors.vectors[:-1].copy()).save(tmp_path / "fewer")
    reordered = vectors.info | {"items_fingerprint": "0123456789abcdef"}
    ItemVectors(vectors.vectors.copy(), reordered).save(tmp_path / "reordered")
    ItemVectors(vectors.vectors[:, :5].copy(), vectors.info).save(tmp_path / "narrow")
    (tmp_path / "empty").mkdir()
    cases = {
        ("empty", None): "catalog.json is missing",
        ("sids", "fewer"): "in their order",
        ("sids", "reordered"): "in their order",
        ("sids", "narrow"): "vectors of width 5, but the quantizer of .* takes 8",
    }
    for (catalog, embeddings), message in cases.items():
        with pytest.raises(HfGrError, match=message) as error:
            inspect(tmp_path / catalog, None if embeddings is None else tmp_path / embeddings)
        assert "\n" not in str(error.value)
    quantize(replace(config, codebook_size=9, output_dir=str(tmp_path / "other")))
    SidCatalog.load(tmp_path / "other").save(folder)
    with pytest.raises(HfGrError, match="do not belong together"):
        inspect(folder)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path / "empty"), "--out", str(tmp_path / "no.html")])
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "no.html").exists()


def test_codebooks_of_groups_are_told_one_by_one(dataset_folder: Path, tmp_path: Path):
    ids = InteractionDataset.load(dataset_folder).item_ids
    random = np.random.default_rng(0)
    save_file(
        {"v": random.normal(size=(len(ids), 5)).astype(np.float32)},
        tmp_path / "seen.safetensors",
        {"item_id": json.dumps(ids)},
    )
    vectors = EmbedConfig(
        str(dataset_folder),
        str(tmp_path / "vectors"),
        sources=["behavior", "file"],
        behavior_dim=8,
        vectors_file=str(tmp_path / "seen.safetensors"),
    )
    fit = {"epochs": 2, "own_experts": 1, "hidden_sizes": [8], "latent_dim": 4}
    config = QuantizeConfig(
        str(dataset_folder), str(embed(vectors)), str(tmp_path / "sids"), "mmq", 4, 4, fit, collisions="digit"
    )
    folder = quantize(config)
    found = inspect(folder, config.embeddings)
    catalog = SidCatalog.load(folder)
    names = ["1 shared", "2 shared", "3 behavior", "4 file", "5"]
    assert found.level_names == names and found.clusters == []
    assert [len(clusters) for clusters in found.by_codebook] == [4] * 4
    for level, clusters in enumerate(found.by_codebook):
        counts = np.bincount(catalog.codes[:, level], minlength=4)
        assert [cluster.items for cluster in clusters] == sorted(counts.tolist(), reverse=True)
        for cluster in clusters:
            rows = np.flatnonzero(catalog.codes[:, level] == cluster.prefix[0])
            assert counts[cluster.prefix[0]] == cluster.items
            assert set(cluster.titles) <= set(catalog.items["title"].take(rows).to_pylist())
    groups = [row["groups"] for row in found.catalog["redundancy_by_group"]]
    assert groups == [
        ["shared", "shared"],
        ["shared", "behavior"],
        ["shared", "file"],
        ["behavior", "file"],
    ]
    page = write_inspection_page(tmp_path / "page.html", found).read_text()
    for part in ("Redundancy by group", "Level 3 behavior", "shared and file", "level 1 shared: 4 of 4 codes"):
        assert part in page, part
    text = printed(found)
    assert "redundancy by group" in text and "3 behavior" in text
    without = inspect(quantize(replace(config, method="rq_kmeans", method_config=None)), config.embeddings)
    assert without.clusters and not without.groups and not without.by_codebook
    assert without.level_names == ["1", "2", "3", "4", "5"]
