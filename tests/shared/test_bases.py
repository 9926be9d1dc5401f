"""A device that keeps the base needs no weights, and gets the network that the others get."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsprig.artifacts import state_digest
from fedsprig.bases import BaseWeights, leave_out_base
from fedsprig.errors import DigestMismatchError, FedsprigError, MissingPartError, UnknownNameError
from fedsprig.graph import kept_index, trace_groups
from fedsprig.masks import Mask
from fedsprig.models import build, describe
from fedsprig.subnetwork import AdapterConfig, build_subnetwork, pack_subnetwork
from fedsprig.updates import CODECS
from fedsprig.wire import device_pb2 as pb

MODEL = "cifar_resnet20"


@pytest.fixture(scope="module")
def base():
    """Weights of very different sizes, so that rounding depends on what else a tensor holds."""
    module = build(MODEL, num_classes=2)
    plan = trace_groups(module, torch.zeros(1, 3, 32, 32), name=MODEL)
    rng = np.random.default_rng(0)
    own = BaseWeights.of(MODEL, module, plan.head)
    state = {
        name: np.ldexp(rng.normal(size=value.shape), rng.integers(-60, 6, value.shape)).astype("f4")
        if name.endswith("weight")
        else np.abs(rng.normal(size=value.shape)).astype(np.float32)
        for name, value in own.state.items()
    }
    return plan, state, state_digest(state)


def both(base, *, keep=0.5, seed=0, with_plan=True, **changes):
    """The package and the one without what can be cut from the base."""
    plan, state, base_digest = base
    mask = Mask.random(plan, keep, np.random.default_rng(seed))
    options = {"num_classes": 3, "adapter": AdapterConfig(rank=4), "codec": "float16"}
    whole = pack_subnetwork(plan, mask, state, **(options | changes))
    return whole, leave_out_base(whole, plan, state, base_digest, with_plan=with_plan)


def built(package, base, held=None):
    plan, state, base_digest = base
    found = {base_digest: state} if held is None else held
    plan_of = {plan.digest: plan.to_bytes()}.get
    return build_subnetwork(package, plan_of=plan_of, base_of=found.get).module.state_dict()


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.numpy().tobytes() == other[name].numpy().tobytes(), name


@settings(max_examples=12)
@given(
    keep=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 100),
    codec=st.sampled_from(sorted(CODECS)),
)
def test_both_packages_build_the_same_network_to_the_bit(base, keep, seed, codec):
    whole, short = both(base, keep=keep, seed=seed, codec=codec)
    assert_same_bits(built(short, base), built(whole, base))


def test_rounding_before_the_cut_would_be_another_network(base):
    """The weights above are such that the order matters: what the tests here would miss else."""
    plan, state, _ = base
    rounded, _ = both(base, keep=1.0)
    values = {name: value.numpy() for name, value in built(rounded, base).items() if name in state}
    mask = Mask.random(plan, 0.1, np.random.default_rng(0))
    options = {"num_classes": 3, "adapter": None}
    first = built(pack_subnetwork(plan, mask, values, codec="float32", **options), base)
    then = built(pack_subnetwork(plan, mask, state, codec="float16", **options), base)
    assert any(not torch.equal(first[name], then[name]) for name in then)


def test_what_travels_is_a_mask_and_a_few_names(base):
    plan, _, _ = base
    whole, short = both(base, with_plan=False)
    message = pb.SubNetwork.FromString(short)
    assert message.weights == message.plan == b""
    assert len(short) < 400 + len(message.mask)
    assert len(short) < len(whole) / 50
    assert pb.SubNetwork.FromString(both(base)[1]).plan == plan.to_bytes()


def test_statistics_that_were_measured_after_the_cut_travel_as_the_others_decode_them(base):
    plan, _, _ = base
    rng = np.random.default_rng(3)
    mask = Mask.random(plan, 0.5, np.random.default_rng(0))
    widths = built(both(base)[0], base)
    measured = {
        name: np.abs(rng.normal(size=value.shape)).astype(np.float32)
        for name, value in widths.items()
        if name.endswith(("running_mean", "running_var"))
    }
    whole, short = both(base, own=measured, adapter=None)
    assert Mask.from_bytes(pb.SubNetwork.FromString(short).mask, plan) == mask
    assert_same_bits(built(short, base), built(whole, base))
    sent = pb.SubNetwork.FromString(short).weights
    numbers = sum(value.size for value in measured.values())
    assert 4 * numbers < len(sent) < 4 * numbers + 4_000


def test_without_the_base_it_says_what_to_ask_for(base):
    _, short = both(base)
    with pytest.raises(MissingPartError, match="with its weights"):
        built(short, base, held={})
    _, short = both(base, with_plan=False)
    with pytest.raises(MissingPartError, match="with its plan"):
        build_subnetwork(short, plan_of=lambda _: None)


def test_a_base_that_is_off_by_a_bit_is_refused_wherever_the_bit_is_kept(base):
    plan, state, base_digest = base
    whole, short = both(base)
    mask = Mask.from_bytes(pb.SubNetwork.FromString(whole).mask, plan)
    name = "layer2.0.conv1.weight"
    first = (kept[0] for _, kept in sorted(kept_index(plan, mask)[name].items()))
    damaged = {name: value.copy() for name, value in state.items()}
    damaged[name][tuple(first)] *= 1.5
    with pytest.raises(DigestMismatchError, match="with its weights"):
        built(short, base, held={base_digest: damaged})
    assert_same_bits(built(whole, base, held={base_digest: damaged}), built(whole, base))


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("content", "0" * 64, DigestMismatchError),
        ("base", "0" * 64, MissingPartError),
        ("codec", "float13", UnknownNameError),
        ("weights", b"abc", FedsprigError),
    ],
)
def test_what_was_changed_on_the_way_is_refused_by_name(base, field, value, error):
    message = pb.SubNetwork.FromString(both(base)[1])
    setattr(message, field, value)
    with pytest.raises(error) as caught:
        built(message.SerializeToString(), base)
    assert "\n" not in str(caught.value)


def test_a_base_of_another_model_is_refused_not_cut(base):
    _, short = both(base)
    other = BaseWeights.load("cifar_resnet56", None)
    with pytest.raises(FedsprigError) as caught:
        built(short, base, held={base[2]: other.state})
    assert "\n" not in str(caught.value)


def test_the_weights_are_named_alike_wherever_they_are_read(tmp_path):
    """Whatever classifier the file has, and whether it counts batches."""
    from safetensors.torch import save_file

    digests = set()
    state = build(MODEL, num_classes=2).state_dict()
    for classes in (2, 7):
        if classes == 7:
            state = {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")}
            state |= {"linear.weight": torch.ones(7, 64), "linear.bias": torch.ones(7)}
        save_file(state, tmp_path / f"{classes}.safetensors")
        loaded = BaseWeights.load(MODEL, tmp_path / f"{classes}.safetensors")
        assert not any(name.startswith(describe(MODEL).head + ".") for name in loaded.state)
        digests.add(loaded.digest)
    assert len(digests) == 1
