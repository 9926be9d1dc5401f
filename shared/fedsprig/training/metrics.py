"""What a network makes of labelled pictures: accuracy, loss and features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsprig.errors import DataError, LabelRangeError, PlanError
from fedsprig.training.head_input import HeadInput
from fedsprig.training.modes import batches, device_of, keeping_modes, on_device


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How a network does on labelled pictures.

    Attributes:
        accuracy: Share of pictures whose highest logit is their label's.
        loss: Mean cross-entropy.
        pictures: How many there were.
        per_class: Accuracy within each class of the model; ``None`` for a class without a picture.
    """

    accuracy: float
    loss: float
    pictures: int
    per_class: tuple[float | None, ...]


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 256) -> Evaluation:
    """Evaluate in evaluation mode; modules keep their modes.

    Args:
        model: Maps ``[n, c, h, w]`` to logits ``[n, classes]``.
        images: ``float32 [n, c, h, w]``.
        labels: ``int64 [n]``.
        batch_size: Pictures at a time.

    Raises:
        DataError: No picture, or pictures and labels do not fit each other.
        LabelRangeError: A label beyond the model's classes.
    """
    if not len(images) or labels.shape != images.shape[:1]:
        raise DataError(
            f"cannot evaluate {len(images)} pictures with labels {list(labels.shape)}: "
            "pass one picture at least and one label each"
        )
    device = device_of(model)
    logits = []
    with keeping_modes(model):
        model.eval()
        for batch in batches(images, batch_size):
            logits.append(model(on_device(batch, device)).float().cpu())
    outputs, labels = torch.cat(logits), labels.cpu()
    classes = outputs.shape[1]
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise LabelRangeError(
            f"labels go from {int(labels.min())} to {int(labels.max())}, the model has {classes} "
            "classes: build it with num_classes to fit, or relabel from 0"
        )
    right = labels[outputs.argmax(1) == labels]
    hits = torch.bincount(right, minlength=classes).tolist()
    counts = torch.bincount(labels, minlength=classes).tolist()
    return Evaluation(
        accuracy=len(right) / len(labels),
        loss=float(F.cross_entropy(outputs.double(), labels)),
        pictures=len(labels),
        per_class=tuple(h / c if c else None for h, c in zip(hits, counts, strict=True)),
    )


@torch.no_grad()
def features(model: nn.Module, head: str, images: Tensor, batch_size: int = 256) -> Tensor:
    """What the head sees of each picture, in evaluation mode; modules keep their modes.

    Args:
        model: Maps ``[n, c, h, w]`` to logits.
        head: Module path of the classifier.
        images: ``float32 [n, c, h, w]``.
        batch_size: Pictures at a time.

    Returns:
        ``float32 [n, F]`` on the CPU; the mean over its pixels of a map that a convolutional head
        sees.

    Raises:
        PlanError: The model has no such module, or does not call it once per forward on ``[n, F]``
            or ``[n, F, h, w]``.
        DataError: No picture.
    """
    if not len(images):
        raise DataError("there is no picture to take features of: pass one at least")
    device = device_of(model)
    found = []
    with HeadInput(model, head) as seen, keeping_modes(model):
        model.eval()
        for batch in batches(images, batch_size):
            model(on_device(batch, device))
            found.append(seen.take().float().cpu())
    rows = torch.cat(found)
    if len(rows) != len(images):
        raise PlanError(
            f"module {head!r} sees {list(rows.shape)} of {len(images)} pictures: "
            "name the one classifier"
        )
    return rows
