"""The library's classifiers on the probe's features, and what they make of a task's pictures.

Every entry has one: the nearest-class-mean classifier of its sketch. It is a few kilobytes, so that
it can be sent to where the pictures are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedsprig.errors import SketchError
from fedsprig.tasks.prototype_head import prototype_head
from fedsprig.tasks.similarity.evidence import Evidence, Features
from fedsprig.tasks.similarity.index import SketchIndex

TOLERANCE: Final = 1e-3
"""By which rounding may take a value out of its range."""


@dataclass(frozen=True, slots=True)
class HeadValue:
    """How well a head suits a task; greater is better.

    Attributes:
        name: Its name in ``HEAD_VALUES``.
        of: Of a head's outputs (logits) ``[pictures, its classes]`` and labels ``[pictures]``.
        least: No value is below.
        most: No value is above, for a task of so many classes.
    """

    name: str
    of: Callable[[NDArray[np.float64], NDArray[np.int64]], float]
    least: float
    most: Callable[[int], float]

    def __call__(self, outputs: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
        """The value of these outputs."""
        return self.of(outputs, labels)

    def check(self, values: Sequence[float], classes: int) -> None:
        """Refuse what this cannot be for a task of so many classes.

        Raises:
            SketchError: A value out of its range, or not a number.
        """
        most = self.most(classes)
        for value in values:
            if not self.least - TOLERANCE <= value <= most + TOLERANCE:
                raise SketchError(
                    f"{self.name} of {value:g} for {classes} classes: it lies between "
                    f"{self.least:g} and {most:g}; compare again"
                )

    def compare(
        self, evidence: Evidence, index: SketchIndex, entries: NDArray[np.int64] | None = None
    ) -> NDArray[np.float64]:
        """The value of the entries' heads for a task, as a similarity: float64 ``[entries]``.

        Args:
            evidence: The new task with its features.
            index: The library.
            entries: int64: positions of the entries to compare with; all of them when ``None``.

        Raises:
            ProbeMismatchError: The task was described by another probe.
            SketchError: Its features are not at hand, or are of another number, or of classes that
                its sketch does not have.
        """
        index.check(evidence.sketch)
        features = evidence.need_features(self.name)
        if len(index) and features.array.shape[1] != index.prototypes.shape[1]:
            raise SketchError(
                f"{features.array.shape[1]} features of the task's pictures, the library has "
                f"{index.prototypes.shape[1]}: use the probe that its sketches were made with"
            )
        classes, last = len(evidence.sketch.counts), int(features.labels.max())
        if last >= classes:
            raise SketchError(
                f"label {last}, the sketch has {classes} classes: describe these pictures anew"
            )
        if entries is None:
            entries = np.arange(len(index))
        if not len(entries):
            return np.zeros(0)
        heads = entry_heads(index, entries, spread=evidence.sketch.spread)
        return head_values(self, features, heads)


def check_outputs(outputs: NDArray[np.float64], name: str) -> None:
    """Refuse outputs ``[pictures, classes]`` that the value of that name cannot be taken of.

    Raises:
        SketchError: There are none, or some are not finite.
    """
    if not outputs.size:
        raise SketchError(f"{name} of no pictures: give it one or more")
    if not np.isfinite(outputs).all():
        raise SketchError(f"{name} of outputs that are not finite: check the classifier's weights")


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """A linear classifier: weight float32 ``[classes, features]``, bias float32 ``[classes]``."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def outputs(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Logits of pictures ``[pictures, features]``: float64 ``[pictures, classes]``."""
        # In double precision, so that what devices and servers find does not hang on their maths.
        outputs = np.asarray(features, np.float64) @ self.weight.astype(np.float64).T
        return np.asarray(outputs + self.bias, np.float64)


def entry_heads(
    index: SketchIndex, entries: NDArray[np.int64], *, spread: float = 0.0
) -> list[Head]:
    """The classifiers of entries at these positions, of the classes that have pictures.

    Args:
        index: The library.
        entries: int64 positions.
        spread: Taken for entries that do not tell theirs; 0 takes the mean of those that do.
    """
    known = index.spreads[index.spreads > 0]
    unknown = spread or (float(known.mean()) if known.size else 0.0)
    rows, begins = index.rows_of(entries)
    heads = []
    for means, own in zip(np.split(rows, begins[1:]), index.spreads[entries], strict=True):
        heads.append(Head(*prototype_head(means, np.ones(len(means)), float(own) or unknown)))
    return heads


def head_values(value: HeadValue, features: Features, heads: Sequence[Head]) -> NDArray[np.float64]:
    """What every head is worth for a task: float64 ``[heads]``."""
    array = features.array.astype(np.float64)  # once, and not for each head
    found = [value(head.outputs(array), features.labels) for head in heads]
    return np.array(found, np.float64)
