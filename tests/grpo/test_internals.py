"""What is overridden of TRL: it must still be there, and do what is written here."""

import inspect

import pytest
import torch
from datasets import Dataset
from tiny import tiny_catalog, tiny_lm, tiny_tokenizer
from toy_world import World
from trl import GRPOConfig, GRPOTrainer

from hf_gr.branches import share_prompts
from hf_gr.grpo import SidGRPOTrainer
from hf_gr.grpo.internals import GroupedGRPOTrainer, _refilled
from hf_gr.vocabulary import add_vocabulary


def test_trl_still_calls_what_we_replace():
    """If TRL moves one of these, that must not pass in silence."""
    theirs = inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters
    ours = inspect.signature(SidGRPOTrainer._get_per_token_logps_and_entropies).parameters
    used = ["self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy"]
    assert list(theirs)[: len(used)] == used
    assert [name for name in ours if name != "_"] == used
    for name in ("batch_size", "compute_entropy"):
        assert ours[name].default == theirs[name].default
    assert "rollout_func" in inspect.signature(GRPOTrainer.__init__).parameters
    source = inspect.getsource(GRPOTrainer)
    for call, times in (
        ("self._get_per_token_logps_and_entropies(", 4),  # old policy, two kinds of reference, policy
        ("self._calculate_rewards(inputs, prompts, completions, completion_ids_list)", 1),
        ("self._generate_and_score_completions(generation_batch)", 2),  # training, and evaluation, which is ours
        ("shuffle_sequence_dict(generation_batch)", 1),
        ("self._buffered_inputs[self._step % self.args.steps_per_generation]", 1),
        ('extra_fields.pop("env_mask", None)', 1),
        ('inputs["tool_mask"]', 1),
    ):
        assert source.count(call) == times, f"TRL has {call} in other places now"
    for name in vars(GroupedGRPOTrainer):
        if name.startswith("_") and not name.startswith("__") and name not in ("_generation", "_repeat", "_anywhere"):
            assert name in vars(GRPOTrainer) or name == "_without", f"TRL has no {name} any more"


def test_scoring_equals_trls_own_over_the_whole_vocabulary(tmp_path):
    """Log-probabilities and gradients, shared prompts against G rows; under the mask, see test_trainer.py."""
    catalog, model, tokenizer = tiny_catalog(), tiny_lm(), tiny_tokenizer()
    vocabulary = add_vocabulary(tokenizer, model, catalog, max_history=10)
    tokens = torch.from_numpy(vocabulary.item_tokens(catalog))
    long, short = ([vocabulary.start_id, *tokens[items].flatten().tolist()] for items in ([3, 9, 1], [7]))
    prompts = torch.tensor([long] * 4 + [[0] * (len(long) - len(short)) + short] * 4)
    mask = torch.tensor([[1] * len(long)] * 4 + [[0] * (len(long) - len(short)) + [1] * len(short)] * 4)
    answers, weights = tokens[[0, 5, 7, 7, 30, 2, 9, 11]], torch.randn(8, 1)
    settings = {"use_cpu": True, "bf16": False, "report_to": "none", "num_generations": 4, "temperature": 1.0}
    stock = GRPOTrainer(
        model,
        lambda **_: [],
        args=GRPOConfig(output_dir=str(tmp_path), per_device_train_batch_size=8, **settings),
        train_dataset=Dataset.from_dict({"prompt": ["a"]}),
        processing_class=tokenizer,
    )
    model.train()  # no dropout in it

    def gradients(log_probs: torch.Tensor) -> dict[str, torch.Tensor]:
        model.zero_grad()
        (log_probs * weights).sum().backward()
        return {name: weight.grad.clone() for name, weight in model.named_parameters()}

    ids, whole = torch.cat([prompts, answers], 1), torch.cat([mask, torch.ones_like(answers)], 1)
    theirs, _, _ = stock._get_per_token_logps_and_entropies(model, ids, whole, 3)
    expected = gradients(theirs)

    shared = share_prompts(prompts, mask, answers)
    hidden = model.base_model(**shared.inputs("sdpa", model.dtype)).last_hidden_state
    logits = model.get_output_embeddings()(hidden.flatten(0, 1)[shared.predictors])
    ours = torch.log_softmax(logits, -1).gather(2, answers[..., None])[..., 0]
    assert (ours - theirs).abs().max() < 1e-4
    for name, gradient in gradients(ours).items():
        assert (gradient - expected[name]).norm() <= 1e-3 * expected[name].norm(), name


def batch_of(first: int, groups: int, length: int) -> dict[str, torch.Tensor]:
    """Two rows a group; every entry tells of which row it is."""
    rows = torch.arange(first, first + 2 * groups)
    return {
        "prompt_ids": rows[:, None].expand(-1, length).clone(),
        "prompt_mask": torch.ones(2 * groups, length, dtype=torch.int64),
        "completion_ids": rows[:, None].expand(-1, 3).clone(),
        "advantages": rows.float(),
        "num_items_in_batch": torch.tensor(7),
    }


@pytest.mark.parametrize(("length", "other"), [(4, 4), (4, 6), (6, 4)])
def test_groups_with_variance_take_the_places_of_those_without(length, other):
    flat = torch.tensor([False, True, False, True, True]).repeat_interleave(2)
    more_flat = torch.tensor([True, False, False, True, True]).repeat_interleave(2)
    found, left = _refilled(batch_of(0, 5, length), flat, batch_of(100, 5, other), more_flat, 2, padding=-5)
    assert left.view(5, 2).tolist() == [[False] * 2, [False] * 2, [False] * 2, [False] * 2, [True] * 2]
    rows = [0, 1, 102, 103, 4, 5, 104, 105, 8, 9]
    assert found["advantages"].tolist() == rows and found["completion_ids"][:, 0].tolist() == rows
    width = max(length, other)
    for row, ids, mask in zip(rows, found["prompt_ids"].tolist(), found["prompt_mask"].tolist(), strict=True):
        own = length if row < 100 else other
        assert ids == [-5] * (width - own) + [row] * own and mask == [0] * (width - own) + [1] * own
    assert found["num_items_in_batch"] == 7


def test_a_prompts_rollouts_stay_in_one_micro_batch(tmp_path):
    world = World()
    trainer = world.trainer(
        tmp_path, num_generations=8, per_device_train_batch_size=16, steps_per_generation=2, max_steps=4
    )
    seen, plain = [], trainer._compute_loss

    def watched(model, inputs):
        seen.append(inputs["prompt_ids"])
        return plain(model, inputs)

    trainer._compute_loss = watched
    trainer.train()
    assert len(seen) == 4
    for prompts in seen:
        for group in prompts.view(2, 8, -1):
            assert (group == group[:1]).all()
