"""Which way to take, and whether that is better than the plain mean or luck."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedsprig_server.library_evaluation.evaluation import Evaluation
from fedsprig_server.library_evaluation.ways import MEAN, Way

FOLDS: Final = 5
SURE: Final = 2.0
"""Standard errors from which on it is said that choosing helps."""
ENOUGH: Final = 1.0
"""Standard errors from which on it is done."""

Floats64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over tasks.

    Attributes:
        mean: The mean.
        error: Its standard error; infinite for a single task.
        count: Tasks.
    """

    mean: float
    error: float
    count: int

    @classmethod
    def of(cls, values: Floats64) -> Estimate:
        """From the values of all tasks ``[n]``, at least one."""
        count = len(values)
        error = float(values.std(ddof=1)) / math.sqrt(count) if count > 1 else math.inf
        return cls(float(values.mean()), error, count)

    def above(self, errors: float) -> bool:
        """Whether the mean is above zero by more than so many standard errors."""
        return self.mean > 0 and self.mean > errors * self.error


@dataclass(frozen=True, slots=True)
class Choice:
    """What an evaluation advises.

    Attributes:
        way: What to take: the best way, or the plain mean.
        best: The best of all ways but the mean, by the mean overlap.
        gain: Overlap that choosing adds to that of the plain mean, for tasks that had no say in the
            choice. (The best of many ways looks better than it is on the tasks that chose it.)
    """

    way: Way
    best: Way
    gain: Estimate

    @property
    def verdict(self) -> str:
        """In plain words."""
        gain = self.gain
        size = "1 task" if gain.count == 1 else f"{gain.count} tasks"
        facts = (
            f"{gain.mean:+.3f} IoU over the plain mean (standard error {gain.error:.3f}, {size})"
        )
        if gain.above(SURE):
            return f"Choosing similar tasks helps: {facts}"
        if gain.above(ENOUGH):
            return f"Choosing similar tasks may help: {facts}; more tasks would tell"
        return f"Choosing similar tasks does not help here: {facts}; use the mean"

    @property
    def selection(self) -> dict[str, str | float]:
        """The settings of ``[selection]`` that do it."""
        found: dict[str, str | float] = {"score_mask": self.way.score_mask}
        if self.way.similarity:
            found["similarity"] = self.way.similarity
        if self.way.temperature:
            found["temperature"] = self.way.temperature
        return found


def choose(evaluation: Evaluation) -> Choice:
    """Take the way with the largest overlap, where choosing it beats the plain mean.

    Tasks are dealt into folds by the seed. For each fold the best way is chosen on the others and
    compared with the mean on the fold: these paired differences are the gain. The best way of all
    tasks is taken where the gain is above one standard error.
    """
    offered = [
        at for at, way in enumerate(evaluation.ways) if way.offered and way.score_mask != "mean"
    ]
    overlaps = evaluation.overlaps[offered]
    mean = evaluation.overlaps[evaluation.ways.index(MEAN)]
    count = len(mean)
    order = np.random.default_rng(evaluation.subject.seed).permutation(count)
    gains = np.zeros(count)
    for fold in range(min(FOLDS, count)):
        here = order[fold::FOLDS]
        rest = np.setdiff1d(order, here)
        # One task alone: nothing is left to choose by, so the first way stands for all.
        picked = int(overlaps[:, rest].mean(axis=1).argmax()) if len(rest) else 0
        gains[here] = overlaps[picked, here] - mean[here]
    gain = Estimate.of(gains)
    best = evaluation.ways[offered[int(overlaps.mean(axis=1).argmax())]]
    return Choice(best if gain.above(ENOUGH) else MEAN, best, gain)
