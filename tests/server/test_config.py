"""Settings that contradict themselves are refused; others survive the file."""

import json
from pathlib import Path

import pytest

from fedsprig.errors import RunError
from fedsprig.preparing import HealConfig
from fedsprig.subnetwork import AdapterConfig
from fedsprig_server.arms import ARMS
from fedsprig_server.config import (
    PruningConfig,
    RoundsConfig,
    SelectionConfig,
    ServerConfig,
    StartConfig,
)

HEALED = StartConfig(heal_steps=5, pictures=("own.npz",), distance="direction")


def config(**changes):
    settings = {"library": Path("library"), "model": "sprig20", "weights": None}
    return ServerConfig(**(settings | {"image_size": None, "tasks": {"t": 2}} | changes))


def test_the_file_gives_the_settings_back(tmp_path):
    settings = config(
        adapter=AdapterConfig(rank=3, train_a=True, local_statistics=True),
        aggregation="alternating",
        arms=("one_shot", "magnitude"),
        rounds=RoundsConfig(sharing=1.0),
        pruning=PruningConfig(cuts=1, start=3.5, form="max", weighting="macs"),
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
        ({"start": HEALED, "rounds": RoundsConfig(sharing=0.5)}, "use sharing 0"),
        ({"start": HEALED, "pruning": PruningConfig(cuts=1)}, "use one or the other"),
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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"similarity": "prototype"}, "did you mean 'prototypes'"),
        ({"similarity": "leep"}, "unknown similarity 'leep'"),  # the server has no pictures
        ({"rerank": "lep"}, "did you mean 'leep'"),
        ({"rerank": "prototypes"}, "unknown value to rerank by"),
        ({"rerank": "leep", "shortlist": 0}, "1 entry or more"),
    ],
)
def test_a_search_that_cannot_be_made_is_refused(changes, words):
    with pytest.raises(RunError, match=words):
        SelectionConfig(**changes)


def test_every_stage_of_a_search_can_be_chosen(tmp_path):
    for name in ("prototypes", "transport", "fingerprints"):
        for rerank in ("", "leep", "h_score"):
            chosen = SelectionConfig(similarity=name, rerank=rerank, shortlist=3)
            config(selection=chosen).save(tmp_path / "server.json")
            assert ServerConfig.load(tmp_path / "server.json").selection == chosen


@pytest.mark.parametrize(
    ("pruning", "changes", "words"),
    [
        ({"every": 2, "cuts": 2}, {}, "follows round 4 of 3, and nothing trains after it"),
        ({"cuts": 3}, {}, "use more rounds, or fewer cuts"),
        ({}, {"adapter": AdapterConfig(rank_rule="kept")}, "prune with 'layer'"),
        ({}, {"selection": SelectionConfig(round_to=4)}, "prune with 1"),
        ({"form": "maen"}, {}, "did you mean 'mean'"),
        ({"weighting": "mac"}, {}, "did you mean 'macs'"),
        ({"cuts": 0}, {}, "1 or more"),
        ({"start": 1.0}, {}, "start is above 1"),
        ({"start": float("nan")}, {}, "start is above 1"),
        ({"power": 0.0}, {}, "power above 0"),
        ({"power": float("inf")}, {}, "power above 0"),
    ],
)
def test_cuts_that_cannot_be_made_are_refused(pruning, changes, words):
    with pytest.raises(RunError, match=words):
        config(pruning=PruningConfig(**pruning), **changes)


def test_cuts_come_every_so_many_rounds_and_come_to_an_end():
    pruning = PruningConfig(every=2, cuts=3)
    assert [number for number in range(1, 12) if pruning.due(number)] == [2, 4, 6]


def test_settings_from_before_there_was_pruning_are_read(tmp_path):
    settings = config()
    settings.save(tmp_path / "server.json")
    raw = json.loads((tmp_path / "server.json").read_text())
    assert raw.pop("pruning") is None
    (tmp_path / "server.json").write_text(json.dumps(raw))
    assert ServerConfig.load(tmp_path / "server.json") == settings


def test_how_networks_start_survives_the_file_and_is_checked(tmp_path):
    settings = config(start=HEALED)
    settings.save(tmp_path / "server.json")
    assert ServerConfig.load(tmp_path / "server.json") == settings
    assert settings.start.healing == HealConfig(
        steps=5, batch_size=64, learning_rate=0.02, distance="direction"
    )
    with pytest.raises(RunError, match="needs pictures"):
        StartConfig(heal_steps=5)
    with pytest.raises(RunError, match="learning_rate"):
        StartConfig(heal_steps=5, pictures=("own.npz",), learning_rate=0)
    with pytest.raises(RunError, match="use squared, direction"):
        StartConfig(distance="near")


@pytest.mark.parametrize("temperature", [0.0, 1e-320, 9e-7, float("nan"), float("inf")])
def test_a_temperature_at_which_nothing_can_be_weighed_is_refused(temperature):
    with pytest.raises(RunError, match=r"temperature .*: use a number from 1e-06 up"):
        SelectionConfig(temperature=temperature)
    assert SelectionConfig(temperature=1e-6).temperature == 1e-6
