"""Raw logs in, dataset folders out: one file a source, written in Daft (a laptop's cores or a Ray cluster)."""

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
