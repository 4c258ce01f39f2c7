"""Evaluation by full ranking: metrics, baselines, the stage and its report."""

from .baselines import ItemKNN, Popularity
from .config import EvaluateConfig
from .evaluator import evaluate
from .judging import compare, judge
from .metrics import (
    KS,
    bootstrap_interval,
    catalog_coverage,
    duplicate_rate,
    gini,
    hit_rate,
    invalid_rate,
    mrr,
    ndcg,
    paired_bootstrap,
    sid_ranks,
    target_ranks,
)
from .predictions import read_predictions, write_predictions
from .redistribution import judge_redistribution
from .report import write_report
from .thoughts import judge_thoughts


__all__ = [
    "KS",
    "EvaluateConfig",
    "ItemKNN",
    "Popularity",
    "bootstrap_interval",
    "catalog_coverage",
    "compare",
    "duplicate_rate",
    "evaluate",
    "gini",
    "hit_rate",
    "invalid_rate",
    "judge",
    "judge_redistribution",
    "judge_thoughts",
    "mrr",
    "ndcg",
    "paired_bootstrap",
    "read_predictions",
    "sid_ranks",
    "target_ranks",
    "write_predictions",
    "write_report",
]
