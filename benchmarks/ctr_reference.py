"""The rows of `hf-gr rank` through another library's DCN-V2 (torch-rechub), for comparison.

It needs an environment of its own, since that library is no dependency of ours:

    python3 -m venv venv-ctr && venv-ctr/bin/pip install torch==2.13.0 && venv-ctr/bin/pip install torch-rechub
    python benchmarks/ctr_reference.py --config movielens-latest-small/rank --python venv-ctr/bin/python

Rows, history, split, seed and judgment are ours; network, embeddings and training are torch-rechub's: the candidate's
id (or semantic ID, one field a code and prefix), the mean of the history's, and two cross layers beside a deep network
of 64 and 32 units. Columns of users and requests are left out. Epochs are chosen by validation AUC, as we choose them.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np


def worker(folder: Path) -> None:
    """Trains on what the other process has written, and writes predictions of the test rows; imports torch-rechub."""
    import torch
    from torch_rechub.basic.features import SequenceFeature, SparseFeature
    from torch_rechub.models.ranking import DCNv2
    from torch_rechub.trainers import CTRTrainer
    from torch_rechub.utils.data import DataGenerator

    with np.load(folder / "rows.npz") as stored:
        rows = dict(stored)
    seed = int(rows["seed"])
    torch.manual_seed(seed)
    features, sizes = rows["features"], rows["sizes"].tolist()  # [N + 1, F]; the last row is padding
    fields = []
    for place, size in enumerate(sizes):
        fields.append(SparseFeature(f"item{place}", size + 1, 32, padding_idx=size))
        shared = {"pooling": "mean", "shared_with": f"item{place}", "padding_idx": size}
        fields.append(SequenceFeature(f"history{place}", size + 1, 32, **shared))

    def inputs(part: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
        found = {}
        for place in range(len(sizes)):
            found[f"item{place}"] = features[rows[f"{part}_items"], place]
            found[f"history{place}"] = features[rows[f"{part}_history"], place]
        return found, rows[f"{part}_labels"]

    loaders = DataGenerator(*inputs("train")).generate_dataloader(
        x_val=inputs("validation")[0], y_val=inputs("validation")[1],
        x_test=inputs("test")[0], y_test=inputs("test")[1], batch_size=512,
    )  # fmt: skip
    mlp = {"dims": [64, 32], "dropout": 0.2, "activation": "relu"}
    model = DCNv2(fields, n_cross_layers=2, mlp_params=mlp, use_low_rank_mixture=False)
    options = {"lr": 1e-3, "weight_decay": 1e-5}
    trainer = CTRTrainer(model, optimizer_params=options, n_epoch=5, earlystop_patience=2, model_path=str(folder))
    trainer.fit(loaders[0], loaders[1])
    np.save(folder / "scores.npy", np.array(trainer.predict(trainer.model, loaders[2]), np.float32))


def main(arguments: list[str]) -> None:
    """Makes the rows, lets the other environment train, and prints what ours would be judged by."""
    from hf_gr.arguments import parse_config
    from hf_gr.ranking import RANK_CONFIGS
    from hf_gr.ranking.report import judge
    from hf_gr.ranking.run import Loaded, new_model

    place = arguments.index("--python")
    python = arguments[place + 1]
    data, settings, args = parse_config(RANK_CONFIGS, arguments[:place] + arguments[place + 2 :])
    loaded = Loaded.of(data, settings, args)
    num_items = loaded.dataset.num_items
    model = new_model(settings, num_items, loaded.features, loaded.catalog)
    config, features = model.config, model.items.features.numpy()
    sizes = config.sid_sizes
    if settings.item_as != "sid":
        features, sizes = np.column_stack([np.arange(num_items), features]), [num_items, *sizes]
    arrays = {"features": np.vstack([features, sizes]), "sizes": np.array(sizes), "seed": np.array(args.seed)}
    for part, rows in loaded.rows.items():
        batch = rows.batch(np.arange(len(rows)))
        history = batch["history"].numpy()
        missing = settings.max_history - history.shape[1]
        padded = np.pad(history, ((0, 0), (0, missing)), constant_values=-1)  # −1 is the last row: padding
        arrays |= {f"{part}_history": padded, f"{part}_items": rows.items, f"{part}_labels": rows.labels}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "rows.npz", **arrays)
        subprocess.run([python, __file__, "--worker", folder], check=True)
        scores = np.load(Path(folder) / "scores.npy")
    test = loaded.rows["test"]
    metrics = judge(test, scores, loaded.popularity, None, loaded.rows["train"], args.seed)
    for name, found in (("all", metrics["all"]), *metrics["by_popularity"].items()):
        figures = ", ".join(
            f"{key} {found[key]['value']:.4f} ({found[key]['low']:.4f} to {found[key]['high']:.4f})"
            for key in ("AUC", "GAUC", "log_loss")
            if found[key]["value"] is not None  # of one kind of rows alone
        )
        print(f"[ctr_reference] {name}: {found['rows']:,} rows, {figures}, ECE {found['ECE']:.4f}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(Path(sys.argv[2]))
    else:
        main(sys.argv[1:])
