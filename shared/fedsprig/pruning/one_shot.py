"""Pruning in one shot: score every unit once, keep the best, train what is left.

The baselines that every other method must beat, under the same interface; the criterion is one of
:data:`fedsprig.scoring.SCORERS`.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from fedsprig.pruning.sized import SizedPruner
from fedsprig.pruning.trial import Found, Trial
from fedsprig.scoring import SCORERS, score
from fedsprig.seeds import derive_seed
from fedsprig.spelling import lookup
from fedsprig.training import labelled_batches

_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class OneShot(SizedPruner):
    """A criterion, and what all methods of a given size share.

    Attributes:
        criterion: a name in ``SCORERS``.
        options: the criterion's own, as pairs: ``(("p", 2.0),)``.
        label: the method's name, where it is not the criterion's.

    Raises:
        UnknownNameError: no such criterion.
        BudgetError: a setting out of its range.
    """

    criterion: str
    options: tuple[tuple[str, Any], ...] = ()
    label: str = ""

    def __post_init__(self) -> None:
        SizedPruner.__post_init__(self)
        lookup(SCORERS, self.criterion, "criterion")

    @property
    def name(self) -> str:
        """The label, or else the criterion's name."""
        return self.label or self.criterion

    def attempt(self, trial: Trial) -> Found:
        """Score the whole network, cut it, train what is left."""
        job = trial.job
        options = dict(self.options)
        if "seed" in inspect.signature(SCORERS[self.criterion]).parameters:
            # Of the job, not of the trial: all trials rank alike.
            options.setdefault("seed", derive_seed(job.seed, self.criterion))
        batches = labelled_batches(trial.pictures.images, trial.pictures.labels, _BATCH)
        scores = score(self.criterion, trial.whole.network, job.plan, batches, **options)
        stage = trial.cut(trial.solve(scores))
        trial.train(stage, self.training, "cut network")
        return Found(stage, scores)
