"""Adaptive activation-based pruning: prune, retrain, judge, and roll back where it was too much.

Zhao, Jain and Zhao 2022, "Adaptive Activation-based Structured Pruning", arXiv 2201.10520,
Algorithm 1 (later "Automatic Attention Pruning", AISTATS 2023, arXiv 2303.08595). Written from the
algorithm's description alone. What is ours: groups in place of single layers
(:mod:`fedsprig.pruning.aap.thresholds`); networks that are physically small after every round, so
that a dropped unit cannot come back; a floor under every group, and a bound to what one round
takes; a stop rule; and hard limits that hold: a network's size is known before it is trained, so a
round that would cross the limit is replaced at once by the one that just meets it, where the
published search ends beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from fedsprig.errors import BudgetError, TrainingError
from fedsprig.pruning.aap.run import AAPRun
from fedsprig.pruning.aap.thresholds import Weighting
from fedsprig.pruning.job import Job
from fedsprig.pruning.journal import Journal
from fedsprig.pruning.product import Progress
from fedsprig.pruning.rewinding import part
from fedsprig.pruning.stepped import Run, SteppedPruner
from fedsprig.scoring.attention import MAX_POWER, Form

Rewind = Literal["rate", "weights"]


@dataclass(frozen=True, kw_only=True)
class AAP(SteppedPruner):
    """Drop units that respond weakly, retrain, roll back where it was too much (AAP).

    Attributes:
        power: p of the attention; the paper's scripts use 1.
        form: how the attention takes pixels together.
        weighting: layers are pruned by their share of ``"parameters"`` or of ``"macs"``; ``None``
            takes ``"macs"`` for the latency policy and ``"parameters"`` for the others.
        step: the first step of the threshold; ``None`` for the one that drops ``first_share``.
        first_share: about the share of units that the first round drops.
        most_share: about the share of what is left that one round takes at most.
        rounds: rounds after the first at most (the paper: 100); a hard limit is met in the last.
        training: of the whole network (T epochs), and of every round from ``rewind_epoch`` on.
        rewind: after a cut, ``"rate"`` takes the learning rate back to ``rewind_epoch`` and trains
            on, ``"weights"`` takes the weights that are left back to that epoch too.
        rewind_epoch: k, below T; needs a ``training`` that counts epochs. With networks that are
            taken as they come, weights go back to those that came.
        patience: accepted rounds in a row with hardly any change that end the search.

    Raises:
        BudgetError: a setting out of its range.
        TrainingError: an epoch to rewind to that the training does not have.
    """

    power: float = 1.0
    form: Form = "mean"
    weighting: Weighting | None = None
    step: float | None = None
    first_share: float = 0.05
    most_share: float = 0.2
    rounds: int = 20
    rewind: Rewind = "rate"
    rewind_epoch: int = 0
    floor: float = 0.08
    patience: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds < 1 or self.patience < 1:
            raise BudgetError("rounds and patience are 1 or more")
        if not (0 < self.first_share < 1 and 0 < self.most_share <= 1):
            raise BudgetError("first_share and most_share are shares above 0")
        if self.step is not None and not 1e-9 <= self.step <= 1e9:
            raise BudgetError(f"a step lies between 1e-9 and 1e9, not at {self.step}")
        if not 0 < self.power <= MAX_POWER:
            raise BudgetError(f"the power is above 0 and up to {MAX_POWER:g}, not {self.power}")
        for name, kinds in (("form", Form), ("weighting", Weighting), ("rewind", Rewind)):
            value = getattr(self, name)
            if value not in get_args(kinds) and not (name == "weighting" and value is None):
                raise BudgetError(f"{name} is {value!r:.40}: use {', '.join(get_args(kinds))}")
        part(self.training, self.rewind_epoch)
        if self.training.epochs is not None and self.rewind_epoch >= max(1, self.training.epochs):
            raise TrainingError(
                f"rewind_epoch is {self.rewind_epoch} of {self.training.epochs}: choose one before "
                "the last"
            )

    @property
    def name(self) -> str:
        """The method's name."""
        return "aap"

    def begun(
        self, job: Job, settings: dict[str, Any], journal: Journal, progress: Progress
    ) -> Run:
        """Round by round; see :mod:`fedsprig.pruning.aap.run`."""
        return AAPRun(self, job, settings, journal, progress)
