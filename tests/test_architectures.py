"""Any causal LM is trained and searched by one distribution, whatever its family does; or it is refused by name."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from families import REFUSED, SERVED, family, multimodal
from peft import get_peft_model
from tiny import tiny_catalog, tiny_tokenizer
from tiny_runs import grpo_configs, sft_configs, tiny_data
from transformers import AutoModelForCausalLM

from hf_gr.adapters import tuned
from hf_gr.branches import Row, separate
from hf_gr.dataset import Histories
from hf_gr.decoding import Recommender, check_model, search, tree_support
from hf_gr.errors import HfGrError
from hf_gr.grpo import grpo
from hf_gr.grpo.policy import policy_log_probs
from hf_gr.models import RecursionConfig, add_dropout, add_inner_call, is_tied, last_hidden, with_recursion
from hf_gr.packing import pack
from hf_gr.paths import Paths
from hf_gr.sft import sft
from hf_gr.sft.loss import answer_loss
from hf_gr.vocabulary import add_vocabulary


NO_DROPOUT = {"mamba", "mixtral", "qwen3_moe", "qwen3_next", "lfm2", "modernbert-decoder"}  # of our own
HISTORIES = Histories(np.array(["a", "b"], object), np.array([0, 3, 4]), np.array([3, 17, 20, 5]), np.arange(4))
ALONE = [HISTORIES.cut(np.array([row]), HISTORIES.lengths[[row]]) for row in range(2)]


class Settings:
    """What `tuned` reads of a config."""

    finetune, attention, lora_r, lora_alpha, lora_dropout, lora_target_modules = "full", None, 4, 8, 0.0, "all-linear"


def recommender_of(model, form="flat"):
    catalog, tokenizer = tiny_catalog(), tiny_tokenizer()
    vocabulary = replace(add_vocabulary(tokenizer, model, catalog, max_history=10), form=form)
    if form == "recursive":
        codes = torch.from_numpy(vocabulary.item_tokens(catalog))
        model = with_recursion(model, codes, [[ids[0], len(ids)] for ids in vocabulary.code_ids], RecursionConfig())
        vocabulary = replace(vocabulary, first_item_id=model.config.first_item_id)
        with torch.no_grad():
            for weight in model.model.recursion.parameters():
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(7)) * 0.3)
    add_inner_call(model)
    return Recommender(model, tokenizer, catalog, vocabulary)


def loss_of(recommender, answers):
    """−log p of answers (a list a prompt) as SFT has it, each prompt a trunk."""
    model, vocabulary = recommender.model, recommender.vocabulary
    rows = [
        Row(input_ids=prompt, attach=[len(prompt)] * len(own), answers=own, labels=own, weights=[1.0] * len(own))
        for prompt, own in zip(recommender.prompts(HISTORIES), answers, strict=True)
    ]
    if not tree_support(model, 64, training=True)[0]:
        rows = [single for row in rows for single in separate(row)]
    packed = pack(rows, think_ids=vocabulary.think_ids)
    hidden = last_hidden(model, **packed.inputs(model.config._attn_implementation, model.dtype))
    return answer_loss(model, hidden, packed, recommender.grammar).loss


def policy_of(recommender, answers):
    """log p of answers int64 [prompts, n, L], as GRPO has it."""
    prompts, count = recommender.prompts(HISTORIES), answers.shape[1]
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts for _ in range(count)])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts for _ in range(count)])
    model = recommender.model
    found, _ = policy_log_probs(model, model, ids, mask, answers.flatten(0, 1), recommender.grammar, 1.0)
    return found.sum(1).view(answers.shape[:2])


def check_all(recommender):
    """Search, GRPO's policy, SFT's loss and what explains answers have the same log-probabilities."""
    model = recommender.model
    beams = search(model, recommender.prompts(HISTORIES), recommender.grammar, num_beams=4)
    assert torch.isfinite(beams.scores).all()
    assert (beams.scores[:, 0] - beams.scores[:, -1] > 0.01).all(), "a flat distribution shows nothing"
    with torch.no_grad():
        torch.testing.assert_close(policy_of(recommender, beams.tokens), beams.scores, atol=1e-4, rtol=0)
        torch.testing.assert_close(
            loss_of(recommender, beams.tokens.tolist()), -beams.scores.sum(), atol=1e-4 * beams.scores.numel(), rtol=0
        )
    items, scores = recommender.recommend(HISTORIES, top_k=2, num_beams=4)
    for paths, own in zip(Paths(recommender).explain(HISTORIES, items), scores, strict=True):
        for path, score in zip(paths, own, strict=True):
            assert sum(math.log(step.confidence) for step in path.steps) == pytest.approx(score, abs=1e-4)


def check_learning(recommender, adapter):
    """Gradients of SFT and of a GRPO step, of all weights or of an adapter, reach the rows of the new tokens."""
    model, vocabulary = recommender.model, recommender.vocabulary
    answers = torch.from_numpy(vocabulary.item_tokens(recommender.catalog, np.array([7, 30])))[:, None]
    trained = model if adapter is None else get_peft_model(model, adapter)
    for loss in (
        lambda: loss_of(recommender, answers.tolist()),
        lambda: -policy_of(recommender, answers).sum(),
    ):
        trained.zero_grad()
        loss().backward()
        moved = [name for name, weight in trained.named_parameters() if weight.grad is not None and weight.grad.any()]
        assert all(torch.isfinite(w.grad).all() for w in trained.parameters() if w.grad is not None)
        if adapter is None:
            assert model.get_input_embeddings().weight.grad[vocabulary.start_id].any()
        else:
            assert any("token_adapter" in name for name in moved) and any("lora_B" in name for name in moved)
    return trained


def made(name):
    return multimodal() if name == "gemma3" else family(name)


@pytest.mark.parametrize("name", [*SERVED, "gemma3"])
def test_one_distribution(name):
    recommender = recommender_of(made(name))
    check_all(recommender)
    check_learning(recommender, None)


@pytest.mark.parametrize("name", [*SERVED, "gemma3"])
def test_adapters_with_rows_of_new_tokens(name, tmp_path):
    model = made(name)
    recommender = recommender_of(model)
    if name == "mamba":
        with pytest.raises(HfGrError, match="mamba cannot have the adapter"):
            tuned_lora(recommender, tmp_path)
        return
    with torch.no_grad():
        before = model(torch.tensor([[3, 262, 270]])).logits
    trained = check_learning(recommender, tuned_lora(recommender, tmp_path))
    with torch.no_grad():
        for weight in trained.parameters():
            if weight.grad is not None:
                weight -= 0.01 * weight.grad
        after = trained(torch.tensor([[3, 262, 270]])).logits
        merged = trained.merge_and_unload()
        assert not torch.allclose(before, after, atol=1e-5)
        torch.testing.assert_close(merged(torch.tensor([[3, 262, 270]])).logits, after, atol=1e-4, rtol=1e-4)
    assert is_tied(merged) == is_tied(made(name))


def tuned_lora(recommender, folder):
    settings = Settings()
    settings.finetune = "lora"
    return tuned(recommender.model, recommender.vocabulary, settings, folder / "base")[1]


@pytest.mark.parametrize("name", [*SERVED, "gemma3"])
def test_hidden_dropout_is_complete_or_refused(name):
    model = made(name)
    if name in NO_DROPOUT:
        with pytest.raises(HfGrError, match="hidden_dropout is not for"):
            add_dropout(model, 0.5)
        assert not any(module._forward_hooks for module in model.modules())
        return
    add_dropout(model, 0.5)
    assert sum(len(module._forward_hooks) for module in model.modules()) == 5
    ids = torch.tensor([[3, 8, 9]])
    assert not torch.equal(model.train()(ids).logits, model(ids).logits)
    assert torch.equal(model.eval()(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    "name",
    ["llama", "mistral", "gpt2", "opt", "gemma3", "granite", "lfm2", "mamba", "bloom", "falcon", "mpt", "mixtral"],
)
def test_recursion_on_any_backbone(name, tmp_path):
    lm = made(name)
    text = lm.config.get_text_config()
    implementations = text._attn_implementation, text._experts_implementation
    recommender = recommender_of(lm, "recursive")
    assert (text._attn_implementation, text._experts_implementation) == implementations
    check_all(recommender)
    check_learning(recommender, None)
    recommender.model.save_pretrained(tmp_path)
    for _ in range(2):  # as saved, and as GRPO loads its reference
        attention = AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation
        again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=attention)
        assert again.config.text_config._attn_implementation == implementations[0]
        again.save_pretrained(tmp_path)


@pytest.mark.parametrize("name", REFUSED)
def test_others_are_refused_by_name_before_training(name):
    model, catalog, tokenizer = family(name), tiny_catalog(), tiny_tokenizer()
    vocabulary = add_vocabulary(tokenizer, model, catalog, max_history=10)
    with pytest.raises(HfGrError, match=f"^{name} is not for hf_gr: {REFUSED[name][1]}"):
        tuned(model, vocabulary, Settings(), None)
    with pytest.raises(HfGrError, match=f"^{name} is not for hf_gr"):
        Recommender(model, tokenizer, catalog, vocabulary)


def test_a_vocabulary_of_another_model_is_told_as_such():
    """The family is not at fault where the tokens have no rows."""
    tokenizer, catalog = tiny_tokenizer(), tiny_catalog()
    vocabulary = add_vocabulary(tokenizer, family("llama"), catalog, max_history=10)
    with pytest.raises(HfGrError, match=r"the vocabulary has token \d+, but the model has 259 tokens; take weights"):
        Recommender(family("llama"), tokenizer, catalog, vocabulary)


def test_a_head_that_the_forward_does_not_use_alone_is_refused():
    model = family("llama")
    vocabulary = add_vocabulary(tiny_tokenizer(), model, tiny_catalog(), max_history=10)
    check_model(model, vocabulary.token_ids)
    forward = model.forward

    def halved(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits / 2
        return output

    model.forward = halved
    with pytest.raises(HfGrError, match="its logits are not those of its head on its last hidden states"):
        check_model(model, vocabulary.token_ids)


@pytest.mark.parametrize(("window", "fits"), [(40, True), (33, False)])
def test_the_window_must_hold_the_longest_history(window, fits):
    model = family("gpt2", max_position_embeddings=window)
    vocabulary = add_vocabulary(tiny_tokenizer(), model, tiny_catalog(), max_history=10)
    if fits:
        tuned(model, vocabulary, Settings(), None)
    else:
        message = r"a history of 10 events with an answer takes 34 tokens, .* gpt2 reads at most 33; .* 9 at most"
        with pytest.raises(HfGrError, match=message):
            tuned(model, vocabulary, Settings(), None)


def test_a_long_query_is_refused_where_the_window_ends():
    recommender = recommender_of(family("gpt2"))
    recommender.prompts(HISTORIES, ["a" * 60, None])
    with pytest.raises(HfGrError, match=r"a query with its history and an answer takes 213 tokens, .* at most 128"):
        recommender.prompts(HISTORIES, ["a" * 200, None])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_r": 0}, "lora_r is 0; give a rank of at least 1"),
        ({"lora_target_modules": "nothing"}, "gpt2 cannot have the adapter .*; name other lora_target_modules"),
        ({"lora_target_modules": "c_attn,wte"}, "lora_target_modules names 'wte', whose rows .* leave it out"),
        ({"finetune": "qlora"}, "bitsandbytes is not installed"),
    ],
)
def test_adapters_that_cannot_be_are_refused_before_training(changes, message, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_gr.adapters.is_bitsandbytes_available", lambda: False)
    model, settings = family("gpt2"), Settings()
    vars(settings).update({"finetune": "lora"} | changes)
    vocabulary = add_vocabulary(tiny_tokenizer(), model, tiny_catalog(), max_history=10)
    with pytest.raises(HfGrError, match=message):
        tuned(model, vocabulary, settings, tmp_path / "base")


def test_answers_of_one_history_are_those_of_a_batch():
    recommender = recommender_of(family("gpt2"))
    together, _ = recommender.recommend(HISTORIES, top_k=5)
    alone = [recommender.recommend(history, top_k=5)[0][0] for history in ALONE]
    assert together.tolist() == [own.tolist() for own in alone]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("architectures"))


def saved(name, folder):
    family(name).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(("name", "finetune"), [("mixtral", "full"), ("gpt2", "lora")])
def test_the_road_from_sft_to_grpo(name, finetune, data, tmp_path):
    """A mixture of experts keeps its config, so that a batch of histories of unequal lengths is served."""
    settings = {"model": saved(name, tmp_path / name), "max_steps": 2, "finetune": finetune, "max_history": 5}
    model = sft(*sft_configs(**data.sft(tmp_path / "sft", **settings)))
    tuned_further = grpo(*grpo_configs(**data.grpo(tmp_path / "grpo", model, max_steps=1, finetune=finetune)))
    for folder in (model, tuned_further):
        config = json.loads((folder / "config.json").read_text())
        before = json.loads((tmp_path / name / "config.json").read_text())
        for key in ("output_router_logits", "router_aux_loss_coef"):
            assert config.get(key) == before.get(key)
        items, _ = Recommender.from_pretrained(folder).recommend(HISTORIES, top_k=3)
        assert (items >= 0).all()


def test_the_loss_of_a_router_is_refused(data, tmp_path):
    model = saved("mixtral", tmp_path / "mixtral")
    settings = data.sft(tmp_path / "sft", model=model, max_history=5, router_aux_loss_coef=0.1)
    with pytest.raises(HfGrError, match="router_aux_loss_coef"):
        sft(*sft_configs(**settings))
