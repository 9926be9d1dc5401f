"""Settings that contradict themselves are refused; others survive the file."""

from pathlib import Path

import pytest

from fedsprig.errors import RunError
from fedsprig.subnetwork import AdapterConfig
from fedsprig_server.arms import ARMS
from fedsprig_server.config import RoundsConfig, ServerConfig


def config(**changes):
    settings = {"library": Path("library"), "model": "sprig20", "weights": None}
    return ServerConfig(**(settings | {"image_size": None, "tasks": {"t": 2}} | changes))


def test_the_file_gives_the_settings_back(tmp_path):
    settings = config(
        adapter=AdapterConfig(rank=3, train_a=True, local_statistics=True),
        aggregation="alternating",
        arms=("one_shot", "magnitude"),
        rounds=RoundsConfig(sharing=1.0),
    )
    settings.save(tmp_path / "server.json")
    assert ServerConfig.load(tmp_path / "server.json") == settings


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"aggregation": "alternatin"}, "alternating"),
        ({"aggregation": "refactored"}, "set train_a to True"),
        (
            {"adapter": AdapterConfig(kind="sppara"), "aggregation": "alternating"},
            "not for 'sppara': use 'fixed'",
        ),
        (
            {"adapter": AdapterConfig(kind="splopa", train_a=True), "aggregation": "refactored"},
            "not for 'splopa': use 'fixed'",
        ),
        ({"adapter": AdapterConfig(train_a=True)}, "set train_a to False"),
        (
            {
                "adapter": AdapterConfig(train_a=True),
                "aggregation": "alternating",
                "rounds": RoundsConfig(sharing=0.5),
            },
            "use sharing 0 or 1",
        ),
    ],
)
def test_contradictions_are_one_clear_line(changes, words):
    with pytest.raises(RunError, match=words) as caught:
        config(**changes)
    assert "\n" not in str(caught.value)


def test_an_arm_with_an_adapter_of_its_own_aggregates_what_that_trains():
    arm = ARMS["full_finetune"]
    own = arm.adapter(AdapterConfig(rank=4, seed=5, train_a=True, local_statistics=True))
    assert (own.kind, own.seed, own.train_a, own.local_statistics) == ("full", 5, False, True)
    config(adapter=own, aggregation=arm.aggregation)


def test_sharing_between_widths_is_free_where_all_have_one_a():
    for sharing in (0.0, 0.5, 1.0):
        config(rounds=RoundsConfig(sharing=sharing))
        trained = AdapterConfig(train_a=True)
        rounds = RoundsConfig(sharing=sharing)
        config(adapter=trained, aggregation="refactored", rounds=rounds)
