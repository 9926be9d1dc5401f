"""What a pattern prunes: the weights of layers in rows, or the units of groups by their norms."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from fedsprig.errors import BudgetError, InfeasibleBudgetError
from fedsprig.graph.plan import GroupPlan
from fedsprig.masks import Mask, ScoreSet
from fedsprig.masks.costs import BYTES_PER_PARAMETER
from fedsprig.masks.weights import WeightMask
from fedsprig.pruning.gates import gated
from fedsprig.pruning.sparse.layers import Layer
from fedsprig.pruning.sparse.pattern import Pattern
from fedsprig.pruning.sparse.shares import global_drops, most_dropped, needed_drops
from fedsprig.pruning.trial import Trial

Rows = dict[str, Tensor]
"""Values or masks ``[rows, length]`` by tensor or group."""


class Subject(ABC):
    """What is pruned; rows of values by name, each of which loses so many.

    Attributes:
        settles: whether masks are constants to the gradient while they harden.
    """

    settles: bool = False

    @abstractmethod
    def rows(self, parameters: Mapping[str, Tensor]) -> Rows:
        """Values by whose size is pruned; gradients flow from them to the parameters."""

    @abstractmethod
    def drops(self, parameters: Mapping[str, Tensor], trial: Trial) -> dict[str, int]:
        """How many values each row of a name loses in the end, within the trial's budget.

        Raises:
            InfeasibleBudgetError: the budget is below the smallest network.
        """

    @abstractmethod
    def masked(self, parameters: Mapping[str, Tensor], masks: Rows) -> dict[str, Tensor]:
        """Parameters times masks, soft or hard, in the form of :meth:`rows`."""


class SingleWeights(Subject):
    """Weights of layers, anywhere or N of every M.

    Args:
        layers: which.
        pattern: how their weights lie in rows; layers without a whole row are left out.
        cap: share of a tensor's weights that goes at most, where the pattern does not fix it.
        parameters: of the whole network.

    Raises:
        BudgetError: no layer has a whole row.
    """

    def __init__(
        self, layers: tuple[Layer, ...], pattern: Pattern, *, cap: float, parameters: int
    ) -> None:
        self.layers = tuple(
            layer for layer in layers if not pattern.of or layer.shape[layer.axis] >= pattern.of
        )
        if not self.layers:
            raise BudgetError(
                f"no layer has {pattern.of} inputs in a row: choose a pattern of fewer"
            )
        self._pattern, self._cap, self._parameters = pattern, cap, parameters

    def rows(self, parameters: Mapping[str, Tensor]) -> Rows:
        """The weights themselves."""
        return {
            layer.tensor: self._pattern.rows(parameters[layer.tensor], layer.axis)
            for layer in self.layers
        }

    def drops(self, parameters: Mapping[str, Tensor], trial: Trial) -> dict[str, int]:
        """What the pattern says, or what one ranking of all weights says."""
        needed = self.least_dropped(trial.budget.weight_bytes)
        if self._pattern.of:
            return {layer.tensor: self._pattern.of - self._pattern.kept for layer in self.layers}
        return global_drops(self.rows(parameters), needed, self._cap)

    def least_dropped(self, limit_bytes: float | None) -> int:
        """How many weights go so that a limit holds; N:M drops what it drops.

        Args:
            limit_bytes: of what is stored; ``None`` for none.

        Raises:
            InfeasibleBudgetError: even with the most zeros that there may be, it is too large.
        """
        size = sum(math.prod(layer.shape) for layer in self.layers)
        whole = BYTES_PER_PARAMETER * self._parameters
        limit = whole if limit_bytes is None else int(limit_bytes)
        needed = needed_drops(size, self._parameters, limit)
        most = self._most()
        if needed > most:
            least = whole - BYTES_PER_PARAMETER * most + -(-size // 8)
            mend = (
                "choose a pattern with more zeros"
                if self._pattern.of
                else f"raise cap (now {self._cap:g})"
            )
            raise InfeasibleBudgetError(
                f"stored with its mask, the network with the most zeros needs {least:,} bytes, the "
                f"target allows {limit:,}: raise the target, {mend} or keep fewer layers dense"
            )
        return most if self._pattern.of else needed

    def masked(self, parameters: Mapping[str, Tensor], masks: Rows) -> dict[str, Tensor]:
        """Weights times masks."""
        found = dict(parameters)
        for layer in self.layers:
            mask = self._pattern.spread(masks[layer.tensor], layer.shape, layer.axis)
            found[layer.tensor] = found[layer.tensor] * mask
        return found

    def weight_mask(self, masks: Rows) -> WeightMask:
        """Hard masks as what is stored."""
        return WeightMask(
            {
                layer.tensor: self._pattern.spread(masks[layer.tensor], layer.shape, layer.axis)
                .cpu()
                .numpy()
                for layer in self.layers
            }
        )

    def _most(self) -> int:
        pattern = self._pattern
        if not pattern.of:
            return sum(most_dropped(math.prod(layer.shape), self._cap) for layer in self.layers)
        inputs = {layer.tensor: layer.shape[layer.axis] for layer in self.layers}
        rows = sum(
            math.prod(layer.shape) // inputs[layer.tensor] * (inputs[layer.tensor] // pattern.of)
            for layer in self.layers
        )
        return rows * (pattern.of - pattern.kept)


class WholeUnits(Subject):
    """Units of a plan's groups, by the norms of their weights.

    A group has few units, and all of them gain by a wider gate: the two next to the border would
    overtake each other for ever, and be half open at the end.

    Args:
        plan: of the whole network.
    """

    settles = True

    def __init__(self, plan: GroupPlan) -> None:
        self._plan = plan

    def rows(self, parameters: Mapping[str, Tensor]) -> Rows:
        """``v``: norms of units, one row a group."""
        return {name: norms[None] for name, norms in unit_norms(parameters, self._plan).items()}

    def drops(self, parameters: Mapping[str, Tensor], trial: Trial) -> dict[str, int]:
        """What the budget solver leaves of the norms as they are now."""
        mask = trial.solve(scores_of(unit_norms(parameters, self._plan)))
        return {name: int((~kept).sum()) for name, kept in mask.groups.items()}

    def masked(self, parameters: Mapping[str, Tensor], masks: Rows) -> dict[str, Tensor]:
        """Units times their masks, wherever they are produced, and their normalisation too.

        To the gradient, the masks of vectors (scales, shifts, biases) are constants. Behind a
        normalisation the norm of a weight does nothing of itself; a gradient that came through the
        scale's mask would move it by leaps, and all units of a group to the border.
        """
        gates = {name: mask[0] for name, mask in masks.items()}
        found = gated(parameters, self._plan, gates)
        fixed = gated(parameters, self._plan, {name: gate.detach() for name, gate in gates.items()})
        return {n: value if value.ndim > 1 else fixed[n] for n, value in found.items()}

    def mask(self, masks: Rows) -> Mask:
        """Hard masks as those of units."""
        return Mask({name: mask[0].cpu().numpy() for name, mask in masks.items()})


def unit_norms(parameters: Mapping[str, Tensor], plan: GroupPlan) -> dict[str, Tensor]:
    """Root mean square of each unit's weights in all layers that produce it, ``[units]`` by group.

    Not the sum of squares: the published fixed softness would then depend on the width of a layer
    (docs/pruning.md). A unit of nothing but zeros has norm 0, and no gradient.
    """
    found = {}
    for group in plan.groups:
        total = torch.zeros(group.units)
        count = 0
        for item in plan.producers(group):
            weight = parameters[item.tensor]
            positions = torch.from_numpy(item.positions.astype("int64")).to(weight.device)
            lines = weight.index_select(item.axis, positions.flatten()).movedim(item.axis, 0)
            squares = lines.reshape(group.units, -1).square()
            total = total.to(squares) + squares.sum(1)
            count += squares.shape[1]
        mean = total / max(1, count)
        some = mean > 0
        found[group.name] = torch.where(some, torch.where(some, mean, 1).sqrt(), 0)
    return found


def scores_of(norms: Mapping[str, Tensor]) -> ScoreSet:
    """Norms as scores of units."""
    return ScoreSet({name: v.detach().float().cpu().numpy() for name, v in norms.items()})
