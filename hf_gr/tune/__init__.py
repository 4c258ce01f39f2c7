"""One search of settings for every method: the same trials, the same cap of CPU time, judged on validation users."""

from .search import SPACES, STAGES, Trial, tune
from .space import Space


__all__ = ["SPACES", "STAGES", "Space", "Trial", "tune"]
