"""What the original base says of pictures, and how far a small network is from it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsprig.tasks.prototype_head import class_means
from fedsprig.training import features as features_of
from fedsprig.training.head_input import HeadInput

_LEAST: Final = 1e-6
"""Below any variance of features that means something."""

_TOLERANCE: Final = 0.01
"""Of the logarithm of a calibrated scale: a hundredth of its size."""


class Teacher:
    """A frozen copy of a base model, in evaluation mode.

    Args:
        base: Copied as it is.
        head: Module path of its classifier, which is not asked.
    """

    def __init__(self, base: nn.Module, head: str) -> None:
        self._network = copy.deepcopy(base).eval().requires_grad_(False)
        self._head = head

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """What its head sees of a batch: ``[n, F]``."""
        with HeadInput(self._network, self._head) as seen:
            self._network(images)
        return seen.take().float()

    def classifier(self, images: Tensor, labels: Tensor) -> ClassMeans:
        """The class-mean classifier of the teacher's features of labelled pictures."""
        rows, labels = features_of(self._network, self._head, images), labels.cpu()
        numbers = labels.numpy()
        means, counts = class_means(rows.numpy(), numbers, int(numbers.max()) + 1)
        plain = ClassMeans(torch.from_numpy(means).float(), torch.from_numpy(counts > 0), 1.0)
        scale = calibrated(plain.logits(rows), labels)
        device = next(self._network.parameters()).device
        return ClassMeans(plain.means.to(device), plain.seen.to(device), scale)


class ClassMeans:
    """The nearest-class-mean classifier, for all features or some of them.

    The logits are ``-scale |f - mu_c|^2 / 2`` up to what all classes share: those of
    :func:`fedsprig.tasks.prototype_head.prototype_head`.

    Args:
        means: ``[classes, F]``.
        seen: Bool ``[classes]``: classes that have pictures; the others are never chosen.
        scale: How sure it is; from :func:`calibrated`.
    """

    def __init__(self, means: Tensor, seen: Tensor, scale: float) -> None:
        self.means, self.seen, self.scale = means, seen, scale

    def logits(self, features: Tensor, kept: Tensor | None = None) -> Tensor:
        """Logits ``[n, classes]`` of features ``[n, kept]``, by the kept part of the means."""
        means = self.means if kept is None else self.means.index_select(1, kept)
        centre = means[self.seen].mean(0)
        offset = (means.square().sum(1) - centre.square().sum()) / 2
        logits = self.scale * (features @ (means - centre).T - offset)
        return logits.masked_fill(~self.seen, -torch.inf)


def calibrated(logits: Tensor, labels: Tensor) -> float:
    """The factor of logits that their labels are likeliest under, to a hundredth of its size.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv 1706.04599, section 4.2
    (temperature scaling). Distances to class means alone are far too sure of many classes. The
    cross-entropy is convex in the factor, so thirds of its logarithm close in on it.

    Args:
        logits: ``[n, classes]``.
        labels: int64 ``[n]``.
    """
    wide = logits.double()
    finite = wide[torch.isfinite(wide)]
    size = max(float(finite.std()), 1e-12)
    low, high = math.log(1e-3 / size), math.log(1e3 / size)
    while high - low > _TOLERANCE:
        first, second = low + (high - low) / 3, high - (high - low) / 3
        if _entropy(wide, labels, first) <= _entropy(wide, labels, second):
            high = second
        else:
            low = first
    return math.exp((low + high) / 2)


def _entropy(logits: Tensor, labels: Tensor, log_scale: float) -> float:
    return float(F.cross_entropy(logits * math.exp(log_scale), labels))


def feature_distance(features: Tensor, target: Tensor) -> Tensor:
    """Squared error of features ``[n, kept]`` in units of the target's own variance: a scalar.

    ``sum |f - t|^2 / sum |t - mean(t)|^2`` over the batch: 1 for a network that always says the
    mean, whatever the features' scale and number.
    """
    spread = (target - target.mean(0)).square().sum()
    return (features - target).square().sum() / spread.clamp_min(_LEAST * target.numel())


def direction_distance(features: Tensor, target: Tensor) -> Tensor:
    """``2 (1 - cos)`` between features ``[n, kept]`` and their target, the mean over the batch.

    Both are centred over the batch first. 0 for the same directions from the mean, whatever the
    length; 2 for a network that knows nothing. Unlike the squared error it is not lowered by saying
    less, which is what a network that knows little learns first from that.
    """
    said, wanted = features - features.mean(0), target - target.mean(0)
    return 2 * (1 - F.cosine_similarity(said, wanted, dim=1, eps=_LEAST).mean())


DISTANCES: Final[Mapping[str, Callable[[Tensor, Tensor], Tensor]]] = MappingProxyType(
    {"squared": feature_distance, "direction": direction_distance}
)
"""How far features are from those of the base, by :attr:`PrepareConfig.distance`."""


def divergence(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """``T^2 KL(softmax(target / T) | softmax(logits / T))``, the mean over the batch.

    Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2.
    Classes of logit minus infinity in both count for nothing.
    """
    finite = torch.isfinite(target[0])
    log_student = F.log_softmax(logits[:, finite] / temperature, 1)
    log_teacher = F.log_softmax(target[:, finite] / temperature, 1)
    return temperature**2 * F.kl_div(
        log_student, log_teacher, reduction="batchmean", log_target=True
    )
