"""Trainings under a split of target behaviors choose by those behaviors, and are judged on no other split."""

import numpy as np
import pyarrow as pa
import pytest
from tiny import tiny_interactions, tiny_items
from tiny_runs import QUIET, TinyData, distinct_catalog, grpo_configs, retrieve_configs, sft_configs

import hf_gr.retrieval.trainer
from hf_gr.dataset import write_dataset
from hf_gr.errors import HfGrError
from hf_gr.evaluation import EvaluateConfig, evaluate
from hf_gr.grpo import grpo
from hf_gr.provenance import TrainingData
from hf_gr.retrieval import retrieve
from hf_gr.sft import sft
from hf_gr.validation import Validation


SPLIT = "leave_one_out@buy"
MEASURED = {"split": SPLIT, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "max_steps": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TinyData:
    folder = tmp_path_factory.mktemp("targets")
    data = TinyData(folder / "dataset", folder / "catalog")
    write_dataset(data.dataset, log(), tiny_items(), source="Made for tests.")
    distinct_catalog().save(data.catalog)
    return data


def log() -> pa.Table:
    table = tiny_interactions()
    bought = np.random.default_rng(3).random(table.num_rows) < 0.3
    place = table.column_names.index("behavior")
    return table.set_column(place, "behavior", pa.array(np.where(bought, "buy", "view")))


def chosen_by(targets: str) -> list[int]:
    """Rows of the items that validation predicts: of every user the last event but one that is a target, if something
    stands before it."""
    rows = []
    for _, events in log().to_pandas().groupby("user_id"):
        wanted = events.index[events.behavior.isin(targets.split(","))]
        if len(wanted) >= 2 and wanted[-2] > events.index[0]:
            rows.append(int(events.item_id[wanted[-2]][1:]))
    return sorted(rows)


@pytest.fixture
def measured(monkeypatch) -> list[list[int]]:
    """Targets of every validation that trainings make."""
    seen = []
    measure, places = Validation.measure, hf_gr.retrieval.trainer.target_places

    def measuring(self, *args, **given):
        seen.append(sorted(self.targets.tolist()))
        return measure(self, *args, **given)

    def placing(plain, cases, *args):
        seen.append(sorted(cases.targets.tolist()))
        return places(plain, cases, *args)

    monkeypatch.setattr(Validation, "measure", measuring)
    monkeypatch.setattr(hf_gr.retrieval.trainer, "target_places", placing)
    return seen


def test_trainings_choose_on_targets_and_are_judged_on_their_split_alone(data, tmp_path, measured):
    wanted = chosen_by("buy")
    assert wanted and wanted != chosen_by("buy,view")
    model = sft(*sft_configs(**data.sft(tmp_path / "sft", **MEASURED, eval_beams=10)))
    models = [model, grpo(*grpo_configs(**data.grpo(tmp_path / "grpo", model, **MEASURED, eval_beams=10)))]
    settings = QUIET | {"dataset": str(data.dataset), "hidden_size": 16} | MEASURED
    models.append(retrieve(*retrieve_configs(**settings, output_dir=str(tmp_path / "retrieve"))))
    assert len(measured) >= 3 and all(targets == wanted for targets in measured)
    for place, trained in enumerate(models):
        assert TrainingData.of(trained).split == SPLIT
        out = str(tmp_path / f"evaluation{place}")
        given = {"model": str(trained), "baselines": False, "num_beams": 5, "top_k": 5, "max_users": 5}
        for split in ("leave_one_out", "leave_one_out@view", "temporal"):
            with pytest.raises(HfGrError, match=rf"learned from the training part of the split {SPLIT}"):
                evaluate(EvaluateConfig(str(data.dataset), out, split=split, **given))
        evaluate(EvaluateConfig(str(data.dataset), out, split=SPLIT, **given))
    with pytest.raises(HfGrError, match=rf"learned from the training part of the split {SPLIT}"):
        grpo(*grpo_configs(**data.grpo(tmp_path / "other", model, max_steps=1)))
