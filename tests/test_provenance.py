"""A model that was trained on one split is not judged on another, nor taught by it."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from tiny import tiny_interactions, tiny_items
from tiny_runs import QUIET, TinyData, grpo_configs, retrieve_configs, sft_configs, tiny_data

from hf_gr.artifacts import read_json, write_json
from hf_gr.blend import blend
from hf_gr.dataset import InteractionDataset, write_dataset
from hf_gr.embedding.stage import EmbedConfig, embed
from hf_gr.errors import HfGrError
from hf_gr.evaluation import EvaluateConfig, evaluate
from hf_gr.grpo import grpo
from hf_gr.hub import repo_files
from hf_gr.interests.labelling import LabelConfig, label
from hf_gr.provenance import TRAINING_DATA_FILE, TrainingData, check_judged, events_fingerprint, learned_from
from hf_gr.quantizers.stage import QuantizeConfig, quantize
from hf_gr.retrieval import retrieve
from hf_gr.sft import sft


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TinyData:
    return tiny_data(tmp_path_factory.mktemp("provenance"))


@pytest.fixture(scope="module")
def model(data):
    return sft(*sft_configs(**data.sft(data.dataset.with_name("start"), max_steps=1)))


@pytest.fixture
def temporal(tmp_path):
    """Something that has learned from the other split."""
    folder = tmp_path / "temporal"
    folder.mkdir()
    TrainingData("temporal").save(folder)
    return folder


def stages(data, model, temporal, out):
    dataset = str(data.dataset)
    catalog = temporal.with_name("catalog")
    shutil.copytree(data.catalog, catalog)
    TrainingData("temporal").save(catalog)
    told = {"interests": str(temporal), "tasks": {"next_item": 1}}
    return {
        "embed": lambda: embed(EmbedConfig(dataset, out, interests=str(temporal), fields=["title", "interests"])),
        "quantize": lambda: quantize(QuantizeConfig(dataset, str(temporal), out)),
        "label": lambda: label(LabelConfig(dataset=dataset, interests=str(temporal), output_dir=out)),
        "sft catalog": lambda: sft(*sft_configs(**data.sft(out) | {"catalog": str(catalog)})),
        "sft model": lambda: sft(*sft_configs(**data.sft(out, continue_from=str(temporal)))),
        "sft interests": lambda: sft(*sft_configs(**data.sft(out) | told)),
        "grpo vectors": lambda: grpo(*grpo_configs(**data.grpo(out, model, embeddings=str(temporal)))),
        "grpo model": lambda: grpo(*grpo_configs(**data.grpo(out, model, split="temporal"))),
        "evaluate": lambda: evaluate(EvaluateConfig(dataset, out, model=str(temporal))),
        "blend": lambda: blend(temporal, model, out),
    }


STAGES = ["embed", "quantize", "label", "sft catalog", "sft model", "sft interests"]
STAGES += ["grpo vectors", "grpo model", "evaluate", "blend"]


@pytest.mark.parametrize("stage", STAGES)
def test_what_has_learned_from_another_split_is_refused(data, model, temporal, tmp_path, stage, monkeypatch):
    if stage == "label":
        monkeypatch.setattr("hf_gr.interests.labelling.Interests.load", lambda _: None)
    with pytest.raises(HfGrError, match=r"has learned from the training part of the split (temporal|leave_one_out)"):
        stages(data, model, temporal, str(tmp_path / "out"))[stage]()
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*/config.json"))


def test_the_record_travels_from_stage_to_stage_and_in_the_repo(data, model, tmp_path):
    dataset = InteractionDataset.load(data.dataset)
    known = TrainingData("leave_one_out", (events_fingerprint(dataset.split().train, dataset.item_ids),))
    assert TrainingData.of(model) == known
    assert TRAINING_DATA_FILE in {file.name for file in repo_files(model)}
    assert read_json(model / "manifest.json")["settings"]["split"] == "leave_one_out"
    rollouts = grpo(*grpo_configs(**data.grpo(tmp_path / "grpo", model, max_steps=1)))
    quiet = QUIET | {"dataset": str(data.dataset), "hidden_size": 16, "max_steps": 1, "patience": 0}
    retriever = retrieve(*retrieve_configs(**quiet, output_dir=str(tmp_path / "r"), eval_strategy="no"))
    vectors = embed(EmbedConfig(str(data.dataset), str(tmp_path / "v"), sources=["behavior"], behavior_dim=4))
    catalog = quantize(QuantizeConfig(str(data.dataset), str(vectors), str(tmp_path / "c"), codebook_size=4))
    for made in (rollouts, retriever, vectors, catalog):
        assert TrainingData.of(made) == known, made
    (vectors / TRAINING_DATA_FILE).write_text('{"split": "leave_one_out", "events": ["f00"]}')
    again = quantize(QuantizeConfig(str(data.dataset), str(vectors), str(tmp_path / "c2"), codebook_size=4))
    assert TrainingData.of(again).events == tuple(sorted(("f00", *known.events)))


def test_a_split_counts_as_itself_whatever_it_is_called(data, tmp_path):
    train = InteractionDataset.load(data.dataset).split().train
    write_json(tmp_path / TRAINING_DATA_FILE, {"split": "temporal:0.80,.1", "events": []})
    for split in ("temporal", "temporal:0.8,0.1"):
        assert learned_from(split, train, range(40), tmp_path).split == "temporal"
    with pytest.raises(HfGrError, match="has learned from the training part of the split temporal,"):
        learned_from("temporal:0.8,0.15", train, range(40), tmp_path)


def test_every_kind_of_split_is_told_from_every_other_and_from_other_targets(data, tmp_path):
    """Targets move the training part of leave-one-out alone; there they are another split."""
    train = InteractionDataset.load(data.dataset).split().train
    bases = ["leave_one_out", "temporal", "temporal:0.7,0.15", "temporal:2014-01-01,2014-06-01", "session"]
    kinds = [
        base + targets for base in [*bases, "column:part", "column:fold"] for targets in ("", "@buy", "@buy,cart")
    ]
    parts = {kind: kind if kind.startswith("leave_one_out") else kind.partition("@")[0] for kind in kinds}
    for known in kinds:
        TrainingData(known).save(tmp_path)
        for split in kinds:
            if parts[known] == parts[split]:
                assert learned_from(split, train, range(40), tmp_path).split == split
                continue
            for refuses in (
                lambda s: learned_from(s, train, range(40), tmp_path),
                lambda s: check_judged(tmp_path, s, train, range(40)),
            ):
                with pytest.raises(HfGrError, match="has learned from the training part of the split"):
                    refuses(split)


def test_judging_on_other_training_events_is_told(data, model, tmp_path, capsys):
    given = {"model": str(model), "baselines": False, "top_k": 5, "num_beams": 5, "max_users": 3}
    evaluate(EvaluateConfig(str(data.dataset), str(tmp_path / "own"), **given))
    assert "[evaluate]" not in capsys.readouterr().out.split("report:")[0].replace("[evaluate] wrote", "")
    other = tmp_path / "other"
    write_dataset(other, tiny_interactions(seed=5), tiny_items(), source="Made for tests.")
    evaluate(EvaluateConfig(str(other), str(tmp_path / "foreign"), **given))
    assert "has learned from other training events than those of this data" in capsys.readouterr().out
    evaluate(EvaluateConfig(str(other), str(tmp_path / "foreign"), **given))
    out = capsys.readouterr().out
    assert "up to date" in out and "has learned from other training events than those of this data" in out


def test_a_result_of_another_split_is_not_shown_again(data, model, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (folder / TRAINING_DATA_FILE).unlink()  # as of a release in which only the manifest told the split
    config = EvaluateConfig(
        str(data.dataset), str(tmp_path / "out"), model=str(folder), baselines=False, top_k=5, num_beams=5, max_users=3
    )
    evaluate(config)
    manifest = read_json(folder / "manifest.json")
    write_json(folder / "manifest.json", manifest | {"settings": manifest["settings"] | {"split": "temporal"}})
    capsys.readouterr()
    with pytest.raises(HfGrError, match="has learned from the training part of the split temporal"):
        evaluate(config)
    assert "up to date" not in capsys.readouterr().out


def test_a_fingerprint_names_events_not_rows(data):
    dataset = InteractionDataset.load(data.dataset)
    train = dataset.split().train
    order = np.random.default_rng(0).permutation(dataset.num_items)
    item_ids = [dataset.item_ids[row] for row in order]
    moved = dataset.aligned(item_ids).split().train
    own = events_fingerprint(train, dataset.item_ids)
    assert events_fingerprint(moved, item_ids) == own
    assert events_fingerprint(replace(train, timestamps=train.timestamps * 1000), dataset.item_ids) == own
    for changed in (replace(train, items=train.items[::-1].copy()), replace(train, user_ids=train.user_ids[::-1])):
        assert events_fingerprint(changed, dataset.item_ids) != own


def test_manifests_of_earlier_releases_tell_the_split(tmp_path):
    assert TrainingData.of(tmp_path) is None
    for stage, settings, split in [
        ("sft", {}, "leave_one_out"),
        ("grpo", {"split": "temporal"}, "temporal"),
        ("quantize", {"split": "temporal"}, "temporal"),
        ("embed", {"sources": ["text"]}, None),
    ]:
        write_json(tmp_path / "manifest.json", {"station": stage, "settings": settings, "inputs": {}})
        assert TrainingData.of(tmp_path) == (None if split is None else TrainingData(split))


@pytest.mark.parametrize("content", [{}, [1], {"split": "temporal"}, {"split": "temporal", "events": None}])
def test_a_broken_record_is_refused_in_a_line(tmp_path, content):
    write_json(tmp_path / TRAINING_DATA_FILE, content)
    with pytest.raises(HfGrError, match="does not say of which split and events"):
        TrainingData.of(tmp_path)
