"""RQ-KMeans at scale: time and memory of a fit on a memory-mapped file, and items encoded per second.

The vectors are clusters with noise, in a file that is made first and removed in the end. Peak memory is the process's
(`getrusage`) and counts pages of the file that the system keeps mapped, which it drops when memory is short.

python benchmarks/quantize_scale.py --json quantize_scale.json                  # 1 million x 384, a 1.5 GB file
python benchmarks/quantize_scale.py --rows 100000 --balance all
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import measure
import numpy as np
from rich.console import Console
from rich.table import Table

from hf_gr.quantizers import RQKMeans, RQKMeansConfig


CLUSTERS, NOISE = 1000, 0.5
ROWS_AT_A_TIME = 50_000


def make_file(file: Path, rows: int, dim: int) -> np.ndarray:
    """float32 [rows, dim], memory-mapped, read-only: clusters of uneven size, noise around them."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((CLUSTERS, dim), np.float32)
    shares = random.dirichlet(np.full(CLUSTERS, 0.5))
    with file.open("wb") as out:  # written, not mapped: pages of a mapping would count as this process's memory
        for start in range(0, rows, ROWS_AT_A_TIME):
            size = min(ROWS_AT_A_TIME, rows - start)
            noise = random.standard_normal((size, dim), np.float32) * NOISE
            out.write((centres[random.choice(CLUSTERS, size, p=shares)] + noise).data)
    return np.memmap(file, np.float32, "r", shape=(rows, dim))


def peak_mb() -> float:
    """Largest memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Fits and encodes; the result, ready for JSON."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        vectors = make_file(Path(folder) / "vectors.f32", options.rows, options.dim)
        config = RQKMeansConfig(
            dim=options.dim, codebook_sizes=[options.codes] * options.levels, balance=options.balance
        )
        quantizer, before = RQKMeans(config), peak_mb()
        start = time.perf_counter()
        quantizer.fit(vectors, progress=False)
        fit_s, fit_mb = time.perf_counter() - start, peak_mb()
        encode_s = []
        for _ in range(options.repeats):
            start = time.perf_counter()
            codes = quantizer.encode(vectors)
            encode_s.append(time.perf_counter() - start)
        encode_mb = peak_mb()
        part = slice(min(options.rows, ROWS_AT_A_TIME))
        error = np.square(vectors[part] - quantizer.decode(codes[part])).sum() / np.square(vectors[part]).sum()
    counts = [np.bincount(codes[:, level], minlength=options.codes) for level in range(options.levels)]
    return {
        "settings": {key: value for key, value in vars(options).items() if key not in ("json", "folder")},
        "file_mb": options.rows * options.dim * 4 / 2**20,
        "fit_s": fit_s,
        "encode_s": encode_s,
        "encode_items_per_s": options.rows / float(np.median(encode_s)),
        "peak_before_mb": before,
        "peak_fit_mb": fit_mb,
        "peak_encode_mb": encode_mb,
        "code_use": [float((count > 0).mean()) for count in counts],
        "fullest_in_even_shares": [float(count.max() * options.codes / options.rows) for count in counts],
        "relative_error": float(error),
        **measure.provenance("cpu"),
    }


def table(result: dict[str, Any]) -> Table:
    settings, hardware = result["settings"], result["hardware"]
    size = f"{settings['rows']:,} x {settings['dim']}, {settings['levels']} x {settings['codes']}"
    grid = Table(title=f"RQ-KMeans, {size}, balance {settings['balance']} ({hardware['threads']} threads)")
    grid.add_column("")
    grid.add_column("", justify="right")
    grid.add_row("fit, s", f"{result['fit_s']:.1f}")
    grid.add_row("encode, items/s", f"{result['encode_items_per_s']:,.0f}")
    grid.add_row(
        "peak memory before / fit / encode, MiB",
        " / ".join(f"{result[f'peak_{k}_mb']:,.0f}" for k in ("before", "fit", "encode")),
    )
    grid.add_row("of these at most the file's", f"{result['file_mb']:,.0f}")
    grid.add_row("code use by level", ", ".join(f"{use:.1%}" for use in result["code_use"]))
    grid.add_row(
        "fullest code, in even shares", ", ".join(f"{share:.2f}" for share in result["fullest_in_even_shares"])
    )
    grid.add_row("error, share of ‖x‖²", f"{result['relative_error']:.1%}")
    return grid


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument("--codes", type=int, default=256, help="codes of a level")
    parser.add_argument("--balance", choices=("none", "last", "all"), default="none")
    parser.add_argument("--repeats", type=int, default=3, help="times that everything is encoded")
    parser.add_argument("--folder", help="where to make the file (default: the system's temporary folder)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    result = run(options)
    Console().print(table(result))
    if options.json:
        measure.write_json(options.json, result)


if __name__ == "__main__":
    main()
