"""The model repo on disk, its card, and its way to a Hub and back by name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from hub_server import HubServer
from huggingface_hub import ModelCard, constants
from peft import LoraConfig, get_peft_model
from tiny import tiny_catalog, tiny_interactions, tiny_items, tiny_lm, tiny_tokenizer
from transformers import AutoModelForCausalLM, pipeline

from hf_gr.catalog_updates import remove_items
from hf_gr.dataset import write_dataset
from hf_gr.decoding import load_thinking
from hf_gr.errors import HfGrError
from hf_gr.evaluation import EvaluateConfig, evaluate
from hf_gr.hub import PIPELINE_TAG, carry, push_to_hub, save_repo, update_card
from hf_gr.model_card import ranker_card, retriever_card
from hf_gr.models import BSARecConfig, BSARecModel, ClickConfig, ClickModel
from hf_gr.ranking import Ranker
from hf_gr.ranking.features import Features
from hf_gr.retrieval import Retriever
from hf_gr.vocabulary import SidVocabulary, add_vocabulary


ROOT = Path(__file__).parents[1]
REPO = "user/small-model"
REPO_FILES = {
    "README.md",
    "catalog.json",
    "catalog.safetensors",
    "config.json",
    "generation_config.json",
    "gr_pipeline.py",
    "items.parquet",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocabulary.json",
}
CARRIED_FILES = {  # what new items need
    "quantizer/config.json",
    "quantizer/model.safetensors",
    "embedder/embeddings.json",
    "embedder/missing.safetensors",
}
TRAINER_FILES = (
    "training_args.bin",
    "optimizer.pt",
    "trainer_state.json",
    "manifest.json",
    "checkpoint-5/model.safetensors",
    "quantizer/fit.pt",
)


def write_repo(folder: Path, seed: int = 0, form: str = "flat", **details) -> Path:
    model, tokenizer, catalog = tiny_lm(), tiny_tokenizer(), tiny_catalog(seed=seed)
    model.generation_config.update(top_k=5, top_p=0.9, temperature=0.6, repetition_penalty=1.3, do_sample=True)
    vocabulary = add_vocabulary(tokenizer, model, catalog, max_history=10, form=form)
    save_repo(folder, model, tokenizer, catalog, vocabulary, **details)
    return folder


@pytest.fixture(scope="module")
def metrics(tmp_path_factory) -> dict:
    """What the evaluation stage writes, for a tiny model."""
    folder = tmp_path_factory.mktemp("evaluated")
    write_dataset(folder / "data", tiny_interactions(), tiny_items(), source="Made for tests.")
    write_repo(folder / "model")
    config = EvaluateConfig(
        dataset=str(folder / "data"), model=str(folder / "model"), output_dir=str(folder / "out"), top_k=5, num_beams=5
    )
    return evaluate(config)


def test_the_folder_is_a_repo(tmp_path):
    folder = write_repo(tmp_path / "model")
    assert {path.name for path in folder.iterdir()} == REPO_FILES
    config = json.loads((folder / "config.json").read_text())
    assert list(config["custom_pipelines"]) == ["generative-recommender-remote"]  # not the registered task
    assert config["catalog_fingerprint"] == tiny_catalog().fingerprint


def test_the_generation_config_is_neutral(tmp_path):
    folder = write_repo(tmp_path / "model")
    saved = json.loads((folder / "generation_config.json").read_text())
    saved.pop("transformers_version")
    assert saved == {"do_sample": False, "eos_token_id": 1, "pad_token_id": 0}
    loaded = AutoModelForCausalLM.from_pretrained(folder).generation_config
    assert (loaded.top_k, loaded.top_p, loaded.temperature, loaded.repetition_penalty) == (None, None, None, None)


def test_a_repo_made_from_a_repo_has_no_trace_of_it(tmp_path):
    """`config.json` of a model loaded from the Hub names the code of that repo."""
    model, tokenizer, catalog = tiny_lm(), tiny_tokenizer(), tiny_catalog()
    model.config.custom_pipelines = {"old": {"impl": "user/old--gr_pipeline.Old", "pt": ["AutoModel"]}}
    model.config.catalog_fingerprint = "old"
    save_repo(tmp_path, model, tokenizer, catalog, add_vocabulary(tokenizer, model, catalog, max_history=3))
    assert "old" not in (tmp_path / "config.json").read_text()


def test_a_foreign_vocabulary_is_refused(tmp_path, tiny_model):
    model, tokenizer, _, vocabulary = tiny_model
    with pytest.raises(HfGrError, match="is not the one this model was trained on"):
        save_repo(tmp_path, model, tokenizer, tiny_catalog(seed=1), vocabulary)


def test_a_model_with_adapters_is_no_repo(tmp_path):
    catalog, tokenizer, model = tiny_catalog(), tiny_tokenizer(), tiny_lm()
    vocabulary = add_vocabulary(tokenizer, model, catalog, max_history=4)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(HfGrError, match="merge_and_unload"):
        save_repo(tmp_path / "model", adapted, tokenizer, catalog, vocabulary)
    assert not (tmp_path / "model").exists()


def test_card_before_and_after_evaluation(tmp_path, metrics):
    folder = write_repo(tmp_path / "model", base_model="user/base")
    card = ModelCard.load(folder / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("hf_gr", "generative-recommendation")
    assert (card.data.base_model, card.data.license) == ("user/base", "unknown")
    assert "Not evaluated yet" in card.text and "semantic-ids" in card.data.tags
    file = folder / "README.md"
    own = "\nA word of mine.\n\n## Limits\n\nMine too: | items | 7 |\n"
    file.write_text(file.read_text() + own)
    update_card(folder, metrics)
    update_card(folder, metrics)  # replaces, never appends
    assert file.read_text().endswith(own)
    measured = ModelCard.load(folder / "README.md")
    index = measured.data.to_dict()
    (results,) = index.pop("model-index")[0]["results"]
    assert index == card.data.to_dict()
    assert results["task"]["type"] == PIPELINE_TAG
    assert results["dataset"] == {"name": "data", "type": "unknown", "split": "test"}
    assert {metric["name"]: metric["value"] for metric in results["metrics"]} == {
        name: numbers["value"]
        for name, numbers in metrics["systems"]["model"]["item"].items()
        if name.startswith(("HR@", "NDCG@"))
    }
    assert "Not evaluated yet" not in measured.text and measured.text.count("## Measured") == 1
    for name in ("HR@5", "NDCG@5"):
        v = metrics["systems"]["model"]["item"][name]
        (line,) = [line for line in measured.text.splitlines() if line.startswith(f"| {name} |")]
        assert line.startswith(f"| {name} | {v['value']:.4f} [{v['low']:.4f}, {v['high']:.4f}] |")
        assert line.count("[") == len(metrics["systems"]) == 3
    for said in (
        "leave_one_out, test part",
        "not left out",
        "5 beams",
        "seed 0",
        "60 users",
        "torch 2",
        "measured by",
    ):
        assert (said in measured.text) == (said != "measured by")
    assert write_repo(tmp_path / "at once", metrics=metrics).joinpath("README.md").read_text().count("| HR@5 |") == 1


_OTHERS = """model-index:
- name: mine
  results:
  - task: {type: text-generation}
    dataset: {type: wikitext, name: WikiText}
    metrics:
    - {type: perplexity, value: 12.5}

# behind a blank line
    - {type: loss, value: 2.5}
"""


def test_metadata_of_a_person_stay(tmp_path, metrics):
    """The block of results alone is written anew, and other results stay in it."""
    file = write_repo(tmp_path / "model") / "README.md"
    top = "---\nlicense: 'mit'  # chosen with care\nlanguage:   no\n"
    own = f"{_OTHERS}tags: [mine]\n---\n"
    file.write_text(top + own + file.read_text().split("---\n", 2)[2])
    update_card(file.parent, metrics)
    card = file.read_text()
    assert card.startswith(f"{top}tags: [mine]\nmodel-index:\n- name: mine\n") and card.count("model-index:") == 1
    loaded = ModelCard.load(file).data.eval_results
    others = [(r.dataset_name, r.metric_type, r.metric_value) for r in loaded if r.task_type != PIPELINE_TAG]
    assert others == [("WikiText", "perplexity", 12.5), ("WikiText", "loss", 2.5)]
    assert sum(result.metric_name == "HR@5" for result in loaded) == 1
    update_card(file.parent, metrics)
    assert file.read_text() == card


def test_metadata_that_cannot_be_read_are_refused(tmp_path, metrics):
    file = write_repo(tmp_path / "model") / "README.md"
    for broken in ("a: [1\n", "- a list\n", "model-index: [{name: x}]\n"):
        file.write_text(f"---\n{broken}---\n\n## Measured\n")
        with pytest.raises(HfGrError, match=r"the metadata at the top of README\.md cannot be read"):
            update_card(tmp_path / "model", metrics)
        assert file.read_text() == f"---\n{broken}---\n\n## Measured\n"


@pytest.mark.parametrize("block", ["license: mit\n# ---- mine ----\ntags: [mine]\n", ""])
def test_metadata_end_at_a_line_of_three_dashes_alone(tmp_path, metrics, block):
    file = write_repo(tmp_path / "model") / "README.md"
    file.write_text(f"---\n{block}---\n\n## Measured\n")
    update_card(tmp_path / "model", metrics)
    card = file.read_text()
    assert card.startswith(f"---\n{block}model-index:\n") and card.count("\n---\n") == 1
    assert ModelCard.load(file).data.to_dict().keys() == {*yaml.safe_load(block or "{}"), "model-index"}


def test_a_card_without_metadata_gets_the_results_alone(tmp_path, metrics):
    file = tmp_path / "README.md"
    file.write_text("# Mine\n\n## Measured\n")
    update_card(tmp_path, metrics)
    assert ModelCard.load(file).data.to_dict().keys() == {"model-index"}
    assert file.read_text().count("\n# Mine\n") == 1


@pytest.mark.parametrize("base", ["wheel:smollm2-135m-instruct", "LOCAL"])
def test_no_path_of_this_machine_on_a_repo(tmp_path, base, metrics):
    local = tmp_path / "made" / "before"
    local.mkdir(parents=True)
    folder = write_repo(tmp_path / "model", base_model=str(local) if base == "LOCAL" else base, metrics=metrics)
    for file in folder.iterdir():
        assert str(tmp_path.parent).encode() not in file.read_bytes(), file.name
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model is None
    assert f"| made from | {'before' if base == 'LOCAL' else 'smollm2-135m-instruct'} |" in card.text


def test_update_card_wants_metrics_of_a_model(tmp_path, metrics):
    others = {name: system for name, system in metrics["systems"].items() if name != "model"}
    with pytest.raises(HfGrError, match=r"these metrics are of .+, not of a model; evaluate this one with --model"):
        update_card(tmp_path, metrics | {"systems": others | {"predictions": {}}})


def test_update_card_wants_a_card(tmp_path, metrics):
    with pytest.raises(HfGrError, match=r"README\.md is missing"):
        update_card(tmp_path, metrics)
    (tmp_path / "README.md").write_text("# Mine\n")
    with pytest.raises(HfGrError, match="no heading '## Measured'"):
        update_card(tmp_path, metrics)
    assert (tmp_path / "README.md").read_text() == "# Mine\n"


# What an earlier push may have left, and what a person may have put there.
STALE = ("thinking.json", "interests.parquet", "model-00001-of-00002.safetensors", "quantizer/old.safetensors")
OWN = {"notes.md": b"mine", "images/logo.png": b"mine", "onnx/model.safetensors": b"mine", "data.parquet": b"mine"}


@pytest.fixture(scope="module")
def pushed(tmp_path_factory, metrics):
    """A Hub that holds three pushes of a repo, the first for another catalog, the last without two items, and the
    folder of the last."""
    folder = write_repo(tmp_path_factory.mktemp("pushed") / "model", seed=1)
    for name in (*TRAINER_FILES, *CARRIED_FILES):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"for others" if name in CARRIED_FILES else b"not for others")
    with HubServer() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setenv("HF_TOKEN", "hf_secret")
        push_to_hub(folder, REPO, private=True)
        files = dict(hub.repos[REPO].commits[-1][1]) | OWN | dict.fromkeys(STALE, b"of another model")
        files["README.md"] += b"\n## Limits\n\nWritten on the Hub.\n"
        files["README.md"] = files["README.md"].replace(b"license: unknown", b"license: mit")
        hub.repos[REPO].commit(files)
        write_repo(folder, metrics=metrics)
        push_to_hub(folder, REPO)
        remove_items(folder, ["i002", "i003"])
        assert push_to_hub(folder, REPO) == f"{hub.url}/{REPO}"
        yield hub, folder


def test_only_the_repo_goes_up(pushed):
    hub, folder = pushed
    repo = hub.repos[REPO]
    assert repo.private
    assert len(repo.commits) == 5  # one when it was made, one a push, and one of a person
    _, files = repo.at("main")
    assert set(files) == REPO_FILES | CARRIED_FILES | OWN.keys() | {".gitattributes"}
    assert files | OWN == files
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    card = files["README.md"].decode()
    assert f"- name: {REPO}\n" not in card  # measured on the items of before
    assert f"- name: {REPO}\n" in repo.commits[3][1]["README.md"].decode()
    assert f'model="{REPO}"' in card and "your-name" not in card and "| HR@5 |" in card
    assert card.count("## Limits\n\nWritten on the Hub.") == 1 and "license: mit" in card
    assert "Bearer hf_secret" in hub.tokens
    assert not any(b"hf_secret" in content for content in files.values())


def test_a_retriever_goes_up_and_comes_down(pushed, tmp_path):
    hub, _ = pushed
    folder = tmp_path / "retriever"
    BSARecModel(BSARecConfig(40, 8)).save_pretrained(folder)
    pq.write_table(tiny_items(), folder / "items.parquet")
    with pytest.raises(HfGrError, match=r"README\.md is missing; push a model folder made by .*`hf-gr retrieve`"):
        push_to_hub(folder, "user/retriever")
    (folder / "README.md").write_text(str(retriever_card(40)))
    push_to_hub(folder, "user/retriever")
    _, files = hub.repos["user/retriever"].at("main")
    assert set(files) == {".gitattributes", "README.md", "config.json", "model.safetensors", "items.parquet"}
    assert b'from_pretrained("user/retriever")' in files["README.md"]
    assert len(Retriever.from_pretrained(folder).item_ids) == 40


def test_a_click_model_goes_up_and_comes_down(pushed, tmp_path):
    hub, _ = pushed
    folder = tmp_path / "ranker"
    ranker = Ranker(ClickModel(ClickConfig(40, hidden_size=8)), tiny_items(), Features())
    ranker.save_pretrained(folder)
    with pytest.raises(HfGrError, match=r"README\.md is missing; push a model folder made by .*`hf-gr rank`"):
        push_to_hub(folder, "user/ranker")
    (folder / "README.md").write_text(str(ranker_card(40)))
    push_to_hub(folder, "user/ranker")
    _, files = hub.repos["user/ranker"].at("main")
    beside = {"config.json", "model.safetensors", "items.parquet", "ranking.json"}
    assert set(files) == {".gitattributes", "README.md"} | beside
    assert b'from_pretrained("user/ranker")' in files["README.md"]
    history, candidates = ["i001", "i002"], ["i003", "i004"]
    found = Ranker.from_pretrained(folder).score(history, candidates)
    assert found.tolist() == ranker.score(history, candidates).tolist()


def test_thoughts_are_carried_to_models_that_think(tmp_path):
    source, flat = tmp_path / "source", write_repo(tmp_path / "flat")
    source.mkdir()
    for name in ("thinking.json", "thinking.safetensors"):
        (source / name).write_text("heads")
    carry(source, flat)
    assert not (flat / "thinking.json").exists()
    thinking = write_repo(tmp_path / "thinking", form="stepwise")
    carry(source, thinking)
    assert (thinking / "thinking.json").read_text() == "heads"
    assert load_thinking(flat, tiny_catalog(), SidVocabulary.load(flat)) is None


def test_what_cannot_be_pushed_gets_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = write_repo(tmp_path / "model")
    for name in (REPO, "not a name"):
        with pytest.raises(HfGrError, match=f"cannot push to {name} "):
            push_to_hub(folder, name)
    (folder / "catalog.json").unlink()
    with pytest.raises(HfGrError, match=r"catalog\.json is missing"):
        push_to_hub(folder, REPO)


_REGISTERED = """
import json
import hf_gr
import hf_gr.decoding
import hf_gr.pipeline
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
answers = dict(first=pipeline("generative-recommendation", model="{repo}")(["i001"], top_k=4))
for name, revision in dict(old="{old}", second="{second}").items():
    answers[name] = pipeline("generative-recommendation", model="{repo}", revision=revision)(["i001"], top_k=40)
model = AutoModelForCausalLM.from_pretrained("{repo}", revision="{old}")
tokenizer = AutoTokenizer.from_pretrained("{repo}", revision="{old}")
try:
    hf_gr.pipeline.GenerativeRecommendationPipeline(model, tokenizer)
except hf_gr.HfGrError as error:
    answers["refused"] = str(error)
own = hf_gr.pipeline.GenerativeRecommendationPipeline(model, tokenizer, catalog_revision="{old}")
answers["own"] = own(["i001"], top_k=40)
recommender = hf_gr.decoding.Recommender.from_pretrained("{repo}", revision="{second}")
answers["live"] = int(recommender.catalog.live.sum())
constants.HF_HUB_OFFLINE = True  # from here on every request to the Hub raises
answers["offline"] = pipeline("generative-recommendation", model="{repo}")(["i001"], top_k=4)
print(json.dumps(answers))
"""
_REMOTE = """
import importlib, json, sys
from transformers import pipeline
from transformers.pipelines import check_task
answers = dict(first=pipeline(model="{repo}", trust_remote_code=True)(["i001"], top_k=4))
second = pipeline(model="{repo}", trust_remote_code=True, revision="{second}")
answers["second"] = second(["i001"], top_k=40)
check_task("generative-recommendation")  # the remote code has imported hf_gr, after transformers.pipelines
for module in ("hf_gr", "hf_gr.pipeline"):
    importlib.reload(sys.modules[module])
print(json.dumps(answers))
"""


def fresh_process(code: str, home: Path, **environment: str):
    """Runs code where nothing but the installed packages and `environment` is known."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    told = {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=kept | told | environment, cwd=home, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "already registered" not in done.stderr and "No files matched" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_repo_works_by_its_name(pushed, tmp_path):
    """With `import hf_gr` and no remote code, online and off; and by remote code without that import."""
    hub, folder = pushed
    expected = pipeline("generative-recommendation", model=str(folder))(["i001"], top_k=4)
    second = hub.repos[REPO].commits[3][0]
    code = _REGISTERED.format(repo=REPO, old=hub.repos[REPO].commits[1][0], second=second)
    answers = fresh_process(code, tmp_path, HF_ENDPOINT=hub.url)
    assert answers["first"] == answers["offline"] == expected
    assert "of a Hub repo from one revision" in answers["refused"] and answers["own"] == answers["old"]
    assert [entry["sid"] for entry in answers["old"][:4]] != [entry["sid"] for entry in expected]
    assert len(answers["second"]) == answers["live"] == 40  # the items that were there then, not those of today
    assert not any("gr_pipeline.py" in line for line in hub.log)  # no remote code was even fetched
    remote = fresh_process(_REMOTE.format(repo=REPO, second=second), tmp_path, HF_ENDPOINT=hub.url)
    assert remote == {"first": expected, "second": answers["second"]}
    assert any("gr_pipeline.py" in line for line in hub.log)


def test_what_new_items_need_comes_down_again(pushed, tmp_path):
    code = f"from pathlib import Path; from hf_gr.hub import carry; carry('{REPO}', Path('model')); print('[]')"
    fresh_process(code, tmp_path, HF_ENDPOINT=pushed[0].url)
    found = {file.relative_to(tmp_path / "model").as_posix() for file in (tmp_path / "model").glob("*/*")}
    assert found == CARRIED_FILES
    assert (tmp_path / "model" / "quantizer" / "config.json").read_bytes() == b"for others"


def test_a_model_without_what_new_items_need_stays_valid(tmp_path):
    carry(write_repo(tmp_path / "older"), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_without_the_package_the_remote_code_says_what_to_install(pushed, tmp_path):
    _, folder = pushed
    code = f"import sys; sys.modules['hf_gr'] = None\nexec(open({str(folder / 'gr_pipeline.py')!r}).read())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert "pip install hf-gr" in done.stderr.splitlines()[-1]


def test_the_card_names_the_registered_task():
    from hf_gr.pipeline import TASK

    assert PIPELINE_TAG == TASK
