"""What trains in which round."""

from typing import get_args

from fedsprig_server.aggregation import AGGREGATIONS
from fedsprig_sim.sections import Aggregation


def test_factors_take_their_turns():
    turns = {name: [mode.trains(n) for n in (1, 2, 3, 4)] for name, mode in AGGREGATIONS.items()}
    assert turns == {
        "fixed": ["b"] * 4,
        "refactored": ["both"] * 4,
        "alternating": ["b", "a", "b", "a"],
    }
    assert [name for name, mode in AGGREGATIONS.items() if not mode.trains_a] == ["fixed"]


def test_a_scenario_can_name_each():
    assert set(get_args(Aggregation)) == set(AGGREGATIONS)
