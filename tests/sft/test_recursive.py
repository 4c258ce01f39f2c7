"""Items of one position: the loss against a listing of the items, runs of every kind, GRPO, and the way to users."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import HubServer
from huggingface_hub import constants
from safetensors.torch import load_file
from searching import RECURSIVE, build, every_sid
from tiny_runs import TinyData, arguments, grpo_configs, held_out, hit_rate, sft_configs, tiny_data
from transformers import AutoModelForCausalLM, Qwen3Config, pipeline

from hf_gr.decoding import Recommender
from hf_gr.errors import HfGrError
from hf_gr.grpo import grpo
from hf_gr.hub import push_to_hub
from hf_gr.models import IntRRForCausalLM, last_hidden
from hf_gr.packing import pack
from hf_gr.sft import SFT_CONFIGS, SidSFTTrainer, sft
from hf_gr.sft.loss import answer_loss
from hf_gr.sft.tasks import next_item


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TinyData:
    return tiny_data(tmp_path_factory.mktemp("recursive"))


@pytest.fixture(scope="module")
def trained(data) -> Path:
    return sft(*sft_configs(**data.sft(data.dataset.with_name("run"), form=RECURSIVE, max_steps=80)))


def log_of(model: Path) -> list[dict]:
    return json.loads((model / "training_log.json").read_text())


def test_all_positions_at_once_are_every_prompt_alone():
    """One trunk of items, an answer after each: the loss is that of a listing of all items after each prompt."""
    case = build(Qwen3Config, RECURSIVE)
    items, first = [3, 17, 5, 30], case.vocabulary.first_item_id
    codes = case.vocabulary.item_tokens(case.catalog, np.array(items)).tolist()
    trunk = [case.vocabulary.start_id, *(first + item for item in items[:-1])]
    row = {"input_ids": trunk, "attach": [1, 2, 3, 4], "answers": [[]] * 4, "labels": codes, "weights": [1.0] * 4}
    single = {"input_ids": trunk[:2], "attach": [2], "answers": [[]], "labels": codes[1:2], "weights": [2.0]}
    packed = pack([row, single])
    assert packed.simple and packed.input_ids.shape == (2, 4)
    with torch.no_grad():
        hidden = last_hidden(case.model, **packed.inputs("sdpa", torch.float32))
        output = answer_loss(case.model, hidden, packed, case.grammar)
    singles = [every_sid(case, trunk[:end])[tuple(case.catalog.codes[item])] for end, item in enumerate(items, 1)]
    assert float(output.loss) == pytest.approx(-sum(singles) - 2 * singles[1], rel=1e-4)
    assert int(output.count) == 15


def test_rows_hold_one_position_an_item(data):
    case = build(Qwen3Config, RECURSIVE)
    histories = held_out(data).histories
    rows = next_item(histories, case.catalog, case.vocabulary)
    assert sum(map(len, rows["attach"])) == len(histories.items)
    assert all(ids[0] == case.vocabulary.start_id for ids in rows["input_ids"])
    assert {len(labels) for row in rows["labels"] for labels in row} == {3}
    assert {len(tokens) for row in rows["answers"] for tokens in row} == {0}
    lengths = np.minimum(histories.lengths, case.vocabulary.max_history + 1)
    assert sorted(map(len, rows["input_ids"])) == sorted((1 + lengths).tolist())


def test_it_learns_the_walk_and_tells_how_its_codes_moved(data, trained):
    assert hit_rate(trained, held_out(data), 5) > 0.6
    pulls = [entry["recursion/input"] for entry in log_of(trained) if "recursion/input" in entry]
    assert len(pulls) == 80 and pulls[-1] < pulls[0]


def test_a_killed_run_goes_on(data, trained, tmp_path):
    settings = data.sft(tmp_path / "again", form=RECURSIVE, max_steps=80) | {
        "save_strategy": "steps",
        "save_steps": 30,
    }
    save = SidSFTTrainer._save_checkpoint

    def killed(*args, **kwargs):
        save(*args, **kwargs)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SidSFTTrainer, "_save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            sft(*sft_configs(**settings))
    ours, theirs = (load_file(model / "model.safetensors") for model in (sft(*sft_configs(**settings)), trained))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("finetune", ["lora", "qlora"])
def test_adapters_on_the_backbone_alone(data, tmp_path, finetune):
    if finetune == "qlora":
        pytest.importorskip("bitsandbytes")
    settings = data.sft(tmp_path / "run", form=RECURSIVE, finetune=finetune, max_steps=60, learning_rate=1e-2)
    model = sft(*sft_configs(**settings))
    weights = load_file(model / "model.safetensors")
    assert not [name for name in weights if "lora" in name or "original_module" in name or "absmax" in name]
    assert isinstance(AutoModelForCausalLM.from_pretrained(model), IntRRForCausalLM)
    assert hit_rate(model, held_out(data), 5) > 0.4


def test_rewards_train_it(data, trained, tmp_path):
    model = grpo(*grpo_configs(**data.grpo(tmp_path / "grpo", trained, rewards={"exact": 1.0}, max_steps=6)))
    log = [entry for entry in log_of(model) if "kl" in entry]
    assert log[0]["kl"] == pytest.approx(0, abs=1e-6) and all(np.isfinite(entry["loss"]) for entry in log)
    before, after = (load_file(folder / "model.safetensors") for folder in (trained, model))
    for part in ("model.items.embedding.weight", "model.recursion.mlps.0.0.weight"):
        assert not torch.equal(before[part], after[part])
    assert hit_rate(model, held_out(data), 5) > 0.5


def test_pushed_and_reloaded_by_name_it_answers_alike(data, trained, tmp_path):
    recommend = pipeline("generative-recommendation", model=str(trained), device="cpu")
    asked = [["i001", "i002"], []]
    expected = recommend(asked, top_k=4, explain=True)
    for answers in expected:
        for entry in answers:
            told = np.log([step["confidence"] for step in entry["path"]]).sum()
            assert told == pytest.approx(entry["score"], abs=1e-3)
    with HubServer() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setenv("HF_TOKEN", "hf_secret")
        push_to_hub(trained, "user/one-position")
        for code in (_REGISTERED, _REMOTE):
            environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / code[7:13]), "HF_HUB_DISABLE_XET": "1"}
            kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
            told = kept | environment | {"PYTHONPATH": str(Path(__file__).parents[2])}
            done = subprocess.run([sys.executable, "-c", code], env=told, cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            again = json.loads(done.stdout.splitlines()[-1])
            _same(again, expected)


_REGISTERED = (
    "import json, hf_gr; from transformers import pipeline; "
    'print(json.dumps(pipeline("generative-recommendation", model="user/one-position", device="cpu")'
    '([["i001", "i002"], []], top_k=4)))'
)
_REMOTE = (
    "import json; from transformers import pipeline; "
    'print(json.dumps(pipeline(model="user/one-position", device="cpu", trust_remote_code=True)'
    '([["i001", "i002"], []], top_k=4)))'
)


def _same(again, expected):
    for ours, theirs in zip(again, expected, strict=True):
        assert [entry["item_id"] for entry in ours] == [entry["item_id"] for entry in theirs]
        assert [entry["score"] for entry in ours] == pytest.approx([entry["score"] for entry in theirs], abs=1e-4)


def test_the_search_over_all_items_is_exhaustive(data, trained):
    recommender = Recommender.from_pretrained(trained, device="cpu")
    histories = held_out(data).histories
    wide, scores = recommender.recommend(histories, top_k=40, num_beams=40)
    assert (np.sort(wide, axis=1) == np.arange(40)).all()
    assert np.allclose(np.exp(scores).sum(1), 1, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recursion": {"depth": 2}}, "recursion has no key 'depth'"),
        ({"form": "flat", "recursion": {}}, "recursion is set, but form is 'flat'"),
        ({"thinking": {}}, "thinking is set, but form is 'recursive'"),
        ({"loss": "full"}, "loss is 'full', which form: recursive does not have"),
        ({"trunk_weight": 1.0}, "trunk_weight is 1.0, but acts only with answers on branches"),
        ({"tasks": {"sid_to_title": 1.0}}, "task 'sid_to_title' is not for form: recursive"),
    ],
)
def test_settings_that_cannot_be_are_refused(data, tmp_path, changes, message):
    with pytest.raises(HfGrError, match=message):
        sft_configs(**data.sft(tmp_path, **{"form": RECURSIVE} | changes))


def test_the_command_line_reads_its_settings(data, tmp_path):
    from hf_gr.arguments import parse_config

    given = data.sft(tmp_path, form=RECURSIVE, recursion={"input_weight": 0.5, "item_rows": 8})
    _, config, _ = parse_config(SFT_CONFIGS, arguments(given))
    assert (config.recursion_config.input_weight, config.recursion_config.item_rows) == (0.5, 8)


HYBRID = {"read": "sum", "dense": 1.0, "negatives": 8}


@pytest.fixture(scope="module")
def hybrid(data) -> Path:
    settings = {"form": RECURSIVE, "recursion": HYBRID, "row_start": "codes", "max_steps": 80}
    return sft(*sft_configs(**data.sft(data.dataset.with_name("hybrid"), **settings)))


def test_a_model_of_two_outputs_learns_the_walk_by_both(data, hybrid):
    assert hit_rate(hybrid, held_out(data), 5) > 0.6
    found = [entry["recursion/dense"] for entry in log_of(hybrid) if "recursion/dense" in entry]
    assert len(found) == 80 and found[-1] < found[0] - 0.5
    assert not [entry for entry in log_of(hybrid) if "recursion/input" in entry]  # nothing is pulled
    recommender = Recommender.from_pretrained(hybrid)
    for share in (0.0, 1.0):
        recommender.model.config.dense_share = share
        lists, _ = recommender.recommend(held_out(data).histories, top_k=5)
        assert (lists == held_out(data).targets[:, None]).any(1).mean() > 0.5


def test_two_outputs_in_sessions_explanations_and_rewards(data, hybrid):
    recommender = Recommender.from_pretrained(hybrid)
    cases = held_out(data)
    history = [recommender.catalog.item_ids[row] for row in cases.histories.items[: cases.histories.ptr[1]]]
    session = recommender.session(history[:-1])
    session.append(history[-1])
    first = cases.histories.cut(np.array([0]), cases.histories.lengths[:1])
    items, scores = recommender.recommend(first, top_k=5)
    told = session.recommend(5)
    assert [item for item, _ in told] == [recommender.catalog.item_ids[row] for row in items[0]]
    assert [score for _, score in told] == pytest.approx(scores[0].tolist(), abs=1e-4)
    explained = pipeline("generative-recommendation", model=str(hybrid))(history, top_k=2, explain=True)
    assert [len(answer["path"]) for answer in explained] == [recommender.vocabulary.num_levels] * 2
    rewarded = grpo(*grpo_configs(**data.grpo(data.dataset.with_name("hybrid-grpo"), hybrid, max_steps=2)))
    assert Recommender.from_pretrained(rewarded).model.config.dense == 1.0
