"""A device cuts from its package what the server would send, to the bit, or refuses."""

import numpy as np
import pytest
import torch

from fedsprig.artifacts.digest import state_digest
from fedsprig.bases import BaseWeights, leave_out_base
from fedsprig.errors import DigestMismatchError, FedsprigError, MissingPartError, PlanError
from fedsprig.graph import trace_groups
from fedsprig.masks import Mask
from fedsprig.models import build, describe
from fedsprig.narrowing import narrow_package
from fedsprig.subnetwork import AdapterConfig, build_subnetwork, pack_subnetwork
from fedsprig.updates import decode_state
from fedsprig.wire import device_pb2 as pb

MODEL = "cifar_resnet20"


@pytest.fixture(scope="module")
def world():
    """A base, its plan and two nested masks."""
    module = build(MODEL, num_classes=2)
    plan = trace_groups(module, torch.zeros(1, 3, 32, 32), name=MODEL)
    rng = np.random.default_rng(0)
    outer = Mask.random(plan, 0.7, rng)
    return (
        BaseWeights.of(MODEL, module, describe(MODEL).head),
        plan,
        outer,
        part_of(outer, 0.6, rng),
    )


def part_of(mask, share, rng):
    groups = {}
    for name, kept in mask.groups.items():
        there = np.flatnonzero(kept)
        groups[name] = np.zeros(len(kept), np.bool_)
        groups[name][rng.permutation(there)[: max(1, int(share * len(there)))]] = True
    return Mask(groups)


def packed(world, mask, codec="float16", **options):
    base, plan, _, _ = world
    return pack_subnetwork(
        plan, mask, base.state, num_classes=3, adapter=AdapterConfig(rank=2), codec=codec, **options
    )


def content(package):
    return state_digest(decode_state(pb.SubNetwork.FromString(package).weights))


@pytest.mark.parametrize("codec", ["float32", "float16"])
@pytest.mark.parametrize("with_plan", [True, False])
def test_it_is_the_package_that_the_server_would_send(world, codec, with_plan):
    _, plan, outer, inner = world
    fresh = packed(world, inner, codec, with_plan=with_plan)
    plan_of = {plan.digest: plan.to_bytes()}.get
    wide = packed(world, outer, codec, with_plan=with_plan)
    found = narrow_package(wide, inner.to_bytes(), content(fresh), plan_of=plan_of)
    ours, theirs = (build_subnetwork(data, plan_of=plan_of) for data in (found, fresh))
    assert ours.mask == theirs.mask == inner
    assert ours.adapter == theirs.adapter
    assert state_digest(ours.module.state_dict()) == state_digest(theirs.module.state_dict())
    assert len(found) < len(wide)
    # Asked once more, when the smaller network is here already, it says the same.
    assert narrow_package(found, inner.to_bytes(), content(fresh), plan_of=plan_of) == found


def test_a_codec_that_looks_at_whole_tensors_is_found_out(world):
    _, _, outer, inner = world
    wide, fresh = packed(world, outer, "int8"), packed(world, inner, "int8")
    with pytest.raises(DigestMismatchError, match="ask for a package with its weights"):
        narrow_package(wide, inner.to_bytes(), content(fresh), plan_of=lambda _: None)
    # The whole package, which the server then sends, is taken as it is.
    assert narrow_package(fresh, inner.to_bytes(), content(fresh), plan_of=lambda _: None) == fresh


@pytest.mark.parametrize("codec", ["float16", "int8"])
def test_beside_a_base_it_stays_a_kilobyte_and_is_exact_in_any_codec(world, codec):
    base, plan, outer, inner = world
    fresh = packed(world, inner, codec)
    short = leave_out_base(
        packed(world, outer, codec), plan, base.state, base.digest, with_plan=False
    )
    plan_of, base_of = {plan.digest: plan.to_bytes()}.get, {base.digest: base.state}.get
    found = narrow_package(short, inner.to_bytes(), content(fresh), plan_of=plan_of)
    assert len(found) < 1_000
    ours = build_subnetwork(found, plan_of=plan_of, base_of=base_of)
    theirs = build_subnetwork(fresh, plan_of=plan_of)
    assert state_digest(ours.module.state_dict()) == state_digest(theirs.module.state_dict())
    wrong = narrow_package(short, inner.to_bytes(), "0" * 64, plan_of=plan_of)
    with pytest.raises(DigestMismatchError):
        build_subnetwork(wrong, plan_of=plan_of, base_of=base_of)


def test_what_cannot_be_cut_is_refused_by_name(world):
    _, _, outer, inner = world
    wide, small = packed(world, outer), packed(world, inner)

    def narrow(package, mask, plan_of=lambda _: None, digest="0" * 64):
        narrow_package(package, mask, digest, plan_of=plan_of)

    with pytest.raises(MissingPartError, match="has lost units"):
        narrow(small, outer.to_bytes())
    with pytest.raises(MissingPartError, match="group plan"):
        narrow(packed(world, outer, with_plan=False), inner.to_bytes())
    with pytest.raises(DigestMismatchError):
        narrow(wide, inner.to_bytes())
    with pytest.raises(PlanError, match="drops all of group"):
        narrow(
            wide,
            Mask(
                {name: np.zeros(len(kept), np.bool_) for name, kept in inner.groups.items()}
            ).to_bytes(),
        )
    rng = np.random.default_rng(1)
    for bad in (b"", inner.to_bytes()[:-1], inner.to_bytes() + b"\0", rng.bytes(200)):
        with pytest.raises(FedsprigError):
            narrow(wide, bad)
        with pytest.raises(FedsprigError):
            narrow(bad, inner.to_bytes())
