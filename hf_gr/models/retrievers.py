"""The dense retrievers there are, by the `model_type` of their `config.json`.

Each has a `config` with `num_items`, `max_history` and `causal`, a `catalog` of item vectors float [N, d], and states
after each event of a history (`last_hidden_state`), whose products with the catalog rank the items.
"""

from .bsarec import BSARecConfig, BSARecModel
from .towers import TowersConfig, TowersModel


RetrieverModel = BSARecModel | TowersModel
RETRIEVERS: dict[str, type[BSARecModel] | type[TowersModel]] = {
    BSARecConfig.model_type: BSARecModel,
    TowersConfig.model_type: TowersModel,
}
