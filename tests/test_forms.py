"""Every form keeps to its grammar, and a new one is a file and a line."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_vocabulary import histories_of
from tiny import tiny_catalog, tiny_items, tiny_lm, tiny_tokenizer

from hf_gr.catalog import SidCatalog
from hf_gr.dataset import Cases
from hf_gr.errors import HfGrError
from hf_gr.forms import FORMS
from hf_gr.hub import save_repo
from hf_gr.sft import SidSFTConfig
from hf_gr.sft.run import starting_model
from hf_gr.sft.tasks import held_out
from hf_gr.vocabulary import SidVocabulary, add_vocabulary


SIZES = (4, 3, 2)
CATALOG = tiny_catalog(sizes=SIZES)
VOCABULARY = replace(add_vocabulary(tiny_tokenizer(), tiny_lm(), CATALOG, max_history=4), first_item_id=1000)


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


@pytest.mark.parametrize("form", FORMS)
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


@pytest.mark.parametrize("form", FORMS)
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
        SidSFTConfig(output_dir=str(tmp_path), form="spiral", use_cpu=True)


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
        ({"set_credit": "next"}, "set_credit is 'next', but acts only with form: unordered"),
        ({"recursion": {}}, "recursion is set, but form is 'stepwise'"),
        ({"form": "flat", "trunk_weight": 0.5}, "trunk_weight is 0.5, but acts only with answers on branches"),
        ({"form": "unordered", "thinking": {}}, "thinking is set, but form is 'unordered'"),
    ],
)
def test_a_model_that_goes_on_is_asked_what_its_form_has(repo, tmp_path, changes, message):
    settings = {"continue_from": str(repo), "max_history": 4, "use_cpu": True}
    histories = histories_of([[1, 2, 3]])
    _, _, vocabulary = starting_model(SidSFTConfig(str(tmp_path), **settings), CATALOG, histories)
    assert vocabulary.form == "stepwise"
    with pytest.raises(HfGrError, match=message):
        starting_model(SidSFTConfig(str(tmp_path), **settings | changes), CATALOG, histories)
