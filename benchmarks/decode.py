"""Time and memory of constrained beam search, side by side: the engine, `generate` with our processor, `generate` with
a prefix function, and the prompt's own pass through the backbone. Models have random weights, SIDs are random.

python benchmarks/decode.py --json decode.json            # one cell: 135M, bf16, 4 prompts x 200 tokens, 50 beams
python benchmarks/decode.py --quick                       # about a minute on two cores
python benchmarks/decode.py --dtype fp32 --json decode-fp32.json
python benchmarks/decode.py --grid decode.jsonl           # many cells, one setting changed at a time; resumes
python benchmarks/decode.py --grid gpu.jsonl --product --model 135m 600m --batch 1 8 --beams 256 --context 1000
"""

import argparse
import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from hf_gr.decoding import Beams, tree_search
from hf_gr.decoding.generate import generate_search
from hf_gr.decoding.graphs import SearchGraphs
from hf_gr.decoding.padding import pad_left
from hf_gr.grammar import TrieGrammar, generation_config


SEEN = 300  # items denied per request
SLOW = ("generate", "prefix_fn")  # they read the prompt once a beam
SLOW_FLOPS = {"cpu": 2e13, "cuda": 4e15}  # bigger cells leave them out: minutes a call
PREFIX_FN_ITEMS = 1_000_000  # a Python dict of more prefixes takes gigabytes
GRID: dict[str, tuple[Any, ...]] = {  # the values of a grid; the first is the default
    "model": ("135m",),
    "dtype": ("bf16",),
    "batch": (4, 1, 16, 64),
    "context": (200, 1000),
    "beams": (50, 10, 256),
    "items": measure.ITEMS,
    "codebooks": (3,),
    "codes": (256,),
}
CHOICES = {"model": tuple(measure.SHAPES), "dtype": tuple(measure.DTYPES)}


@dataclass(frozen=True)
class Cell:
    """One cell of the grid: B prompts of `context` tokens, W beams, N items of `codebooks` codes out of `codes`."""

    model: str
    dtype: str
    batch: int
    context: int
    beams: int
    items: int
    codebooks: int
    codes: int
    device: str
    padded: bool


@dataclass(frozen=True)
class Repeats:
    """How often what is measured."""

    rounds: int
    slow: int
    parity_prompts: int


class Bench:
    """What one cell needs: a model, a catalog in two grammars, prompts, and what each request has seen."""

    def __init__(self, cell: Cell):
        self.cell = cell
        self.token_ids, self.think_ids = measure.new_token_ids(cell.model, cell.codebooks, cell.codes)
        new_tokens = cell.codebooks * (cell.codes + 1)
        self.model = measure.random_model(cell.model, new_tokens, cell.dtype, cell.device)
        self.codes = measure.random_codes(cell.items, cell.codebooks, cell.codes)
        self.flat = TrieGrammar(self.codes, self.token_ids).to(cell.device)
        stepwise = TrieGrammar(self.codes, self.token_ids, think_ids=self.think_ids)
        self.stepwise = stepwise.to(cell.device)
        self.prompts = measure.random_prompts(self.codes, self.token_ids, cell.batch, cell.context, cell.padded)
        random = np.random.default_rng(3)
        seen = min(SEEN, cell.items // 2)
        self.deny = [random.choice(cell.items, seen, replace=False) for _ in range(cell.batch)]

    def contenders(self) -> dict[str, Callable[[], Any]]:
        """What is timed, by name. Each takes token ids and returns answers; the prompt's pass returns nothing."""
        width = self.cell.beams
        found: dict[str, Callable[[], Any]] = {
            "prefill": self.prefill,
            "engine": lambda: self.engine(self.flat, width),
            "engine_doubled": lambda: self.engine(self.flat, 2 * width),
            "engine_stepwise": lambda: self.engine(self.stepwise, width),
            "engine_denied": lambda: self.engine(self.flat, width, deny=True),
            "engine_model": lambda: self.engine(self.flat, width, score="model"),
        }
        if self.cell.device == "cuda":
            graphs = SearchGraphs()
            found["engine_graphs"] = lambda: self.engine(self.flat, width, graphs=graphs)
        parameters = sum(p.numel() for p in self.model.parameters())
        if 2 * parameters * self.cell.batch * width * self.cell.context <= SLOW_FLOPS[self.cell.device]:
            found["generate"] = lambda: self.generate(self.prompts)
            if self.cell.items <= PREFIX_FN_ITEMS:
                found["prefix_fn"] = self._with_prefix_fn()
        return found

    @torch.no_grad()
    def prefill(self) -> None:
        """The backbone over the prompts: no LM head, a cache as the engine fills it."""
        ids, mask = pad_left(self.prompts, 0, self.cell.device)
        self.model.base_model(input_ids=ids, attention_mask=mask, use_cache=True)

    def engine(self, grammar: TrieGrammar, width: int, *, deny: bool = False, **settings: Any) -> Beams:
        item_filter = grammar.filter(deny=self.deny) if deny else None  # made anew: every request brings its own
        return tree_search(self.model, self.prompts, grammar, num_beams=width, item_filter=item_filter, **settings)

    def generate(self, prompts: list[list[int]]) -> Beams:
        return generate_search(self.model, prompts, self.flat, num_beams=self.cell.beams, score="model")

    def _with_prefix_fn(self) -> Callable[[], torch.Tensor]:
        """`generate` with transformers' own constraint; the dict is built here, outside the clock."""
        tokens = np.asarray(self.token_ids)[np.arange(self.cell.codebooks), self.codes]
        follow = measure.prefix_dict(tokens)
        impossible = [self.token_ids[0][0]]  # transformers refuses an empty list, also for beams that are dead anyway
        config = generation_config(
            self.flat, num_beams=self.cell.beams, num_return_sequences=self.cell.beams, pad_token_id=0
        )

        @torch.no_grad()
        def run() -> torch.Tensor:
            ids, mask = pad_left(self.prompts, 0, self.cell.device)
            length = ids.shape[1]

            def allowed(_: int, row: torch.Tensor) -> list[int]:
                return follow.get(tuple(row[length:].tolist()), impossible)

            output = self.model.generate(
                input_ids=ids, attention_mask=mask, generation_config=config, prefix_allowed_tokens_fn=allowed
            )
            return output[:, length:].view(self.cell.batch, self.cell.beams, -1)

        return run

    def wrong(self, tokens: torch.Tensor, *, thinking: bool = False, deny: bool = False) -> tuple[int, int]:
        """Answers [B, W, T] that are no live item, and answers that are missing or given twice.

        Read from the raw codes, without the grammar.
        """
        answers = tokens.cpu().numpy()
        first = np.array([ids[0] for ids in self.token_ids])
        given = np.all(answers >= 0, axis=2)
        codes = (answers[..., 1::2] if thinking else answers) - first
        sound = ((codes >= 0) & (codes < self.cell.codes)).all(2)
        if thinking:
            sound &= (answers[..., ::2] == np.array(self.think_ids)).all(2)
        weights = self.cell.codes ** np.arange(self.cell.codebooks)
        catalog, asked = self.codes.astype(np.int64) @ weights, np.where(sound, codes @ weights, -1)
        near = np.flatnonzero(np.isin(catalog, asked))  # only these rows can matter
        invalid = missing = 0
        for row in range(len(answers)):
            live = np.setdiff1d(near, self.deny[row]) if deny else near
            good = np.isin(asked[row], catalog[live])
            invalid += int((given[row] & ~good).sum())
            missing += answers.shape[1] - len(np.unique(asked[row][good]))
        return invalid, missing

    def parity(self, engine: Beams, generated: Beams) -> dict[str, float]:
        """How far two searches agree: share of equal best answers, mean overlap of the sets."""
        ours, theirs = engine.tokens.tolist(), generated.tokens.tolist()
        pairs = [(list(map(tuple, a)), list(map(tuple, b))) for a, b in zip(ours, theirs, strict=True)]
        return {
            "parity_top1": float(np.mean([a[0] == b[0] for a, b in pairs])),
            "parity_set_overlap": float(np.mean([len(set(a) & set(b)) / len(set(a)) for a, b in pairs])),
        }

    def constraint_seconds(self, rounds: int) -> float:
        """Time of the grammar's part of one search."""
        states, taken, _ = measure.live_walk(self.flat, self.cell.batch * self.cell.beams)
        steps = {}
        for step, (state, option) in enumerate(zip(states, taken, strict=True)):
            every = 1 if step else self.cell.beams  # the first step has one row a prompt
            steps[str(step)] = measure.constraint_step(self.flat, step, state[::every], option[::every])
        timed = measure.alternating(steps, rounds, self.cell.device, memory=False)
        return sum(step.median or 0.0 for step in timed.values())


def run_cell(cell: Cell, repeats: Repeats) -> dict[str, Any]:
    """Measures one cell; what was left out is `None`."""
    bench = Bench(cell)
    contenders = bench.contenders()
    slow = {name: repeats.slow for name in SLOW if name in contenders} if cell.device == "cpu" else {}
    measured = measure.alternating(contenders, repeats.rounds, cell.device, fewer=slow)
    for name in SLOW:
        measured.setdefault(name, measure.Measured())
    seconds = {name: m.median for name, m in measured.items()}
    wrong = {name: _wrong(bench, name, m.result) for name, m in measured.items() if name != "prefill" and m.seconds}
    ours = [counts for name, counts in wrong.items() if name != "prefix_fn"]
    constraint = bench.constraint_seconds(10 * repeats.rounds)
    result = {
        "settings": asdict(cell),
        "weights": "random",
        "repeats": {name: len(m.seconds) for name, m in measured.items()},
        "seconds": seconds,
        "seconds_of_runs": {name: m.seconds for name, m in measured.items()},
        "peak_memory_mb": {name: m.peak_mb for name, m in measured.items()},
        "speedup_vs_prefix_fn": measure.ratio(seconds["prefix_fn"], seconds["engine"]),
        "speedup_vs_generate": measure.ratio(seconds["generate"], seconds["engine"]),
        "ratio_to_prefill": measure.ratio(seconds["engine"], seconds["prefill"]),
        "ratio_to_prefill_stepwise": measure.ratio(seconds["engine_stepwise"], seconds["prefill"]),
        "stepwise_ratio": measure.ratio(seconds["engine_stepwise"], seconds["engine"]),
        "stepwise_tokens_ratio": fed_tokens(cell, thinking=True) / fed_tokens(cell, thinking=False),
        "ratio_to_prefill_denied": measure.ratio(seconds["engine_denied"], seconds["prefill"]),
        "ratio_to_prefill_model": measure.ratio(seconds["engine_model"], seconds["prefill"]),
        "ratio_to_prefill_graphs": measure.ratio(seconds.get("engine_graphs"), seconds["prefill"]),
        "ratio_doubled_beams": measure.ratio(seconds["engine_doubled"], seconds["engine"]),
        "constraint_share": measure.ratio(constraint, seconds["engine"]),
        "invalid": sum(invalid for invalid, _ in ours),
        "missing": sum(missing for _, missing in ours),
        "invalid_by_path": {name: invalid for name, (invalid, _) in wrong.items()},
    }
    return result | _parity(bench, measured, repeats.parity_prompts) | measure.provenance(cell.device)


def fed_tokens(cell: Cell, *, thinking: bool) -> int:
    """Tokens of one prompt and its beams that a search feeds: the prompt, then all codes but the last of every beam;
    with thinking a token more for each code, of which the first belongs to the prompt."""
    beams = [min(cell.beams, cell.codes ** (step + 1), cell.items) for step in range(cell.codebooks - 1)]
    return cell.context + thinking + sum(beams) * (1 + thinking)


def _wrong(bench: Bench, name: str, answers: Beams | torch.Tensor) -> tuple[int, int]:
    tokens = answers.tokens if isinstance(answers, Beams) else answers
    return bench.wrong(tokens, thinking=name == "engine_stepwise", deny=name == "engine_denied")


def _parity(bench: Bench, measured: dict[str, measure.Measured], prompts: int) -> dict[str, Any]:
    """The engine with `score="model"` against `generate` in fp32: runs of its own unless the timed ones were that.

    Converts the model to fp32: comes last.
    """
    if not measured["generate"].seconds:
        return {"parity_prompts": 0, "parity_top1": None, "parity_set_overlap": None}
    if bench.cell.dtype == "fp32":
        found = bench.parity(measured["engine_model"].result, measured["generate"].result)
        return {"parity_prompts": bench.cell.batch} | found
    bench.model.float()
    chosen = bench.prompts[:prompts]
    engine = tree_search(bench.model, chosen, bench.flat, num_beams=bench.cell.beams, score="model")
    return {"parity_prompts": len(chosen)} | bench.parity(engine, bench.generate(chosen))


def table(result: dict[str, Any]) -> Table:
    """One cell's result, to read."""
    cell, hardware = Cell(**result["settings"]), result["hardware"]
    where = hardware["gpu"] or f"{hardware['cpu']}, {hardware['cores']} cores"
    grid = Table(
        title=f"{cell.model} {cell.dtype}, {cell.batch} x {cell.context} tokens, {cell.beams} beams, "
        f"{cell.items:,} items of {cell.codebooks} codes ({where})"
    )
    for column in ("", "seconds", "/ prefill", "peak MiB", "runs"):
        grid.add_column(column, justify="right" if column else "left")
    seconds = result["seconds"]
    for name, value in seconds.items():
        if value is None:
            grid.add_row(name, "not run")
            continue
        relative, memory = value / seconds["prefill"], result["peak_memory_mb"][name]
        grid.add_row(name, f"{value:.4f}", f"{relative:.2f}", f"{memory:.0f}", str(result["repeats"][name]))
    grid.add_section()
    shown = ("speedup_vs_prefix_fn", "speedup_vs_generate", "ratio_doubled_beams", "stepwise_ratio")
    shown += ("stepwise_tokens_ratio", "constraint_share", "invalid")
    for key in (*shown, "missing", "parity_top1", "parity_set_overlap"):
        value = result[key]
        grid.add_row(key, "not run" if value is None else f"{value:.4g}")
    return grid


def cells(values: dict[str, tuple[Any, ...]], fixed: dict[str, Any], product: bool) -> list[Cell]:
    """The cells of a grid: all combinations, or the first values with one setting changed at a time."""
    if product:
        combinations = itertools.product(*values.values())
        return [Cell(**dict(zip(values, chosen, strict=True)), **fixed) for chosen in combinations]
    base = Cell(**{name: options[0] for name, options in values.items()}, **fixed)
    others = [replace(base, **{name: value}) for name, options in values.items() for value in options[1:]]
    return [base, *others]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, values in GRID.items():
        parser.add_argument(
            f"--{name}", nargs="+", type=type(values[0]), choices=CHOICES.get(name), help=f"default: {values[0]}"
        )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--padded", action="store_true", help="every second prompt is half as long")
    parser.add_argument("--quick", action="store_true", help="fewer repeats, parity of one prompt only")
    parser.add_argument("--repeats", type=int, help="rounds (default: 7; 3 with --quick)")
    parser.add_argument(
        "--slow-repeats", type=int, help="runs of `generate` on a CPU (default: 2; 1 with --quick; 0: none)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result of a single cell")
    parser.add_argument("--grid", type=Path, metavar="FILE", help="JSON lines, one a cell; cells in it are skipped")
    parser.add_argument("--product", action="store_true", help="grid of all combinations of the values given")
    chosen = parser.parse_args(arguments)
    several = [name for name in GRID if len(getattr(chosen, name) or ()) > 1]
    if several and not chosen.grid:
        parser.error(f"--{several[0]} has several values: name the results' file with --grid FILE.")
    if chosen.json and chosen.grid:
        parser.error("a grid is written to the file of --grid; leave out --json.")
    return chosen


def main(arguments: list[str] | None = None) -> None:
    chosen, console = parse(arguments), Console()
    repeats = Repeats(
        chosen.repeats or (3 if chosen.quick else 7),
        (1 if chosen.quick else 2) if chosen.slow_repeats is None else chosen.slow_repeats,
        1 if chosen.quick else 1_000,
    )
    single = {name: options[:1] for name, options in GRID.items()}
    given = {name: tuple(getattr(chosen, name)) for name in GRID if getattr(chosen, name)}
    values = (GRID if chosen.grid and not chosen.product else single) | given
    todo = cells(values, {"device": chosen.device, "padded": chosen.padded}, chosen.product)
    lines = chosen.grid.read_text(encoding="utf-8").splitlines() if chosen.grid and chosen.grid.exists() else []
    done = [Cell(**json.loads(line)["settings"]) for line in lines]
    for cell in todo:
        if cell in done:
            continue
        result = run_cell(cell, repeats)
        console.print(table(result))
        if chosen.grid:
            with chosen.grid.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
        elif chosen.json:
            measure.write_json(chosen.json, result)


if __name__ == "__main__":
    main()
