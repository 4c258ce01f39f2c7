"""GRPO against stock TRL: seconds of an optimizer step and of its parts, memory, equality of scores and gradients.

The same random weights, prompts, reward (1 on the target), loss and rollouts a step on both sides:

- `stock`: `trl.GRPOTrainer`. It has no setting for a logits processor, so `model.generate` is wrapped with ours, which
  is quicker than a prefix function. It samples G rows a prompt and scores G rows, each with the prompt computed anew.
  Its head covers the whole vocabulary, but only at the answer's tokens. What it scores is the unconstrained policy,
  although it rolls out the constrained one. Gradient checkpointing, which TRL turns on, is off on both sides.
- `ours`: `hf_gr.grpo.SidGRPOTrainer` with `rollout: sample`: a prompt is computed once for its rollouts and once for
  their scores, under the grammar.
- `stock_spg`, `ours_spg`: several optimizer steps a rollout, for which both score the old policy as well.

Every arm is a process of its own that trains, in turns. The first cycle (the steps of one rollout) warms up. In the
others these parts are clocked: `rollout`; `before`, what else comes before the scores (reward, reference and, with
several steps a rollout, old policy); `score`, the policy's forward, loss and backward; `rest` (optimizer, data, log).
bf16 is autocast over fp32 weights, as in training. Random weights seldom hit the target, so most advantages are 0;
that saves no side any work. Peak memory is the process's (on a GPU torch's); `training` is what training adds to it.

    python benchmarks/grpo.py --json grpo.json          # 135M, 200 tokens, G = 16, two prompts a step
    python benchmarks/grpo.py --quick                   # the small model, a minute or two
    python benchmarks/grpo.py --dtype fp32 --json grpo-fp32.json

`…_speedup` is stock over ours (`…_spg` for those arms), `…_ratio` ours over stock. In fp32, one of two prompts padded:
`logp_maxdiff` is the largest difference between log-probabilities over shared prompts with the mask off and TRL's own;
`grad_reldiff` the largest ‖a − b‖ / ‖b‖ over all parameters of the gradients of Σ A log p for random A;
`masked_logp_maxdiff` compares `SidGRPOTrainer`'s policy with plain logits renormalised over codes that items have.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import measure
import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from sft import peak_mb
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer

from hf_gr.branches import share_prompts
from hf_gr.catalog import SidCatalog
from hf_gr.dataset import Histories
from hf_gr.decoding.padding import pad_left
from hf_gr.grammar import SidLogitsProcessor, TrieGrammar
from hf_gr.grpo import SidGRPOConfig, SidGRPOTrainer
from hf_gr.models import last_hidden
from hf_gr.rewards import ItemKnowledge
from hf_gr.vocabulary import SidVocabulary


ARMS = ("stock", "ours", "stock_spg", "ours_spg")
PARTS = ("step", "rollout", "before", "score", "rest")
CODEBOOKS = 3
PARITY_ANSWERS = 8  # of each of two prompts: one pass of each side in fp32 fits beside other work
QUICK = {"model": "small", "prompts": 2, "generations": 8, "prompt_length": 60, "items": 500, "steps": 2}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    given = list(sys.argv[1:] if arguments is None else arguments)
    chosen = parse(given)
    if chosen.only:
        found = parity(chosen) if chosen.only == "parity" else run_arm(chosen.only, chosen)
        print(json.dumps(found), flush=True)
        return found
    arms = chosen.arms.split(",")
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    with tempfile.TemporaryDirectory() as folder:
        save_model(chosen, Path(folder))
        apart = [*given, "--folder", folder]
        agreement = run_apart("parity", apart)
        for turn in range(chosen.repeats):
            for arm in arms:
                runs[arm].append(run_apart(arm, apart))
                seconds = ", ".join(f"{value:.2f}" for value in runs[arm][-1]["seconds"]["step"])
                print(f"turn {turn + 1}, {arm}: {seconds} s a step", file=sys.stderr, flush=True)
    hidden = ("json", "only", "folder")
    settings = {name: value for name, value in vars(chosen).items() if name not in hidden}
    result = summary(runs) | agreement | {"settings": settings} | measure.provenance(chosen.device)
    show(result)
    if chosen.json:
        measure.write_json(chosen.json, result)
    return result


def parse(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(measure.SHAPES), default="135m")
    parser.add_argument("--dtype", choices=tuple(measure.DTYPES), default="bf16", help="arithmetic; weights are fp32")
    parser.add_argument("--prompts", type=int, default=2, help="prompts an optimizer step")
    parser.add_argument("--prompt-length", type=int, default=200, help="tokens")
    parser.add_argument("--generations", type=int, default=16, help="G, rollouts a prompt")
    parser.add_argument(
        "--steps-per-generation", type=int, default=2, help="optimizer steps a rollout in the spg arms"
    )
    parser.add_argument("--items", type=int, default=3_700)
    parser.add_argument("--codes", type=int, default=256, help="codes a codebook")
    parser.add_argument("--beta", type=float, default=1e-3, help="weight of the KL term; 0: no reference")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="on both sides")
    parser.add_argument("--steps", type=int, default=2, help="cycles measured (in the spg arms of several steps)")
    parser.add_argument("--repeats", type=int, default=1, help="turns of all arms; medians over all cycles count")
    parser.add_argument("--arms", default=",".join(ARMS), help="arms by commas")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="other defaults: the small model, 2 × 60 tokens, G = 8")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--only", choices=(*ARMS, "parity"), help=argparse.SUPPRESS)  # one arm, in this process
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of the model
    if parser.parse_args(given).quick:
        parser.set_defaults(**QUICK)
    return parser.parse_args(given)


def run_apart(arm: str, given: list[str]) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, *given, "--only", arm], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {arm} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


class World:
    """Random items with distinct SIDs, histories of them, and their tokens, the same in every process."""

    def __init__(self, chosen: argparse.Namespace):
        self.codes = np.unique(measure.random_codes(chosen.items, CODEBOOKS, chosen.codes), axis=0)
        self.token_ids, _ = measure.new_token_ids(chosen.model, CODEBOOKS, chosen.codes)
        self.tokens = np.asarray(self.token_ids)[np.arange(CODEBOOKS), self.codes]
        self.grammar = TrieGrammar(self.codes, self.token_ids)
        names = [str(row) for row in range(len(self.codes))]
        items = pa.table({"item_id": names, "title": names})
        catalog = SidCatalog.from_codes(self.codes, items, (chosen.codes,) * CODEBOOKS)
        codes = tuple(map(tuple, self.token_ids))
        vocabulary = SidVocabulary(codes, (), 1, "none", {}, 50, catalog.fingerprint)
        nobody = Histories(np.array([], str), np.zeros(1, np.int64), *np.zeros((2, 0), np.int64))
        knowledge = ItemKnowledge.of(catalog, nobody)  # the reward needs nothing of how they are used
        self.ours = {"catalog": catalog, "vocabulary": vocabulary, "items": knowledge}  # for the trainer

    def prompts(self, count: int, length: int) -> list[list[int]]:
        return measure.random_prompts(self.codes, self.token_ids, count, length, padded=False)


def tokenizer_of(world: World) -> PreTrainedTokenizerFast:
    """A word of its own for every token, so that a trainer that takes text gets the same ids."""
    words = {f"t{token}": token for token in range(world.token_ids[-1][-1] + 1)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t2"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="t0", eos_token="t1", unk_token="t2")


def save_model(chosen: argparse.Namespace, folder: Path) -> None:
    """On disk, because TRL loads the reference from there."""
    measure.random_model(chosen.model, CODEBOOKS * chosen.codes, "fp32", "cpu").save_pretrained(folder)


def trainer_of(side: str, chosen: argparse.Namespace, world: World, output: str, spg: int = 1) -> GRPOTrainer:
    """The trainer of a side, `stock` or `ours`, with `spg` optimizer steps a rollout; both get the same settings."""
    model = AutoModelForCausalLM.from_pretrained(chosen.folder, dtype=torch.float32, attn_implementation="sdpa")
    cycles = chosen.steps + 1
    random = np.random.default_rng(4)
    count = chosen.prompts * spg * cycles
    prompts, targets = world.prompts(count, chosen.prompt_length), random.integers(0, len(world.codes), count).tolist()
    settings: dict[str, Any] = {
        "output_dir": output,
        "max_steps": spg * cycles,
        "num_generations": chosen.generations,
        "per_device_train_batch_size": chosen.prompts * chosen.generations,
        "steps_per_generation": spg,
        "loss_type": "dapo",
        "scale_rewards": "group",
        "beta": chosen.beta,
        "temperature": 1.0,
        "learning_rate": 1e-5,
        "bf16": chosen.dtype == "bf16",
        "use_cpu": chosen.device == "cpu",
        "gradient_checkpointing": chosen.gradient_checkpointing,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
    }
    tokenizer = tokenizer_of(world)
    if side == "ours":
        rows = Dataset.from_dict({"prompt": prompts, "target": targets})
        config = SidGRPOConfig(**settings, rewards="exact", rollout="sample", zero_variance="keep")
        return SidGRPOTrainer(model, config, processing_class=tokenizer, train_dataset=rows, **world.ours)
    texts = [" ".join(f"t{token}" for token in prompt) for prompt in prompts]
    rows = Dataset.from_dict({"prompt": texts, "target": targets})
    constrain(model, world.grammar)
    config = GRPOConfig(**settings, max_completion_length=CODEBOOKS)
    return GRPOTrainer(model, hit(world), args=config, train_dataset=rows, processing_class=tokenizer)


def constrain(model: PreTrainedModel, grammar: TrieGrammar) -> None:
    """Lets every `generate` of the model write items: TRL passes it no logits processor."""
    generate = model.generate

    def constrained(input_ids: torch.Tensor, **settings: Any) -> torch.Tensor:
        processor = SidLogitsProcessor(grammar, prompt_length=input_ids.shape[1])
        return generate(input_ids=input_ids, logits_processor=LogitsProcessorList([processor]), **settings)

    model.generate = constrained


def hit(world: World) -> Callable[..., list[float]]:
    """The reward `exact`, as a user of TRL would write it."""

    def exact(completion_ids: list[list[int]], target: list[int], **_: Any) -> list[float]:
        return [float(ids == world.tokens[row].tolist()) for ids, row in zip(completion_ids, target, strict=True)]

    return exact


class Clock(TrainerCallback):
    """Seconds of every optimizer step of a trainer, and of its parts; the rollouts that it made."""

    def __init__(self, trainer: GRPOTrainer, device: str):
        self.device = device
        self.steps: list[dict[str, float]] = []
        self.rollouts: list[list[int]] = []
        self._spent = dict.fromkeys(("generate", "prepare", "train"), 0.0)
        trainer._generate = self._clocked("generate", trainer._generate)
        trainer._prepare_inputs = self._clocked("prepare", trainer._prepare_inputs)
        trainer.training_step = self._clocked("train", trainer.training_step)
        trainer.add_callback(self)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._start = self._now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        now, spent = self._now(), self._spent
        parts = {
            "step": now - self._start,
            "rollout": spent["generate"],
            "before": spent["prepare"] - spent["generate"],
            "score": spent["train"] - spent["prepare"],
            "rest": now - self._start - spent["train"],  # optimizer, gradient norm, data, log
        }
        self.steps.append(parts)
        self._spent = dict.fromkeys(spent, 0.0)
        self._start = now

    def _clocked(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **settings: Any) -> Any:
            start = self._now()
            result = function(*arguments, **settings)
            self._spent[name] += self._now() - start
            if name == "generate":
                self.rollouts += result[1]
            return result

        return run

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def run_arm(arm: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """Trains one arm; seconds are those of an optimizer step, the mean of each cycle."""
    world = World(chosen)
    spg = chosen.steps_per_generation if arm.endswith("_spg") else 1
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(arm.removesuffix("_spg"), chosen, world, folder, spg)
        clock = Clock(trainer, chosen.device)
        before = peak_mb()
        trainer.train()
    cycles = [clock.steps[start : start + spg] for start in range(spg, len(clock.steps), spg)]
    items = {tuple(row) for row in world.tokens.tolist()}
    return {
        "seconds": {part: [statistics.mean(step[part] for step in cycle) for cycle in cycles] for part in PARTS},
        "steps": trainer.state.global_step,
        "rollouts_a_step": len(clock.rollouts) // trainer.state.global_step,
        "invalid": sum(tuple(rollout) not in items for rollout in clock.rollouts),
        "peak_mb": peak_mb(),
        "training_mb": peak_mb() - before if chosen.device == "cpu" else peak_mb(),
    }


def parity(chosen: argparse.Namespace) -> dict[str, float | str]:
    """How far our scores and gradients are from TRL's, and our policy from a renormalisation by hand; in fp32."""
    world = World(chosen)
    prompts = world.prompts(2, chosen.prompt_length)
    prompts[1] = prompts[1][chosen.prompt_length // 2 :]
    generator = torch.Generator().manual_seed(5)
    chance = torch.randint(len(world.codes), (2 * PARITY_ANSWERS,), generator=generator)
    answers = torch.from_numpy(world.tokens)[chance].to(chosen.device)
    advantages = torch.randn(answers.shape, generator=generator).to(chosen.device)
    ids, mask = (each.repeat_interleave(PARITY_ANSWERS, 0) for each in pad_left(prompts, 0, chosen.device))
    whole = torch.cat([ids, answers], 1), torch.cat([mask, torch.ones_like(answers)], 1)
    exact = argparse.Namespace(**vars(chosen) | {"dtype": "fp32", "beta": 0.0, "gradient_checkpointing": False})
    with tempfile.TemporaryDirectory() as folder:
        stock = trainer_of("stock", exact, world, folder)
        ours = trainer_of("ours", exact, world, folder)
    theirs, *_ = stock._get_per_token_logps_and_entropies(stock.model, *whole, CODEBOOKS)
    shared = whole_vocabulary(ours.model, ids, mask, answers)
    for log_probs in (theirs, shared):
        (log_probs * advantages).sum().backward()
    gradients = {name: weight.grad for name, weight in stock.model.named_parameters()}
    differences = {
        name: float((weight.grad - gradients[name]).norm() / gradients[name].norm())
        for name, weight in ours.model.named_parameters()
    }
    with torch.no_grad():
        masked, _ = ours.score(ours.model, ids, mask, answers)
        listed = renormalised(stock.model, world, *whole)
    worst = max(differences, key=differences.__getitem__)
    return {
        "logp_maxdiff": float((shared - theirs).detach().abs().max()),
        "grad_reldiff": differences[worst],
        "grad_reldiff_of": worst,
        "masked_logp_maxdiff": float((masked - listed).abs().max()),
    }


def whole_vocabulary(
    model: PreTrainedModel, prompts: torch.Tensor, prompt_mask: torch.Tensor, answers: torch.Tensor
) -> torch.Tensor:
    """Log-probabilities float32 [R, C] of answers over the whole vocabulary, each prompt computed once."""
    shared = share_prompts(prompts, prompt_mask, answers)
    hidden = last_hidden(model, **shared.inputs(model.config._attn_implementation, model.dtype))
    logits = model.get_output_embeddings()(hidden.flatten(0, 1)[shared.predictors]).float()
    return torch.log_softmax(logits, -1).gather(-1, answers[..., None])[..., 0]


def renormalised(model: PreTrainedModel, world: World, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Log-probabilities float32 [R, C] of answers among the codes that items with the same first codes have."""
    found = torch.zeros(len(ids), CODEBOOKS, device=ids.device)
    for row in range(len(ids)):
        logits = model(input_ids=ids[row : row + 1], attention_mask=mask[row : row + 1]).logits[0].float()
        answer = ids[row, -CODEBOOKS:].tolist()
        for level in range(CODEBOOKS):
            alike = (world.tokens[:, :level] == answer[:level]).all(1)
            allowed = np.unique(world.tokens[alike, level]).tolist()
            policy = torch.log_softmax(logits[level - CODEBOOKS - 1, allowed], 0)
            found[row, level] = policy[allowed.index(answer[level])]
    return found


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians over all cycles, and the ratios; one whose arms were not run is `None`."""
    arms = {
        arm: found[-1]
        | {"seconds": {part: statistics.median(_cycles(found, part)) for part in PARTS}}
        | {"seconds_of_cycles": _cycles(found, "step"), "invalid": sum(run["invalid"] for run in found)}
        | {key: max(run[key] for run in found) for key in ("peak_mb", "training_mb")}
        for arm, found in runs.items()
    }

    def of(arm: str, part: str) -> float | None:
        return arms[arm]["seconds"][part] if arm in arms else None

    speed = {
        f"{part}_speedup{suffix}": measure.ratio(of(f"stock{suffix}", part), of(f"ours{suffix}", part))
        for suffix in ("", "_spg")
        for part in ("step", "rollout", "before", "score")
    }
    memory = {
        f"{key}_ratio": measure.ratio(*(arms[arm][f"{key}_mb"] for arm in ("ours", "stock")))
        for key in ("peak", "training")
        if {"ours", "stock"} <= set(arms)
    }
    return {"arms": arms} | speed | memory | {"invalid": sum(arm["invalid"] for arm in arms.values())}


def _cycles(runs: list[dict[str, Any]], part: str) -> list[float]:
    return [seconds for run in runs for seconds in run["seconds"][part]]


def show(result: dict[str, Any]) -> None:
    """Prints seconds of an optimizer step as a Markdown table, then the ratios."""
    print("| arm | " + " | ".join(PARTS) + " | rollouts | peak MB | of training MB |")
    print("|---|" + "---:|" * (len(PARTS) + 3))
    for arm, found in result["arms"].items():
        seconds = [f"{found['seconds'][part]:.3f}" for part in PARTS]
        memory = [f"{found[key]:.0f}" for key in ("peak_mb", "training_mb")]
        print(f"| {' | '.join([arm, *seconds, str(found['rollouts_a_step']), *memory])} |")
    print()
    for name, value in result.items():
        if isinstance(value, float):
            print(f"{name}: {value:.2g}" if "diff" in name else f"{name}: {value:.2f}")


if __name__ == "__main__":
    main()
