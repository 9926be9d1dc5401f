"""The slow reference: a network of full size in which pruned units are exactly zero."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fedsprig.graph.index import Kept, UnitMask, kept_axes, kept_index
from fedsprig.graph.plan import GroupPlan
from fedsprig.graph.rebuild import check_fits

# How torch.nn.utils.parametrize names a parameter that it has taken over.
_ORIGINAL = re.compile(r"(?:(?P<path>.+)\.)?parametrizations\.(?P<name>\w+)\.original$")


class KeepUnits(nn.Module):
    """A parametrisation: the parameter times a mask, so that no step can bring a unit back."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, value: Tensor) -> Tensor:
        """``value * mask``, broadcast along the axes that stay whole."""
        return value * self.mask


def apply_mask(model: nn.Module, plan: GroupPlan, mask: UnitMask) -> nn.Module:
    """A full-size copy of a model whose pruned units are, and stay, exactly zero.

    Every tensor that a pruned unit touches is masked, where the unit is produced and where it is
    consumed: a unit that leaves zero behind a nonlinearity with f(0) != 0 is still not heard.
    Running statistics stay as they are; nothing reads those of a pruned unit.

    Args:
        model: the plan's base model, adapters attached or not; left as it is.
        plan: its groups.
        mask: what to keep.

    Returns:
        A copy whose masked parameters are ``torch.nn.utils.parametrize`` products, so that any
        optimiser may train it. :func:`effective_state` reads it with its ordinary names.

    Raises:
        PlanError: the plan does not fit the model, or the mask the plan.
    """
    index = kept_index(plan, mask)
    check_fits(model, plan, index)
    masked = copy.deepcopy(model)
    for name, parameter in list(masked.named_parameters()):
        kept = kept_axes(name, index)
        if not kept:
            continue
        keep = _keep(parameter, kept)
        with torch.no_grad():
            parameter.mul_(keep)
        path, _, attribute = name.rpartition(".")
        parametrize.register_parametrization(
            masked.get_submodule(path), attribute, KeepUnits(keep), unsafe=True
        )
    return masked


def effective_state(model: nn.Module) -> dict[str, Tensor]:
    """What a masked model computes with, by the base model's names, detached."""
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        found = _ORIGINAL.match(name)
        if found:
            owner = model.get_submodule(found["path"] or "")
            prefix = f"{found['path']}." if found["path"] else ""
            state[prefix + found["name"]] = getattr(owner, found["name"]).detach()
        else:
            state[name] = tensor
    return state


def _keep(parameter: Tensor, kept: Mapping[int, Kept]) -> Tensor:
    """1 where kept, 0 elsewhere; size 1 along the axes that stay whole."""
    keep = parameter.new_ones((1,) * parameter.ndim)
    for axis, positions in kept.items():
        line = parameter.new_zeros(parameter.shape[axis])
        line[torch.from_numpy(positions).to(line.device)] = 1
        shape = [1] * parameter.ndim
        shape[axis] = -1
        keep = keep * line.view(shape)
    return keep
