"""The recurrent hyper-network: from the weights of a network and a prompt to a score for each unit.

One step for each coupling group, in the plan's order. A step reads statistics of the group's
weights and the soft scores of the group before; a head of the group's own turns the state into
scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsprig.errors import BudgetError, PlanError
from fedsprig.graph.plan import Group, GroupPlan
from fedsprig.pruning.visual_prompt.prompt import draw_

Statistic = Literal["mean", "std", "l2"]

WIDEST: Final = 256
"""Numbers that a group is read as; wider groups are averaged over neighbours to as many. So the
reading layer is bounded by ``(statistics + 1) * 256 * d`` weights; the heads have d + 1 for each
unit, fewer than the unit has itself in all but the thinnest layers."""
_HEAD_SCALE: Final = 0.1
"""Of the heads' first weights: at first, scores follow the weights' statistics."""
_SHARPNESS: Final = 2.0
"""How steeply scores follow the statistics at first."""
_TINY: Final = 1e-12


class HyperNetwork(nn.Module):
    """s = sigma(slope_i * (r_i - 1) + Head_i(h_i)), with the state h_i of an LSTM cell.

    Untrained, it ranks units nearly as magnitude pruning does: ``r_i`` is the first statistic over
    the root mean square of its group. That is our addition; the paper's scores begin at random.

    Attributes:
        groups: units of every group, in the plan's order.
        recurrent: else a perceptron of one hidden layer takes the place of the LSTM cell: it sees
            the group's statistics and the prompt's code, no state and no earlier scores.
    """

    standard: Tensor
    relative: Tensor

    def __init__(
        self,
        statistics: Sequence[Tensor],
        width: int,
        generator: torch.Generator,
        *,
        recurrent: bool = True,
    ) -> None:
        """Draw a hyper-network for the groups of a plan.

        Args:
            statistics: of every group, ``[units, kinds]`` (:func:`weight_statistics`).
            width: d, numbers of the state.
            generator: of the first weights.
            recurrent: see above.

        Raises:
            BudgetError: a width below 1.
        """
        super().__init__()
        if width < 1:
            raise BudgetError(f"the hyper-network's width is {width}: choose 1 or more")
        self.groups = tuple(len(values) for values in statistics)
        self.width = width
        self.recurrent = recurrent
        self.register_buffer("standard", torch.cat([standardised(s) for s in statistics]))
        self.register_buffer("relative", torch.cat([_relative(s[:, 0]) for s in statistics]))
        self.bins = min(WIDEST, max(self.groups))
        kinds = int(statistics[0].shape[1])
        self.reading = nn.Linear((kinds + int(recurrent)) * self.bins, width)
        if recurrent:
            self.cell: nn.Module = nn.LSTMCell(width, width)
        else:
            self.cell = nn.Sequential(nn.Linear(3 * width, width), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(width, units) for units in self.groups)
        draw_(self, generator)
        with torch.no_grad():
            for parameter in self.heads.parameters():
                parameter.mul_(_HEAD_SCALE)
        self.slopes = nn.Parameter(torch.full((len(self.groups),), _SHARPNESS))

    def forward(self, code: Tensor) -> list[Tensor]:
        """Soft scores by group, ``[units]`` each.

        Args:
            code: of the prompt, ``[2 d]``: the state that the recurrence begins with.
        """
        state = code[None].tensor_split(2, 1)
        previous = code.new_ones(self.bins)  # nothing lies before the first group: all is kept
        scores: list[Tensor] = []
        for number, (standard, relative) in enumerate(
            zip(
                torch.split(self.standard, list(self.groups)),
                torch.split(self.relative, list(self.groups)),
                strict=True,
            )
        ):
            read = [*standard.unbind(1), *([previous] if self.recurrent else [])]
            seen = self.reading(torch.cat([self._binned(values) for values in read]))[None]
            if self.recurrent:
                state = self.cell(seen, state)
                hidden = state[0]
            else:
                hidden = self.cell(torch.cat([seen, code[None]], 1))
            logits = self.slopes[number] * (relative - 1) + self.heads[number](hidden)[0]
            previous = logits.sigmoid()
            scores.append(previous)
        return scores

    def _binned(self, values: Tensor) -> Tensor:
        """``[units]`` -> ``[bins]``: zeros behind narrow groups, wide ones averaged."""
        if len(values) <= self.bins:
            return F.pad(values, (0, self.bins - len(values)))
        return F.adaptive_avg_pool1d(values[None], self.bins)[0]


def weight_statistics(
    parameters: Mapping[str, Tensor], plan: GroupPlan, kinds: Iterable[Statistic] = ("mean",)
) -> list[Tensor]:
    """What the hyper-network sees of a network: float32 ``[units, kinds]`` of every group.

    A unit's weights are all that produce it, of all layers that do: mean of their absolute values,
    their standard deviation, their root mean square ("l2", as wide groups are read beside narrow
    ones).

    Args:
        parameters: of the whole network, by name.
        plan: its groups.
        kinds: which; at least one.

    Raises:
        BudgetError: no statistic, or one that there is not.
        PlanError: parameters that do not fit the plan.
    """
    chosen = tuple(kinds)
    if not chosen or not set(chosen) <= set(get_args(Statistic)):
        raise BudgetError(
            f"the statistics are {', '.join(chosen) or 'none'}: use some of "
            f"{', '.join(get_args(Statistic))}"
        )
    return [
        torch.stack([_FORMULAS[kind](*_sums(parameters, plan, group)) for kind in chosen], 1)
        for group in plan.groups
    ]


def standardised(values: Tensor) -> Tensor:
    """Every column less its mean, over its standard deviation; a constant column becomes zero."""
    spread = values.std(0, correction=0)
    return (values - values.mean(0)) / torch.where(spread > _TINY, spread, 1.0)


def _relative(values: Tensor) -> Tensor:
    scale = values.square().mean().sqrt()
    return values / torch.where(scale > _TINY, scale, 1.0)


def _sums(
    parameters: Mapping[str, Tensor], plan: GroupPlan, group: Group
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Of every unit's weights: sums of absolute values, of values, of squares; how many."""
    sums = torch.zeros(3, group.units, dtype=torch.float64)
    count = 0
    for item in plan.producers(group):
        weight = parameters.get(item.tensor)
        if weight is None or tuple(weight.shape) != plan.shapes[item.tensor]:
            raise PlanError(
                f"the network has no {item.tensor} of full width: give the plan's base model"
            )
        rows = weight.detach().cpu().double().movedim(item.axis, 0).flatten(1)
        rows = rows[torch.from_numpy(item.positions.astype("int64"))].flatten(1)
        sums += torch.stack([rows.abs().sum(1), rows.sum(1), rows.square().sum(1)])
        count += rows.shape[1]
    absolute, plain, squares = sums
    return absolute, plain, squares, max(1, count)


_FORMULAS: Final = {
    "mean": lambda absolute, plain, squares, count: (absolute / count).float(),
    "std": lambda absolute, plain, squares, count: (
        (squares / count - (plain / count).square()).clamp(min=0).sqrt().float()
    ),
    "l2": lambda absolute, plain, squares, count: (squares / count).sqrt().float(),
}
