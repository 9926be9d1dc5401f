"""Differentiable masks: networks whose parameters pass through a function at every forward pass.

Methods that learn what to prune multiply weights by a soft mask that follows from the weights
themselves (PDP) or from another network (PASS). The parameters stay what an optimiser trains; the
network computes with what a function makes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsprig.errors import PlanError
from fedsprig.graph.plan import Group, GroupPlan

Where = Literal["produced", "consumed"]
Transform = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]
"""From a network's parameters by name to those that it computes with."""


class Reparametrised(nn.Module):
    """A network whose parameters pass through a function at every forward pass.

    Its parameters are those of the network, named ``"network.<name>"``, and those of the function
    where that is a module. Running statistics are the network's own and follow as ever.

    Args:
        network: not copied.
        transform: parameters by the network's names -> those that it computes with; what it leaves
            out stays as it is.
    """

    def __init__(self, network: nn.Module, transform: Transform | nn.Module) -> None:
        super().__init__()
        self.network = network
        self.transform = transform

    def forward(self, images: Tensor) -> Any:
        """What the network says of ``images`` with the transformed parameters."""
        parameters = self.transform(dict(self.network.named_parameters()))
        return functional_call(self.network, dict(parameters), (images,))


def gated(
    parameters: Mapping[str, Tensor],
    plan: GroupPlan,
    gates: Mapping[str, Tensor],
    *,
    where: Where = "produced",
) -> dict[str, Tensor]:
    """Parameters in which every unit is multiplied by its gate.

    Where it is produced, a gate meets a unit on weights and biases, and on the scale and shift
    of its normalisation (without which training would undo the gate, and a closed unit would still
    say its shift). Gates of 0 and 1 give what :func:`fedsprig.graph.apply_mask` computes, as long
    as nonlinearities leave zero at zero.

    Where it is consumed, a gate meets the weights that read the unit. Gates of 0 and 1 give the
    same then, whatever the nonlinearities; and a gate at 0 still gets a gradient, what the network
    would gain by opening it, while a unit that is not produced ends at the kink of a ReLU, which
    passes none.

    Args:
        parameters: by name, at full width; left as they are.
        plan: their groups.
        gates: group name -> float ``[units]``; groups without gates stay as they are.
        where: what the gates multiply.

    Returns:
        The same names; gradients flow to parameters and gates.

    Raises:
        PlanError: gates of an unknown group or of another number of units, or parameters that do
            not fit the plan.
    """
    found = dict(parameters)
    for name, gate in gates.items():
        group = plan.group(name)
        if gate.shape != (group.units,):
            raise PlanError(
                f"the gates of group {name} have shape {list(gate.shape)}: give [{group.units}]"
            )
        for tensor, axis, positions in _places(plan, group, where):
            value = found.get(tensor)
            if value is None or axis >= value.ndim:
                raise PlanError(f"the parameters do not fit the plan: no {tensor} of axis {axis}")
            line = value.new_ones(value.shape[axis]).index_copy(
                0,
                positions.flatten().to(value.device),
                gate.to(value).repeat_interleave(positions.shape[1]),
            )
            shape = [1] * value.ndim
            shape[axis] = -1
            found[tensor] = value * line.view(shape)
    return found


def _places(plan: GroupPlan, group: Group, where: Where) -> list[tuple[str, int, Tensor]]:
    """Where a group's units are made or read: parameter, axis, int64 positions ``[units, k]``."""
    return [
        (item.tensor, item.axis, torch.from_numpy(item.positions.astype("int64")))
        for item in group.axes
        if (item.role == "in") == (where == "consumed") and item.tensor not in plan.buffers
    ]
