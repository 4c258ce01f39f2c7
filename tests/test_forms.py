"""Every form keeps to its grammar, and a new one is a file and a line."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from docs_blocks import ROOT, blocks_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_vocabulary import histories_of
from tiny import tiny_catalog, tiny_items, tiny_lm, tiny_tokenizer
from tiny_runs import TinyData, grpo_configs, sft_configs, tiny_data
from transformers import AutoModelForCausalLM, pipeline

from hf_gr.catalog import SidCatalog
from hf_gr.dataset import Cases
from hf_gr.decoding import Recommender
from hf_gr.errors import HfGrError
from hf_gr.evaluation import EvaluateConfig, evaluate
from hf_gr.forms import FORMS
from hf_gr.grpo import grpo
from hf_gr.hub import save_repo
from hf_gr.sft import SidModelConfig, sft
from hf_gr.sft.run import starting_model
from hf_gr.sft.tasks import held_out
from hf_gr.vocabulary import SidVocabulary, add_vocabulary


SIZES = (4, 3, 2)
CATALOG = tiny_catalog(sizes=SIZES)
NAMES = [*FORMS, "backward"]
VOCABULARY = replace(add_vocabulary(tiny_tokenizer(), tiny_lm(), CATALOG, max_history=4), first_item_id=1000)


@pytest.fixture(scope="module", autouse=True)
def backward():
    """The form of docs/extending.md, by the page's own code."""
    names: dict = {}
    for block in blocks_of(ROOT / "docs" / "extending.md"):
        if "class BackwardGrammar" in block.text or "class Backward(" in block.text:
            exec(compile(block.text, str(block), "exec"), names)
    yield
    del FORMS["backward"]


def vocabulary_of(form: str) -> SidVocabulary:
    return replace(VOCABULARY, form=form)


@st.composite
def catalogs(draw) -> SidCatalog:
    """Some items, some of which share a SID and some of which were removed."""
    sid = st.tuples(*(st.integers(0, size - 1) for size in SIZES))
    codes = np.array(draw(st.lists(sid, min_size=2, max_size=12)))
    catalog = SidCatalog.from_codes(codes, tiny_items(len(codes)), SIZES)
    gone = draw(st.sets(st.integers(0, len(codes) - 1), max_size=len(codes) - 1))
    return catalog.removed([catalog.item_ids[row] for row in gone])


def written(vocabulary: SidVocabulary, catalog: SidCatalog, items: np.ndarray) -> np.ndarray:
    """What a search writes for items, after a prompt: their answer without what the prompt ends in; labels where no
    token is read back."""
    tokens, labels = vocabulary.answers(catalog, items)
    ending = vocabulary.sid_form.ending(vocabulary)
    if not tokens.shape[1]:
        return labels
    assert (tokens[:, : len(ending)] == np.array(ending, np.int64)).all()
    return tokens[:, len(ending) :]


@pytest.mark.parametrize("form", NAMES)
@settings(max_examples=12, deadline=None)
@given(catalog=catalogs())
def test_answers_are_what_the_grammar_accepts_and_nothing_else(form, catalog):
    """Walked item by item, and counted: from every prefix the grammar goes on with exactly what some answer has."""
    vocabulary = vocabulary_of(form)
    grammar, live = vocabulary.grammar(catalog), np.flatnonzero(catalog.live)
    answers = torch.from_numpy(written(vocabulary, catalog, live).copy())
    assert answers.shape[1] == grammar.answer_length
    assert np.array_equal(grammar.codes(answers).numpy(), catalog.codes[live])
    for item, bucket in zip(live.tolist(), grammar.items(grammar.walk(answers)).tolist(), strict=True):
        same = set(live[(catalog.codes[live] == catalog.codes[item]).all(1)].tolist())
        assert {row for row in bucket if row >= 0} == same
    paths = [[]]
    for step in range(grammar.num_codes):
        grown = []
        for path in paths:
            state = grammar.initial(1)
            for at, token in enumerate(path):
                place = grammar.step_tokens(at).tolist().index(token)
                state = grammar.step(state, at, torch.tensor([place]))
            successors = grammar.successors(state, step)
            index = range(successors.allowed.shape[1]) if successors.index is None else successors.index[0].tolist()
            options = zip(index, successors.allowed[0].tolist(), strict=True)
            grown += [[*path, int(grammar.step_tokens(step)[place])] for place, allowed in options if allowed]
        paths = grown
        if not vocabulary.sid_form.sets:
            own = answers[:, list(grammar.code_columns)[: step + 1]].tolist()
            assert sorted(paths) == sorted(map(list, set(map(tuple, own))))
    assert {tuple(sorted(path)) for path in paths} == {
        tuple(sorted(row)) for row in answers[:, list(grammar.code_columns)].tolist()
    }
    thoughts = answers[:, [column - 1 for column in grammar.code_columns if grammar.think_ids]]
    assert thoughts.tolist() == [list(grammar.think_ids)] * len(answers)


@pytest.mark.parametrize("form", NAMES)
@settings(max_examples=12, deadline=None)
@given(catalog=catalogs(), data=st.data())
def test_a_prompt_with_its_answer_is_the_row_of_training(form, catalog, data):
    """All but the order of a set, which is chosen while it is trained; labels are its codes."""
    vocabulary = vocabulary_of(form)
    arrange = sorted if vocabulary.sid_form.sets else list
    histories = data.draw(st.lists(st.lists(st.integers(0, len(catalog) - 1), max_size=6), min_size=1, max_size=3))
    targets = np.array([data.draw(st.sampled_from(np.flatnonzero(catalog.live).tolist())) for _ in histories])
    cases = Cases(histories_of(histories), targets)
    prompts = vocabulary.prompts(cases.histories, catalog)
    columns = vocabulary.grammar(catalog).code_columns
    rows = held_out(cases, catalog, vocabulary)
    for row, prompt, answer in zip(rows, prompts, written(vocabulary, catalog, targets).tolist(), strict=True):
        [attach], [tokens], [labels] = row["attach"], row["answers"], row["labels"]
        trained = row["input_ids"] + tokens
        assert attach == len(row["input_ids"]) and trained[: len(prompt)] == prompt
        assert arrange(trained[len(prompt) :]) == arrange(answer if tokens else [])
        assert arrange(label for label in labels if label >= 0) == arrange(answer[column] for column in columns)


def test_a_repo_of_a_form_that_is_not_there_is_refused_in_a_line(tmp_path):
    replace(VOCABULARY, form="spiral").save(tmp_path)
    with pytest.raises(
        HfGrError, match=r"vocabulary.json: 'spiral' is no form of semantic ID; there are flat, "
    ) as error:
        SidVocabulary.load(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(HfGrError, match="form: 'spiral' is no form"):
        SidModelConfig(form="spiral")


@pytest.fixture(scope="module")
def repo(tmp_path_factory) -> Path:
    """A stepwise model."""
    tokenizer, model, folder = tiny_tokenizer(), tiny_lm(), tmp_path_factory.mktemp("repo") / "model"
    vocabulary = add_vocabulary(tokenizer, model, CATALOG, max_history=4, form="stepwise")
    save_repo(folder, model, tokenizer, CATALOG, vocabulary)
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": "recursive"}, "reads items as 'stepwise' does, which is another way"),
        ({"recursion": {}}, "recursion is set, but form is 'stepwise'"),
        ({"form": "unordered", "thinking": {}}, "thinking is set, but form is 'unordered'"),
    ],
)
def test_a_model_that_goes_on_is_asked_what_its_form_has(repo, changes, message):
    settings = {"continue_from": str(repo), "max_history": 4}
    histories = histories_of([[1, 2, 3]])
    _, _, vocabulary = starting_model(SidModelConfig(**settings), CATALOG, histories)
    assert vocabulary.form == "stepwise"
    with pytest.raises(HfGrError, match=message):
        starting_model(SidModelConfig(**settings | changes), CATALOG, histories)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"set_credit": "next"}, "set_credit is 'next', but acts only with form: unordered"),
        ({"form": "flat", "trunk_weight": 0.5}, "trunk_weight is 0.5, but acts only with answers on branches"),
    ],
)
def test_the_training_of_a_model_that_goes_on_is_asked_what_its_form_has(data, repo, tmp_path, changes, message):
    CATALOG.save(tmp_path / "catalog")
    settings = data.sft(tmp_path / "on", continue_from=str(repo), max_history=4) | {
        "catalog": str(tmp_path / "catalog")
    }
    with pytest.raises(HfGrError, match=message):
        sft(*sft_configs(**settings | changes))


# ---------------------------------------------------------------- the form of the page, from training to judgement


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TinyData:
    return tiny_data(tmp_path_factory.mktemp("backward"))


@pytest.fixture(scope="module")
def trained(data) -> Path:
    return sft(*sft_configs(**data.sft(data.dataset.with_name("run"), form="backward")))


def test_a_new_form_learns_the_walk_and_is_judged(data, trained):
    settings = {"dataset": str(data.dataset), "output_dir": str(trained.parent / "judged"), "model": str(trained)}
    result = evaluate(EvaluateConfig(**settings, num_beams=40, top_k=10))
    assert json.loads((trained / "vocabulary.json").read_text())["form"] == "backward"
    model = result["systems"]["model"]
    assert model["item"]["HR@5"]["value"] > 0.5
    assert model["invalid_rate"] == 0


def test_a_new_form_is_searched_as_every_answer_scored_alone(data, trained):
    """Exhaustively, by the plain forward of one row an answer, under a softmax of what some live item has next."""
    recommender = Recommender.from_pretrained(trained)
    histories = histories_of([[3, 4, 5], []])
    items, scores = recommender.recommend(histories, top_k=40, num_beams=64)
    for prompt, found, own in zip(recommender.prompts(histories), items.tolist(), scores.tolist(), strict=True):
        assert sorted(found) == list(range(40))
        for item, score in list(zip(found, own, strict=True))[:6]:
            assert score == pytest.approx(sum(map(np.log, steps_of(recommender, prompt, item))), abs=1e-4)


def steps_of(recommender: Recommender, prompt: list[int], item: int) -> list[float]:
    """Probability of each code of an item, the last level's first."""
    catalog, codes = recommender.catalog, recommender.vocabulary.code_ids
    found, row = [], list(prompt)
    for level in (2, 1, 0):
        with torch.no_grad():
            logits = recommender.model(torch.tensor([row])).logits[0, -1]
        alike = catalog.codes[(catalog.codes[:, level + 1 :] == catalog.codes[item, level + 1 :]).all(1), level]
        options = np.unique(alike)
        shares = logits[[codes[level][code] for code in options]].softmax(0)
        found.append(float(shares[options.tolist().index(catalog.codes[item, level])]))
        row.append(codes[level][catalog.codes[item, level]])
    return found


def test_a_new_form_is_explained_in_its_own_order(trained):
    recommend = pipeline("generative-recommendation", model=str(trained), device="cpu")
    recommender = recommend.recommender
    (answers,) = recommend([["i003", "i004"]], top_k=4, explain=True)
    [prompt] = recommender.prompts(histories_of([[3, 4]]))
    for answer in answers:
        item = recommender.catalog.row_of[answer["item_id"]]
        sid = recommender.catalog.codes[item].tolist()
        told = [(step["codebook"], step["code"]) for step in answer["path"]]
        assert told == [(3, sid[2]), (2, sid[1]), (1, sid[0])]
        confidence = [step["confidence"] for step in answer["path"]]
        assert confidence == pytest.approx(steps_of(recommender, prompt, item), abs=1e-4)


def test_a_new_form_learns_from_rewards(data, trained):
    """Rollouts are written, scored and rewarded in its order; what comes of it is judged as any model."""
    settings = data.grpo(data.dataset.with_name("rewarded"), trained, max_steps=3, learning_rate=1e-3)
    rewarded = grpo(*grpo_configs(**settings))
    log = json.loads((rewarded / "training_log.json").read_text())
    assert any(line.get("group_hit_rate", 0) > 0 for line in log)
    before, after = (
        AutoModelForCausalLM.from_pretrained(path).get_output_embeddings().weight for path in (trained, rewarded)
    )
    assert not torch.equal(before, after)
    assert Recommender.from_pretrained(rewarded).vocabulary.form == "backward"


def test_codes_of_a_new_form_are_counted_as_the_catalog_does(trained):
    """By which their categories are known."""
    recommender = Recommender.from_pretrained(trained)
    grammar, sizes = recommender.grammar, recommender.catalog.codebook_sizes
    for level, ids in enumerate(recommender.vocabulary.code_ids):
        numbers = grammar.code_numbers(torch.tensor([*ids, recommender.vocabulary.start_id])).tolist()
        assert numbers == [*range(sum(sizes[:level]), sum(sizes[: level + 1])), -1]
