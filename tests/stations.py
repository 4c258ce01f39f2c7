"""The stations that read YAML files, and the config of each."""

from hf_gr.embedding import EmbedConfig
from hf_gr.evaluation import EvaluateConfig
from hf_gr.grpo import SidGRPOConfig
from hf_gr.interests.labelling import LabelConfig
from hf_gr.interests.mining import MineConfig
from hf_gr.quantizers import QuantizeConfig
from hf_gr.retrieval import RetrieveConfig
from hf_gr.sft import SidSFTConfig


STATIONS: dict[str, type] = {
    "mine": MineConfig,
    "label": LabelConfig,
    "embed": EmbedConfig,
    "quantize": QuantizeConfig,
    "sft": SidSFTConfig,
    "grpo": SidGRPOConfig,
    "retrieve": RetrieveConfig,
    "evaluate": EvaluateConfig,
}
