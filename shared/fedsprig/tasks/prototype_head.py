"""A classifier from class means alone: what a new task starts from, before any step of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsprig.errors import SketchError

Array = NDArray[Any]


def class_means(features: Array, labels: Array, classes: int) -> tuple[Array, Array]:
    """Mean feature vector and number of pictures per class.

    Args:
        features: ``[pictures, features]``.
        labels: ``[pictures]``.
        classes: Number of classes.

    Returns:
        Means float64 ``[classes, features]`` (zero for a class without pictures) and counts int64
        ``[classes]``.
    """
    counts = np.bincount(labels, minlength=classes).astype(np.int64)
    sums = np.zeros((classes, features.shape[1]))
    np.add.at(sums, labels, features)
    return sums / np.maximum(counts, 1)[:, None], counts


def projected_variance(features: Array, labels: Array, means: Array) -> float:
    """How far pictures lie from their class means along the directions that tell classes apart.

    The mean, over pictures and over the classes that have any, of the squared projection of
    ``f - mu_y`` on the unit vector of ``mu_c - mu``.

    Args:
        features: ``[pictures, features]``.
        labels: ``[pictures]``.
        means: From :func:`class_means` of the same pictures.
    """
    seen = np.bincount(labels, minlength=len(means)) > 0
    directions = means[seen] - means[seen].mean(0)
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    directions = directions / np.maximum(lengths, 1e-12)
    return float(np.square((features - means[labels]) @ directions.T).mean())


def pooled_variance(variances: Sequence[float], pictures: Sequence[int]) -> float:
    """The variance of several devices' pictures together: a mean, weighted by pictures.

    A device with a single class cannot tell how pictures lie between classes, and says 0; it has no
    part in the mean. 0 where no device can tell.

    Args:
        variances: From :func:`projected_variance`, of each device.
        pictures: Of each device.
    """
    told = [at for at, variance in enumerate(variances) if variance > 0]
    if not told:
        return 0.0
    weights = [pictures[at] for at in told]
    return float(np.average([variances[at] for at in told], weights=weights))


def prototype_head(means: Array, counts: Array, variance: float) -> tuple[Array, Array]:
    """The nearest-class-mean classifier as a linear layer.

    With class means ``mu_c``, their mean ``mu`` and ``s = 1 / variance``, the logits are
    ``s ((mu_c - mu) f - (|mu_c|^2 - |mu|^2) / 2)``: up to what all classes share, the log
    likelihood of Gaussian classes of that variance. They order the classes as the squared distances
    ``|f - mu_c|^2`` do (Mensink et al. 2013, "Distance-Based Image Classification", section 3.1),
    and are as sure as the pictures warrant, so that training starts from a fair loss.

    Args:
        means: ``[classes, features]``.
        counts: Pictures per class ``[classes]``; a class without any gets no weight and the lowest
            bias.
        variance: From :func:`projected_variance`.

    Returns:
        Weight float32 ``[classes, features]`` and bias float32 ``[classes]``.

    Raises:
        SketchError: No class has a picture, or means or variance that are not finite.
    """
    seen = counts > 0
    if not seen.any() or not np.isfinite(means).all() or not 0 <= variance < np.inf:
        raise SketchError("no finite class means: every device needs labelled, readable pictures")
    means = means.astype(np.float64)
    centre = means[seen].mean(0)
    directions = means - centre
    # Pictures that all lie on their class means say nothing about the spread of others.
    between = float(np.square(directions[seen]).sum(1).mean())
    scale = 1 / max(variance, 1e-2 * between, 1e-12)
    weight = np.where(seen[:, None], scale * directions, 0.0)
    bias = -scale * (np.square(means).sum(1) - np.square(centre).sum()) / 2
    bias = np.where(seen, bias, bias[seen].min())
    return weight.astype(np.float32), bias.astype(np.float32)
