"""The stages that read YAML files, and the config of each, or its configs."""

import dataclasses

from hf_gr.embedding import EmbedConfig
from hf_gr.evaluation import EvaluateConfig
from hf_gr.grpo import GRPO_CONFIGS
from hf_gr.interests.labelling import LabelConfig
from hf_gr.interests.mining import MineConfig
from hf_gr.quantizers import QuantizeConfig
from hf_gr.ranking import RANK_CONFIGS
from hf_gr.retrieval import RETRIEVE_CONFIGS
from hf_gr.sft import SFT_CONFIGS


STAGES: dict[str, type | tuple[type, ...]] = {
    "mine": MineConfig,
    "label": LabelConfig,
    "embed": EmbedConfig,
    "quantize": QuantizeConfig,
    "sft": SFT_CONFIGS,
    "grpo": GRPO_CONFIGS,
    "retrieve": RETRIEVE_CONFIGS,
    "rank": RANK_CONFIGS,
    "evaluate": EvaluateConfig,
}


def settings_of(kind: type | tuple[type, ...]) -> list[dataclasses.Field]:
    """Fields of a stage's config, or of its configs together."""
    return [entry for part in (kind if isinstance(kind, tuple) else (kind,)) for entry in dataclasses.fields(part)]
