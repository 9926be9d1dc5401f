"""Exact arms lose what is pruned, leaking arms do not, and a stopped run goes on as if it had not.

No accuracy is asserted: the networks here are too small and train for a handful of steps.
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedsprig.adapters.layer import AdapterLayer
from fedsprig.cli import run as command
from fedsprig.errors import DataError, TrainingError, UnknownNameError
from fedsprig.graph import trace_groups
from fedsprig.masks import Mask, ScoreSet
from fedsprig.models.cifar_resnet import CifarResNet
from fedsprig_sim.benchmarks.fine_pruning import (
    ARMS,
    METHODS,
    Arm,
    Course,
    read_rates,
    run,
    table,
)
from fedsprig_sim.benchmarks.fine_pruning.course import Stage, Start, trajectory
from fedsprig_sim.benchmarks.fine_pruning.leak import measure_leak
from fedsprig_sim.benchmarks.fine_pruning.pruning import (
    Network,
    best_filters,
    count_filters,
    prune,
)
from fedsprig_sim.benchmarks.fine_pruning.summary import spread, summarise

PICTURES = {"train": 64, "validation": 40, "test": 40}
COURSE = Course(
    densities=(0.6, 0.25),
    reported=(0.25,),
    first_steps=2,
    steps=2,
    reported_steps=3,
    batch_size=8,
    scoring_pictures=16,
    bf16=False,
)
NET = CifarResNet(8, num_classes=3, width=8, shortcut="conv").eval()
for module in NET.modules():
    if isinstance(module, nn.BatchNorm2d):
        # Where it is not above zero, no gradient reaches a filter of zeros: it stays dead.
        nn.init.constant_(module.bias, 0.1)
PLAN = trace_groups(NET, torch.zeros(1, 3, 16, 16), name="tiny")


@pytest.fixture
def start(tmp_path: Path) -> Start:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(32, 3, 16, 16, generator=generator)
    labels = torch.arange(32) % 3
    return Start(copy.deepcopy(NET), PLAN, images, labels, "d", tmp_path)


def last(start: Start, arm: Arm) -> Stage:
    return list(trajectory(start, COURSE, arm, 0.05, 0))[-1]


def widths(module: nn.Module) -> int:
    return sum(m.out_channels for m in module.modules() if isinstance(m, nn.Conv2d))


def pruned_rows(network: Network) -> list[tuple[str, torch.Tensor]]:
    """Weight name and pruned positions, of every convolution that lost a filter."""
    rows = []
    for group in network.plan.groups:
        gone = ~network.mask.groups[group.name]
        rows += [
            (axis.tensor, torch.from_numpy(axis.positions[gone].ravel()).long())
            for axis in group.axes
            if axis.role == "out" and axis.tensor in network.plan.macs_per_weight and gone.any()
        ]
    return rows


@pytest.mark.parametrize("method", METHODS)
def test_an_exact_arm_has_no_pruned_filter_left(start: Start, method: str) -> None:
    whole = widths(NET)
    before = Mask.full(PLAN)
    for stage in trajectory(start, COURSE, Arm(method, leaks=False), 0.05, 0):
        network = stage.network
        assert network.mask.is_subset_of(before)
        assert widths(network.module) == count_filters(PLAN, network.mask)
        assert widths(network.module) <= round(stage.density * whole)
        assert network.cut() is network.module
        before = network.mask
    assert before.unit_ratio < 0.4


@pytest.mark.parametrize("method", METHODS)
def test_a_leaking_arm_answers_with_filters_that_it_calls_pruned(start: Start, method: str) -> None:
    network = last(start, Arm(method, leaks=True)).network
    assert widths(network.module) == widths(NET)
    assert widths(network.cut()) == count_filters(PLAN, network.mask) < widths(NET)
    for name, rows in pruned_rows(network):
        layer = network.module.get_submodule(name.removesuffix(".weight"))
        weight = layer.merged_weight() if isinstance(layer, AdapterLayer) else layer.weight
        assert weight[rows].abs().sum() > 0
        if isinstance(layer, AdapterLayer):
            assert layer.weight[rows].abs().sum() == 0
    leak = measure_leak(network, start.images)
    assert leak.answering > 0.9
    assert leak.loudness > 0


def test_what_is_set_to_zero_does_not_answer_before_it_trains(start: Start) -> None:
    module = copy.deepcopy(start.base)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    network = Network(module, PLAN, Mask.full(PLAN), leaks=True)
    network = prune(network, 0.5, [(start.images, start.labels)])
    rows = dict(pruned_rows(network))
    for name, value in module.state_dict().items():
        same = value == before[name]
        if name in rows:
            assert (value[rows[name]] == 0).all()
            same[rows[name]] = True
        assert same.all()  # normalisation, readers and kept filters are as they were
    assert measure_leak(network, start.images).answering == 0


def test_a_second_cut_takes_only_what_the_first_left(start: Start) -> None:
    """Weights that came back after the first cut are neither scored again nor zeroed again."""
    network = Network(copy.deepcopy(start.base), PLAN, Mask.full(PLAN), leaks=True)
    batch = [(start.images, start.labels)]
    network = prune(network, 0.6, batch)
    first = network.mask
    with torch.no_grad():
        for name, rows in pruned_rows(network):
            network.module.get_parameter(name)[rows] = 10.0  # louder than all that is kept
    network = prune(network, 0.3, batch)
    assert network.mask.is_subset_of(first)
    assert network.mask != first
    for group in PLAN.groups:
        gone = ~first.groups[group.name]
        weight = network.module.get_parameter(f"{group.name}.weight")
        assert (weight[torch.from_numpy(gone.copy())] == 10.0).all()


def test_exact_and_leaking_choose_alike_from_the_same_network(start: Start) -> None:
    """The first cut is decided by the same code from the same scores; only what follows differs."""
    batch = [(start.images, start.labels)]
    masks = [
        prune(Network(copy.deepcopy(start.base), PLAN, Mask.full(PLAN), leaks), 0.4, batch).mask
        for leaks in (False, True)
    ]
    assert masks[0] == masks[1]


@given(st.integers(0, 2**32 - 1), st.integers(0, 300))
@settings(max_examples=20)
def test_as_many_filters_stay_as_are_allowed(seed: int, allowed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = ScoreSet({g.name: rng.random(g.units).astype(np.float32) for g in PLAN.groups})
    mask = best_filters(scores, PLAN, allowed)
    mask.check(PLAN)
    least = len(PLAN.groups)
    # slow and obvious: no mask of one unit more fits
    normalised = scores.normalised().groups
    order = sorted(
        (-float(value), number, unit)
        for number, group in enumerate(PLAN.groups)
        for unit, value in enumerate(normalised[group.name])
    )
    kept = {g.name: int(np.argmax(normalised[g.name])) for g in PLAN.groups}
    units = {g.name: {kept[g.name]} for g in PLAN.groups}
    filters = {
        g.name: sum(a.role == "out" and a.tensor.endswith("weight") for a in g.axes)
        for g in PLAN.groups
    }
    total = sum(filters.values())
    for _, number, unit in order:
        name = PLAN.groups[number].name
        if unit in units[name]:
            continue
        if total + filters[name] > allowed:
            break
        units[name].add(unit)
        total += filters[name]
    assert {n: set(np.flatnonzero(v).tolist()) for n, v in mask.groups.items()} == units
    assert count_filters(PLAN, mask) == total
    assert sum(map(len, units.values())) >= least


def test_a_stopped_run_goes_on_as_if_it_had_not(start: Start, tmp_path: Path) -> None:
    for arm in (Arm("splora-8", leaks=False), Arm("fine-pruning", leaks=True)):
        whole = last(start, arm)
        states = [whole.network.module.state_dict()]
        (tmp_path / f"{whole.key}.safetensors").unlink()
        again = last(start, arm)
        states.append(again.network.module.state_dict())
        read = last(start, arm)
        states.append(read.network.module.state_dict())
        assert whole.network.mask == again.network.mask == read.network.mask
        for other in states[1:]:
            assert states[0].keys() == other.keys()
            assert all(torch.equal(value, other[name]) for name, value in states[0].items())


def test_arms_that_begin_alike_share_their_beginning(start: Start) -> None:
    ways = [
        [stage.key for stage in trajectory(start, COURSE, Arm("splora-8", leaks), 0.05, 0)]
        for leaks in (False, True)
    ]
    assert ways[0][0] == ways[1][0]
    assert not set(ways[0][1:]) & set(ways[1][1:])


def test_a_run_reports_every_arm(tmp_path: Path) -> None:
    figures = run(
        tmp_path,
        data="digits",
        model="cifar_resnet20",
        weights=None,
        seeds=2,
        arms=("fine-pruning", "splora-8", "splora-8-leaking"),
        rates={"fine-pruning": (0.01, 0.05), "splora-8": (0.1,)},
        pictures=PICTURES["train"],
        validation_pictures=PICTURES["validation"],
        test_pictures=PICTURES["test"],
        course=COURSE,
    )
    assert json.loads(json.dumps(figures)) == figures
    arms = figures["arms"]
    assert list(arms) == ["fine-pruning", "splora-8", "splora-8-leaking"]
    assert all(set(densities) == {"1", "0.25"} for densities in arms.values())
    assert set(figures["rates"]["fine-pruning"]["tried"]) == {"0.01", "0.05"}
    # each of the ten classes gives a whole number of pictures
    assert all(abs(figures["pictures"][part] - n) <= 5 for part, n in PICTURES.items())
    exact, leaking = arms["splora-8"]["0.25"], arms["splora-8-leaking"]["0.25"]
    assert "leak" not in exact
    assert leaking["leak"]["answering"]["mean"] > 0.9
    assert leaking["filters"] <= 0.25 * 688  # 19 convolutions of 16, 32 and 64 filters
    rival = arms["fine-pruning"]["0.25"]
    assert rival["trained"] == rival["parameters"]
    assert exact["trained_ratio"] == exact["trained"] / rival["trained"] < 1
    text = table(arms)
    assert len(text.splitlines()) == 1 + 2 * 3
    assert "splora-8-leaking" in text


def test_the_mean_has_a_standard_error() -> None:
    assert spread([0.5, 0.7, 0.9]) == {
        "values": [0.5, 0.7, 0.9],
        "mean": pytest.approx(0.7),
        "standard_error": pytest.approx(0.2 / math.sqrt(3)),
    }
    assert spread([0.5])["standard_error"] is None


def test_differences_are_taken_seed_by_seed() -> None:
    counts = {"parameters": 8, "macs": 9, "filters": 2}
    arms = summarise(
        {
            "fine-pruning": [{0.1: {"accuracy": a, "trained": 80, **counts}} for a in (0.5, 0.7)],
            "splora-8": [{0.1: {"accuracy": a, "trained": 20, **counts}} for a in (0.6, 0.8)],
        }
    )
    figures = arms["splora-8"]["0.1"]
    assert figures["difference"]["mean"] == pytest.approx(0.1)
    assert figures["difference"]["standard_error"] == pytest.approx(0, abs=1e-12)
    assert figures["accuracy"]["standard_error"] == pytest.approx(0.1)
    assert figures["trained_ratio"] == 0.25


@pytest.mark.parametrize(
    ("densities", "reported"),
    [
        ((0.5, 0.6), (0.5,)),
        ((1.0, 0.5), (0.5,)),
        ((0.5, 0.0), (0.5,)),
        ((0.5,), (0.3,)),
        ((0.5,), ()),
    ],
)
def test_a_course_leads_down(densities: tuple[float, ...], reported: tuple[float, ...]) -> None:
    with pytest.raises(DataError):
        Course(densities=densities, reported=reported)


def test_rates_are_read_by_method() -> None:
    assert read_rates(["splora-8=0.1", "fine-pruning=1e-2", "splora-8=0.2"]) == {
        "splora-8": [0.1, 0.2],
        "fine-pruning": [0.01],
    }
    with pytest.raises(TrainingError, match="splora-8=fast"):
        read_rates(["splora-8=fast"])
    with pytest.raises(UnknownNameError, match="splora-8"):
        read_rates(["splora8=0.1"])


def test_an_unknown_arm_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(["bench", "fine-pruning", "--arm", "splora8"]) == UnknownNameError.exit_code
    assert "splora-8" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert set(METHODS) == {arm.method for arm in ARMS.values()}
