"""Masks: bytes, algebra, checks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsprig.errors import ArtifactError, BudgetError, PlanError, TruncatedArtifactError
from fedsprig.masks import Mask

sizes = st.lists(st.integers(1, 20), min_size=1, max_size=4)
seeds = st.integers(0, 2**32)


def drawn(plan, seed):
    """Any mask at all, empty groups included."""
    rng = np.random.default_rng(seed)
    return Mask({g.name: rng.random(g.units) < rng.random() for g in plan.groups})


@given(sizes=sizes, seed=seeds)
@settings(max_examples=50, deadline=None)
def test_a_mask_survives_the_round_trip(chain_plan, sizes, seed):
    plan = chain_plan(sizes)
    mask = drawn(plan, seed)
    data = mask.to_bytes()
    assert len(data) == 12 + -(-plan.units // 8)
    back = Mask.from_bytes(data, plan)
    assert back == mask
    assert back.to_bytes() == data
    assert list(back.groups) == [g.name for g in plan.groups]


@given(sizes=sizes, seed=seeds, cut=st.integers(0, 30))
@settings(max_examples=50, deadline=None)
def test_a_mask_of_another_length_is_refused(chain_plan, sizes, seed, cut):
    plan = chain_plan(sizes)
    data = drawn(plan, seed).to_bytes()
    with pytest.raises(TruncatedArtifactError):
        Mask.from_bytes(data[: min(cut, len(data) - 1)], plan)
    with pytest.raises(ArtifactError):
        Mask.from_bytes(data + b"\0", plan)


def test_the_bytes_are_these(tiny_plan):
    """Golden: header, then unit 0 in the lowest bit, conv1 before conv2."""
    mask = Mask(
        {
            "conv2": np.array([1, 1, 0, 0, 0, 1], bool),
            "conv1": np.array([1, 0, 0, 1], bool),
        }
    )
    assert mask.to_bytes().hex() == "46534d31" + mask.layout.digest.hex() + "3902"
    assert mask.layout.digest.hex() == "ae9bd024b6f21319"


def test_bits_in_the_padding_are_refused(tiny_plan):
    data = bytearray(Mask.full(tiny_plan).to_bytes())
    data[-1] |= 0x80
    with pytest.raises(ArtifactError, match="more bits"):
        Mask.from_bytes(bytes(data), tiny_plan)


def test_bytes_of_something_else_are_refused(tiny_plan, chain_plan):
    data = Mask.full(tiny_plan).to_bytes()
    with pytest.raises(ArtifactError, match="do not begin"):
        Mask.from_bytes(b"ZIP!" + data[4:], tiny_plan)
    with pytest.raises(PlanError, match="another plan"):
        Mask.from_bytes(data, chain_plan([4, 6]))


def test_equality_and_digest_do_not_depend_on_the_order_of_groups(tiny_plan):
    mask = drawn(tiny_plan, 3)
    other = Mask(dict(reversed(mask.groups.items())))
    assert (mask, hash(mask), mask.digest) == (other, hash(other), other.digest)
    flipped = Mask({"conv1": ~mask.groups["conv1"], "conv2": mask.groups["conv2"]})
    assert flipped != mask
    assert flipped.digest != mask.digest


@given(sizes=sizes, one=seeds, two=seeds)
@settings(max_examples=50, deadline=None)
def test_algebra_is_that_of_sets(chain_plan, sizes, one, two):
    plan = chain_plan(sizes)
    a, b = drawn(plan, one), drawn(plan, two)
    kept_a, kept_b = (
        {(name, int(u)) for name, units in m.groups.items() for u in np.flatnonzero(units)}
        for m in (a, b)
    )
    both, either = a & b, a | b
    assert sum(both.kept(g.name) for g in plan.groups) == len(kept_a & kept_b)
    assert either.unit_ratio == pytest.approx(len(kept_a | kept_b) / plan.units)
    assert a.is_subset_of(b) == (kept_a <= kept_b)
    assert both.is_subset_of(a)
    assert a.is_subset_of(either)


@pytest.mark.parametrize(("keep", "kept"), [(0, 1), (0.25, 1), (0.5, 2), (1, 4)])
def test_a_random_mask_keeps_the_ratio_of_every_group(tiny_plan, keep, kept):
    mask = Mask.random(tiny_plan, keep, np.random.default_rng(1))
    assert mask.kept("conv1") == kept
    mask.check(tiny_plan)
    assert mask == Mask.random(tiny_plan, keep, np.random.default_rng(1))
    with pytest.raises(BudgetError, match="between 0 and 1"):
        Mask.random(tiny_plan, 1.5, np.random.default_rng(1))


def test_masks_cannot_be_changed(tiny_plan):
    given_units = np.ones(4, bool)
    mask = Mask({"conv1": given_units, "conv2": np.ones(6, bool)})
    given_units[:] = False
    assert mask == Mask.full(tiny_plan)
    for array in (mask.flat, mask.groups["conv1"]):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = False


def test_masks_that_do_not_fit_are_refused(tiny_plan, chain_plan):
    full = Mask.full(tiny_plan)
    with pytest.raises(PlanError, match="drops all of group conv1"):
        Mask({**full.groups, "conv1": np.zeros(4, bool)}).check(tiny_plan)
    with pytest.raises(PlanError, match="5 units for group conv1, the plan expects 4 units"):
        Mask({**full.groups, "conv1": np.ones(5, bool)}).check(tiny_plan)
    with pytest.raises(PlanError, match="nothing for group conv2"):
        Mask({"conv1": np.ones(4, bool)}).check(tiny_plan)
    with pytest.raises(PlanError, match="use bool"):
        Mask({"conv1": np.ones(4)})
    with pytest.raises(PlanError, match="no group conv9"):
        full.kept("conv9")
    for operation in ("__and__", "__or__", "is_subset_of"):
        with pytest.raises(PlanError):
            getattr(full, operation)(Mask.full(chain_plan([4])))
