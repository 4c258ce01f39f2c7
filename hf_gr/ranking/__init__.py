"""Click prediction: a small network that scores candidates by ids and semantic IDs."""

from .config import RANK_CONFIGS, RankConfig, RankDataConfig, RankerConfig
from .ranker import Ranker, is_ranker
from .rows import ClickRows, RowSettings, click_rows
from .run import main, rank


__all__ = [
    "RANK_CONFIGS",
    "ClickRows",
    "RankConfig",
    "RankDataConfig",
    "Ranker",
    "RankerConfig",
    "RowSettings",
    "click_rows",
    "is_ranker",
    "main",
    "rank",
]
