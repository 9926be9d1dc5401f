"""A package builds the network that the server cut, and refuses to be anything else."""

import dataclasses

import numpy as np
import pytest
import torch

from fedsprig.adapters import adapter_state
from fedsprig.errors import FedsprigError, LimitError, MessageError
from fedsprig.graph import materialize, trace_groups
from fedsprig.masks import Mask
from fedsprig.models import build
from fedsprig.subnetwork import AdapterConfig, build_subnetwork, pack_subnetwork
from fedsprig.wire import device_pb2 as pb

MODEL = "cifar_resnet20"


@pytest.fixture(scope="module")
def base():
    module = build(MODEL, num_classes=2)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif tensor.is_floating_point():
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    plan = trace_groups(module, torch.zeros(1, 3, 32, 32), name=MODEL)
    return module, plan, {k: v.numpy() for k, v in module.state_dict().items()}


def package(base, keep=0.5, **changes):
    _, plan, state = base
    mask = Mask.random(plan, keep, np.random.default_rng(0))
    options = {"num_classes": 3, "adapter": AdapterConfig(rank=4), "codec": "float32"}
    return mask, pack_subnetwork(plan, mask, state, **(options | changes))


def features(module, images):
    seen = []
    handle = module.linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        module(images)
    handle.remove()
    return seen[0]


def test_the_built_network_is_the_cut_base(base):
    module, plan, _ = base
    mask, data = package(base)
    built = build_subnetwork(data, plan_of=lambda _: None)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    expected = features(materialize(module, plan, mask), images)
    torch.testing.assert_close(features(built.module, images), expected, rtol=1e-5, atol=1e-5)
    assert built.mask == mask
    assert built.module.linear.out_features == 3


def test_half_precision_is_near_single_precision(base):
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    exact, half = (
        features(
            build_subnetwork(package(base, codec=codec)[1], plan_of=lambda _: None).module, images
        )
        for codec in ("float32", "float16")
    )
    assert (exact - half).abs().max() < 0.01 * exact.abs().max()
    assert not torch.equal(exact, half)
    assert len(package(base, codec="float16")[1]) < 0.7 * len(package(base)[1])


def test_a_device_that_holds_the_plan_needs_only_its_digest(base):
    _, plan, _ = base
    _, whole = package(base)
    _, short = package(base, with_plan=False)
    assert len(short) + len(plan.to_bytes()) <= len(whole) + 8
    held = {plan.digest: plan.to_bytes()}
    built = build_subnetwork(short, plan_of=held.get)
    names = adapter_state(build_subnetwork(whole, plan_of=lambda _: None).module).keys()
    assert adapter_state(built.module).keys() == names
    with pytest.raises(MessageError, match="is not here"):
        build_subnetwork(short, plan_of=lambda _: None)


def test_the_probe_has_no_adapter(base):
    built = build_subnetwork(package(base, adapter=None)[1], plan_of=lambda _: None)
    assert built.adapter is None
    assert not any("adapter" in name for name, _ in built.module.named_parameters())


def test_another_plan_than_announced_is_refused(base):
    _, plan, _ = base
    _, data = package(base)
    message = pb.SubNetwork.FromString(data)
    message.plan = dataclasses.replace(plan, model="cifar_resnet56").to_bytes()
    with pytest.raises(MessageError, match="another"):
        build_subnetwork(message.SerializeToString(), plan_of=lambda _: None)


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [("num_classes", 0, LimitError), ("num_classes", 10**6, LimitError)],
)
def test_counts_are_checked_before_anything_is_built(base, field, value, error):
    message = pb.SubNetwork.FromString(package(base)[1])
    setattr(message, field, value)
    with pytest.raises(error):
        build_subnetwork(message.SerializeToString(), plan_of=lambda _: None)


def test_an_adapter_rank_from_outside_is_bounded(base):
    message = pb.SubNetwork.FromString(package(base)[1])
    message.adapter.rank = 10**6
    with pytest.raises(LimitError, match="rank"):
        build_subnetwork(message.SerializeToString(), plan_of=lambda _: None)


@pytest.mark.parametrize("part", ["mask", "weights", "plan"])
def test_truncated_parts_are_refused_by_name(base, part):
    message = pb.SubNetwork.FromString(package(base)[1])
    setattr(message, part, getattr(message, part)[:-3])
    with pytest.raises(FedsprigError) as caught:
        build_subnetwork(message.SerializeToString(), plan_of=lambda _: None)
    assert "\n" not in str(caught.value)


def test_weights_of_another_network_are_refused(base):
    message = pb.SubNetwork.FromString(package(base)[1])
    message.weights = pb.SubNetwork.FromString(package(base, keep=0.25)[1]).weights
    with pytest.raises(FedsprigError) as caught:
        build_subnetwork(message.SerializeToString(), plan_of=lambda _: None)
    assert "\n" not in str(caught.value)
