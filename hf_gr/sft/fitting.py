"""Rows as a model takes them: not too long, nor of several answers where it takes no mask of ours."""

from datasets import Dataset
from transformers import PreTrainedModel

from ..branches import Row, fit, separate
from ..decoding import tree_support
from ..errors import HfGrError
from ..models import window_of
from ..packing import pack
from .config import SidSFTConfig


def fitting(rows: Dataset, model: PreTrainedModel, config: SidSFTConfig) -> Dataset:
    """Rows as a model takes them: none longer than `max_length`, and one per answer where it takes no mask of ours or
    every sub-history is to be read by itself."""
    assert config.max_length is not None
    supported, reason = tree_support(model, config.max_length, training=True)
    if not supported and config.fill_rows:
        raise HfGrError(f"fill_rows puts several users on a row, which is not for this model: {reason}.")
    settings = {
        "max_length": config.max_length,
        "window": window_of(model),
        "alone": not supported,
        "all_alone": config.sub_histories,
    }
    return rows.map(_fitted, batched=True, fn_kwargs=settings, desc="rows", load_from_cache_file=False)


def _fitted(
    batch: dict[str, list], max_length: int, window: int | None, alone: bool, all_alone: bool
) -> dict[str, list]:
    """Rows, as columns, that fit; `alone`: those with branches become one row per answer; `all_alone`: all do.

    Raises [`HfGrError`] on rows deeper than the model's window.
    """
    found: dict[str, list] = {name: [] for name in batch}
    for values in zip(*batch.values(), strict=True):
        row: Row = dict(zip(batch, values, strict=True))  # type: ignore[assignment]
        ends = [attach + len(answer) for attach, answer in zip(row["attach"], row["answers"], strict=True)]
        depth = max(len(row["input_ids"]), *ends)
        if window is not None and depth > window:
            raise HfGrError(
                f"a row of the training takes {depth} positions, but the model reads at most {window}; lower "
                "max_history, shorten texts, or leave out the task they are for."
            )
        for whole in fit(row, max_length):
            apart = all_alone or (alone and bool((pack([whole]).branch > 0).any()))
            for part in separate(whole) if apart else [whole]:
                for name in found:
                    found[name].append(part[name])  # type: ignore[literal-required]
    return found
