"""H-score: how far a library task's classifier tells a task's classes apart."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedsprig.tasks.prototype_head import class_means
from fedsprig.tasks.similarity.heads import HeadValue, check_outputs


def h_score(outputs: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """The H-score (Bao et al. 2019, ICIP) with a shrunk covariance.

    ``tr(cov(f)^-1 cov(E[f|y]))`` of outputs ``f``: the share of their variance that lies between
    classes, summed over directions. With few pictures the inverse blows up; so, as by Ibrahim et
    al. 2022 (arXiv 2110.06893), both covariances are shrunk by the intensity ``a`` of Ledoit and
    Wolf (2004): ``cov(f)`` becomes ``(1 - a) cov(f) + a (tr(cov(f)) / z) I``, and the
    other one ``(1 - a) cov(E[f|y])``.

    Args:
        outputs: ``[n, z]``, logits (any scale gives the same).
        labels: ``[n]``, from 0.

    Returns:
        From 0 to ``min(z, classes - 1)``; greater is better. 0 where the outputs do not vary.

    Raises:
        SketchError: No outputs, or some that are not finite.
    """
    check_outputs(outputs, "h_score")
    # Fourth powers of large outputs overflow. A power of two changes no digit.
    outputs = np.ldexp(outputs, -int(np.frexp(np.abs(outputs).max())[1]))
    centred = outputs - outputs.mean(axis=0)
    covariance = centred.T @ centred / len(centred)
    scale = float(np.trace(covariance)) / len(covariance)
    if scale <= 1e-12 * float(np.square(outputs).mean()):  # one picture, or all outputs alike
        return 0.0
    intensity = shrinkage(centred, covariance)
    shrunk = (1 - intensity) * covariance + intensity * scale * np.eye(len(covariance))
    present, numbers = np.unique(labels, return_inverse=True)
    means, counts = class_means(centred, numbers, len(present))
    between = (means * counts[:, None]).T @ means / len(centred)
    # The outputs of a classifier of class means have a direction without variance: between classes
    # there is none either, so that the pseudo-inverse leaves out nothing.
    inverse = np.linalg.pinv(shrunk, rcond=1e-10, hermitian=True)
    return float((1 - intensity) * np.trace(inverse @ between))


def shrinkage(centred: NDArray[np.float64], covariance: NDArray[np.float64]) -> float:
    """How far to shrink a covariance towards a multiple of the identity (Ledoit and Wolf 2004).

    Args:
        centred: ``[n, z]``, of mean 0.
        covariance: Of these, ``[z, z]``.

    Returns:
        From 0 (as it is) to 1 (the multiple of the identity alone).
    """
    n, z = centred.shape
    scale = np.trace(covariance) / z
    distance = np.square(covariance - scale * np.eye(z)).sum()
    # sum_i |x_i x_i' - S|^2 = sum_i |x_i|^4 - n |S|^2, since the mean of x_i x_i' is S.
    noise = (np.square(np.square(centred).sum(axis=1)).sum() / n - np.square(covariance).sum()) / n
    return float(np.clip(noise / distance, 0, 1)) if distance > 0 else 0.0


H_SCORE: Final = HeadValue("h_score", h_score, 0.0, lambda classes: classes - 1)
