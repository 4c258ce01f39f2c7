"""A world whose best policy is known: four users, each of whom takes one of 32 items next, whatever else there is."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tiny import tiny_items, tiny_lm, tiny_tokenizer
from tiny_runs import QUIET

from hf_gr.catalog import SidCatalog
from hf_gr.dataset import Histories
from hf_gr.decoding import beam_search, tree_search
from hf_gr.grpo import SidGRPOConfig, SidGRPOTrainer, policy_log_probs
from hf_gr.models import add_inner_call
from hf_gr.rewards import ItemKnowledge
from hf_gr.vocabulary import add_vocabulary


TARGETS = [3, 12, 30, 17]


class World:
    """Users' prompts, and a policy that gives every item the same probability."""

    def __init__(self, form: str = "flat"):
        codes = np.stack(np.unravel_index(np.arange(32), (4, 8)), axis=1)
        self.catalog = SidCatalog.from_codes(codes, tiny_items(32), (4, 8))
        self.model, self.tokenizer = tiny_lm(tie_word_embeddings=False), tiny_tokenizer()
        made = add_vocabulary(self.tokenizer, self.model, self.catalog, max_history=5)
        self.vocabulary = replace(made, form=form)
        self.model.lm_head.weight.data.zero_()
        self.grammar = self.vocabulary.grammar(self.catalog)
        tokens = self.vocabulary.item_tokens(self.catalog)
        self.prompts = [[self.vocabulary.start_id, *tokens[user].tolist()] for user in range(len(TARGETS))]

    def trainer(self, folder: Path, **changes: Any) -> SidGRPOTrainer:
        settings = {
            "output_dir": str(folder),
            "num_generations": 16,
            "per_device_train_batch_size": 64,
            "rewards": ["exact"],
            "learning_rate": 3e-3,
            "beta": 0.0,
            "max_steps": 130,
            "scale_rewards": "none",
        }
        own, times = changes.pop("own", ()), changes.get("steps_per_generation", 1)
        train = Histories(np.array(["u"]), np.array([0, 32]), np.arange(32), np.arange(32))
        return SidGRPOTrainer(
            self.model,
            SidGRPOConfig(**QUIET | settings | changes),
            catalog=self.catalog,
            vocabulary=self.vocabulary,
            processing_class=self.tokenizer,
            train_dataset=Dataset.from_dict({"prompt": self.prompts * times, "target": TARGETS * times}),
            rewards=own,
            items=ItemKnowledge.of(self.catalog, train),
        )

    def chances(self) -> list[float]:
        """Probability of each user's item."""
        every = beam_search(self.model.eval(), self.prompts, self.grammar, num_beams=32, top_k=32)
        assert torch.allclose(every.scores.exp().sum(1), torch.ones(len(TARGETS)), atol=1e-4)
        rows = zip(every.items, every.scores, TARGETS, strict=True)
        return [float(scores[items == target].exp()) for items, scores, target in rows]

    def teach(self, until: float) -> None:
        """Ordinary likelihood, until every user's item has this probability."""
        add_inner_call(self.model)
        optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)
        prompts = torch.tensor(self.prompts)
        beams = tree_search(self.model, self.prompts, self.grammar, num_beams=32)
        items = self.grammar.items(self.grammar.walk(beams.tokens.flatten(0, 1)), limit=1).view(len(TARGETS), 32)
        answers = beams.tokens[items == torch.tensor(TARGETS)[:, None]]
        while min(self.chances()) < until:
            log_probs, _ = policy_log_probs(
                self.model, self.model, prompts, torch.ones_like(prompts), answers, self.grammar, 1.0
            )
            optimizer.zero_grad()
            (-log_probs.sum()).backward()
            optimizer.step()
