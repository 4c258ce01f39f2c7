"""The grammar alone: time to build it, bytes per item, time of a step by catalog size, its share of a search step.

A step here is all that the constraint adds to one: what may follow, the mask on ready logits, the next state. Its rows
are those of 4 requests x 50 beams on random live paths. Random codes are the worst case: learned SIDs share prefixes.

python benchmarks/constraint.py --json constraint.json
python benchmarks/constraint.py --quick               # about a minute on two cores: 1 million items at most
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import PrefixConstrainedLogitsProcessor

from hf_gr.decoding.trunk import Trunk, step_log_probs
from hf_gr.grammar import ItemFilter, SidGrammar, SidLogitsProcessor, Successors, TrieGrammar, UnorderedGrammar
from hf_gr.search_config import SearchConfig


GRAMMARS: dict[str, type[TrieGrammar] | type[UnorderedGrammar]] = {"trie": TrieGrammar, "unordered": UnorderedGrammar}
SIZES = (3_700, 10_000, 100_000, 1_000_000, 10_000_000)
FILTERS = ("none", "deny", "allow", "mask")
DENIED, ALLOWED, LIVE_SHARE = 300, 1_000, 0.3
RIVAL_ITEMS = 100_000  # a Python dict of more prefixes takes gigabytes
SHARE_ITEMS, SMALL, LARGE = 1_000_000, 10_000, 10_000_000  # what the acceptance figures are about
PROMPT = 200  # tokens

Steps = dict[str, Callable[[], Any]]


class Built:
    """A grammar over random codes, with the states and filters that its steps are measured with."""

    def __init__(self, kind: str, items: int, options: argparse.Namespace):
        self.kind, self.items, self.options = kind, items, options
        self.token_ids, _ = measure.new_token_ids(options.model, options.codebooks, options.codes)
        self.codes = measure.random_codes(items, options.codebooks, options.codes)
        make = GRAMMARS[kind]
        built = measure.alternating({"build": lambda: make(self.codes, self.token_ids)}, 1, warm_up=False)["build"]
        self.build_s, self.build_mb = built.median, built.peak_mb
        on_host: SidGrammar = built.result
        self.bytes_per_item = built.result.nbytes / items
        self.grammar = on_host.to(options.device)
        self.filter_ms: dict[str, float] = {}
        self.filters = {name: self._filter(name) for name in FILTERS}

    def _filter(self, name: str) -> ItemFilter | None:
        """Every request's filter, timed as it is made (a mask is made once for many requests; its time is apart)."""
        random, batch, n = np.random.default_rng(4), self.options.batch, self.items
        if name == "none":
            return None
        if name == "mask":
            live = random.random(n) < LIVE_SHARE
            with self._timed("mask, once"):
                mask = self.grammar.mask(live)
            with self._timed(name):
                return self.grammar.filter(only=[mask] * batch)
        count = min(DENIED if name == "deny" else ALLOWED, n // 2)
        rows = [random.choice(n, count, replace=False) for _ in range(batch)]
        with self._timed(name):
            return self.grammar.filter(deny=rows) if name == "deny" else self.grammar.filter(allow=rows)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.filter_ms[name] = (time.perf_counter() - start) * 1000

    @property
    def rows(self) -> int:
        return self.options.batch * self.options.beams

    def steps(self) -> Steps:
        """The constraint's part of every step under every filter, by "kind/items/filter/step"."""
        found: Steps = {}
        for name, item_filter in self.filters.items():
            states, taken, _ = measure.live_walk(self.grammar, self.rows, item_filter)
            for step, (state, option) in enumerate(zip(states, taken, strict=True)):
                run = measure.constraint_step(self.grammar, step, state, option, item_filter)
                found[f"{self.kind}/{self.items}/{name}/{step}"] = run
        return found

    def rivals(self) -> Steps:
        """Whole logits processors over the whole vocabulary, ours and transformers' with a dict, on the same rows.

        "prefix_lookup" is the dict alone, row by row: the least that any prefix function costs.
        """
        _, _, tokens = measure.live_walk(self.grammar, self.rows)
        answers = np.asarray(self.token_ids)[np.arange(self.options.codebooks), self.codes]
        follow = measure.prefix_dict(answers)
        prompt = torch.zeros(self.rows, PROMPT, dtype=torch.int64, device=self.options.device)
        vocabulary = measure.SHAPES[self.options.model]["vocab_size"] + self.options.codebooks * self.options.codes
        scores = torch.zeros(self.rows, vocabulary, device=self.options.device)
        ours = SidLogitsProcessor(self.grammar, prompt_length=PROMPT)
        theirs = PrefixConstrainedLogitsProcessor(
            lambda _, row: follow[tuple(row[PROMPT:].tolist())], self.options.beams
        )
        found: Steps = {}
        for step in range(self.options.codebooks):
            ids = torch.cat([prompt, tokens[:, :step]], dim=1)
            end = f"{self.items}/none/{step}"
            found[f"prefix_lookup/{end}"] = partial(_look_up, follow, ids)
            found[f"prefix_fn/{end}"] = partial(theirs, ids, scores)
            found[f"processor/{end}"] = partial(ours, ids, scores)
        return found


def _look_up(follow: dict[tuple[int, ...], list[int]], ids: torch.Tensor) -> list[list[int]]:
    return [follow[tuple(row[PROMPT:].tolist())] for row in ids]


@torch.no_grad()
def model_step_seconds(options: argparse.Namespace, repeats: int) -> float:
    """One step of a search without its grammar: a code of every beam through the model, then the codes' scores."""
    sizes = options.codebooks, options.codes
    model = measure.random_model(options.model, options.codebooks * options.codes, options.dtype, options.device)
    token_ids, _ = measure.new_token_ids(options.model, *sizes)
    codes = measure.random_codes(1_000, *sizes)
    grammar = TrieGrammar(codes, token_ids).to(options.device)
    prompts = measure.random_prompts(codes, token_ids, options.batch, PROMPT, padded=False)
    trunk = Trunk.of(model, prompts)
    batch, beams = options.batch, options.beams
    ids = grammar.step_tokens(0)[torch.arange(beams, device=options.device) % options.codes].expand(batch, -1)
    depths = torch.zeros(beams, dtype=torch.int64, device=options.device)
    visible = torch.eye(beams, dtype=torch.bool, device=options.device).expand(batch, -1, -1)
    free = Successors(None, torch.ones(batch * beams, options.codes, dtype=torch.bool, device=options.device))

    def run() -> None:
        hidden = trunk.feed(ids, depths, visible)
        log_probs = step_log_probs(model, hidden.flatten(0, 1), grammar, 1, free, SearchConfig())
        log_probs.view(batch, -1).topk(beams, dim=1)
        trunk.drop()

    return measure.alternating({"step": run}, repeats, options.device, memory=False)["step"].median or 0.0


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All figures; `None` where a size was left out."""
    built = [Built(kind, items, options) for kind in options.grammars for items in options.items]
    steps: Steps = {}
    for one in built:
        steps |= one.steps()
        if one.kind == "trie" and one.items <= RIVAL_ITEMS:
            steps |= one.rivals()
    slow = {name: min(5, options.repeats) for name in steps if name.startswith(("prefix", "processor"))}
    timed = measure.alternating(steps, options.repeats, options.device, fewer=slow, memory=False)
    level_ms = _by_level(timed)
    step_ms = _nested(level_ms, lambda ms: sum(ms) / len(ms))
    model_ms = model_step_seconds(options, min(options.repeats, 10)) * 1000
    shares = {kind: sizes for kind, sizes in step_ms.items() if kind in options.grammars}
    shares = _nested(shares, lambda ms: ms / (ms + model_ms))
    settings = {name: value for name, value in vars(options).items() if name not in ("json", "quick")}
    return {
        "settings": settings | {"denied": DENIED, "allowed": ALLOWED, "live_share": LIVE_SHARE, "codes_are": "random"},
        "trie_build_s": _by_size(built, "trie", "build_s"),
        "trie_build_peak_mb": _by_size(built, "trie", "build_mb"),
        "trie_bytes_per_item": _by_size(built, "trie", "bytes_per_item"),
        "unordered_build_s": _by_size(built, "unordered", "build_s"),
        "unordered_build_peak_mb": _by_size(built, "unordered", "build_mb"),
        "unordered_bytes_per_item": _by_size(built, "unordered", "bytes_per_item"),
        "filter_ms": {kind: _by_size(built, kind, "filter_ms") for kind in options.grammars},
        "step_ms": step_ms,
        "level_ms": level_ms,
        "step_ratio_10m_10k": _large_to_small(step_ms, "trie"),
        "step_ratio_10m_10k_unordered": _large_to_small(step_ms, "unordered"),
        "model_step_ms": model_ms,
        "constraint_share": shares.get("trie", {}).get(str(SHARE_ITEMS), {}).get("none"),
        "constraint_share_of": shares,
    } | measure.provenance(options.device)


def _by_level(timed: dict[str, measure.Measured]) -> dict[str, Any]:
    """Milliseconds of each step by kind, size and filter, from names "kind/items/filter/step"."""
    found: dict[str, Any] = {}
    for name, step in timed.items():
        kind, items, item_filter, _ = name.split("/")
        levels = found.setdefault(kind, {}).setdefault(items, {}).setdefault(item_filter, [])
        levels.append((step.median or 0.0) * 1000)
    return found


def _nested(by_kind: dict[str, Any], change: Callable[[Any], float]) -> dict[str, Any]:
    """The same figures by kind, size and filter, each changed."""
    return {
        kind: {items: {name: change(value) for name, value in filters.items()} for items, filters in sizes.items()}
        for kind, sizes in by_kind.items()
    }


def _by_size(built: Sequence[Built], kind: str, name: str) -> dict[str, Any]:
    return {str(one.items): vars(one)[name] for one in built if one.kind == kind}


def _large_to_small(step_ms: dict[str, Any], kind: str) -> dict[str, float | None]:
    """By filter, how much longer a step takes with 10 million items than with 10 thousand."""
    sizes = step_ms.get(kind, {})
    large, small = sizes.get(str(LARGE), {}), sizes.get(str(SMALL), {})
    return {name: measure.ratio(large.get(name), small.get(name)) for name in FILTERS}


def tables(result: dict[str, Any]) -> list[Table]:
    """The result, to read."""
    hardware, settings = result["hardware"], result["settings"]
    rows = settings["batch"] * settings["beams"]
    where = hardware["gpu"] or f"{hardware['cpu']}, {hardware['cores']} cores"
    steps = Table(title=f"ms a step, {rows} rows; {settings['codebooks']} codes of {settings['codes']} ({where})")
    for column in ("", "items", *FILTERS, "share of a step"):
        steps.add_column(column, justify="right" if column else "left")
    for kind, sizes in result["step_ms"].items():
        for items, filters in sizes.items():
            times = [f"{filters[name]:.3f}" if name in filters else "" for name in FILTERS]
            share = result["constraint_share_of"].get(kind, {}).get(items, {}).get("none")
            steps.add_row(kind, f"{int(items):,}", *times, "" if share is None else f"{share:.2%}")
    steps.add_row(f"{settings['model']} without it", "", f"{result['model_step_ms']:.1f}")
    builds = Table(title="building")
    for column in ("", "items", "seconds", "peak MiB", "bytes per item"):
        builds.add_column(column, justify="right" if column else "left")
    for kind in settings["grammars"]:
        for items, seconds in result[f"{kind}_build_s"].items():
            memory, size = result[f"{kind}_build_peak_mb"][items], result[f"{kind}_bytes_per_item"][items]
            builds.add_row(kind, f"{int(items):,}", f"{seconds:.3f}", f"{memory:.0f}", f"{size:.1f}")
    return [steps, builds]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", nargs="+", type=int, help="catalog sizes (default: 3.7k to 10M; 1M with --quick)")
    parser.add_argument("--codebooks", type=int, default=4)
    parser.add_argument("--codes", type=int, default=256, help="codes of a codebook")
    parser.add_argument("--batch", type=int, default=4, help="requests")
    parser.add_argument("--beams", type=int, default=50)
    parser.add_argument("--grammars", nargs="+", choices=tuple(GRAMMARS), default=list(GRAMMARS))
    parser.add_argument("--model", choices=tuple(measure.SHAPES), default="135m", help="whose step the share is of")
    parser.add_argument("--dtype", choices=tuple(measure.DTYPES), default="bf16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, help="rounds (default: 50; 20 with --quick)")
    parser.add_argument("--quick", action="store_true", help="1 million items at most, fewer repeats")
    parser.add_argument("--json", type=Path, metavar="FILE")
    chosen = parser.parse_args(arguments)
    chosen.items = chosen.items or [size for size in SIZES if size <= SHARE_ITEMS or not chosen.quick]
    chosen.repeats = chosen.repeats or (20 if chosen.quick else 50)
    return chosen


def main(arguments: list[str] | None = None) -> None:
    options, console = parse(arguments), Console()
    result = run(options)
    for grid in tables(result):
        console.print(grid)
    if options.json:
        measure.write_json(options.json, result)


if __name__ == "__main__":
    main()
