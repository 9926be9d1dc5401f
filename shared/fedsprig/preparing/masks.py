"""Which masks a base model is trained under while it is prepared for cutting."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Final, Protocol

import numpy as np

from fedsprig.errors import TrainingError
from fedsprig.graph import GroupPlan
from fedsprig.masks import Budget, Mask, ScoreSet, plan_macs, solve
from fedsprig.tasks.score_mask.weights import normalised_sum

FLOOR: Final = 0.05
"""Least share of a group's units, the solver's own default."""


class Masks(Protocol):
    """Gives a mask for a share of the base's multiply-accumulates."""

    def draw(self, ratio: float, rng: np.random.Generator) -> Mask:
        """A mask of at most ``ratio`` of the MACs (a given one: of about it)."""


class NestedMasks:
    """Masks of one order of the units: of a ratio always the same one.

    The order is the mean of the scores, so a task whose mask is the library's mean
    (``score_mask = "mean"``) is cut along it.

    Args:
        plan: The base's groups.
        ratios: Shares of the MACs that will be asked for.
        scores: What units matter, one set or more.

    Raises:
        InfeasibleBudgetError: A ratio below the smallest network.
        PlanError: Scores of another plan.
    """

    def __init__(
        self, plan: GroupPlan, ratios: Sequence[float], scores: Sequence[ScoreSet]
    ) -> None:
        for scored in scores:
            scored.check(plan)
        order = mean_order(scores)
        self._masks = {
            ratio: solve(order, plan, Budget.fraction(plan, macs=ratio), floor=FLOOR)
            for ratio in ratios
        }

    def draw(self, ratio: float, rng: np.random.Generator) -> Mask:
        """The mask of that ratio; nothing is drawn.

        Raises:
            TrainingError: A ratio that was not announced.
        """
        _announced(ratio, self._masks)
        return self._masks[ratio]


def mean_order(scores: Sequence[ScoreSet]) -> ScoreSet:
    """The mean of normalised scores, the very one of ``score_mask = "mean"``.

    Args:
        scores: One set or more, of the same groups.
    """
    return normalised_sum(scores, np.full(len(scores), 1 / len(scores)))


class MaskSource:
    """Draws masks of a share of the base's multiply-accumulates.

    Three kinds: of units at random, of units that matter with noise added to their scores, and
    those that are given. Each ``given`` mask belongs to the ratio whose logarithm its own is next
    to.

    Args:
        plan: The base's groups.
        ratios: Shares of the MACs that will be asked for.
        scores: What units matter, one set or more; each biased mask is of one of them. Without
            any, all masks that are not given are random.
        given: Masks to train under as they are.
        random_share: Share of random masks among those that are not given.
        given_share: Share of given masks, of ratios that have any.
        noise: Standard deviation of the noise on a score, in standard deviations of its group.

    Raises:
        InfeasibleBudgetError: A ratio below the smallest network.
        PlanError: Scores or masks of another plan.
    """

    def __init__(
        self,
        plan: GroupPlan,
        ratios: Sequence[float],
        *,
        scores: Sequence[ScoreSet] = (),
        given: Sequence[Mask] = (),
        random_share: float = 0.25,
        given_share: float = 0.25,
        noise: float = 1.0,
    ) -> None:
        self._plan, self._noise = plan, noise
        self._random_share, self._given_share = random_share, given_share
        self._scores = [scored.normalised() for scored in scores]
        self._budgets = {ratio: Budget.fraction(plan, macs=ratio) for ratio in ratios}
        self._given: dict[float, list[Mask]] = {ratio: [] for ratio in ratios}
        whole = plan_macs(plan, Mask.full(plan))
        for mask in given:
            own = np.log(plan_macs(plan, mask) / whole)
            self._given[min(ratios, key=lambda ratio: abs(np.log(ratio) - own))].append(mask)
        for scored in scores:
            scored.check(plan)
        for ratio in ratios:
            self._random(ratio, np.random.default_rng(0))

    def draw(self, ratio: float, rng: np.random.Generator) -> Mask:
        """A mask of at most ``ratio`` of the MACs (a given one: of about it).

        Raises:
            TrainingError: A ratio that was not announced.
        """
        _announced(ratio, self._budgets)
        given = self._given[ratio]
        if given and rng.random() < self._given_share:
            return given[int(rng.integers(len(given)))]
        if not self._scores or rng.random() < self._random_share:
            return self._random(ratio, rng)
        return self._biased(ratio, rng)

    def _random(self, ratio: float, rng: np.random.Generator) -> Mask:
        groups = {group.name: rng.random(group.units, np.float32) for group in self._plan.groups}
        return solve(ScoreSet(groups), self._plan, self._budgets[ratio], floor=FLOOR)

    def _biased(self, ratio: float, rng: np.random.Generator) -> Mask:
        scores = self._scores[int(rng.integers(len(self._scores)))]
        noisy = {
            group.name: scores.groups[group.name]
            + self._noise
            * scores.groups[group.name].std()
            * rng.standard_normal(group.units, np.float32)
            for group in self._plan.groups
        }
        budget = self._budgets[ratio]
        return solve(ScoreSet(noisy), self._plan, budget, floor=FLOOR, normalise=False)


def _announced(ratio: float, ratios: Container[float]) -> None:
    if ratio not in ratios:
        raise TrainingError(f"no masks of {ratio} of the MACs were announced: add it to ratios")
