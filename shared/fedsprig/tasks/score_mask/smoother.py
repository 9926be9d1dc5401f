"""Kernel ridge regression with an intercept, taken apart once for all penalties."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats64 = NDArray[np.float64]

PENALTIES: Final = (math.inf, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1)
"""Beside a kernel whose diagonal is about 1. Infinity is the plain mean; it comes first, so that
it is taken where nothing predicts better."""


@dataclass(frozen=True, slots=True, eq=False)
class Smoother:
    """One kernel over the library, which fits any targets at any penalty.

    Attributes:
        kernel: ``[n, n]``, not centred.
        vectors: Eigenvectors of the centred kernel in columns.
        roots: Its eigenvalues ``[n]``.
    """

    kernel: Floats64
    vectors: Floats64
    roots: Floats64

    @classmethod
    def of(cls, kernel: Floats64) -> Smoother:
        """Of a symmetric kernel without negative eigenvalues: ``[n, n]``, O(n^3)."""
        centred = kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()
        roots, vectors = np.linalg.eigh(centred)
        return cls(kernel, vectors, np.maximum(roots, 0.0))

    def missed(self, penalty: float) -> Floats64:
        """``I - H``, what a fit leaves of the targets: ``[n, n]``, symmetric."""
        rest = (self.vectors * self._left(penalty)) @ self.vectors.T
        return np.asarray(rest - 1 / len(self.roots), np.float64)

    def left_out_errors(self, gram: Floats64) -> Floats64:
        """Squared error of every entry when left out, ``[penalties, n]``.

        Args:
            gram: Products of the centred targets ``[n, n]``: all that the errors depend on.
        """
        turned = self.vectors.T @ gram @ self.vectors
        squares = self.vectors**2
        errors = []
        for penalty in PENALTIES:
            left = self._left(penalty)
            kept = self.vectors @ (turned * np.outer(left, left))
            residuals = np.einsum("ij,ij->i", kept, self.vectors)
            errors.append(residuals / (squares @ left - 1 / len(left)) ** 2)
        return np.stack(errors)

    def weights(self, near: Floats64, penalty: float) -> Floats64:
        """What each entry counts for a task of these kernel values ``[n]``; they sum to 1."""
        count = len(near)
        if math.isinf(penalty):
            return np.full(count, 1 / count)
        centred = near - self.kernel.mean(1)
        centred = centred - centred.mean()
        dual = self.vectors @ ((self.vectors.T @ centred) / (self.roots + penalty))
        return np.asarray(1 / count + dual - dual.mean(), np.float64)

    def _left(self, penalty: float) -> Floats64:
        if math.isinf(penalty):
            return np.ones(len(self.roots))
        return np.asarray(penalty / (self.roots + penalty), np.float64)
