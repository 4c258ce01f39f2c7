"""What the benchmarks share: quiet timing, peak memory, the machine in words, random catalogs and random models.

Models have random weights: time and memory depend on shapes alone. Linux only (peak memory is read from /proc).
"""

import ctypes
import gc
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen3Config

from hf_gr.grammar import ItemFilter, SidGrammar


DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
ITEMS = (3_700, 100_000, 1_000_000, 10_000_000)
SHAPES: dict[str, dict[str, Any]] = {
    "135m": {  # SmolLM2-135M
        "vocab_size": 49_152,
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    },
    "600m": {  # Qwen3-0.6B
        "vocab_size": 151_936,
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    },
    "small": {  # the small recommender of hf_gr/recipes/*/sft-*-small.yaml
        "vocab_size": 3,
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "intermediate_size": 512,
        "tie_word_embeddings": True,
    },
    "tiny": {  # for tests
        "vocab_size": 500,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "tie_word_embeddings": True,
    },
}
_MIB = 1 << 20


@dataclass
class Measured:
    """Runs of one contender.

    Attributes:
        seconds: Of each timed run.
        peak_mb: Largest increase of memory during a run, in MiB: of the process, or of torch's allocations on a GPU.
        result: What the last run returned; `None` if the contender was not run.
    """

    seconds: list[float] = field(default_factory=list)
    peak_mb: float | None = None
    result: Any = None

    @property
    def median(self) -> float | None:
        """Seconds; `None` if it was not run."""
        return statistics.median(self.seconds) if self.seconds else None


def alternating(
    contenders: Mapping[str, Callable[[], Any]],
    repeats: int,
    device: str = "cpu",
    *,
    fewer: Mapping[str, int] | None = None,
    warm_up: bool = True,
    memory: bool = True,
) -> dict[str, Measured]:
    """Times contenders in turns, so that what else the machine does meets all of them alike.

    Args:
        contenders: Functions to time, in the order in which they take turns.
        repeats: Rounds; each runs every contender once.
        device: Where they compute; the clock waits for it.
        fewer: Repeats of slow contenders, which stop taking part after so many rounds and are not warmed up.
        warm_up: Whether a round that is not timed goes first.
        memory: Whether peak memory is measured too: in a run of its own, because giving freed pages back to the system
            before it slows it down; the slow contenders' memory is that of their timed runs.
    """
    measured = {name: Measured() for name in contenders}
    limits = dict.fromkeys(contenders, repeats) | dict(fewer or {})
    gc.collect()
    gc.freeze()  # no collection of a run looks at what was there before
    if warm_up:
        for name, run in contenders.items():
            if name not in (fewer or {}):
                run()
    for turn in range(max(limits.values(), default=0)):
        for name, run in contenders.items():
            if turn < limits[name]:
                _timed(measured[name], run, device, memory and name in (fewer or {}))
    if memory:
        for name, run in contenders.items():
            if measured[name].peak_mb is None and limits[name]:
                before = _start_peak(device)
                run()
                measured[name].peak_mb = (_peak(device) - before) / _MIB
    gc.unfreeze()
    return measured


def _timed(measured: Measured, run: Callable[[], Any], device: str, memory: bool) -> None:
    measured.result = None
    before = _start_peak(device) if memory else 0
    _synchronize(device)
    start = time.perf_counter()
    measured.result = run()
    _synchronize(device)
    measured.seconds.append(time.perf_counter() - start)
    if memory:
        measured.peak_mb = max(measured.peak_mb or 0, (_peak(device) - before) / _MIB)


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _start_peak(device: str) -> int:
    """Starts a new measurement of the peak; returns the bytes in use now."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    ctypes.CDLL(None).malloc_trim(0)  # else a run reuses freed pages that still count as in use
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark starts again from here
    return _peak(device)


def _peak(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024


def ratio(above: float | None, below: float | None) -> float | None:
    """Their quotient; `None` where one of them was not measured, or the second too small to be."""
    return None if above is None or not below else above / below


def provenance(device: str) -> dict[str, Any]:
    """The machine, the versions, the commit, the date and the command, for a result."""
    return {
        "hardware": hardware(device),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "commit": commit(),
        "date": date.today().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
    }


def hardware(device: str) -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    return {
        "device": device,
        "cpu": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "amx_bf16": "amx_bf16" in flags,
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
    }


def commit() -> str:
    """Short hash of this checkout's commit, with "-dirty" where the code differs from it."""
    root = Path(__file__).parent
    git = ["git", "-C", str(root), "describe", "--always", "--exclude=*", "--dirty"]
    return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()


def random_codes(items: int, codebooks: int, size: int, seed: int = 0) -> np.ndarray:
    """Uniform codes int32 [items, codebooks]: the worst case, since learned SIDs share their first codes."""
    return np.random.default_rng(seed).integers(0, size, (items, codebooks), dtype=np.int32)


def new_token_ids(shape: str, codebooks: int, size: int) -> tuple[list[list[int]], list[int]]:
    """Token ids of the codes, one list a codebook, and of the thinking tokens; they follow the model's vocabulary."""
    first = SHAPES[shape]["vocab_size"]
    codes = [list(range(first + c * size, first + (c + 1) * size)) for c in range(codebooks)]
    think = first + codebooks * size
    return codes, list(range(think, think + codebooks))


def random_model(shape: str, new_tokens: int, dtype: str, device: str, seed: int = 0) -> PreTrainedModel:
    """A causal LM of one of the `SHAPES` with random weights and `new_tokens` more rows, for inference."""
    torch.manual_seed(seed)
    settings = SHAPES[shape] | {"max_position_embeddings": 8192}
    settings["vocab_size"] += new_tokens
    config = (Qwen3Config if shape in ("600m", "small") else LlamaConfig)(**settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    return model.to(device=device, dtype=DTYPES[dtype]).eval()


def random_prompts(
    codes: np.ndarray, token_ids: list[list[int]], batch: int, length: int, padded: bool, seed: int = 1
) -> list[list[int]]:
    """Histories of random items, int lists of `length` tokens; with `padded`, every second one is half as long."""
    random = np.random.default_rng(seed)
    tokens = np.asarray(token_ids)
    prompts = []
    for row in range(batch):
        wanted = length // 2 if padded and row % 2 else length
        items = codes[random.integers(0, len(codes), -(-wanted // codes.shape[1]))]
        written = tokens[np.arange(codes.shape[1]), items].flatten().tolist()
        prompts.append(written[len(written) - wanted :])
    return prompts


def live_walk(
    grammar: SidGrammar, rows: int, item_filter: ItemFilter | None = None, seed: int = 2
) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """Random live paths through a grammar.

    Returns:
        States before every step (int64 [rows, S] each), options taken (int64 [rows] each), tokens (int64 [rows, C]).
    """
    generator = torch.Generator(grammar.device).manual_seed(seed)
    states, taken, tokens = [grammar.initial(rows)], [], []
    for step in range(grammar.num_codes):
        options = grammar.successors(states[-1], step, item_filter)
        option = torch.multinomial(options.allowed.float(), 1, generator=generator)
        index = option if options.index is None else options.index.gather(1, option)
        taken.append(option[:, 0])
        tokens.append(grammar.step_tokens(step)[index[:, 0]])
        states.append(grammar.advance(states[-1], step, option[:, 0]))
    return states[:-1], taken, torch.stack(tokens, 1)


def constraint_step(
    grammar: SidGrammar, step: int, states: torch.Tensor, taken: torch.Tensor, item_filter: ItemFilter | None = None
) -> Callable[[], Any]:
    """What the constraint adds to a step of a search: what may follow, the mask on ready logits, the next state."""
    logits = torch.zeros(len(states), len(grammar.step_tokens(step)), device=grammar.device)

    def run() -> torch.Tensor:
        grammar.successors(states, step, item_filter).masked(logits)
        return grammar.advance(states, step, taken)

    return run


def prefix_dict(tokens: np.ndarray) -> dict[tuple[int, ...], list[int]]:
    """What may follow every prefix of the answers `tokens` (int [n, C]): the usual structure of a prefix function."""
    follow: dict[tuple[int, ...], list[int]] = {}
    for length in range(tokens.shape[1]):
        for row in np.unique(tokens[:, : length + 1], axis=0).tolist():
            follow.setdefault(tuple(row[:-1]), []).append(row[-1])
    return follow


def write_json(file: Path, result: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
