"""Running a model over pictures: its modes put back as they were, its device, batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def keeping_modes(model: nn.Module) -> Iterator[None]:
    """Restore every module's training or evaluation mode at the end, after an error too."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer lives; the CPU when it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def batches(images: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Consecutive views of up to ``batch_size`` pictures."""
    for first in range(0, len(images), batch_size):
        yield images[first : first + batch_size]


def labelled_batches(
    images: Tensor, labels: Tensor, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Consecutive views of up to ``batch_size`` pictures with their labels."""
    for first in range(0, len(images), batch_size):
        yield images[first : first + batch_size], labels[first : first + batch_size]


def on_device(images: Tensor, device: torch.device) -> Tensor:
    """A batch ``[n, c, h, w]`` on the device, channels last."""
    return images.to(device, memory_format=torch.channels_last)
