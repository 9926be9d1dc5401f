"""What a cohort shares, and what each width has for itself."""

import dataclasses

import numpy as np
import pytest
import torch

from fedsprig.adapters import adapter_state, is_statistic, load_adapter_state
from fedsprig.bases import cut_base
from fedsprig.graph import index_within, kept_axes, kept_index, materialize, shrink_plan
from fedsprig.masks import Mask
from fedsprig.subnetwork import AdapterConfig, assemble
from fedsprig_server.aggregation import Contribution
from fedsprig_server.base import Base
from fedsprig_server.cohort_state import CohortState, Narrowing, is_own

HEAD = "linear"


@pytest.fixture(scope="module")
def base():
    return Base.load("cifar_resnet20", None)


@pytest.fixture(scope="module")
def cohort(base):
    """Three devices, two of one width, and the state that they start from."""
    rng = np.random.default_rng(0)
    masks = {"a": Mask.random(base.plan, 0.6, rng), "c": Mask.random(base.plan, 0.3, rng)}
    masks["b"] = masks["a"]
    heads = {}
    for name in ("a", "c"):
        index = kept_index(base.plan, masks[name])
        features = len(index.get("linear.weight", {}).get(1, range(64)))
        heads[masks[name].digest] = {
            "linear.weight": np.zeros((3, features), np.float32),
            "linear.bias": np.zeros(3, np.float32),
        }
    return masks, CohortState.start(base, AdapterConfig(rank=2), heads, num_classes=3)


def trained(base, state, device, mask, rng, weight=1.0):
    """A contribution: what the device got, moved at random."""
    index = kept_index(base.plan, mask)
    got = state.for_device(index, mask.digest)
    moved = {
        name: (value + rng.normal(size=value.shape)).astype(np.float32)
        for name, value in got.items()
    }
    return Contribution(device, weight, moved, index, mask.digest)


def test_start_is_the_base_and_adapters_of_zero(base, cohort):
    _, state = cohort
    for body in state.body.values():
        assert not body["layer1.0.conv1.adapter_b"].any()
        np.testing.assert_array_equal(body["bn1.weight"], base.state["bn1.weight"])
        assert not any(is_own(name, HEAD) for name in body)


def test_equal_answers_change_nothing(base, cohort):
    masks, state = cohort
    parts = [
        Contribution(
            device,
            1.0,
            state.for_device(kept_index(base.plan, mask), mask.digest),
            kept_index(base.plan, mask),
            mask.digest,
        )
        for device, mask in masks.items()
    ]
    for sharing in (0.0, 0.3, 1.0):
        after, _ = state.averaged(parts, head=HEAD, sharing=sharing)
        assert after.to_bytes() == state.to_bytes()


@pytest.mark.parametrize("sharing", [0.0, 0.25, 1.0])
def test_devices_of_other_widths_count_as_much_as_they_are_told_to(base, cohort, sharing):
    masks, state = cohort
    rng = np.random.default_rng(4)
    parts = [
        trained(base, state, name, masks[name], rng, w)
        for name, w in zip("ac", (1, 2), strict=True)
    ]
    after = state.averaged(parts, head=HEAD, sharing=sharing)[0].body[masks["a"].digest]
    name = "layer1.0.conv1.adapter_b"
    kept = {part.device: part.index[f"{name[:-9]}weight"][0] for part in parts}
    both = np.intersect1d(kept["a"], kept["c"])
    mine = dict(zip(kept["a"].tolist(), parts[0].state[name], strict=True))
    theirs = dict(zip(kept["c"].tolist(), parts[1].state[name], strict=True))
    assert len(both)
    for row in both.tolist():
        expected = (mine[row] + 2 * sharing * theirs[row]) / (1 + 2 * sharing)
        np.testing.assert_allclose(after[name][row], expected, rtol=1e-5, atol=1e-6)
    for row in np.setdiff1d(kept["a"], both).tolist():
        np.testing.assert_array_equal(after[name][row], mine[row])


def test_heads_are_averaged_within_a_width_and_never_across(base, cohort):
    masks, state = cohort
    rng = np.random.default_rng(1)
    parts = [
        trained(base, state, name, masks[name], rng, w)
        for name, w in zip("abc", (1, 3, 5), strict=True)
    ]
    after, _ = state.averaged(parts, head=HEAD, sharing=1.0)
    heads = [part.state["linear.weight"] for part in parts]
    np.testing.assert_allclose(
        after.own[masks["a"].digest]["linear.weight"], (heads[0] + 3 * heads[1]) / 4, rtol=1e-5
    )
    np.testing.assert_array_equal(after.own[masks["c"].digest]["linear.weight"], heads[2])


def test_a_width_that_stays_silent_keeps_its_own(base, cohort):
    masks, state = cohort
    part = trained(base, state, "a", masks["a"], np.random.default_rng(2))
    after, _ = state.averaged([part], head=HEAD, sharing=1.0)
    silent = masks["c"].digest
    for name, value in state.own[silent].items():
        np.testing.assert_array_equal(after.own[silent][name], value)


def test_bytes_round_trip(base, cohort):
    masks, state = cohort
    part = trained(base, state, "a", masks["a"], np.random.default_rng(3))
    after, _ = state.averaged([part], head=HEAD, sharing=1.0)
    again = CohortState.from_bytes(after.to_bytes())
    assert again.to_bytes() == after.to_bytes()
    for name, value in after.body[masks["a"].digest].items():
        np.testing.assert_array_equal(again.body[masks["a"].digest][name], value)
    head = after.own[masks["a"].digest]["linear.weight"]
    np.testing.assert_array_equal(again.own[masks["a"].digest]["linear.weight"], head)


def of_both(base, cohort):
    """The start where A travels too, with a B that is not zero."""
    masks, state = cohort
    rng = np.random.default_rng(7)
    heads = {stratum: state.own[stratum] for stratum in state.own}
    start = CohortState.start(base, AdapterConfig(rank=2, train_a=True), heads, num_classes=3)
    body = {
        name: rng.normal(size=value.shape).astype(np.float32) if "adapter" in name else value
        for name, value in next(iter(start.body.values())).items()
    }
    return masks, CohortState(dict.fromkeys(heads, body), heads)


def product(values, layer):
    return values[f"{layer}.adapter_b"].astype(float) @ values[f"{layer}.adapter_a"]


def test_a_width_of_one_device_is_that_device_though_its_factors_are_new(base, cohort):
    masks, state = of_both(base, cohort)
    rng = np.random.default_rng(8)
    parts = [trained(base, state, name, masks[name], rng) for name in "ac"]
    after, lost = state.averaged(parts, head=HEAD, trains="both", sharing=0.0)
    assert lost.keys() == {masks["a"].digest, masks["c"].digest}
    for part in parts:
        got = after.for_device(part.index, part.stratum)
        assert max(lost[part.stratum].values()) < 1e-6
        for layer in lost[part.stratum]:
            expected = product(part.state, layer)
            np.testing.assert_allclose(
                product(got, layer), expected, atol=1e-5 * np.abs(expected).max()
            )


def test_what_refactoring_loses_is_told_by_width_and_layer(base, cohort):
    masks, state = of_both(base, cohort)
    rng = np.random.default_rng(9)
    parts = [trained(base, state, name, masks[name], rng) for name in "abc"]
    after, lost = state.averaged(parts, head=HEAD, trains="both", sharing=0.0)
    two, one = lost[masks["a"].digest], lost[masks["c"].digest]
    layer = "layer1.0.conv1"
    mean = (product(parts[0].state, layer) + product(parts[1].state, layer)) / 2
    got = product(after.for_device(parts[0].index, parts[0].stratum), layer)
    assert two[layer] == pytest.approx(np.linalg.norm(mean - got) / np.linalg.norm(mean), rel=1e-4)
    assert two[layer] > 0.1 > 1e-6 > one[layer]
    for trains in ("a", "b"):
        stays = {"a": "adapter_b", "b": "adapter_a"}[trains]
        rest = [
            dataclasses.replace(
                part, state={n: v for n, v in part.state.items() if not n.endswith(stays)}
            )
            for part in parts
        ]
        after, lost = state.averaged(rest, head=HEAD, trains=trains, sharing=0.0)
        assert lost == {}
        for stratum, body in after.body.items():
            for name, value in body.items():
                same = np.array_equal(value, state.body[stratum][name])
                if name.endswith(stays):
                    assert same
                if name.endswith(f"adapter_{trains}"):
                    assert not same


def test_without_statistics_from_the_devices_it_has_none(base, cohort):
    masks, state = cohort
    part = trained(base, state, "a", masks["a"], np.random.default_rng(5))
    assert not any(is_statistic(name) for name in part.state)
    after, _ = state.averaged([part], head=HEAD, sharing=0.0)
    assert not any(is_statistic(n) for own in after.own.values() for n in own)
    assert after.for_device(part.index, part.stratum).keys() == part.state.keys()


def nested(plan, rng):
    """A mask, and one that keeps a part of what it keeps."""
    outer, inner = Mask.random(plan, 0.7, rng), {}
    for name, kept in outer.groups.items():
        inner[name] = np.zeros(len(kept), np.bool_)
        there = np.flatnonzero(kept)
        inner[name][rng.permutation(there)[: max(1, len(there) // 2)]] = True
    return outer, Mask(inner)


@pytest.mark.parametrize(
    "adapter",
    [
        AdapterConfig(rank=2),
        AdapterConfig(rank=2, train_a=True),
        AdapterConfig(kind="sppara"),
        AdapterConfig(kind="full"),
    ],
    ids=lambda adapter: f"{adapter.kind}-{adapter.train_a}",
)
def test_cutting_the_state_is_cutting_the_network_that_was_trained(base, adapter):
    rng = np.random.default_rng(0)
    outer, inner = nested(base.plan, rng)
    plan = base.plan.with_num_classes(3)
    index = {mask: adapter.index(plan, mask) for mask in (outer, inner)}

    def network(mask):
        weights = cut_base(base.state, index[mask], plan.head, "float32")
        return assemble(plan, mask, weights, num_classes=3, adapter=adapter)

    large = network(outer)
    trained = {
        name: (value.numpy() + rng.gamma(1.0, size=value.shape) / 5).astype(np.float32)
        for name, value in adapter_state(large).items()
    }
    load_adapter_state(large, trained)
    start = CohortState.start(base, adapter, {"": {}}, num_classes=3).body[""]
    body = {name: value.copy() for name, value in start.items()}
    for name, value in trained.items():
        if name in body:
            body[name][where(name, value_of=body, index=index[outer])] = value
    own = {name: value for name, value in trained.items() if name not in body}
    cut = Narrowing(outer.digest, index[inner], index_within(index[outer], index[inner]))
    state = CohortState({outer.digest: body}, {outer.digest: own})
    after = state.narrowed({inner.digest: cut}, start)

    small = network(inner)
    load_adapter_state(small, after.for_device(index[inner], inner.digest))
    left = Mask({name: kept[outer.groups[name]] for name, kept in inner.groups.items()})
    expected = materialize(large, shrink_plan(plan, outer), left).eval()
    pictures = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(small(pictures), expected(pictures))
        assert not torch.allclose(small(pictures), large(pictures))
    # What is gone is as if it had never been trained.
    for name, value in after.body[inner.digest].items():
        lost = np.ones(value.shape, np.bool_)
        lost[where(name, value_of=start, index=index[inner])] = False
        np.testing.assert_array_equal(value[lost], start[name][lost])


def where(name, *, value_of, index):
    """Where a width's part of a tensor lies in the full one."""
    kept = kept_axes(name, index)
    shape = value_of[name].shape
    return np.ix_(*(kept.get(axis, np.arange(size)) for axis, size in enumerate(shape)))
