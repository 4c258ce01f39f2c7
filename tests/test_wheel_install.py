"""The wheel in an environment of its own, outside the checkout: from `prepare` to `recommend` in an empty folder."""

import gzip
import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from tiny import tiny_interactions, tiny_items
from tiny_runs import QUIET, SCRATCH, arguments


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """An environment that holds the wheel alone; its dependencies are those of this interpreter, by a path file.

    What stands in a path file comes after the environment's own packages, and the path files in there (such as that of
    an editable install of this checkout) do not count: it is the wheel that is imported.
    """
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder / "dist"), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (folder / "dist").glob("*.whl")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    purelib = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True
    )
    (Path(purelib.stdout.strip()) / "zz_dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "env"


def run(environment: Path, work: Path, *command: object) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(environment / "bin" / str(command[0])), *map(str, command[1:])],
        cwd=work,
        env=clean | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
def test_from_prepare_to_recommend_in_an_empty_folder(environment, tmp_path):
    script = (
        "import hf_gr, data_prep, pathlib; folder = pathlib.Path(hf_gr.__file__).parent; "
        "print(folder, pathlib.Path(data_prep.__file__).parent, (folder / 'py.typed').is_file())"
    )
    package, sources, typed = run(environment, tmp_path, "python", "-c", script).split()
    assert Path(package).is_relative_to(environment) and Path(sources).is_relative_to(environment)
    assert typed == "True"

    csv.write_csv(tiny_interactions(), tmp_path / "ratings.csv")
    csv.write_csv(tiny_items().select(["item_id", "title"]), tmp_path / "titles.csv")
    vectors = {"config": "amazon-scientific/embed-behavior", "output_dir": "vectors", "behavior_dim": 8}
    sids = {"embeddings": "vectors", "output_dir": "sids", "codebook_size": 4}
    sft = QUIET | SCRATCH | {"catalog": "sids", "output_dir": "sft", "max_steps": 5}
    grpo = QUIET | {"model": "sft/model", "output_dir": "grpo", "max_steps": 2, "num_generations": 4}
    judge = {"model": "grpo/model", "output_dir": "evaluation", "num_beams": 10, "top_k": 10}
    roads = {"embed": vectors, "quantize": sids, "sft": sft}
    roads |= {"grpo": grpo | {"per_device_train_batch_size": 8}, "evaluate": judge}
    run(environment, tmp_path, "hf-gr", "prepare", "table", "ratings.csv", "--items", "titles.csv", "--out", "dataset")
    # one process, since most of a command's time is importing
    lines = [[stage, *arguments({"dataset": "dataset"} | settings)] for stage, settings in roads.items()]
    out = run(environment, tmp_path, "python", "-c", f"import hf_gr.cli\nfor line in {lines}: hf_gr.cli.main(line)")
    assert all(f"[{stage}] wrote" in out for stage in roads)
    out = run(environment, tmp_path, "hf-gr", "recommend", "grpo/model", "--history", "i001,i002", "--top-k", "5")
    items = re.findall(r"\bi\d{3}\b", out)
    assert len(items) == len(set(items)) == 5


@pytest.mark.slow
def test_a_shipped_suite_runs_in_an_empty_folder(environment, tmp_path):
    """From raw files to the page: suites and their recipes are those of the wheel, and no checkout is near."""
    raw = tmp_path / "data" / "amazon18_scientific"
    raw.mkdir(parents=True)
    csv.write_csv(tiny_interactions(300, 300), tmp_path / "log.csv")
    (raw / "interactions.csv.gz").write_bytes(gzip.compress((tmp_path / "log.csv").read_bytes()))
    items = "\n".join(json.dumps(row) for row in tiny_items(300).select(["item_id", "title"]).to_pylist())
    (raw / "items.jsonl.gz").write_bytes(gzip.compress(items.encode()))
    work = tmp_path / "work"
    work.mkdir()
    assert "scientific" in run(environment, work, "hf-gr", "bench")
    raw = ["--data", tmp_path / "data"]
    run(environment, work, "hf-gr", "bench", "scientific", *raw, "--cells", "scientific/item-knn-s0")
    page = work / "bench" / "RESULTS.md"
    assert "| item-item kNN (window " in page.read_text()
    (commands,) = pq.read_table(page.parent / "results" / "scientific.parquet")["commands"].to_pylist()
    assert commands.startswith("hf-gr prepare table DATA/amazon18_scientific/") and str(tmp_path) not in commands
    cells = run(environment, work, "hf-gr", "bench", "scientific", *raw, "--list")
    assert "scientific/flat-s0" in cells and "done" in cells
