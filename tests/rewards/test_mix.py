import pytest
import yaml

import hf_gr.rewards
from hf_gr.errors import HfGrError
from hf_gr.rewards import REWARDS, Weighted, parse_mix


def test_every_reward_goes_by_its_own_name():
    assert set(REWARDS) >= {"exact", "ranking", "prefix", "ndcg", "semantic", "collaborative", "novelty", "interest"}
    assert set(REWARDS) >= {"step_hit", "global_path", "category_hit", "step_consistency"}
    for name, reward in REWARDS.items():
        assert reward.__name__ == name and vars(hf_gr.rewards)[name] is reward


ONCE = {"exact": Weighted(1.0), "ranking": Weighted(1.0)}
INTEREST = {"interest": Weighted(2.0, {"prefix_weight": 0.5}), "exact": Weighted(1.0)}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("[exact, ranking]", ONCE),
        ("exact,ranking", ONCE),
        ("exact, ranking", ONCE),
        ("exact", {"exact": Weighted(1.0)}),
        ("[exact]", {"exact": Weighted(1.0)}),
        ("{exact: 1, prefix: 0.3}", {"exact": Weighted(1.0), "prefix": Weighted(0.3)}),
        ("{exact: 1, novelty: 0}", {"exact": Weighted(1.0), "novelty": Weighted(0.0)}),
        ("{exact: 1e-3}", {"exact": Weighted(0.001)}),  # YAML reads a word
        ("{interest: {weight: 2, prefix_weight: 0.5}, exact: 1}", INTEREST),
        ("{interest: {graded_weight: 1}}", {"interest": Weighted(1.0, {"graded_weight": 1.0})}),
        ("{exact: {}}", {"exact": Weighted(1.0)}),
    ],
)
def test_every_form_of_a_mix(given, expected):
    found = parse_mix(yaml.safe_load(given))
    assert found == expected and list(found) == list(expected)
    if given[0] == "{":
        assert parse_mix(given) == parse_mix([given]) == expected  # the words of a command line


def test_a_command_lines_words_are_names():
    assert parse_mix(["exact", "ranking"]) == parse_mix(["exact,ranking"]) == parse_mix(("exact", "ranking")) == ONCE


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["exact", "joy"], "no reward is called 'joy'; there are: exact, ranking, prefix, "),
        ({"joy": 1}, "no reward is called 'joy'"),
        ({1: 1}, "no reward is called 1"),
        ("", "no reward is called ''"),
        ({"exact": {"weight": 1, "depth": 2}}, "reward 'exact' has no parameter 'depth'; it has none but its weight"),
        (
            {"interest": {"depth": 2}},
            "reward 'interest' has no parameter 'depth'; it has: valid_weight, prefix_weight, graded_weight",
        ),
        ({"exact": "much"}, "the weight of reward 'exact' is 'much'; give a finite number"),
        ({"exact": None}, "the weight of reward 'exact' is None"),
        ({"exact": True}, "the weight of reward 'exact' is True"),
        ({"exact": float("nan")}, "the weight of reward 'exact' is nan"),
        ({"exact": float("inf")}, "the weight of reward 'exact' is inf"),
        ({"exact": [1]}, r"the weight of reward 'exact' is \[1\]"),
        ({"interest": {"prefix_weight": "x"}}, "prefix_weight of reward 'interest' is 'x'"),
        ([], "rewards is empty; name at least one of: exact, "),
        ({}, "rewards is empty"),
        (None, "rewards is None; give names, or names with weights"),
        (3, "rewards is 3"),
        (["exact", {"prefix": 1}], "rewards names {'prefix': 1} in a list; give weights as"),
        (["exact", "exact"], "rewards names 'exact' twice"),
        ("{exact: 1", "rewards is '{exact: 1'; give keys and values"),
    ],
)
def test_what_is_no_mix_is_refused(given, message):
    with pytest.raises(HfGrError, match=message) as caught:
        parse_mix(given)
    assert "\n" not in str(caught.value)
