"""A learned predictor: kernel ridge regression from where a task lies to its scores.

Saunders, Gammerman and Vovk 1998, "Ridge regression learning algorithm in dual variables", with an
intercept that is not penalised: the kernel is centred over the library, and what is predicted is
the deviation from the library's plain mean. Errors are those of leaving one task out, in the closed
form of Allen 1974 (PRESS): ``residual_i / (1 - H_ii)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedsprig.errors import LibraryError
from fedsprig.tasks.score_mask.embedding import embedding, placed, space_of
from fedsprig.tasks.score_mask.neighbour import Neighbour, Settings, closest
from fedsprig.tasks.score_mask.prior import Prior
from fedsprig.tasks.score_mask.smoother import PENALTIES, Smoother
from fedsprig.tasks.score_mask.weights import normalised_rows
from fedsprig.tasks.task_sketch import TaskSketch

Floats64 = NDArray[np.float64]

SHARES: Final = (0.0, 0.5, 1.0)
"""Of the fingerprint in the kernel; the rest is the prototypes'."""


class Ridge:
    """The predictor, fitted to a library: O(n^3) in its entries, and light beside its scores.

    ``mean_j s_j + k(x)^T (K + penalty I)^-1 (S - mean)`` with a kernel of cosines around the
    library's centre. The penalty and the fingerprint's share of the kernel are those of the lowest
    error when each entry in turn is left out. The centre, which needs no scores, is that of all
    entries.

    Attributes:
        errors: Mean squared error of each entry when left out, float64 ``[choices, n]``.
        choices: ``(share, penalty)`` of each.
        best: Which choice is taken.
    """

    def __init__(
        self, vectors: NDArray[np.float32], features: int, values: NDArray[np.float32]
    ) -> None:
        """Fit.

        Args:
            vectors: Embeddings of the library ``[n, features + units of the probe]``.
            features: Of a prototype; what follows them is the fingerprint.
            values: Normalised scores ``[n, units]``, kept by reference.

        Raises:
            LibraryError: No entry, or embeddings of another number, too short or not finite.
        """
        if not len(values) or len(vectors) != len(values) or not np.isfinite(vectors).all():
            raise LibraryError("the learned mask needs one finite embedding for every neighbour")
        if not 0 < features <= vectors.shape[1]:
            raise LibraryError(
                f"embeddings of {vectors.shape[1]} numbers cannot begin with {features} features: "
                "describe the tasks anew"
            )
        self._values = values
        self._space = space_of(vectors, features)
        self._placed = placed(vectors, self._space)
        shares = SHARES if len(self._space) > 1 else (0.0,)
        self.choices = tuple((share, penalty) for share in shares for penalty in PENALTIES)
        self._smoothers: dict[float, Smoother] = {}
        if len(values) == 1:  # nothing to leave out, and nothing to learn
            self.choices = ((0.0, math.inf),)
            self._smoothers[0.0] = Smoother.of(np.ones((1, 1)))
            self.errors = np.zeros((1, 1))
            self.best = 0
            return
        centred = values - values.mean(axis=0, dtype=np.float64).astype(np.float32)
        gram = (centred @ centred.T).astype(np.float64) / values.shape[1]
        errors = []
        for share in shares:
            smoother = Smoother.of(self._mixed(self._placed, share))
            self._smoothers[share] = smoother
            errors.append(smoother.left_out_errors(gram))
        self.errors = np.concatenate(errors)
        self.best = _lowest(self.errors.sum(axis=1))

    def weights(self, vector: NDArray[np.float32]) -> Floats64:
        """What each entry counts for a task with this embedding: ``[n]``, of sum 1.

        Raises:
            LibraryError: An embedding of another length.
        """
        if vector.shape != (self.length,) or not np.isfinite(vector).all():
            raise LibraryError(
                f"the task's embedding is not a finite [{self.length}]: describe it anew"
            )
        share, penalty = self.choices[self.best]
        near = self._mixed(placed(vector[None], self._space), share)[0]
        return self._smoothers[share].weights(near, penalty)

    @property
    def length(self) -> int:
        """Of an embedding."""
        return int(self._space[-1][2].stop)

    def left_out(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """What would be predicted for entries if each in turn were not in the library.

        Neither an entry's scores nor its error have a part in its own prediction but for the choice
        of share and penalty, where its scores count as training data of the others.

        Args:
            rows: Positions of the entries.

        Returns:
            float32 ``[rows, units]``.

        Raises:
            LibraryError: The library has one entry only, or a position that is none of its.
        """
        if len(self._values) < 2:
            raise LibraryError("with one entry in the library nothing is left to predict it from")
        if ((rows < 0) | (rows >= len(self._values))).any():
            raise LibraryError(
                f"the library has entries 0 to {len(self._values) - 1}: ask of those"
            )
        predicted = np.empty((len(rows), self._values.shape[1]), np.float32)
        without = self.errors.sum(axis=1, keepdims=True) - self.errors[:, rows]
        picked = np.array([_lowest(column) for column in without.T], np.int64)
        for choice in np.unique(picked):
            at = np.flatnonzero(picked == choice)
            residuals = self._residuals(int(choice), rows[at])
            predicted[at] = self._values[rows[at]] - residuals
        return predicted

    def spread(self) -> Floats64:
        """Mean squared error of every unit when each entry in turn is left out: ``[units]``.

        Raises:
            LibraryError: The library has one entry only.
        """
        if len(self._values) < 2:
            raise LibraryError("with one entry in the library nothing is known of the spread")
        squares = np.zeros(self._values.shape[1])
        for start in range(0, len(self._values), 64):  # bounds the copies
            rows = np.arange(start, min(start + 64, len(self._values)))
            squares += (self._residuals(self.best, rows).astype(np.float64) ** 2).sum(axis=0)
        return squares / len(self._values)

    def _residuals(self, choice: int, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """An entry's scores less what the others predict, ``[rows, units]``."""
        share, penalty = self.choices[choice]
        missed = self._smoothers[share].missed(penalty)[rows]
        factors = missed / missed[np.arange(len(rows)), rows][:, None]
        result: NDArray[np.float32] = factors.astype(np.float32) @ self._values
        return result

    def _mixed(self, parts: Sequence[Floats64], share: float) -> Floats64:
        """Kernel values with the library, ``[n, entries]``."""
        products = [part @ own.T for part, own in zip(parts, self._placed, strict=True)]
        if len(products) == 1:
            return products[0]
        return (1 - share) * products[0] + share * products[1]


def ridge(sketch: TaskSketch, neighbours: Sequence[Neighbour], settings: Settings) -> Prior:
    """What the library's tasks teach about tasks where this one lies.

    Similarities are read only where a count says how many of the nearest teach.

    Raises:
        LibraryError: A neighbour without an embedding, or embeddings that do not fit the sketch.
    """
    from fedsprig.masks.scores import ScoreSet

    near = [neighbours[at] for at in closest(neighbours, settings.count)]
    vectors = [item.embedding for item in near if item.embedding is not None]
    if len(vectors) != len(near) or len({len(vector) for vector in vectors}) != 1:
        raise LibraryError(
            "the learned mask needs embeddings of one length: give every neighbour its own"
        )
    features = sketch.prototypes.shape[1]
    stacked = np.stack(vectors)
    if not sketch.fingerprint.size:  # not known of the new task, so of no use here
        stacked = stacked[:, :features]
    values = normalised_rows([item.scores for item in near])
    predictor = Ridge(stacked, features, values)
    vector = embedding(sketch, near[0].groups)
    if predictor.length == features:  # the library has no fingerprints
        vector = vector[:features]
    layout = near[0].scores.layout
    made = (predictor.weights(vector) @ values).astype(np.float32)
    return Prior(ScoreSet(layout.split(made)), predictor.spread if len(near) > 1 else None)


def _lowest(errors: Floats64) -> int:
    """The first of the lowest; what differs by rounding alone counts as equal."""
    return int(np.flatnonzero(errors <= errors.min() * (1 + 1e-9))[0])
