"""LEEP: how well a task's labels follow from what a library task's classifier says."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedsprig.tasks.similarity.heads import HeadValue, check_outputs

SMALLEST: Final = float(np.finfo(np.float64).tiny)
"""Probability that counts for one that underflows."""


def leep(probabilities: NDArray[np.float64], labels: NDArray[np.int64], classes: int) -> float:
    """The log expected empirical prediction (Nguyen et al. 2020, arXiv 2002.12462).

    With ``p(z|x_i)`` the probability that the classifier gives its class ``z`` for picture ``i``::

        P(y, z) = (1/n) sum_{i: y_i = y} p(z|x_i)        P(y|z) = P(y, z) / sum_y' P(y', z)
        LEEP = (1/n) sum_i log sum_z P(y_i|z) p(z|x_i)

    Args:
        probabilities: ``[n, z]``, rows of sum 1.
        labels: ``[n]``, from 0 to ``classes - 1``.
        classes: Of the task.

    Returns:
        Never above 0; greater is better.

    Raises:
        SketchError: No probabilities, or some that are not finite.
    """
    check_outputs(probabilities, "leep")
    joint = np.zeros((classes, probabilities.shape[1]))
    np.add.at(joint, labels, probabilities / len(labels))
    marginal = joint.sum(axis=0)
    conditional = np.divide(joint, marginal, out=np.zeros_like(joint), where=marginal > 0)
    expected = (conditional[labels] * probabilities).sum(axis=1)
    # Rounding alone can take it above 1, or to 0 where everything underflows.
    return float(np.log(np.clip(expected, SMALLEST, 1.0)).mean())


def leep_of_outputs(outputs: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """LEEP of a classifier's logits ``[n, z]``; errors as in :func:`leep`."""
    check_outputs(outputs, "leep")
    exponent = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    present, numbers = np.unique(labels, return_inverse=True)
    return leep(exponent / exponent.sum(axis=1, keepdims=True), numbers, len(present))


LEEP: Final = HeadValue("leep", leep_of_outputs, float(np.log(SMALLEST)), lambda classes: 0.0)
