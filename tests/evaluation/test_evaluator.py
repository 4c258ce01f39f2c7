import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

import hf_gr.decoding.recommender as recommender_module
from hf_gr.dataset import InteractionDataset, write_dataset
from hf_gr.errors import HfGrError
from hf_gr.evaluation.evaluator import EvaluateConfig, evaluate, print_table
from hf_gr.evaluation.predictions import read_predictions


class StepRecommender:
    """Recommends the successors of the latest item; its catalog is the reversed one of the tiny data set."""

    scorers = mixture = None

    def __init__(self, item_ids):
        size = len(item_ids)
        codes = np.stack([np.arange(size) // 8, np.arange(size) // 2 % 4], axis=1).astype(np.int32)
        self.catalog = SimpleNamespace(codes=codes, codebook_sizes=(8, 4), item_ids=item_ids, fingerprint="f")
        self.model = self.thinking = None

    def answers(self, histories, search, *, exclude=None):
        top_k, reflection = search.top_k, search.reflection
        size, lists = len(self.catalog.item_ids), []
        for row, history in enumerate(histories):
            names = [int(self.catalog.item_ids[item][1:]) for item in history]
            order = [(names[-1] + step) % 40 for step in range(1, 41)] if names else range(40)
            rows = [self.catalog.item_ids.index(f"i{n:03d}") for n in order if f"i{n:03d}" in self.catalog.item_ids]
            kept = [item for item in rows if exclude is None or item not in exclude[row]][:top_k]
            lists.append(kept + [-1] * (top_k - len(kept)))
        assert max(map(max, lists)) < size
        pruned = np.array([len(history) / 20 for history in histories], np.float32) if reflection else None
        if pruned is not None:
            pruned[0] = np.nan
        return recommender_module.Answers(np.array(lists), np.zeros((len(lists), top_k), np.float32), pruned)


@pytest.fixture
def model(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    step = StepRecommender([f"i{n:03d}" for n in reversed(range(40))])
    fake = SimpleNamespace(from_pretrained=lambda path, **_: step)
    monkeypatch.setattr(recommender_module, "Recommender", fake)
    # Drawing takes most of the time: only the tests without a model draw.
    monkeypatch.setattr("hf_gr.evaluation.evaluator.write_report", lambda file, *_: Path(file).write_text("page"))
    return folder


@pytest.fixture
def config(tmp_path, dataset_folder, model):
    def make(**changes):
        settings = {"model": str(model), "top_k": 20, "batch_size": 7, "output_dir": str(tmp_path / "evaluation")}
        return EvaluateConfig(dataset=str(dataset_folder), **(settings | changes))

    return make


def test_stage_writes_everything_and_judges_in_dataset_rows(config):
    result = evaluate(config())
    output = Path(config().output_dir)
    names = {file.name for file in output.iterdir()}
    assert names == {"metrics.json", "predictions.parquet", "report.html", "manifest.json"}
    assert json.loads((output / "metrics.json").read_text()) == result
    assert list(result["systems"]) == ["model", "item kNN", "popularity"]
    split = InteractionDataset.load(config().dataset).split()
    last = np.array([history[-1] for history in split.test.histories])
    hits = (last + 1) % 40 == split.test.targets
    assert result["systems"]["model"]["item"]["HR@1"]["value"] == pytest.approx(hits.mean())
    assert hits.mean() > 0.7
    assert result["systems"]["model"]["sid"]["HR@1"]["value"] > hits.mean() - 1e-9
    assert result["best"]["HR@1"] == "model"
    assert result["catalog"]["collision_rate"] == 1.0
    assert result["systems"]["model"]["invalid_rate"] == 0


def test_the_same_settings_and_inputs_are_up_to_date(config, model, capsys):
    first = evaluate(config())
    capsys.readouterr()
    assert evaluate(config(batch_size=50)) == first
    assert "[evaluate] up to date" in capsys.readouterr().out
    assert evaluate(config(seed=1)) != first
    assert "[evaluate] wrote" in capsys.readouterr().out
    (model / "model.safetensors").write_bytes(b"other weights")
    evaluate(config(seed=1))
    assert "[evaluate] wrote" in capsys.readouterr().out


def test_the_share_of_pruned_paths_is_told(config, tmp_path):
    result = evaluate(config(reflection=0.4, batch_size=1000))
    histories = InteractionDataset.load(config().dataset).split().test.histories
    lengths = np.sort(histories.lengths)[::-1][1:]  # the first of a batch, a longest one, has no share
    assert result["pruned"] == pytest.approx(lengths.mean() / 20, rel=1e-5)
    assert result["settings"]["reflection"] == 0.4
    console = Console(record=True, width=200)
    print_table(result, tmp_path, console=console)
    line = next(line for line in console.export_text().splitlines() if "pruned paths" in line)
    assert f"{result['pruned']:.2%}" in line
    assert "pruned" not in evaluate(config(baselines=False))
    for threshold in (-0.1, 1.1, float("nan")):
        with pytest.raises(HfGrError, match="give a number between 0"):
            config(reflection=threshold)


def test_written_predictions_are_judged_alike(config, tmp_path):
    for split in ("leave_one_out", "temporal"):
        by_model = evaluate(config(split=split))
        file = tmp_path / f"{split}.parquet"
        file.write_bytes((Path(config().output_dir) / "predictions.parquet").read_bytes())
        by_file = evaluate(config(split=split, model=None, predictions=str(file), output_dir=str(tmp_path / split)))
        assert list(by_file["systems"]) == ["predictions", "item kNN", "popularity"]
        assert by_file["systems"]["predictions"]["item"] == by_model["systems"]["model"]["item"]
        assert by_file["systems"]["popularity"]["item"] == by_model["systems"]["popularity"]["item"]


def test_excluded_items_are_in_no_list(config):
    evaluate(config(exclude_seen=True, part="validation"))
    dataset = InteractionDataset.load(config().dataset)
    cases = dataset.split().validation
    lists = read_predictions(Path(config().output_dir) / "predictions.parquet", dataset, cases)
    assert not any(np.isin(row, history).any() for row, history in zip(lists, cases.histories, strict=True))


def test_a_sample_of_users_is_seeded_and_said(config):
    one, two = evaluate(config(max_users=10)), evaluate(config(max_users=10, seed=1))
    assert one["cases"] == two["cases"] == 10 and one["sampled"]
    assert one["systems"] != two["systems"]
    table = pq.read_table(Path(config().output_dir) / "predictions.parquet")
    assert len(set(table["user_id"].to_pylist())) == 10
    temporal = evaluate(config(max_users=10, split="temporal"))
    assert temporal["users"] == 10 < temporal["cases"]
    assert not evaluate(config(max_users=1000))["sampled"]  # there are fewer


def test_a_catalog_with_fewer_items_misses_the_others(config, monkeypatch):
    some = StepRecommender([f"i{n:03d}" for n in range(0, 40, 2)])
    monkeypatch.setattr(recommender_module, "Recommender", SimpleNamespace(from_pretrained=lambda path, **_: some))
    result = evaluate(config(baselines=False))
    cases = InteractionDataset.load(config().dataset).split().test
    lists = pq.read_table(Path(config().output_dir) / "predictions.parquet")["item_ids"].to_pylist()
    assert all(int(item[1:]) % 2 == 0 for row in lists for item in row)
    assert result["systems"]["model"]["item"]["HR@20"]["value"] == pytest.approx((cases.targets % 2 == 0).mean())


def test_a_catalog_with_foreign_items_is_refused(config, monkeypatch):
    foreign = StepRecommender(["i001", "elsewhere"])
    monkeypatch.setattr(recommender_module, "Recommender", SimpleNamespace(from_pretrained=lambda path, **_: foreign))
    with pytest.raises(HfGrError, match="lacks item 'elsewhere'"):
        evaluate(config())
    assert not Path(config().output_dir).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_beams": 10}, "num_beams 10 is less than top_k 20"),
        ({"top_k": 0}, "top_k is 0"),
        ({"max_users": 0}, "max_users is 0"),
        ({"model": None, "baselines": False}, "nothing to evaluate"),
        ({"part": "train"}, "unknown part 'train'"),
    ],
)
def test_bad_settings_are_refused(config, changes, message):
    with pytest.raises(HfGrError, match=message):
        config(**changes)


def test_missing_logs_and_models_are_refused(config, tmp_path):
    with pytest.raises(HfGrError, match=r"training_log\.json does not exist"):
        evaluate(config(logs=[str(tmp_path)]))
    (tmp_path / "training_log.json").write_text("{}")
    with pytest.raises(HfGrError, match="not a list of log entries"):
        evaluate(config(logs=[str(tmp_path)]))
    with pytest.raises(HfGrError, match="neither a folder nor a reachable Hub repo"):
        evaluate(config(model="nobody/nothing"))


def test_table_shows_the_intervals(config):
    result = evaluate(config())
    console = Console(width=160, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    print_table(result, Path("out"), console=console)
    text = console.export_text()
    hr = result["systems"]["item kNN"]["item"]["HR@10"]
    assert f"{hr['value']:.4f} {hr['low']:.4f}–{hr['high']:.4f}".replace(" 0.", " .").replace("–0.", "–.") in text
    assert "out/report.html" in text
    told = " ".join(text.split())
    assert "seen items not removed" in told and "of the targets stand in their own history." in told
    knn = result["item kNN"]
    assert len(knn["trials"]) == 8 and f"{knn['neighbours']} neighbours; chosen among 8 settings" in told
    seen = result["systems"]["model"]["seen_first"]
    assert f"{seen:.2%}" in next(line for line in text.splitlines() if "seen item first" in line)


def test_shares_of_seen_items_equal_a_loop(config):
    result = evaluate(config())
    cases = InteractionDataset.load(config().dataset).split().test
    pairs = list(zip(cases.targets, cases.histories, strict=True))
    assert result["seen_targets"] == pytest.approx(np.mean([target in history for target, history in pairs]))
    lists = pq.read_table(Path(config().output_dir) / "predictions.parquet")["item_ids"].to_pylist()
    first = np.mean([int(row[0][1:]) in history for row, history in zip(lists, cases.histories, strict=True)])
    assert result["systems"]["model"]["seen_first"] == pytest.approx(first)
    without = evaluate(config(exclude_seen=True))
    assert all(system["seen_first"] == 0 for system in without["systems"].values())


def test_targets_that_no_list_may_hold_are_refused(tmp_path):
    import pyarrow as pa

    log = {"user_id": [u for u in "abc" for _ in range(4)], "item_id": ["i1", "i1", "i1", "i1"] * 3}
    items = pa.table({"item_id": ["i0", "i1"], "title": ["", ""]})
    write_dataset(tmp_path / "same", pa.table(log | {"timestamp": list(range(12))}), items, source="Made.")
    paths = {"dataset": str(tmp_path / "same"), "output_dir": str(tmp_path / "out")}
    with pytest.raises(HfGrError, match=r"every target stands in its own history, so with exclude_seen"):
        evaluate(EvaluateConfig(**paths, exclude_seen=True))
    assert evaluate(EvaluateConfig(**paths, top_k=2))["seen_targets"] == 1


def test_scores_that_are_not_finite_stop_the_run(config, monkeypatch):
    step = StepRecommender([f"i{n:03d}" for n in range(40)])
    answers = step.answers

    def broken(histories, search, **settings):
        found = answers(histories, search, **settings)
        return found._replace(scores=np.full_like(found.scores, np.nan))

    step.answers = broken
    monkeypatch.setattr(recommender_module, "Recommender", SimpleNamespace(from_pretrained=lambda path, **_: step))
    with pytest.raises(HfGrError, match="scores are not finite, so they rank nothing") as error:
        evaluate(config())
    assert "\n" not in str(error.value) and not Path(config().output_dir).exists()


def test_real_recommender_gives_valid_items(tiny_model, config, monkeypatch):
    from hf_gr.decoding import Recommender

    real = Recommender(*(tiny_model[i] for i in (0, 1, 2, 3)))
    monkeypatch.setattr(recommender_module, "Recommender", SimpleNamespace(from_pretrained=lambda path, **_: real))
    judged = evaluate(config(max_users=6))["systems"]["model"]
    assert (judged["invalid_rate"], judged["duplicate_rate"], judged["mean_length"]) == (0, 0, 20)


def test_predictions_need_no_torch(dataset_folder, tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None; sys.path[:0] = [sys.argv[3]]\n"
        "from hf_gr.evaluation import EvaluateConfig, evaluate\n"
        "evaluate(EvaluateConfig(dataset=sys.argv[1], output_dir=sys.argv[2]))"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, dataset_folder, tmp_path / "out", root], check=True)
    assert (tmp_path / "out" / "report.html").is_file()


WORKER = """
import sys
sys.path[:0] = sys.argv[1:3]
from types import SimpleNamespace
import accelerate
import hf_gr.decoding.recommender as module
from hf_gr.evaluation import EvaluateConfig, evaluate
from test_evaluator import StepRecommender
step = StepRecommender([f"i{n:03d}" for n in reversed(range(40))])
module.Recommender = SimpleNamespace(from_pretrained=lambda path, **_: step)
dataset, model, output = sys.argv[3:]
result = evaluate(EvaluateConfig(dataset=dataset, model=model, output_dir=output, top_k=20, batch_size=7))
assert accelerate.PartialState().num_processes == 2
assert result["cases"] == 60
accelerate.PartialState().destroy_process_group()
"""


@pytest.mark.slow  # three interpreters import torch
def test_two_processes_give_the_numbers_of_one(config, model, tmp_path):
    alone = evaluate(config())
    (tmp_path / "worker.py").write_text(WORKER)
    here = Path(__file__).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = [tmp_path / "worker.py", here.parents[1], here, config().dataset, model, tmp_path / "shared"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("[evaluate] wrote") == 1
    together = json.loads((tmp_path / "shared" / "metrics.json").read_text())
    assert together["systems"] == alone["systems"]


def test_a_failed_run_leaves_the_earlier_folder(config, monkeypatch):
    first = evaluate(config())

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("hf_gr.evaluation.evaluator.write_report", fail)
    with pytest.raises(OSError, match="disk full"):
        evaluate(config(seed=1))
    assert json.loads((Path(config().output_dir) / "metrics.json").read_text()) == first


def test_titles_are_data(tmp_path, dataset_folder):
    """End to end: a title that is markup is shown as text."""
    import pyarrow as pa

    items = pq.read_table(dataset_folder / "items.parquet")
    evil = pa.array([f"<script>alert({n})</script>" for n in range(items.num_rows)])
    items = items.set_column(items.column_names.index("title"), "title", evil)
    write_dataset(tmp_path / "evil", pq.read_table(dataset_folder / "interactions.parquet"), items, source="Made.")
    evaluate(EvaluateConfig(dataset=str(tmp_path / "evil"), output_dir=str(tmp_path / "out")))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;alert(" in page
