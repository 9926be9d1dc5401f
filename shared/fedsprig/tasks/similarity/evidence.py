"""What is known of a new task when it is compared with the library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedsprig.errors import SketchError
from fedsprig.tasks.task_sketch import TaskSketch

if TYPE_CHECKING:
    from fedsprig.masks.scores import ScoreSet


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """What the probe makes of a task's pictures. They stay where the pictures are.

    Attributes:
        array: float32 ``[pictures, features]``: what enters the probe's classifier.
        labels: int64 ``[pictures]``, from 0.

    Raises:
        SketchError: Shapes, dtypes or values that contradict the above.
    """

    array: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        """Check everything that the types cannot say."""
        fits = (
            self.array.dtype == np.float32
            and self.array.ndim == 2
            and self.labels.dtype == np.int64
            and self.labels.shape == (len(self.array),)
            and 0 not in self.array.shape
            and bool(np.isfinite(self.array).all())
            and int(self.labels.min()) >= 0
        )
        if not fits:
            raise SketchError(
                f"features {self.array.dtype} {self.array.shape} with labels {self.labels.dtype} "
                f"{self.labels.shape}: use finite float32 [n, features] and int64 [n] from 0 up"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """A new task, as far as it is known.

    Attributes:
        sketch: Its description.
        features: The probe's features of its pictures, where they are at hand.
        scores: Its own unit scores from a first batch, where they were measured.
    """

    sketch: TaskSketch
    features: Features | None = None
    scores: ScoreSet | None = None

    def need_features(self, what: str) -> Features:
        """The features, which ``what`` cannot do without.

        Raises:
            SketchError: There are none.
        """
        if self.features is None:
            raise SketchError(
                f"{what} needs the features of the task's pictures: compare on the device"
            )
        return self.features

    def need_scores(self, what: str) -> ScoreSet:
        """The task's own scores, which ``what`` cannot do without.

        Raises:
            SketchError: There are none.
        """
        if self.scores is None:
            raise SketchError(f"{what} needs the task's own scores: score a first batch")
        return self.scores
