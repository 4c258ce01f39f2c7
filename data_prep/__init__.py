"""Raw logs in, dataset folders out: one file a source; filtered in Daft (a laptop's cores or a Ray cluster)."""

import os


# Daft otherwise reports every query to its makers, from threads that the end of the process does not wait for.
os.environ.setdefault("DAFT_ANALYTICS_ENABLED", "0")

from .amazon import prepare_amazon
from .filters import FilterOptions
from .hub import prepare_hub
from .minionerec import prepare_minionerec, read_index
from .movielens import prepare_movielens
from .sessions import prepare_sessions
from .table import prepare_table


__all__ = [
    "FilterOptions",
    "prepare_amazon",
    "prepare_hub",
    "prepare_minionerec",
    "prepare_movielens",
    "prepare_sessions",
    "prepare_table",
    "read_index",
]
