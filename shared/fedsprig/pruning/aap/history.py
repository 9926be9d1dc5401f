"""When units were dropped and how strong they were then: one score set for a whole run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsprig.artifacts.container import Array
from fedsprig.graph.plan import GroupPlan
from fedsprig.masks import Mask, ScoreSet
from fedsprig.pruning.aap.attention import Strengths

_STRENGTH, _ROUND = "strength:", "dropped:"


def relative(strengths: Strengths) -> Strengths:
    """Every group divided by its mean: comparable between rounds, which scale activations."""
    return {name: v / (float(v.mean()) or 1.0) for name, v in strengths.items()}


@dataclass(frozen=True, slots=True, eq=False)
class History:
    """What became of every unit of the whole network.

    Attributes:
        strength: group -> float64 ``[units]``, attention over the mean of its group in the round in
            which the unit was dropped; 0 where it is still there.
        dropped: group -> int32 ``[units]``, that round; 0 where it is still there.
    """

    strength: Mapping[str, NDArray[np.float64]]
    dropped: Mapping[str, NDArray[np.int32]]

    @classmethod
    def empty(cls, plan: GroupPlan) -> History:
        """Nothing was dropped yet."""
        return cls(
            {group.name: np.zeros(group.units) for group in plan.groups},
            {group.name: np.zeros(group.units, np.int32) for group in plan.groups},
        )

    def after(self, before: Mask, now: Mask, strengths: Strengths, number: int) -> History:
        """The history after a round.

        Args:
            before: what the network kept.
            now: what it keeps; less.
            strengths: of the units of ``before``.
            number: the round.
        """
        strength = {name: values.copy() for name, values in self.strength.items()}
        dropped = {name: rounds.copy() for name, rounds in self.dropped.items()}
        for name, values in relative(strengths).items():
            there = np.flatnonzero(before.groups[name])
            gone = ~now.groups[name][there]
            strength[name][there[gone]] = values[gone]
            dropped[name][there[gone]] = number
        return History(strength, dropped)

    def scores(self, mask: Mask, strengths: Strengths) -> ScoreSet:
        """A score for every unit: a unit never outranks one of its group that outlived it.

        Args:
            mask: what is left.
            strengths: of the units that are left.
        """
        groups = {}
        for name, last in relative(strengths).items():
            values, rounds = self.strength[name].copy(), self.dropped[name]
            kept = mask.groups[name]
            values[kept] = last
            least = float(last.min())
            for number in sorted(set(rounds[~kept].tolist()), reverse=True):
                these = ~kept & (rounds == number)
                values[these] = np.minimum(values[these], least)
                least = float(values[these].min())
            groups[name] = values.astype(np.float32)
        return ScoreSet(groups)

    def arrays(self) -> dict[str, Array]:
        """All of it, for the journal."""
        return {_STRENGTH + name: values for name, values in self.strength.items()} | {
            _ROUND + name: rounds for name, rounds in self.dropped.items()
        }

    @classmethod
    def restored(cls, arrays: Mapping[str, Array]) -> History:
        """What :meth:`arrays` was of."""
        return cls(
            {n.removeprefix(_STRENGTH): a for n, a in arrays.items() if n.startswith(_STRENGTH)},
            {n.removeprefix(_ROUND): a for n, a in arrays.items() if n.startswith(_ROUND)},
        )
