import numpy as np
import pytest
from tiny import tiny_items, tiny_lm, tiny_tokenizer

from hf_gr.catalog import SidCatalog
from hf_gr.errors import HfGrError
from hf_gr.rewards import answered_items, ranking, trl_reward
from hf_gr.vocabulary import SidVocabulary, add_vocabulary


EOS = 1
CODES = np.array([[0, 1], [1, 0], [0, 1], [1, 1], [0, 0], [1, 0]])  # 0 and 2 share a SID, 1 and 5 another


@pytest.fixture(scope="module")
def parts() -> tuple[SidCatalog, SidVocabulary]:
    catalog = SidCatalog.from_codes(CODES, tiny_items(6), (2, 2), popularity=np.array([1, 0, 5, 0, 0, 0]))
    return catalog, add_vocabulary(tiny_tokenizer(), tiny_lm(), catalog, max_history=3)


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


def test_rewards_are_counted_within_each_prompt(parts):
    catalog, vocabulary = parts
    grammar = vocabulary.grammar(catalog)
    sids = [(1, 0), (1, 1), (0, 0), (1, 0), (1, 1), (0, 1)]  # items 1 3 4 | 1 3 2
    ids = [completion(vocabulary, *sid) for sid in sids]
    arguments = {"completion_ids": ids, "target": [3, 3, 3, 4, 4, 4], "rollout_score": [-1, -2, -3, -4, -5, -6]}
    reward = trl_reward("exact", grammar, num_generations=3)
    assert reward(**arguments) == [0, 1, 0, 0, 0, 0]
    assert reward.__name__ == "exact"
    reward = trl_reward("ranking", grammar, num_generations=3)
    found = reward(**arguments, prompts=["unused"] * 6, completions=[""] * 6, trainer_state=None)
    scores = np.array(arguments["rollout_score"]).reshape(2, 3)
    assert found == ranking(np.array([[1, 3, 4], [1, 3, 2]]), np.array([3, 4]), scores).ravel().tolist()
    assert found[0] < found[2] < 0 and found[3:] == [0, 0, 0]
    assert isinstance(found, list) and all(isinstance(value, float) for value in found)


def test_a_shared_sid_rewards_its_first_item_only(parts):
    catalog, vocabulary = parts
    reward = trl_reward("exact", vocabulary.grammar(catalog), num_generations=1)
    ids = [completion(vocabulary, 0, 1)] * 2
    assert reward(completion_ids=ids, target=[2, 0], rollout_score=[0.0, 0.0]) == [1, 0]


def test_an_unknown_reward_lists_the_known_ones(parts):
    catalog, vocabulary = parts
    with pytest.raises(HfGrError, match="no reward is called 'best'; there are: exact, ranking"):
        trl_reward("best", vocabulary.grammar(catalog), 2)
