"""A suite on a made-up data set whose stages are real but tiny."""

from pathlib import Path

import yaml


def write_table(folder: Path, users: int = 30, items: int = 20) -> Path:
    """A log in which everyone walks on in a circle, and titles."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["user_id,item_id,timestamp"]
    lines += [f"u{user},i{(user + step) % items},{step}" for user in range(users) for step in range(6)]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    titles = ["item_id,title", *(f"i{item},Item number {item}" for item in range(items))]
    (folder / "items.csv").write_text("\n".join(titles) + "\n")
    return folder


def write_suite(folder: Path, **changes: object) -> Path:
    """A suite `tiny` of two methods, with its recipes beside it."""
    recipes = folder / "circle"
    recipes.mkdir(parents=True, exist_ok=True)
    vectors = {"sources": ["behavior"], "weights": [1.0], "behavior_dim": 8}
    codes = {"method": "rq_kmeans", "levels": 2, "codebook_size": 8}
    model = {"model": {"architecture": "qwen3", "layers": 1, "width": 32}, "bf16": False, "max_steps": 4}
    for name, recipe in {"embed": vectors, "quantize": codes, "sft-flat": model}.items():
        (recipes / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    suite: dict = {
        "title": "A circle",
        "datasets": {
            "circle": {"recipes": "circle", "prepare": ["table", "{data}/log.csv", "--items", "{data}/items.csv"]}
        },
        "methods": {
            "flat": {"quantize": "quantize", "sft": "sft-flat", "estimate_minutes": 1},
            "wide": {"title": "twice as wide", "quantize": "quantize", "sft": {"recipe": "sft-flat", "max_steps": 2}},
        },
        "seeds": [0],
        "evaluate": {"num_beams": 10, "top_k": 10},
        "against": "flat",
        "exclude_seen": True,
    }
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(suite | changes, sort_keys=False))
    return file
