"""GRPO: the policy against a listing of the items, rollouts, the KL reference, and a reward that rises."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import tiny_catalog, tiny_interactions, tiny_items, tiny_lm, tiny_tokenizer
from tiny_runs import TinyData, distinct_catalog, grpo_configs, sft_configs, tiny_data, untied_lm
from transformers import GemmaConfig, LlamaConfig, MistralConfig, Qwen3Config

from hf_gr.catalog import SidCatalog
from hf_gr.dataset import Histories, InteractionDataset, write_dataset
from hf_gr.decoding import tree_search, tree_support
from hf_gr.errors import HfGrError
from hf_gr.grpo import SidGRPOTrainer, constrained_rollouts, grpo, policy_log_probs, training_prompts
from hf_gr.models import add_inner_call
from hf_gr.rewards import ItemKnowledge, answered_items
from hf_gr.sft import sft
from hf_gr.vocabulary import SidVocabulary, add_vocabulary


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TinyData:
    return tiny_data(tmp_path_factory.mktemp("grpo"))


@pytest.fixture(scope="module")
def half_trained(data) -> Path:
    """An SFT model that is right now and then: rewards differ within a group."""
    return sft(*sft_configs(**data.sft(data.dataset.with_name("half"), max_steps=25)))


def log_of(model: Path) -> list[dict]:
    return json.loads((model / "training_log.json").read_text())


# The policy


def written(answer, vocabulary):
    """Token ids of a SID as the model writes it."""
    codes = [vocabulary.code_ids[level][code] for level, code in enumerate(answer)]
    if vocabulary.form == "flat":
        return codes
    return [token for pair in zip(vocabulary.think_ids, codes, strict=True) for token in pair]


@torch.no_grad()
def listed_policy(model, prompt, answer, catalog, vocabulary, temperature):
    """Log-probability and entropy of every code of one answer, from the list of all items and a plain forward."""
    items = [tuple(sid) for sid in catalog.codes[catalog.live].tolist()]
    tokens, stride = written(answer, vocabulary), 2 if vocabulary.form == "stepwise" else 1
    logits = model(torch.tensor([prompt + tokens])).logits[0].double() / temperature
    log_probs, entropies = [], []
    for level in range(len(answer)):
        following = sorted({item[level] for item in items if item[:level] == tuple(answer[:level])})
        ids = [vocabulary.code_ids[level][code] for code in following]
        row = torch.log_softmax(logits[len(prompt) + stride * (level + 1) - 2, ids], 0)
        log_probs.append(float(row[following.index(answer[level])]))
        entropies.append(float(-(row.exp() * row).sum()))
    return log_probs, entropies


@torch.no_grad()
def listed_set_policy(model, prompt, tokens, catalog, vocabulary, temperature):
    """Log-probability and entropy of every code of one set as it was written, likewise."""
    codes = {token: (level, code) for level, ids in enumerate(vocabulary.code_ids) for code, token in enumerate(ids)}
    items = [set(enumerate(sid)) for sid in catalog.codes[catalog.live].tolist()]
    logits = model(torch.tensor([prompt + tokens])).logits[0].double() / temperature
    log_probs, entropies = [], []
    for place, token in enumerate(tokens):
        held = {codes[before] for before in tokens[:place]}
        open_ = sorted({pair for item in items if held <= item for pair in item - held})
        ids = [vocabulary.code_ids[level][code] for level, code in open_]
        row = torch.log_softmax(logits[len(prompt) + place - 1, ids], 0)
        log_probs.append(float(row[ids.index(token)]))
        entropies.append(float(-(row.exp() * row).sum()))
    return log_probs, entropies


@pytest.mark.parametrize("rollout", ["sample", "gumbel"])
def test_the_policy_of_sets_equals_the_listing(tmp_path, rollout):
    """Rollouts of an unordered model and their scores when they are trained on."""
    catalog = tiny_catalog(sizes=(4, 3, 3)).removed([f"i{item:03d}" for item in range(10)])
    trainer, vocabulary = trainer_of(catalog, tmp_path, form="unordered", rollout=rollout)
    prompts = [row["prompt"] for row in trainer.train_dataset.select(range(3)) for _ in range(8)]
    out = constrained_rollouts(prompts, trainer)
    items = answered_items(out["completion_ids"], trainer.grammar)
    assert (items >= 0).all() and catalog.live[items].all()
    assert len({tuple(level) for level in out["completion_ids"]}) > 8
    width = max(map(len, prompts))
    log_probs, entropies = policy_log_probs(
        trainer.model,
        trainer.model,
        torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts]),
        torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
        torch.tensor(out["completion_ids"]),
        trainer.grammar,
        temperature=1.0,
    )
    for row, (prompt, tokens) in enumerate(zip(prompts, out["completion_ids"], strict=True)):
        expected = listed_set_policy(trainer.model, prompt, tokens, catalog, vocabulary, 1.0)
        assert log_probs[row].tolist() == pytest.approx(expected[0], abs=1e-4)
        assert entropies[row].tolist() == pytest.approx(expected[1], abs=1e-4)
        assert out["rollout_score"][row] == pytest.approx(sum(expected[0]), abs=1e-3)


def test_sets_train_by_rewards_on_their_paths(data, tmp_path):
    """PARS over the next two items, on an unordered model: KL begins at 0, and the numbers stay finite."""
    model = sft(*sft_configs(**data.sft(tmp_path / "sft", max_steps=40, form="unordered")))
    rewards = {"step_hit": 0.3, "global_path": 1.0, "category_hit": 0.1, "step_consistency": 0.1}
    settings = {"rewards": rewards, "target_steps": 2, "rollout": "gumbel", "estimator": "without_replacement"}
    settings |= {"scale_rewards": "none", "beta": 0.1, "max_steps": 4, "learning_rate": 1e-3}
    log = log_of(grpo(*grpo_configs(**data.grpo(tmp_path / "grpo", model, **settings))))
    steps = [entry for entry in log if "grad_norm" in entry]
    assert len(steps) == 4 and all(np.isfinite(entry["grad_norm"]) for entry in steps)
    assert abs(steps[0]["kl"]) < 1e-6 and steps[-1]["kl"] > 0


CASES = [
    pytest.param(LlamaConfig, {}, True, id="llama, tree"),
    pytest.param(Qwen3Config, {}, True, id="qwen3, tree"),
    pytest.param(GemmaConfig, {}, True, id="gemma, tree"),
    pytest.param(MistralConfig, {"sliding_window": None}, True, id="mistral without a window, tree"),
    pytest.param(MistralConfig, {"sliding_window": 8}, False, id="mistral with a window of 8, rows"),
    pytest.param(LlamaConfig, {"tie_word_embeddings": True}, True, id="tied llama, tree"),
]


@pytest.mark.parametrize(("config_class", "overrides", "tree"), CASES)
@pytest.mark.parametrize("removed", [False, True])
def test_policy_equals_the_listing(config_class, overrides, tree, removed):
    catalog = tiny_catalog()
    model = tiny_lm(config_class, **overrides)
    vocabulary = add_vocabulary(tiny_tokenizer(), model, catalog, max_history=10)
    catalog = catalog.removed([f"i{item:03d}" for item in range(0, 20)]) if removed else catalog
    random = np.random.default_rng(0)
    tokens = vocabulary.item_tokens(catalog)
    histories = [random.integers(0, 40, length) for length in (4, 0, 6, 4)]
    prompts = [[vocabulary.start_id, *tokens[history].ravel().tolist()] for history in histories]
    group, live = 5, np.flatnonzero(catalog.live)
    answers = [catalog.codes[random.choice(live)].tolist() for _ in range(group * len(prompts))]
    width = max(map(len, prompts))
    assert tree_support(model, width + 3)[0] is tree

    rows = [prompt for prompt in prompts for _ in range(group)]
    order = random.permutation(len(rows))  # TRL shuffles: a prompt's rollouts need not stand together
    rows, answers = [rows[i] for i in order], [answers[i] for i in order]
    add_inner_call(model)
    log_probs, entropies = policy_log_probs(
        model,
        model,
        torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in rows]),
        torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in rows]),
        torch.tensor([[vocabulary.code_ids[level][code] for level, code in enumerate(answer)] for answer in answers]),
        vocabulary.grammar(catalog),
        temperature=0.7,
    )
    assert log_probs.shape == entropies.shape == (20, 3) and log_probs.dtype == torch.float32
    for row, (prompt, answer) in enumerate(zip(rows, answers, strict=True)):
        expected = listed_policy(model, prompt, answer, catalog, vocabulary, 0.7)
        assert log_probs[row].tolist() == pytest.approx(expected[0], abs=1e-4)
        assert entropies[row].tolist() == pytest.approx(expected[1], abs=1e-4)


@pytest.mark.parametrize("tree", [True, False])
def test_a_stepwise_policy_does_not_count_its_thinking(tree, monkeypatch):
    """By the tree and by rows: the tree search's numbers at the codes, 0 at the forced tokens between them."""
    catalog = tiny_catalog()
    model = tiny_lm()
    vocabulary = replace(add_vocabulary(tiny_tokenizer(), model, catalog, max_history=10), form="stepwise")
    grammar, tokens = vocabulary.grammar(catalog), vocabulary.item_tokens(catalog)
    prompts = [[vocabulary.start_id, *tokens[history].ravel().tolist()] for history in ([4, 8], [], [39])]
    beams = tree_search(model, prompts, grammar, num_beams=5, temperature=0.7)
    assert beams.tokens.shape == (3, 5, 6)
    expected = [
        [listed_policy(model, prompt, sid.tolist(), catalog, vocabulary, 0.7) for sid in grammar.codes(answers)]
        for prompt, answers in zip(prompts, beams.tokens, strict=True)
    ]

    rows = [prompt for prompt in prompts for _ in range(5)]
    width = max(map(len, prompts))
    monkeypatch.setattr("hf_gr.grpo.policy.tree_support", lambda *_, **__: (tree, ""))
    add_inner_call(model)
    log_probs, entropies = policy_log_probs(
        model,
        model,
        torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in rows]),
        torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in rows]),
        beams.tokens.flatten(0, 1),
        grammar,
        temperature=0.7,
    )
    assert log_probs.shape == entropies.shape == (15, 6)
    assert (log_probs[:, ::2] == 0).all() and (entropies[:, ::2] == 0).all()
    assert torch.allclose(log_probs[:, 1::2], beams.log_probs.flatten(0, 1), atol=1e-4)
    assert torch.allclose(log_probs.sum(1), beams.scores.flatten(), atol=1e-4)
    listed = torch.tensor(expected).flatten(0, 1)  # [rows, (log-probability, entropy), codes]
    assert torch.allclose(log_probs[:, 1::2], listed[:, 0], atol=1e-4)
    assert torch.allclose(entropies[:, 1::2], listed[:, 1], atol=1e-4)


def test_policy_gradients_are_the_same_by_tree_and_by_rows(monkeypatch):
    gradients = []
    for supported in (True, False):
        monkeypatch.setattr("hf_gr.grpo.policy.tree_support", lambda *_, supported=supported, **__: (supported, ""))
        catalog, model = tiny_catalog(), tiny_lm()
        vocabulary = add_vocabulary(tiny_tokenizer(), model, catalog, max_history=10)
        tokens = torch.from_numpy(vocabulary.item_tokens(catalog))
        prompt = torch.cat([torch.tensor([vocabulary.start_id]), tokens[[3, 9, 1]].flatten()])
        prompts, answers = prompt.expand(6, -1), tokens[[0, 5, 7, 7, 30, 2]]
        add_inner_call(model)
        log_probs, _ = policy_log_probs(
            model, model, prompts, torch.ones_like(prompts), answers, vocabulary.grammar(catalog), 1.0
        )
        (log_probs * torch.arange(6)[:, None]).sum().backward()
        gradients.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-4), name
    assert any(gradient.abs().max() > 1e-2 for gradient in gradients[0].values())


# Prompts and rollouts


def test_prompts_are_the_latest_training_events(data):
    catalog, train = distinct_catalog(), InteractionDataset.load(data.dataset).split().train
    vocabulary = add_vocabulary(tiny_tokenizer(), tiny_lm(), catalog, max_history=3)
    tokens = vocabulary.item_tokens(catalog)
    for per_user in (1, 3):
        expected = []
        for history in train:
            for cut in range(max(1, len(history) - per_user), len(history)):
                prompt = [vocabulary.start_id, *tokens[history[:cut][-3:]].ravel().tolist()]
                shown = history[:cut][-3:].tolist()
                expected.append({"prompt": prompt, "target": int(history[cut]), "history": shown})
        assert training_prompts(train, catalog, vocabulary, per_user).to_list() == expected
        gone = expected[0]["target"]
        left = training_prompts(train, catalog.removed([catalog.item_ids[gone]]), vocabulary, per_user).to_list()
        assert left == [row for row in expected if row["target"] != gone] != expected


def trainer_of(
    catalog, tmp_path, prompts=None, model=None, form="flat", **changes
) -> tuple[SidGRPOTrainer, SidVocabulary]:
    """A trainer on a model with random weights; reward and reference are not looked at."""
    model = model or tiny_lm()
    tokenizer = tiny_tokenizer()
    vocabulary = replace(add_vocabulary(tokenizer, model, catalog, max_history=10), form=form)
    tokens = vocabulary.item_tokens(catalog)
    prompts = prompts or [[vocabulary.start_id, *tokens[[item, 3]].ravel().tolist()] for item in range(6)]
    rows = Dataset.from_dict({"prompt": prompts, "target": [5] * len(prompts)})
    settings = {"num_generations": 8, "per_device_train_batch_size": 16, "beta": 0.0, "max_steps": 1} | changes
    data = TinyData(Path(), Path())
    trainer = SidGRPOTrainer(
        model,
        grpo_configs(**data.grpo(tmp_path / "run", Path(), **settings))[-1],
        catalog=catalog,
        vocabulary=vocabulary,
        processing_class=tokenizer,
        train_dataset=rows,
        items=knowledge(catalog),
    )
    return trainer, vocabulary


def knowledge(catalog: SidCatalog) -> ItemKnowledge:
    """Of items that one user has taken."""
    count = len(catalog)
    train = Histories(np.array(["u"]), np.array([0, count]), np.arange(count), np.arange(count))
    return ItemKnowledge.of(catalog, train)


ROLLOUTS = [
    pytest.param("sample", None, "flat", id="sample, tree"),
    pytest.param("beam", None, "flat", id="beam, tree"),
    pytest.param("gumbel", None, "flat", id="gumbel, tree"),
    pytest.param("sample", None, "stepwise", id="stepwise sample, tree"),
    pytest.param("gumbel", None, "stepwise", id="stepwise gumbel, tree"),
    pytest.param("sample", 6, "flat", id="sample, generate"),
    pytest.param("beam", 6, "flat", id="beam, generate"),
    pytest.param("sample", 6, "stepwise", id="stepwise sample, generate"),
]


@pytest.mark.parametrize(("rollout", "window", "form"), ROLLOUTS)
def test_rollouts_are_live_items_g_for_each_prompt(tmp_path, rollout, window, form):
    """By the tree and, for an LM with a short window, by `generate`."""
    catalog = tiny_catalog().removed([f"i{item:03d}" for item in range(10)])
    model = tiny_lm(MistralConfig, sliding_window=window)
    assert tree_support(model, 10)[0] is (window is None)
    trainer, vocabulary = trainer_of(catalog, tmp_path, model=model, form=form, rollout=rollout)
    assert trainer.max_completion_length == trainer.grammar.answer_length
    trainer.model.train()
    prompts = [row["prompt"] for row in trainer.train_dataset.select(range(3)) for _ in range(8)]
    torch.manual_seed(0)
    out = constrained_rollouts(prompts, trainer)
    assert trainer.model.training  # as it was
    assert out["prompt_ids"] == prompts and len(out["completion_ids"]) == len(out["rollout_score"]) == 24
    assert {len(completion) for completion in out["completion_ids"]} == {6 if form == "stepwise" else 3}
    items = answered_items(out["completion_ids"], trainer.grammar)
    assert (items >= 0).all() and catalog.live[items].all()
    for start in range(0, 24, 8):
        group = {tuple(completion) for completion in out["completion_ids"][start : start + 8]}
        scores = out["rollout_score"][start : start + 8]
        assert 2 <= len(group) <= 8 if rollout == "sample" else len(group) == 8
        assert scores == sorted(scores, reverse=True) if rollout == "beam" else scores != sorted(scores, reverse=True)
        if rollout == "beam" and window:
            continue  # generate ranks its beams by the whole vocabulary
        for completion, score in zip(out["completion_ids"][start : start + 8], scores, strict=True):
            answer = trainer.grammar.codes(torch.tensor(completion)).tolist()
            log_probs, _ = listed_policy(trainer.model, prompts[start], answer, catalog, vocabulary, 1.0)
            assert score == pytest.approx(sum(log_probs), abs=1e-3)


@pytest.mark.parametrize(("rollout", "window"), [("beam", None), ("beam", 4), ("gumbel", None)])
def test_beams_beyond_the_catalog_repeat_the_first_answer(tmp_path, rollout, window):
    catalog = SidCatalog.from_codes(np.array([[0, 0], [0, 1], [1, 1]]), tiny_items(3), (2, 2))
    prompts = [[259, 260, 263]]
    model = tiny_lm(MistralConfig, sliding_window=window)
    batch = {"per_device_train_batch_size": 8}
    trainer, _ = trainer_of(catalog, tmp_path, prompts=prompts, model=model, rollout=rollout, **batch)
    out = constrained_rollouts(prompts * 8, trainer)
    completions = [tuple(completion) for completion in out["completion_ids"]]
    assert len(set(completions)) == 3 and completions[3:] == completions[:1] * 5
    assert np.isfinite(out["rollout_score"]).all()


def test_a_group_that_would_be_torn_apart_is_refused(tmp_path):
    """Of 2 x 12 rollouts TRL makes three groups of 8, but the second one would straddle two micro-batches."""
    with pytest.raises(HfGrError, match=r"is 12, no multiple of num_generations = 8.*choose a multiple"):
        trainer_of(tiny_catalog(), tmp_path, per_device_train_batch_size=12, steps_per_generation=2)


def test_an_unknown_reward_is_refused(tmp_path):
    with pytest.raises(HfGrError, match="no reward is called 'joy'; there are: exact, ranking"):
        trainer_of(tiny_catalog(), tmp_path, rewards=["joy"])


# The reference


@pytest.mark.parametrize("finetune", ["full", "lora"])
@pytest.mark.parametrize("start", ["full", "lora", "untied"])
def test_kl_is_zero_before_the_first_step(data, tmp_path, start, finetune):
    """The reference is the SFT policy, whichever way that and this run tune their weights."""
    source = {"model": str(untied_lm(tmp_path / "lm"))} if start == "untied" else {}
    way = "lora" if start == "lora" else "full"
    model = sft(*sft_configs(**data.sft(tmp_path / "sft", max_steps=10, finetune=way, **source)))
    settings = data.grpo(tmp_path / "grpo", model, beta=0.1, finetune=finetune, max_steps=3, learning_rate=1e-2)
    log = [entry for entry in log_of(grpo(*grpo_configs(**settings))) if "kl" in entry]
    assert abs(log[0]["kl"]) < 1e-6
    assert log[-1]["kl"] > 1e-3  # it is measured: the policy has moved


def test_the_reference_runs_under_the_same_autocast_as_the_policy(data, half_trained, tmp_path):
    settings = data.grpo(tmp_path / "grpo", half_trained, beta=0.1, max_steps=2, learning_rate=1e-2, bf16=True)
    log = [entry for entry in log_of(grpo(*grpo_configs(**settings))) if "kl" in entry]
    assert log[0]["kl"] == 0 and log[1]["kl"] > 0


def test_a_tokenizer_without_padding_trains_and_stays_as_it_is(data, tmp_path):
    tiny_lm().save_pretrained(tmp_path / "lm")
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "lm")
    model = sft(*sft_configs(**data.sft(tmp_path / "sft", max_steps=1) | {"model": str(tmp_path / "lm")}))
    model = grpo(*grpo_configs(**data.grpo(tmp_path / "grpo", model, max_steps=1)))
    assert json.loads((model / "config.json").read_text())["pad_token_id"] is None
    assert SidVocabulary.load(model).start_id is not None


def test_rewards_that_never_differ_are_told(data, half_trained, tmp_path, capsys):
    settings = data.grpo(tmp_path / "grpo", half_trained, max_steps=2, rewards={"novelty": 0})
    log = log_of(grpo(*grpo_configs(**settings)))
    assert capsys.readouterr().out.count("from which nothing is learned") == 1
    assert not [name for entry in log for name in entry if name.startswith("completions/")]
    grpo(*grpo_configs(**data.grpo(tmp_path / "grpo", half_trained, max_steps=2)))
    assert "from which nothing is learned" not in capsys.readouterr().out


def test_qlora_takes_its_own_quantised_start_for_reference(data, half_trained, tmp_path):
    pytest.importorskip("bitsandbytes")
    settings = data.grpo(tmp_path / "grpo", half_trained, beta=0.1, finetune="qlora", max_steps=3, learning_rate=1e-2)
    model = grpo(*grpo_configs(**settings))
    log = [entry for entry in log_of(model) if "kl" in entry]
    assert abs(log[0]["kl"]) < 1e-4 and log[-1]["kl"] > 1e-3  # arithmetic is bf16
    assert "quantization_config" not in json.loads((model / "config.json").read_text())


# Runs


def test_a_tiny_run_raises_the_reward(data, half_trained, tmp_path):
    """The same four prompts in every step."""
    few = TinyData(tmp_path / "few", data.catalog)
    write_dataset(few.dataset, tiny_interactions(num_users=4, seed=3), tiny_items(), source="Made for tests.")
    settings = {"max_steps": 40, "learning_rate": 1e-3, "beta": 0.0, "rewards": ["exact"]}
    log = log_of(grpo(*grpo_configs(**few.grpo(tmp_path / "grpo", half_trained, **settings))))
    rewards = [entry["reward"] for entry in log if "reward" in entry]
    assert len(rewards) == 40
    first, last = np.mean(rewards[:8]), np.mean(rewards[-8:])
    assert last > first + 0.15, f"mean exact reward went from {first:.2f} to {last:.2f}"


@pytest.mark.parametrize(
    "changes", [{"rollout": "beam"}, {"rollout": "gumbel"}, {"gradient_accumulation_steps": 2, "num_iterations": 2}]
)
def test_other_settings_run_with_finite_numbers(data, half_trained, tmp_path, changes):
    settings = data.grpo(tmp_path / "grpo", half_trained, max_steps=4, per_device_train_batch_size=16, **changes)
    log = [entry for entry in log_of(grpo(*grpo_configs(**settings))) if "grad_norm" in entry]
    assert len(log) == 4
    assert all(np.isfinite([entry["loss"], entry["grad_norm"], entry["kl"], entry["entropy"]]).all() for entry in log)
    assert max(entry["grad_norm"] for entry in log) > 0


def test_the_second_run_trains_nothing_and_says_so(data, half_trained, tmp_path, capsys):
    settings = data.grpo(tmp_path / "grpo", half_trained, max_steps=2)
    model = grpo(*grpo_configs(**settings))
    assert [path.name for path in (tmp_path / "grpo").iterdir()] == ["model"]
    written = (model / "model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    assert grpo(*grpo_configs(**settings)) == model
    assert "[grpo] up to date:" in capsys.readouterr().out
    assert (model / "model.safetensors").stat().st_mtime_ns == written
    grpo(*grpo_configs(**settings | {"rewards": ["exact"]}))
    assert "[grpo] wrote" in capsys.readouterr().out
    assert SidVocabulary.load(model) == SidVocabulary.load(half_trained)


def test_a_model_whose_catalog_was_swapped_is_refused(data, half_trained, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    for file in half_trained.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    tiny_catalog(seed=5).save(model)
    with pytest.raises(HfGrError, match="is not the one this model was trained on"):
        grpo(*grpo_configs(**data.grpo(tmp_path / "grpo", model)))
