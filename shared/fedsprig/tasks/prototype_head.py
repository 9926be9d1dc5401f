"""A classifier from class means alone: what a new task starts from, before any step of training."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedsprig.errors import SketchError

Array = NDArray[Any]

LOGIT_SCALE: Final = 8.0


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


def prototype_head(means: Array, counts: Array) -> tuple[Array, Array]:
    """The nearest-class-mean classifier as a linear layer.

    With class means ``mu_c`` and their mean ``mu``, the logits ``s ((mu_c - mu) f - (|mu_c|^2 -
    |mu|^2) / 2)`` order the classes as the squared distances ``|f - mu_c|^2`` do (Mensink et al.
    2013, "Distance-Based Image Classification", section 3.1). ``s`` makes the mean squared distance
    of a class from the centre a logit of ``LOGIT_SCALE``, so that cross entropy starts neither flat
    nor saturated.

    Args:
        means: ``[classes, features]``.
        counts: Pictures per class ``[classes]``; a class without any gets no weight and the lowest
            bias.

    Returns:
        Weight float32 ``[classes, features]`` and bias float32 ``[classes]``.

    Raises:
        SketchError: No class has a picture, or means that are not finite.
    """
    seen = counts > 0
    if not seen.any() or not np.isfinite(means).all():
        raise SketchError("no finite class means: every device needs labelled, readable pictures")
    means = means.astype(np.float64)
    centre = means[seen].mean(0)
    spread = float(np.square(means[seen] - centre).sum(1).mean())
    scale = LOGIT_SCALE / max(spread, 1e-12)
    weight = np.where(seen[:, None], scale * (means - centre), 0.0)
    bias = -scale * (np.square(means).sum(1) - np.square(centre).sum()) / 2
    bias = np.where(seen, bias, bias[seen].min())
    return weight.astype(np.float32), bias.astype(np.float32)
