"""The command line: every bad input gets one line and a non-zero exit, and leaves earlier artifacts whole."""

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file
from tiny import tiny_catalog, tiny_interactions, tiny_items, tiny_tokenizer
from tiny_runs import TinyData, arguments, sft_configs, tiny_data

import hf_gr.cli
from hf_gr.arguments import configs_of, parse_config
from hf_gr.artifacts import fingerprint
from hf_gr.catalog import SidCatalog
from hf_gr.cli import main
from hf_gr.dataset import write_dataset
from hf_gr.embedding import EmbedConfig, embed
from hf_gr.grpo import GRPO_CONFIGS
from hf_gr.ranking import RANK_CONFIGS
from hf_gr.retrieval import RETRIEVE_CONFIGS
from hf_gr.sft import SFT_CONFIGS, sft


INTERACTIONS = "user_id,item_id,timestamp\nann,a,1\nann,b,2\nann,c,3\nbob,b,1\nbob,c,2\nbob,a,3\n"
ITEMS = "item_id,title\na,Alpha\nb,Beta\nc,Gamma\n"


@dataclasses.dataclass(frozen=True)
class Road:
    """A dataset, its vectors, a catalog and an (untrained) model of it."""

    data: TinyData
    vectors: Path
    model: Path

    def embed(self, out: Path, **changes: object) -> list[str]:
        settings = {"dataset": self.data.dataset, "output_dir": out, "sources": "behavior", "weights": 1}
        return ["embed", *arguments(settings | changes)]

    def quantize(self, out: Path, **changes: object) -> list[str]:
        settings = {"dataset": self.data.dataset, "embeddings": self.vectors, "output_dir": out, "codebook_size": 4}
        return ["quantize", *arguments(settings | changes)]

    def sft(self, out: Path, **changes: object) -> list[str]:
        return ["sft", *arguments(self.data.sft(out, max_steps=2) | changes)]

    def grpo(self, out: Path, **changes: object) -> list[str]:
        return ["grpo", *arguments(self.data.grpo(out, self.model, max_steps=2) | changes)]

    def evaluate(self, out: Path, **changes: object) -> list[str]:
        settings = {"dataset": self.data.dataset, "model": self.model, "output_dir": out, "num_beams": 10, "top_k": 10}
        return ["evaluate", *arguments(settings | changes)]


@pytest.fixture(scope="module")
def road(tmp_path_factory) -> Road:
    data = tiny_data(tmp_path_factory.mktemp("cli"))
    vectors = data.dataset.with_name("vectors")
    embed(EmbedConfig(str(data.dataset), str(vectors), sources=["behavior"], weights=[1.0], behavior_dim=8))
    return Road(data, vectors, sft(*sft_configs(**data.sft(data.dataset.with_name("sft"), max_steps=2))))


@pytest.fixture
def refused(capfd):
    """Runs a command that must fail; returns its one line, and sees that `whole` is as it was and alone."""

    def run(command: list[str], whole: Path | None = None, status: int = 1) -> str:
        before = None if whole is None else (fingerprint(whole), sorted(path.name for path in whole.parent.iterdir()))
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit:
            main(list(map(str, command)))
        out, err = capfd.readouterr()
        assert exit.value.code == status
        assert "Traceback" not in out + err
        lines = err.splitlines()
        assert [line for line in lines if line.lower().startswith("error")] == lines[-1:], err
        assert lines[-1].startswith("error: ")
        if whole is not None:
            assert (fingerprint(whole), sorted(path.name for path in whole.parent.iterdir())) == before
        return lines[-1]

    return run


# Bad input, in the order of the stages


def test_a_recipe_cannot_set_the_environment(tmp_path, refused, monkeypatch):
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("env: {HF_ENDPOINT: http://elsewhere}\ndataset: data\noutput_dir: out\n")
    for stage in ("embed", "sft", "evaluate"):
        assert re.search(r"recipe\.yaml: there is no setting 'env'", refused([stage, "--config", recipe]))
    assert "HF_ENDPOINT" not in os.environ


@pytest.fixture
def prepared(tmp_path) -> Path:
    folder = tmp_path / "out" / "dataset"
    write_dataset(folder, tiny_interactions(), tiny_items(), source="An earlier one.")
    return folder


TABLES = {
    "empty file": ("", ITEMS, r"interactions.csv is empty; download or export it again"),
    "only a header": ("user_id,item_id,timestamp\n", ITEMS, r"interactions.csv .*no interactions"),
    "missing column": (
        "user_id,item_id\nann,a\n",
        ITEMS,
        r"interactions.csv has neither a column 'timestamp' nor 'position'; map the time",
    ),
    "missing id": (
        "who,item_id,timestamp\na,b,1\n",
        ITEMS,
        r"no column 'user_id' \(it has: who, item_id, timestamp\)",
    ),
    "duplicate item ids": (INTERACTIONS, ITEMS + "a,Again\n", r"items.csv.*'a' stands in rows 1 and 4"),
    "unknown item": (INTERACTIONS + "bob,zebra,4\n", ITEMS, r"interactions.csv.*'zebra' of user 'bob'"),
    "no number": (INTERACTIONS + "bob,a,soon\n", ITEMS, r"interactions.csv.*'soon'"),
}


@pytest.mark.parametrize("case", TABLES)
def test_bad_tables(case, tmp_path, prepared, refused):
    interactions, items, expected = TABLES[case]
    (tmp_path / "interactions.csv").write_text(interactions)
    (tmp_path / "items.csv").write_text(items)
    command = ["prepare", "table", tmp_path / "interactions.csv", "--items", tmp_path / "items.csv", "--out", prepared]
    line = refused(command, prepared)
    assert re.search(expected, line), line


def test_a_log_in_which_nobody_comes_back(tmp_path, road, refused):
    table = tiny_interactions()
    pairs = pa.array([f"u{row // 2}" for row in range(len(table))])
    write_dataset(tmp_path / "dataset", table.set_column(0, "user_id", pairs), tiny_items(), source="Made for tests.")
    short = {"dataset": tmp_path / "dataset"}
    out = tmp_path / "out"
    for command in (road.embed(out), road.quantize(out), road.sft(out), road.grpo(out), road.evaluate(out)):
        line = refused(swapped(command, short))
        assert "user(s) has 3 events, but leave-one-out needs one each" in line
        assert not list(tmp_path.glob("out/*model*")) and not (out / "manifest.json").exists()


def swapped(command: list[str], changes: dict[str, object]) -> list[str]:
    """The command with other values behind some of its options."""
    command = list(map(str, command))
    for name, value in changes.items():
        command[command.index(f"--{name}") + 1] = str(value)
    return command


@pytest.mark.parametrize("damage", ["empty file", "missing column", "duplicate item ids", "unknown item"])
def test_damaged_dataset_folders(damage, tmp_path, road, refused):
    shutil.copytree(road.data.dataset, tmp_path / "dataset")
    items, interactions = (tmp_path / "dataset" / f"{name}.parquet" for name in ("items", "interactions"))
    expected = {
        "empty file": r"interactions.parquet is not a Parquet file",
        "missing column": r"interactions.parquet has no column 'item_id' \(it has: user_id, timestamp",
        "duplicate item ids": r"items.parquet: item_id 'i000' stands in rows 0 and 40",
        "unknown item": r"interactions.parquet: \d+ interaction\(s\) name an item that is not among the items",
    }
    if damage == "empty file":
        interactions.write_bytes(b"")
    elif damage == "missing column":
        pq.write_table(tiny_interactions().drop_columns(["item_id"]), interactions)
    elif damage == "duplicate item ids":
        pq.write_table(pa.concat_tables([tiny_items(), tiny_items().slice(0, 1)]), items)
    else:
        pq.write_table(tiny_items(30), items)
    out = tmp_path / "out"
    for command in (road.embed(out), road.quantize(out), road.sft(out), road.grpo(out), road.evaluate(out)):
        line = refused(swapped(command, {"dataset": tmp_path / "dataset"}))
        assert re.search(expected[damage], line), line
        assert not (out / "manifest.json").exists() and not (out / "model").exists()


def test_vectors_that_are_not_finite(tmp_path, road, refused):
    main(list(map(str, road.quantize(tmp_path / "out" / "sids"))))
    shutil.copytree(road.vectors, tmp_path / "vectors")
    vectors = load_file(tmp_path / "vectors" / "embeddings.safetensors")["vectors"].copy()
    vectors[7, 3] = np.nan
    save_file({"vectors": vectors}, tmp_path / "vectors" / "embeddings.safetensors")
    command = road.quantize(tmp_path / "out" / "sids", embeddings=tmp_path / "vectors")
    line = refused(command, tmp_path / "out" / "sids")
    assert "embeddings.safetensors: the vector of item row 7 holds NaN" in line


def test_fewer_items_than_codes(tmp_path, road, refused):
    main(list(map(str, road.quantize(tmp_path / "out" / "sids"))))
    line = refused(road.quantize(tmp_path / "out" / "sids", codebook_size=64), tmp_path / "out" / "sids")
    assert "40" in line and "64" in line and "codebook_size" in line


def test_unknown_ids_in_a_history(road, refused, caplog):
    command = ["recommend", str(road.model), "--history", "i001,zebra"]
    assert "'zebra'" in refused([*command, "--strict"])
    main(command)
    assert "'zebra'; skipped" in caplog.text


def test_a_folder_beside_the_model(road, refused, tmp_path):
    """The slips that are made most: the run's folder, the catalog's, the data set's."""
    run, catalog, dataset = road.model.parent, road.data.catalog, road.data.dataset
    for folder, expected in (
        (run, f"its model is {road.model}"),
        (catalog, f"it is a catalog: train one with `hf-gr sft --catalog {catalog}`"),
        (dataset, f"it is a dataset: train one with `hf-gr sft --dataset {dataset}`"),
        (tmp_path, "train one with `hf-gr sft`"),
    ):
        out = tmp_path / "out.parquet"
        for rest in (["--history", "i001"], ["--users", road.data.dataset, "--out", out]):
            line = refused(["recommend", folder, *rest])
            assert f"{folder} has no vocabulary.json: it is no model of hf_gr; {expected}" in line, line
    line = refused(swapped(road.evaluate(tmp_path / "out"), {"model": run}))
    assert f"its model is {road.model}" in line


@pytest.mark.parametrize("damage", ["catalog", "tokenizer", "vocabulary", "half a catalog"])
def test_a_model_whose_parts_do_not_match(damage, tmp_path, road, refused):
    model = tmp_path / "model"
    shutil.copytree(road.model, model)
    if damage == "catalog":
        tiny_catalog(seed=5).save(model)
    elif damage == "half a catalog":
        tiny_catalog(seed=5).save(tmp_path / "other")
        shutil.copy(tmp_path / "other" / "catalog.safetensors", model)
    elif damage == "tokenizer":
        tiny_tokenizer().save_pretrained(model)
    else:
        (model / "vocabulary.json").unlink()
    expected = {
        "catalog": r"not the one this model was trained on .*train again|made for catalog \w+, but this is catalog",
        "half a catalog": r"do not belong together .*write the catalog again",
        "tokenizer": r"tokenizer does not hold the catalog's tokens .*saved with the model",
        "vocabulary": r"has no vocabulary.json: .*train one with `hf-gr sft`",
    }[damage]
    out = tmp_path / "out"
    commands = [
        ["recommend", model, "--history", "i001"],
        ["recommend", model, "--users", road.data.dataset, "--out", tmp_path / "out.parquet"],
        swapped(road.grpo(out), {"model": model}),
        swapped(road.evaluate(out), {"model": model}),
    ]
    if damage != "half a catalog":  # SFT takes the catalog that it is given
        other = model if damage == "catalog" else road.data.catalog
        commands.append([*swapped(road.sft(out), {"catalog": other}), "--from", model])
    for command in commands:
        line = refused(command)
        assert re.search(expected, line), line
    assert not (tmp_path / "out.parquet").exists() and not (out / "model").exists()


@pytest.mark.parametrize(
    ("command", "status", "expected"),
    [
        (["bogus"], 2, "No such command 'bogus'"),
        (["recommend"], 2, "Missing argument 'model'"),
        (["prepare", "table", "x.csv"], 2, "Missing option '--out'"),
        (["recommend", "x", "--top-k", "2.5"], 2, "Invalid value for '--top-k': "),
        (["recommend", "x", "--reflection", "much"], 2, "Invalid value for '--reflection': "),
        (["remove-items", "x"], 1, "give item ids, or --file with one id a line"),
        (["remove-items", "x", "a", "--file", "ids.txt"], 1, "give item ids, or --file with one id a line"),
        (["remove-items", "x", "--file", "/nowhere.txt"], 1, "/nowhere.txt cannot be read"),
        (["remove-items", "x", "--file", "."], 1, ". cannot be read"),
        (["remove-items", "x", "--file", "empty.txt"], 1, "empty.txt holds no item ids; give at least one"),
        (["remove-items", "x", " , "], 1, "the list holds no item ids; give at least one"),
        (["remove-items", "x", "a", "--otu", "y"], 2, "unexpected extra argument"),
        (["recommend", "x", "--history", "['a' 'b']"], 1, "begins as a list and cannot be read as one"),
        (["recommend", "x", "--users", "u.csv", "--out", "o.csv"], 1, "o.csv does not end in .parquet"),
        (["prepare", "table", "/nowhere/x.csv", "--out", "out"], 1, "/nowhere/x.csv is not a file"),
        (
            ["prepare", "table", "/nowhere/x.csv", "--out", "out", "--column", "a"],
            1,
            "'a' is not of the form OURS=THEIRS",
        ),
        (["embed"], 1, "--dataset"),
        (["embed", "--config"], 1, "--config names no file"),
        (["embed", "--config", "/nowhere.yaml"], 1, "/nowhere.yaml cannot be read"),
        (["embed", "--config", "broken.yaml"], 1, "broken.yaml is not valid YAML"),
        (["embed", "--config", "unknown.yaml"], 1, "colour"),
        (["embed", "--config", "list.yaml"], 1, "list.yaml holds no keys and values"),
        (["sft", "--output_dir", "x", "--colour", "red"], 1, "['--colour', 'red']"),
        (["sft", "--output_dir", "x", "--max_steps", "many"], 1, "invalid int value: 'many'"),
        (["sft", "--output_dir", "x", "--loss", "small"], 1, "invalid choice: 'small'"),
        (["sft", "--output_dir", "x"], 1, "dataset is not set; give --dataset"),
        (["sft", "--output_dir", "x", "--dataset", "/nowhere", "--catalog", "/nowhere"], 1, "/nowhere does not exist"),
        (["grpo", "--output_dir", "x", "--dataset", "."], 1, "model is not set; give --model"),
        (["grpo", "--output_dir", "x", "--num_generations", "7"], 1, "must be divisible by num_generations (7)"),
        (["evaluate", "--dataset", "x", "--output_dir", "x", "--top_k", "0"], 1, "top_k is 0; it must be at least 1"),
        (["recommend", "/nowhere", "--history", "a"], 1, "'/nowhere' is neither a folder nor a reachable Hub repo"),
        (["recommend", "nobody/nothing", "--history", "a"], 1, "'nobody/nothing' is neither a folder nor a reachable"),
        (["recommend", "x"], 1, "give --history ID,ID"),
        (["recommend", "x", "--users", "u.csv"], 1, "--users needs --out"),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else "",
)
def test_bad_options(command, status, expected, tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    (tmp_path / "unknown.yaml").write_text("dataset: d\noutput_dir: o\ncolour: red\n")
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "empty.txt").write_text("\n \n")
    assert expected in refused(command, status=status)


STAGES = ["embed", "mine", "quantize", "label", "sft", "grpo", "retrieve", "rank", "evaluate"]


@pytest.mark.parametrize("stage", STAGES)
def test_the_help_of_a_stage_names_its_command(stage, capsys):
    with pytest.raises(SystemExit):
        main([stage, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: hf-gr {stage} ")


def test_options_left_out_are_the_defaults_of_the_config():
    """The parser loses some defaults (of unions with lists), which no test of the config alone would see."""
    for kinds in (SFT_CONFIGS, GRPO_CONFIGS, RETRIEVE_CONFIGS, RANK_CONFIGS):
        by_parser, by_hand = parse_config(kinds, ["--output_dir", "x"]), configs_of(kinds, output_dir="x")
        for kind, parsed, made in zip(kinds, by_parser, by_hand, strict=True):
            assert type(parsed) is type(made) is kind
            for field in dataclasses.fields(kind):
                assert repr(vars(parsed)[field.name]) == repr(vars(made)[field.name]), field.name
    by_parser, by_hand = parse_config(EmbedConfig, ["--dataset", "d", "--output_dir", "x"]), EmbedConfig("d", "x")
    assert by_parser == by_hand


def test_a_config_file_is_overridden_by_options(tmp_path):
    (tmp_path / "embed.yaml").write_text("dataset: d\noutput_dir: o\nsources: [behavior]\nweights: [2.0]\nwindow: 3\n")
    config = parse_config(EmbedConfig, ["--config", str(tmp_path / "embed.yaml"), "--window", "7"])
    assert config == EmbedConfig("d", "o", sources=["behavior"], weights=[2.0], window=7)


# Trouble from outside


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own; skips the test where it may not be mounted."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, leave: int) -> None:
    """Leaves so many bytes free."""
    free = shutil.disk_usage(disk).free
    (disk / "filler").write_bytes(b"\0" * max(0, free - leave))


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="needs the right to mount a small file system"
)
@pytest.mark.parametrize("leave", [0, 8_192])
@pytest.mark.parametrize(
    "stage", ["prepare", "embed", "quantize", "sft", "sft, a checkpoint", "grpo", "evaluate", "recommend"]
)
def test_a_full_disk(stage, leave, tmp_path, road, refused):
    with small_disk(tmp_path / "disk", "24m") as disk:
        out = disk / "made" / "it"
        (tmp_path / "users.csv").write_text("user_id,history\nann,i001 i002\n")
        table = tmp_path / "interactions.parquet"
        pq.write_table(tiny_interactions(num_users=300), table)
        batch = disk / "made" / "answers.parquet"
        first, again, whole = {
            "prepare": (
                ["prepare", "table", table, "--out", out, "--min-rating", "4"],
                ["prepare", "table", table, "--out", out],
                out,
            ),
            "embed": (road.embed(out, behavior_dim=4), road.embed(out, behavior_dim=16), out),
            "quantize": (road.quantize(out), road.quantize(out, seed=1), out),
            "sft": (road.sft(out), road.sft(out, seed=1), out / "model"),
            "sft, a checkpoint": (
                road.sft(out),
                swapped(road.sft(out, seed=1, save_steps=1), {"save_strategy": "steps"}),
                out / "model",
            ),
            "grpo": (road.grpo(out), road.grpo(out, seed=1), out / "model"),
            "evaluate": (road.evaluate(out), road.evaluate(out, seed=1), out),
            "recommend": (
                ["recommend", road.model, "--users", tmp_path / "users.csv", "--out", batch],
                ["recommend", road.model, "--users", road.data.dataset, "--out", batch],
                batch,
            ),
        }[stage]
        main(list(map(str, first)))
        before = fingerprint(whole)
        fill(disk, leave)
        line = refused(again)
        assert line.startswith("error: the disk is full") and "free some space" in line, line
        assert fingerprint(whole) == before
        (disk / "filler").unlink()
        main(list(map(str, again)))  # with some space the same command goes through
        assert fingerprint(whole) != before


def test_a_full_disk_by_any_of_its_names(monkeypatch, refused):
    """Not every library raises an OSError with an errno."""
    import safetensors

    errors = [
        OSError(28, "No space left on device", "/data/x"),
        OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"),
        safetensors.SafetensorError('IoError(Os { code: 28, kind: StorageFull, message: "No space left on device" })'),
        OSError(122, "Disk quota exceeded", "/data/x"),
    ]
    for error in errors:
        monkeypatch.setattr(hf_gr.cli, "_ids", raising(error))
        line = refused(["recommend", ".", "--history", "a"])
        assert line.startswith("error: the disk is full")
        assert ("/data/x" in line) == (getattr(error, "filename", None) is not None)


def raising(error: BaseException):
    def function(*_, **__):
        raise error

    return function


def test_ctrl_c_in_a_command(monkeypatch, refused):
    monkeypatch.setattr(hf_gr.cli, "_ids", raising(KeyboardInterrupt()))
    assert "interrupted; earlier artifacts are whole" in refused(["recommend", ".", "--history", "a"], status=130)


def test_ctrl_c_while_training(tmp_path, road):
    out = tmp_path / "out"
    main(list(map(str, road.sft(out))))
    before = fingerprint(out / "model")
    command = swapped(road.sft(out, save_steps=5, seed=3), {"max_steps": 5000, "save_strategy": "steps"})
    process = subprocess.Popen(
        [sys.executable, "-m", "hf_gr.cli", *command],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
    try:
        deadline = time.monotonic() + 300  # the first import of everything may take long
        while time.monotonic() < deadline:
            if list(out.glob("run-*/checkpoint-*/trainer_state.json")) or process.poll() is not None:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("error: interrupted; earlier artifacts are whole")
    assert "Traceback" not in err
    assert fingerprint(out / "model") == before
    assert {path.name.split("-")[0] for path in out.iterdir()} == {"model", "run"}  # the checkpoints to go on from


def test_debug_shows_the_traceback(capfd, tmp_path):
    for place in (0, 2):
        command = ["recommend", str(tmp_path / "nothing"), "--history", "a"]
        command.insert(place, "--debug")
        with pytest.raises(SystemExit):
            main(command)
        err = capfd.readouterr().err
        assert err.startswith("Traceback") and "hf_gr.errors.HfGrError" in err
        assert err.splitlines()[-1].startswith("error: model")


def test_what_nobody_foresaw_is_one_line_too(monkeypatch, refused):
    monkeypatch.setattr(hf_gr.cli, "_ids", raising(ZeroDivisionError("first line\nsecond line")))
    line = refused(["recommend", ".", "--history", "a"])
    assert line == (
        "error: ZeroDivisionError: first line (an unforeseen error; run again with --debug for the traceback)"
    )


# Help and answers


@pytest.mark.parametrize("command", [[], ["--help"], ["prepare"]])
def test_help(command, capfd):
    main(command)
    out = capfd.readouterr().out
    names = ("movielens", "table", "minionerec") if command == ["prepare"] else ("prepare", "sft", "recommend", "push")
    assert all(name in out for name in names)


def test_help_of_a_stage_documents_every_key(capfd):
    with pytest.raises(SystemExit) as exit:
        main(["embed", "--help"])
    out = capfd.readouterr().out
    assert exit.value.code == 0
    assert all(f"--{field.name}" in out for field in dataclasses.fields(EmbedConfig))


def items_in(table: str) -> list[str]:
    return re.findall(r"\bi\d{3}\b", table)


def test_recommend_prints_a_table(road, capfd):
    main(["recommend", str(road.model), "--history", "i001, i002", "--exclude", "i005", "--top-k", "7"])
    items = items_in(capfd.readouterr().out)
    assert len(items) == len(set(items)) == 7 and "i005" not in items
    main(["recommend", str(road.model), "--history", "", "--top-k", "100", "--num-beams", "100"])
    assert sorted(items_in(capfd.readouterr().out)) == [f"i{item:03d}" for item in range(40)]  # a cold user


def test_titles_are_no_markup(road, tmp_path, capfd):
    folder = tmp_path / "model"
    shutil.copytree(road.model, folder)
    catalog = SidCatalog.load(folder)
    titles = ["Adapter [/usb]", "usb cable [white] 2m", "[link=https://e.org]Hammer[/link]", "a\x1b[31mb", "x" * 900]
    titles = [*titles, *catalog.titles[len(titles) :]]
    place = catalog.items.column_names.index("title")
    dataclasses.replace(catalog, items=catalog.items.set_column(place, "title", [titles])).save(folder)
    main(["recommend", str(folder), "--history", "i001", "--top-k", "40", "--explain"])
    out = capfd.readouterr().out
    assert "\x1b[31m" not in out and "]8;" not in out and len(out.splitlines()) < 200
    words = " ".join(out.replace("│", " ").split())
    for part in ("Adapter", "[/usb]", "[white]", "[/link]", "�[31"):
        assert part in words, part


def test_ids_of_any_form_on_the_command_line(road, tmp_path, capfd):
    """Negative ones, ones with commas and blanks, a long list of them."""
    folder = tmp_path / "catalog"
    shutil.copytree(road.data.catalog, folder)
    catalog = SidCatalog.load(folder)
    ids = ["-1023", "a, b", " c", "item 4", "2020-01-01", "007", *(f"B00{'X' * 10}{row}" for row in range(34))]
    place = catalog.items.column_names.index("item_id")
    dataclasses.replace(catalog, items=catalog.items.set_column(place, "item_id", [ids])).save(folder)

    def removed(*rest: object) -> list[str]:
        main(["remove-items", str(folder), *map(str, rest), "--out", str(tmp_path / "out")])
        live = SidCatalog.load(tmp_path / "out").live
        shutil.rmtree(tmp_path / "out")
        return [item_id for item_id, kept in zip(ids, live, strict=True) if not kept]

    assert removed("-1023") == ["-1023"]
    assert removed("-1023,007, 2020-01-01") == ["-1023", "2020-01-01", "007"]
    assert removed('["a, b", " c"]') == ["a, b", " c"]
    assert removed(",".join(ids[3:39])) == ids[3:39]  # 600 characters
    (tmp_path / "ids.txt").write_text("a, b\n c\r\n-1023\n\n")
    assert removed("--file", tmp_path / "ids.txt") == ["-1023", "a, b", " c"]


def test_recommend_a_file_of_users(road, tmp_path, capfd):
    users, out = tmp_path / "users.csv", tmp_path / "answers.parquet"
    users.write_text("user_id,history\nann,i001 i002\nbob,\n7,i003 zebra\n")
    main(["recommend", str(road.model), "--users", str(users), "--out", str(out), "--top-k", "5"])
    assert f"[recommend] wrote {out}" in capfd.readouterr().out
    table = pq.read_table(out).to_pydict()
    assert table["user_id"] == ["ann", "bob", "7"]
    assert [len(set(items)) for items in table["item_ids"]] == [5, 5, 5]
    known = set(tiny_items()["item_id"].to_pylist())
    assert all(set(items) <= known for items in table["item_ids"])


def test_prepare_leaves_without_taking_the_interpreter_apart(monkeypatch, tmp_path, capsys):
    """Threads of Daft crash an interpreter that ends, so the status is told to the system after all was written."""
    left = []

    def leave(status):
        left.append(status)
        raise SystemExit(status)

    monkeypatch.setattr("os._exit", leave)
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\nu,a,soon\n")
    for words, status in (
        (["prepare", "table", str(tmp_path / "log.csv"), "--out", str(tmp_path / "out")], 1),
        (["prepare", "table", "--nonsense"], 2),
        (["prepare", "--help"], 0),
        (["--debug", "prepare", "table", "--nonsense"], 2),
    ):
        monkeypatch.setattr("sys.argv", ["hf-gr", *words])
        with pytest.raises(SystemExit):
            main()
        assert left.pop() == status
    assert "error: " in capsys.readouterr().err
