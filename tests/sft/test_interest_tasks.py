"""Rows of the tasks on interests, spelt out, and a model that was taught by them, from SFT to its explanations."""

import numpy as np
import pyarrow as pa
import pytest
from tiny import tiny_lm, tiny_tokenizer
from tiny_runs import distinct_catalog, grpo_configs, sft_configs, tiny_data
from transformers import pipeline

from hf_gr.artifacts import read_json
from hf_gr.cli import main
from hf_gr.dataset import Histories
from hf_gr.errors import HfGrError
from hf_gr.grpo import grpo
from hf_gr.interests import Interests
from hf_gr.interests.table import SCHEMA
from hf_gr.sft import sft
from hf_gr.sft.interest_tasks import INTEREST_TASKS, build_of_interests
from hf_gr.vocabulary import add_vocabulary, text_ids


CATALOG = distinct_catalog().removed(["i002"])
TOKENIZER = tiny_tokenizer()
VOCABULARY = add_vocabulary(TOKENIZER, tiny_lm(), CATALOG, max_history=5)


def row(interest, confidence, label=True, *, item=None, user=None):
    return {"item_id": item, "user_id": user, "interest": interest, "confidence": confidence, "label": label}


ROWS = [
    row("sleep", 0.3, item="i000"), row("<s0_1> calm", 0.9, item="i000"), row("gift", 1.0, False, item="i000"),
    row("sport", 0.5, item="i001"), row("sport", 0.5, item="i002"), row("gift", 0.9, False, item="i003"),
    row("sleep", 0.5, user="u0"), row("sport", 0.8, user="u0"), row("sport", 0.8, user="u1"),
    row("sport", 0.8, user="u2"), row("sleep", 0.8, user="nobody"),
]  # fmt: skip
MINED = Interests(pa.Table.from_pylist(ROWS, SCHEMA))
EVENTS = np.array([0, 3, 1, 2, 5])  # u0: 0 3, u1: 1 2 (2 is removed), u2: nothing, u3: 5
TRAIN = Histories(np.array(["u0", "u1", "u2", "u3"], object), np.array([0, 2, 4, 4, 5]), EVENTS, np.arange(5))


def rows_of(name, **settings):
    return build_of_interests(name, MINED, TRAIN, CATALOG, VOCABULARY, TOKENIZER, **settings).to_list()


def words(text: str) -> list[int]:
    return text_ids(TOKENIZER, text)


def sid(item: int) -> list[int]:
    return VOCABULARY.item_tokens(CATALOG)[item].tolist()


def asked(trunk: list[int], answer: list[int]) -> dict:
    return {"input_ids": trunk, "attach": [len(trunk)], "answers": [answer], "labels": [answer], "weights": [1.0]}


def test_interest_to_sid_draws_among_accepted_interests_of_live_items():
    seen = set()
    for seed in range(40):
        first, second = rows_of("interest_to_sid", seed=seed)
        assert second == asked([*words("sport"), VOCABULARY.start_id], sid(1))
        said = ["sleep", "<s0_1> calm", "sleep, <s0_1> calm", "<s0_1> calm, sleep"]
        (told,) = [text for text in said if first == asked([*words(text), VOCABULARY.start_id], sid(0))]
        seen.add(told)
    assert len(seen) == 4
    assert not set(words("<s0_1> calm")) & set(VOCABULARY.token_ids)  # words stay words
    assert rows_of("interest_to_sid", seed=3) == rows_of("interest_to_sid", seed=3)


def test_sid_to_interest_tells_all_accepted_ones_the_most_confident_first():
    end = TOKENIZER.eos_token_id
    trunks = [[VOCABULARY.start_id, *sid(item), *words("\nInterests:")] for item in (0, 1)]
    expected = [asked(trunks[0], [*words("<s0_1> calm, sleep"), end]), asked(trunks[1], [*words("sport"), end])]
    assert rows_of("sid_to_interest") == expected
    assert rows_of("sid_to_interest", max_text=3)[1]["answers"] == [[*words("sport")[:3], end]]


def test_user_interests_to_sid_asks_for_the_last_training_event():
    assert rows_of("user_interests_to_sid") == [asked([*words("sport, sleep"), VOCABULARY.start_id], sid(3))]


def test_interests_of_others_are_refused():
    foreign = Interests(pa.Table.from_pylist([row("sport", 0.5, item="x"), row("sport", 0.5, user="y")], SCHEMA))
    for name in INTEREST_TASKS:
        with pytest.raises(HfGrError):
            build_of_interests(name, foreign, TRAIN, CATALOG, VOCABULARY, TOKENIZER)
    with pytest.raises(HfGrError, match="task 'interest_to_sid' needs interests"):
        sft_configs(output_dir="x", tasks={"next_item": 1, "interest_to_sid": 1})


@pytest.mark.slow
def test_from_interests_to_a_model_that_explains_by_them(tmp_path, capsys):
    data = tiny_data(tmp_path)
    mined = [row(f"kind {number % 5}", 0.5, number % 2 == 0, item=f"i{number:03d}") for number in range(20)]
    mined += [row("kind 2", 0.5, user=f"u{number:03d}") for number in range(60)]
    (tmp_path / "interests").mkdir()
    Interests(pa.Table.from_pylist(mined, SCHEMA)).save(tmp_path / "interests")
    tasks = {"next_item": 1, **dict.fromkeys(("interest_to_sid", "sid_to_interest"), 1)}
    given = {"interests": str(tmp_path / "interests"), "tasks": tasks, "max_steps": 3}
    model = sft(*sft_configs(**data.sft(tmp_path / "sft", **given)))
    carried = Interests.load(model)
    assert set(carried.table["interest"].to_pylist()) == {f"kind {number}" for number in range(5)}
    assert len(carried) == 20 and len(carried.accepted) == 10
    assert not len(carried.users)  # whose users they are stays here
    ids = [f"i{number:03d}" for number in range(20)]
    assert (
        carried.quality(ids).tolist()
        == Interests.load(tmp_path / "interests").quality(ids).tolist()
        == [1.0, 0.0] * 10
    )
    rewards = {"interest": {"weight": 1.0, "user_weight": 0.2}}
    trained = grpo(*grpo_configs(**data.grpo(tmp_path / "grpo", model, rewards=rewards, max_steps=1)))
    assert Interests.load(trained).table.equals(carried.table)
    assert "interest" in str(read_json(trained / "training_log.json"))
    entries = pipeline("generative-recommendation", model=str(trained))(["i000", "i003"], top_k=40, explain=True)
    told = {entry["item_id"]: entry["interests"] for entry in entries}
    assert told["i010"] == told["i000"] == [{"interest": "kind 0", "items": ["i000"]}]  # i003's was turned down
    assert told["i004"] == told["i003"] == []
    main(["recommend", str(trained), "--history", "i000", "--top-k", "40", "--explain"])
    assert "because" in (printed := capsys.readouterr().out) and "kind 0" in printed
    again = sft(*sft_configs(**data.sft(tmp_path / "again", continue_from=str(trained), max_steps=1)))
    assert Interests.load(again).table.equals(carried.table)
