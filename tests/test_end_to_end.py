"""One road by the command line, from two CSV files to recommendations; then again, and with one setting changed."""

import re
from pathlib import Path

import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from tiny import NUM_ITEMS, tiny_interactions, tiny_items
from tiny_runs import QUIET, SCRATCH, arguments

from hf_gr.artifacts import read_json
from hf_gr.cli import main
from hf_gr.dataset import InteractionDataset
from hf_gr.evaluation.predictions import read_predictions


STAGES = ["prepare", "embed", "quantize", "sft", "grpo", "evaluate"]


def commands(folder: Path, codebook_size: int = 4) -> list[list[str]]:
    """Every stage's command line."""
    dataset, vectors, sids = folder / "dataset", folder / "vectors", folder / "sids"
    model, final = folder / "sft" / "model", folder / "grpo" / "model"
    given = {"dataset": dataset}
    quantizer = {"embeddings": vectors, "output_dir": sids, "codebook_size": codebook_size}
    teacher = QUIET | SCRATCH | {"catalog": sids, "output_dir": folder / "sft", "max_steps": 40, "learning_rate": 3e-3}
    grpo = QUIET | {"model": model, "output_dir": folder / "grpo", "max_steps": 3, "num_generations": 8}
    judge = {"model": final, "output_dir": folder / "evaluation", "num_beams": 40, "top_k": 40}
    return [
        [
            "prepare",
            "table",
            str(folder / "ratings.csv"),
            "--items",
            str(folder / "titles.csv"),
            "--out",
            str(dataset),
        ],
        [
            "embed",
            *arguments(given | {"output_dir": vectors, "behavior_dim": 8}),
            "--sources",
            "behavior",
            "--weights",
            "1",
        ],
        ["quantize", *arguments(given | quantizer)],
        ["sft", *arguments(given | teacher)],
        ["grpo", *arguments(given | grpo | {"per_device_train_batch_size": 16})],
        ["evaluate", *arguments(given | judge), "--logs", str(model), str(final)],
    ]


def run_all(folder: Path, capfd, **changes: int) -> dict[str, str]:
    """Runs every stage; which of them wrote and which were up to date."""
    verdicts = {}
    for stage, command in zip(STAGES, commands(folder, **changes), strict=True):
        capfd.readouterr()
        main(command)
        said = re.findall(rf"^\[{stage}\] (wrote|up to date)", capfd.readouterr().out, flags=re.MULTILINE)
        assert len(said) == 1, (stage, said)
        verdicts[stage] = said[0]
    return verdicts


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("road")
    csv.write_csv(tiny_interactions(), folder / "ratings.csv")
    csv.write_csv(tiny_items().select(["item_id", "title"]), folder / "titles.csv")
    return folder


def test_the_road_and_what_is_made_again(folder, capfd):
    assert run_all(folder, capfd) == dict.fromkeys(STAGES, "wrote")
    check_answers(folder, capfd)
    assert run_all(folder, capfd) == dict.fromkeys(STAGES, "up to date")
    fresh = {"prepare": "up to date", "embed": "up to date"}
    assert run_all(folder, capfd, codebook_size=5) == dict.fromkeys(STAGES, "wrote") | fresh
    check_answers(folder, capfd)


def check_answers(folder: Path, capfd) -> None:
    """Nothing invalid, min(top_k, live items) distinct items, by every way of asking."""
    metrics = read_json(folder / "evaluation" / "metrics.json")
    assert metrics["systems"]["model"]["invalid_rate"] == 0 and metrics["systems"]["model"]["duplicate_rate"] == 0
    dataset = InteractionDataset.load(folder / "dataset")
    assert (len(dataset.events), dataset.num_items) == (60, NUM_ITEMS)
    lists = read_predictions(folder / "evaluation" / "predictions.parquet", dataset, dataset.split().test)
    assert all(sorted(row) == list(range(NUM_ITEMS)) for row in lists.tolist())
    learned = metrics["systems"]["model"]["item"]["HR@5"]["value"]
    assert learned > 1.5 * metrics["systems"]["popularity"]["item"]["HR@5"]["value"]
    report = (folder / "evaluation" / "report.html").read_text()
    assert "<svg" in report or "data:image" in report

    final = str(folder / "grpo" / "model")
    for top_k, history in ((3, "i001,i002"), (10, ""), (60, "i039,i000,i001")):
        main(["recommend", final, "--history", history, "--top-k", str(top_k)])
        items = re.findall(r"\bi\d{3}\b", capfd.readouterr().out)
        assert len(items) == len(set(items)) == min(top_k, NUM_ITEMS)
    out = folder / "answers.parquet"
    main(["recommend", final, "--users", str(folder / "dataset"), "--out", str(out), "--top-k", "60"])
    answers = pq.read_table(out)["item_ids"].to_pylist()
    assert len(answers) == 60 and all(sorted(items) == dataset.item_ids for items in answers)
