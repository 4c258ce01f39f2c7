import numpy as np
import pytest
from tiny import tiny_items, tiny_lm, tiny_tokenizer

import hf_gr.rewards.trl
from hf_gr.catalog import SidCatalog
from hf_gr.dataset import Histories
from hf_gr.errors import HfGrError
from hf_gr.rewards import (
    REWARDS,
    ItemKnowledge,
    Rollouts,
    Weighted,
    answered_items,
    exact,
    interest,
    ranking,
    trl_reward,
    trl_rewards,
)
from hf_gr.vocabulary import SidVocabulary, add_vocabulary


EOS = 1
CODES = np.array([[0, 1], [1, 0], [0, 1], [1, 1], [0, 0], [1, 0]])  # 0 and 2 share a SID, 1 and 5 another
SIDS = [(1, 0), (1, 1), (0, 0), (1, 0), (1, 1), (0, 1)]  # items 1 3 4 | 1 3 2
ITEMS = np.array([[1, 3, 4], [1, 3, 2]])
SCORES = [-1, -2, -3, -4, -5, -6]


@pytest.fixture(scope="module")
def parts() -> tuple[SidCatalog, SidVocabulary]:
    catalog = SidCatalog.from_codes(CODES, tiny_items(6), (2, 2), popularity=np.array([1, 0, 5, 0, 0, 0]))
    return catalog, add_vocabulary(tiny_tokenizer(), tiny_lm(), catalog, max_history=3)


@pytest.fixture(scope="module")
def known(parts) -> ItemKnowledge:
    events = np.array([0, 2, 1, 3])
    return ItemKnowledge.of(parts[0], Histories(np.array(["u"]), np.array([0, 4]), events, events))


@pytest.fixture(scope="module")
def batch(parts):
    """Arguments as TRL gives them: two prompts with three rollouts each."""
    ids = [completion(parts[1], *sid) for sid in SIDS]

    def made(target: list) -> dict:
        more = {"prompts": ["unused"] * 6, "completions": [""] * 6, "trainer_state": None}
        return {"completion_ids": ids, "target": target, "rollout_score": SCORES, **more}

    return made


@pytest.fixture(scope="module")
def grammar(parts):
    return parts[1].grammar(parts[0])


def completion(vocabulary: SidVocabulary, *codes: int) -> list[int]:
    return [vocabulary.code_ids[level][code] for level, code in enumerate(codes)]


def test_completions_are_read_as_items(parts):
    catalog, vocabulary = parts
    grammar, sid = vocabulary.grammar(catalog), lambda *codes: completion(vocabulary, *codes)
    cases = [
        (sid(1, 0), 1),  # the bucket's first: the lower row
        (sid(0, 1), 2),  # the more popular
        ([*sid(1, 1), EOS], 3),  # what follows the SID is not read
        (list(reversed(sid(1, 0))), -1),  # codes of the wrong level
        ([5, 6], -1),  # bytes
        ([sid(1, 0)[0], EOS], -1),
        ([EOS, *sid(1, 0)], -1),
        ([vocabulary.start_id, vocabulary.think_ids[0]], -1),
        (sid(1), -1),  # cut short: no item, although the node of its level has a number
        (sid(0), -1),
        ([], -1),
    ]
    ids, expected = map(list, zip(*cases, strict=True))
    assert answered_items(ids, grammar).tolist() == expected
    assert [answered_items([row], grammar).tolist() for row in ids] == [[item] for item in expected]


def test_removed_items_are_not_answers(parts):
    catalog, vocabulary = parts
    ids = [completion(vocabulary, 0, 1), completion(vocabulary, 1, 0)]
    assert answered_items(ids, vocabulary.grammar(catalog.removed(["i002"]))).tolist() == [0, 1]
    assert answered_items(ids, vocabulary.grammar(catalog.removed(["i001"]))).tolist() == [2, 5]
    neither = vocabulary.grammar(catalog.removed(["i001", "i005"]))
    assert answered_items(ids, neither).tolist() == [2, -1]
    assert answered_items(ids[1:], neither).tolist() == [-1]


def test_rewards_are_counted_within_each_prompt(grammar, known, batch):
    arguments = batch([3, 3, 3, 4, 4, 4])
    reward = trl_reward("exact", grammar, known, num_generations=3)
    assert reward(**arguments) == [0, 1, 0, 0, 0, 0]
    assert reward.__name__ == "exact"
    found = trl_reward("ranking", grammar, known, num_generations=3)(**arguments)
    rollouts = Rollouts(ITEMS, np.array([[3], [4]]), np.array(SCORES, float).reshape(2, 3))
    assert found == ranking(rollouts, known).ravel().tolist()
    assert found[0] < found[2] < 0 and found[3:] == [0, 0, 0]
    assert isinstance(found, list) and all(isinstance(value, float) for value in found)


def test_a_shared_sid_rewards_its_first_item_only(parts, known):
    catalog, vocabulary = parts
    reward = trl_reward("exact", vocabulary.grammar(catalog), known, num_generations=1)
    ids = [completion(vocabulary, 0, 1)] * 2
    assert reward(completion_ids=ids, target=[2, 0], rollout_score=[0.0, 0.0]) == [1, 0]


def test_the_next_items_count_by_decay(grammar, known, batch):
    arguments = batch([[3, 1], [3, 1], [3, 1], [4], [4], [4]])
    reward = trl_reward("exact", grammar, known, 3, decay=0.5)
    assert reward(**arguments) == pytest.approx([1 / 3, 2 / 3, 0, 0, 0, 0])
    assert trl_reward("exact", grammar, known, 3)(**arguments) == [0.5, 0.5, 0, 0, 0, 0]
    assert trl_reward("exact", grammar, known, 3, decay=0)(**arguments) == [0, 1, 0, 0, 0, 0]


def test_parameters_reach_the_reward(grammar, known, batch):
    parameters = {"prefix_weight": 3.0, "valid_weight": 0.0}
    found = trl_reward("interest", grammar, known, 3, parameters=parameters)(**batch([3] * 6))
    rollouts = Rollouts(ITEMS, np.array([[3], [3]]), np.array(SCORES, float).reshape(2, 3))
    assert found == pytest.approx(interest(rollouts, known, **parameters).ravel())


def test_a_function_of_ones_own(grammar, known, batch):
    def evenness(rollouts, items, *, height=1.0):
        return height * (rollouts.items % 2 == 0)

    reward = trl_reward(evenness, grammar, known, 3, parameters={"height": 2.0})
    assert reward.__name__ == "evenness"
    assert reward(**batch([3, 3, 3, 4, 4, 4])) == [0, 0, 2, 0, 0, 2]


def test_a_mix_reads_each_batch_once(grammar, known, batch, monkeypatch):
    reads = []

    def counting(ids, grammar):
        reads.append(ids)
        return answered_items(ids, grammar)

    monkeypatch.setattr(hf_gr.rewards.trl, "answered_items", counting)
    mix = {name: Weighted() for name in REWARDS if name != "semantic"}  # these items have no vectors
    rewards = trl_rewards(mix, grammar, known, 3)
    assert [reward.__name__ for reward in rewards] == list(mix)
    arguments = batch([3, 3, 3, 4, 4, 4]) | {"history": [[1, 5]] * 3 + [[2]] * 3}
    found = [reward(**arguments) for reward in rewards]
    assert len(reads) == 1
    alone = [trl_reward(name, grammar, known, 3)(**arguments) for name in mix]
    assert found == alone
    assert found[list(mix).index("repeat")] == [-1, 0, 0, 0, 0, -1]  # items 1 3 4 | 1 3 2 after 1 5 | 2
    reads.clear()
    other = arguments | {"completion_ids": arguments["completion_ids"][::-1]}
    assert rewards[0](**other) == [0, 1, 0, 1, 0, 0]  # items 2 3 1 | 4 3 1
    assert len(reads) == 1 and reads[0] is other["completion_ids"]


def test_a_mix_hands_parameters_and_decay_on(grammar, known, batch):
    arguments = batch([[3, 1], [3, 1], [3, 1], [4], [4], [4]])
    parameters = {"valid_weight": 5.0}
    (reward,) = trl_rewards({"interest": Weighted(2.0, parameters)}, grammar, known, 3, decay=0.5)
    assert reward(**arguments) == trl_reward("interest", grammar, known, 3, parameters=parameters, decay=0.5)(
        **arguments
    )
    assert min(reward(**arguments)) >= 5


def test_an_unknown_reward_lists_the_known_ones(grammar, known):
    with pytest.raises(HfGrError, match="no reward is called 'best'; there are: exact, ranking"):
        trl_reward("best", grammar, known, 2)


def test_what_a_reward_lacks_is_told_before_training(grammar, known):
    with pytest.raises(HfGrError, match="reward 'semantic': items have no vectors"):
        trl_reward("semantic", grammar, known, 2)


def test_torn_groups_are_refused(grammar, known, batch):
    reward = trl_reward("exact", grammar, known, 2)
    with pytest.raises(HfGrError, match="the 2 rollouts of prompt 1 of the batch have different targets"):
        reward(**batch([3, 3, 3, 4, 4, 4]))
    with pytest.raises(HfGrError, match="6 rollouts are no whole groups of 4"):
        trl_reward("exact", grammar, known, 4)(**batch([3] * 6))
    with pytest.raises(HfGrError, match="prompt 1 of the batch has no target"):
        trl_reward("exact", grammar, known, 3)(**batch([3, 3, 3, -1, -1, -1]))


def with_value(value: float):
    def broken(rollouts, items):
        found = exact(rollouts, items)
        found[rollouts.items == 2] = value  # the last rollout of the second prompt
        return found

    return broken


def raising(rollouts, items):
    if (rollouts.targets == 4).any():
        raise ValueError("no such\nthing")
    return exact(rollouts, items)


def together_only(rollouts, items):
    if len(rollouts.items) > 1:
        raise ValueError("too many")
    return exact(rollouts, items)


SAMPLE = r"at prompt 1 of the batch, rollout 2 \(answer: item 'i002'; target: item 'i004'\); correct that reward"
PROMPT = r"at prompt {} of the batch \(answer: item 'i001', item 'i003', item '{}'; target: item '{}'\); correct"


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (with_value(np.nan), f"reward 'broken' gave nan {SAMPLE}"),
        (with_value(-np.inf), f"reward 'broken' gave -inf {SAMPLE}"),
        (raising, "reward 'raising' raised ValueError: no such thing " + PROMPT.format(1, "i002", "i004")),
        (together_only, "reward 'together_only' raised ValueError: too many " + PROMPT.format(0, "i004", "i003")),
    ],
)
@pytest.mark.parametrize("more", [[], [1]], ids=["one target", "two targets"])
def test_a_broken_reward_stops_with_its_name_and_the_sample(grammar, known, batch, broken, message, more):
    reward = trl_reward(broken, grammar, known, 3, decay=0.5)
    with pytest.raises(HfGrError, match=message) as caught:
        reward(**batch([[target, *more] for target in [3, 3, 3, 4, 4, 4]]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("give", "shape", "prompt"),
    [
        (lambda found: found[:1], r"\(1, 3\)", 1),
        (lambda found: found[:, :2], r"\(2, 2\)", 0),
        (lambda found: found[:, :1], r"\(2, 1\)", 0),  # it would broadcast
        (lambda found: found.ravel(), r"\(6,\)", 0),
        (lambda found: 1.0, r"\(\)", 0),
    ],
)
def test_rewards_of_another_shape_stop_the_run(grammar, known, batch, give, shape, prompt):
    def short(rollouts, items):
        return give(exact(rollouts, items))

    last, target = [("i004", "i003"), ("i002", "i004")][prompt]
    message = rf"reward 'short' gave an array of shape {shape}, not \(2, 3\) " + PROMPT.format(prompt, last, target)
    with pytest.raises(HfGrError, match=message):
        trl_reward(short, grammar, known, 3, decay=0.5)(**batch([3, 3, 3, 4, 4, 4]))


@pytest.mark.parametrize("value", [[["a"] * 3] * 2, [[1.0, 2.0, 3.0], [1.0]]], ids=["words", "ragged"])
def test_rewards_that_are_no_numbers_stop_the_run(grammar, known, batch, value):
    with pytest.raises(HfGrError, match=r"reward 'odd' raised ValueError: .* at prompt \d of the batch \(answer: "):

        def odd(rollouts, items):
            return value

        trl_reward(odd, grammar, known, 3)(**batch([3, 3, 3, 4, 4, 4]))


def test_a_rollout_that_is_no_item_is_named_so(grammar, known):
    def nothing(rollouts, items):
        return np.full(rollouts.items.shape, np.nan)

    reward = trl_reward(nothing, grammar, known, 1)
    with pytest.raises(HfGrError, match=r"rollout 0 \(answer: no item; target: item 'i003'\)"):
        reward(completion_ids=[[EOS]], target=[3], rollout_score=[0.0])
