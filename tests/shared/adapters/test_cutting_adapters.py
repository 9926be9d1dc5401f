"""Adapters and masks: full and masked, small, and merged are one network, also while it trains."""

import copy

import numpy as np
import pytest
import torch

from fedsprig.adapters import attach, merge
from fedsprig.graph import apply_mask, kept_index, materialize, restrict
from fedsprig.graph.reference import effective_state

OPTIMISERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.05, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.003, momentum=0.9, weight_decay=0.1),
}
KINDS = {
    "splora": {},
    "splora, A trained": {"train_a": True},
    "sppara": {"kind": "sppara"},
}


def fill(model, seed=5):
    """Give B values, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("adapter_b", "adapter_d")):
                parameter.normal_(generator=generator)
    return model


def options(plan, mask=None):
    kept = kept_index(plan, mask) if mask is not None else {}
    return {"rank": 2, "seed": 3, "head": "head", "kept": kept, "shapes": plan.shapes}


@pytest.mark.parametrize("kind", KINDS)
def test_attach_then_cut_is_cut_then_attach(net, plan, mask, pictures, kind):
    first = materialize(attach(copy.deepcopy(net), **options(plan), **KINDS[kind]), plan, mask)
    second = attach(materialize(net, plan, mask), **options(plan, mask), **KINDS[kind])
    left, right = first.state_dict(), second.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    needs = [{n: p.requires_grad for n, p in m.named_parameters()} for m in (first, second)]
    assert needs[0] == needs[1]
    assert torch.equal(first(pictures), second(pictures))


@pytest.mark.parametrize("kind", KINDS)
def test_masked_is_small_is_merged(net, plan, mask, pictures, kind):
    full = fill(attach(net, **options(plan), **KINDS[kind]))
    masked, small = apply_mask(full, plan, mask), materialize(full, plan, mask)
    expected = masked(pictures)
    assert not torch.allclose(expected, full(pictures))
    for other in (small, merge(small), merge(masked), materialize(merge(full), plan, mask)):
        torch.testing.assert_close(other(pictures), expected, rtol=0, atol=1e-5)
    assert not any("parametrizations" in name for name in merge(masked).state_dict())


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("kind", KINDS)
def test_masked_units_stay_absent_while_training(net, plan, mask, pictures, optimiser, kind):
    full = fill(attach(net, **options(plan), **KINDS[kind])).double()
    masked, small = apply_mask(full, plan, mask), materialize(full, plan, mask)
    labels = torch.tensor([0, 1, 2, 1, 0])
    for model in (masked, small):
        model.train()
        steps = OPTIMISERS[optimiser]([p for p in model.parameters() if p.requires_grad])
        for _ in range(5):
            steps.zero_grad()
            torch.nn.functional.cross_entropy(model(pictures.double()), labels).backward()
            steps.step()
        model.eval()
    torch.testing.assert_close(masked(pictures.double()), small(pictures.double()))
    index = kept_index(plan, mask)
    state = effective_state(masked)
    for name, value in restrict(state, index).items():
        torch.testing.assert_close(value, small.state_dict()[name])
    gone = np.flatnonzero(~mask.groups["conv1"])
    out, into = ("adapter_d", "adapter_d") if kind == "sppara" else ("adapter_b", "adapter_a")
    for name in ("conv1.weight", f"conv1.{out}", "bn1.weight", "bn1.bias", "depthwise.bias"):
        assert not state[name][gone].any(), name
    assert not state[f"conv2.{into}"][:, gone].any()
    assert state[f"conv1.{out}"].any()
    # ... and what they would answer, adapter and all, is exactly nothing.
    seen = {}
    masked.bn1.register_forward_hook(lambda _, __, out: seen.update(out=out))
    masked(pictures.double())
    assert not seen["out"][:, gone].any()
    assert seen["out"].any()


def test_no_rank_depends_on_the_cut(net, plan, pictures):
    from fedsprig.masks import Mask

    one = {group.name: np.arange(group.units) == 0 for group in plan.groups}
    small = attach(materialize(net, plan, Mask(one)), **options(plan, Mask(one)))
    full = attach(net, **options(plan))
    ranks = [
        {n: p.shape[1] for n, p in model.named_parameters() if n.endswith("adapter_b")}
        for model in (full, small)
    ]
    assert ranks[0] == ranks[1]
    assert small(pictures).shape == (5, 3)
