"""Tiny trainings for tests: settings that end in seconds on one CPU core, and what they need on disk."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import NUM_ITEMS, tiny_interactions, tiny_items, tiny_lm, tiny_tokenizer

from hf_gr.arguments import configs_of
from hf_gr.catalog import SidCatalog
from hf_gr.dataset import Cases, InteractionDataset, write_dataset
from hf_gr.decoding import Recommender
from hf_gr.grpo import GRPO_CONFIGS, GRPODataConfig, PolicyConfig, SidGRPOConfig
from hf_gr.ranking import RANK_CONFIGS, RankConfig, RankDataConfig, RankerConfig
from hf_gr.retrieval import RETRIEVE_CONFIGS, RetrieveConfig, RetrieverConfig
from hf_gr.sft import SFT_CONFIGS, SidDataConfig, SidModelConfig, SidSFTConfig
from hf_gr.sft.config import check_together
from hf_gr.training import DataConfig


QUIET = {"use_cpu": True, "disable_tqdm": True, "bf16": False, "logging_steps": 1, "save_strategy": "no"}
SCRATCH = {"model": {"architecture": "qwen3", "layers": 2, "width": 64, "text": True}, "max_history": 10}


@dataclass(frozen=True)
class TinyData:
    dataset: Path
    catalog: Path

    def sft(self, output_dir: Path, **changes: Any) -> dict[str, Any]:
        """Settings of an SFT ([`sft_configs`]) without a memory, so that the model answers alone; 60 steps of it learn
        the walk, in about 3 s."""
        paths = {"dataset": str(self.dataset), "catalog": str(self.catalog), "output_dir": str(output_dir)}
        return QUIET | SCRATCH | paths | {"max_steps": 60, "learning_rate": 3e-3, "memory": False} | changes

    def grpo(self, output_dir: Path, model: Path, **changes: Any) -> dict[str, Any]:
        """Settings of a GRPO ([`grpo_configs`]): 4 prompts of 8 rollouts a step."""
        paths = {"dataset": str(self.dataset), "model": str(model), "output_dir": str(output_dir)}
        batch = {"num_generations": 8, "per_device_train_batch_size": 32, "max_steps": 4}
        return QUIET | paths | batch | changes


def sft_configs(**settings: Any) -> tuple[SidDataConfig, SidModelConfig, SidSFTConfig]:
    """The three configs of settings that stand side by side, as in a YAML file; the other two likewise."""
    configs = configs_of(SFT_CONFIGS, **settings)
    check_together(*configs)
    return configs


def grpo_configs(**settings: Any) -> tuple[GRPODataConfig, PolicyConfig, SidGRPOConfig]:
    return configs_of(GRPO_CONFIGS, **settings)


def retrieve_configs(**settings: Any) -> tuple[DataConfig, RetrieverConfig, RetrieveConfig]:
    return configs_of(RETRIEVE_CONFIGS, **settings)


def rank_configs(**settings: Any) -> tuple[RankDataConfig, RankerConfig, RankConfig]:
    return configs_of(RANK_CONFIGS, **settings)


def distinct_catalog(num_items: int = NUM_ITEMS, size: int = 4) -> SidCatalog:
    """Every item has a SID of its own, three codes of `size`."""
    order = np.random.default_rng(0).permutation(size**3)[:num_items]
    codes = np.stack(np.unravel_index(order, (size,) * 3), axis=1)
    vectors = np.random.default_rng(1).normal(size=(3, size, 8)).astype(np.float32)
    return SidCatalog.from_codes(codes, tiny_items(num_items), (size,) * 3, code_vectors=tuple(vectors))


def tiny_data(folder: Path) -> TinyData:
    data = TinyData(folder / "dataset", folder / "catalog")
    write_dataset(data.dataset, tiny_interactions(), tiny_items(), source="Made for tests.")
    distinct_catalog().save(data.catalog)
    return data


def untied_lm(folder: Path) -> Path:
    """A tiny Llama whose head is not its embedding, on disk with its tokenizer; wide enough for blocks of 4 bits."""
    tiny_lm(hidden_size=64, head_dim=16, tie_word_embeddings=False).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def arguments(settings: dict[str, Any]) -> list[str]:
    """Settings as the command line has them."""
    words = {key: json.dumps(value) if isinstance(value, dict) else str(value) for key, value in settings.items()}
    return [part for key, value in words.items() for part in (f"--{key}", value)]


def hit_rate(model: Path, cases: Cases, k: int) -> float:
    """HR@k of a model folder on cases counted in rows of its catalog."""
    items, _ = Recommender.from_pretrained(model).recommend(cases.histories, top_k=k, num_beams=k)
    return float((items == cases.targets[:, None]).any(axis=1).mean())


def held_out(data: TinyData) -> Cases:
    return InteractionDataset.load(data.dataset).split().test


def plain_logits(model: torch.nn.Module, prompts: list[list[int]]) -> list[torch.Tensor]:
    """Plain logits float32 [tokens, vocabulary] of every prompt, one forward pass each, dropout off."""
    model.eval()
    with torch.no_grad():
        return [model(input_ids=torch.tensor([prompt])).logits[0].float() for prompt in prompts]
