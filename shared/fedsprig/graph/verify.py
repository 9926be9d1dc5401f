"""The last word on a traced plan: does the cut network compute what the masked one computes?

Tracing reads operations by name and cannot see everything (a reshape with a fixed width, a mean
over channels, a shuffle). So every plan is tried: all its parameters drawn at random, so that no
zero or tiny scale hides a fault, and a random half of every group dropped. Groups that fail are
found by halving and frozen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedsprig.errors import FedsprigError
from fedsprig.graph.cutting import materialize
from fedsprig.graph.plan import Group, GroupPlan
from fedsprig.graph.rebuild import rebuild
from fedsprig.graph.reference import apply_mask

# Of the output's scale; float32 rounding stays below 1e-5, a fault shows at 1e-2 and more.
TOLERANCE = 1e-3
_SEED = 20


@dataclass(frozen=True, slots=True)
class _Kept:
    groups: Mapping[str, npt.NDArray[np.bool_]]


def freeze_what_fails(model: nn.Module, plan: GroupPlan, example: Tensor) -> GroupPlan:
    """The plan without the groups whose cut changes what the network computes.

    Args:
        model: the base model, in evaluation mode, with real tensors; left as it is.
        plan: a traced plan.
        example: one input.

    Returns:
        ``plan``, with failing groups moved to ``frozen``.
    """
    # On the CPU in full precision, so that a plan is the same wherever it is traced.
    probe = randomised(model, seed=_SEED).to("cpu", torch.float32)
    example = example.to("cpu", torch.float32)
    failing = _failing(probe, plan, plan.groups, example)
    good = tuple(group for group in plan.groups if group not in failing)
    if failing and not _holds(probe, plan, good, example):
        failing, good = list(plan.groups), ()
    if not failing:
        return plan
    why = "the cut network differs from the masked one: an operation mixes these channels"
    return replace(
        plan,
        groups=good,
        unit_macs={g.name: plan.unit_macs[g.name] for g in good if g.name in plan.unit_macs},
        frozen={**plan.frozen, **{group.name: why for group in failing}},
    )


def randomised(model: nn.Module, *, seed: int) -> nn.Module:
    """A copy in which every float tensor is drawn anew, at scales that keep signals near 1.

    Weights are normal with variance ``2 / fan-in``; vectors lie around their usual value (1 for
    scales and variances, 0 for the rest), far enough from it to make a difference.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            value = 1 + 0.2 * noise.clamp(-2, 2)
        elif tensor.ndim >= 2:
            fan_in = max(1, tensor[0].numel())
            value = noise * (2 / fan_in) ** 0.5
        else:
            value = 0.3 * noise
        drawn[name] = value.to(tensor)
    return rebuild(model, drawn).eval()


def _failing(
    probe: nn.Module, plan: GroupPlan, groups: Sequence[Group], example: Tensor
) -> list[Group]:
    if not groups or _holds(probe, plan, groups, example):
        return []
    if len(groups) == 1:
        return list(groups)
    half = len(groups) // 2
    found = _failing(probe, plan, groups[:half], example)
    found += _failing(probe, plan, groups[half:], example)
    # Each half is right alone, together they are not: keep both.
    return found or list(groups)


def _holds(probe: nn.Module, plan: GroupPlan, groups: Sequence[Group], example: Tensor) -> bool:
    """Whether dropping half of these groups' units gives the same from either network."""
    if not groups:
        return True
    chosen = {group.name for group in groups}
    rng = np.random.default_rng(_SEED)
    mask = _Kept({g.name: _half(g.units, rng, drop=g.name in chosen) for g in plan.groups})
    try:
        with torch.no_grad():
            expected = apply_mask(probe, plan, mask)(example)
            found = materialize(probe, plan, mask)(example)
    except (FedsprigError, MemoryError):
        raise
    except Exception:  # whatever a network may raise when a width is wired into it
        return False
    if expected.shape != found.shape:
        return False
    scale = float(expected.abs().max())
    return bool(float((expected - found).abs().max()) <= TOLERANCE * scale)


def _half(units: int, rng: np.random.Generator, *, drop: bool) -> npt.NDArray[np.bool_]:
    keep = np.ones(units, dtype=np.bool_)
    order = rng.permutation(units)
    if drop:
        keep[order[max(1, units // 2) :]] = False
    return keep
