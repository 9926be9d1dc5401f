"""Batch normalisation's statistics, estimated anew.

A network that was cut or fine-tuned has other activations than its running statistics describe. One
pass over some pictures mends that without a gradient (the "precise statistics" of Wu and Johnson
2021, "Rethinking Batch in BatchNorm", section 3).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedsprig.errors import TrainingError
from fedsprig.training.modes import device_of, keeping_modes, on_device


@torch.no_grad()
def recalibrate(model: nn.Module, images: Tensor, batch_size: int = 64, passes: int = 1) -> None:
    """Replace running means and variances by their mean over batches of the pictures, in place.

    Batches are drawn in a fixed shuffled order, for pictures that come sorted by class, and are of
    nearly equal size (``batch_size`` to twice that; all in one where they are fewer), so that each
    counts alike. Modes and momenta are restored, and after an error the old statistics too. A model
    without batch normalisation is left alone.

    Args:
        model: Maps ``[n, c, h, w]`` to anything.
        images: ``float32 [n, c, h, w]``, two at least.
        batch_size: Least pictures per batch.
        passes: Times that every picture is seen, in a new order each time.

    Raises:
        TrainingError: Fewer than two pictures, or a batch size or number of passes below its least.
    """
    layers = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    ]
    if not layers:
        return
    if len(images) < 2:
        raise TrainingError(
            f"cannot estimate statistics from {len(images)} picture(s): give two at least"
        )
    if batch_size < 2 or passes < 1:
        raise TrainingError(
            f"batch_size is {batch_size} and passes {passes}: choose 2 and 1 or more"
        )
    generator = torch.Generator().manual_seed(0)
    device = device_of(model)
    momenta = [layer.momentum for layer in layers]
    before = [
        (buffer, buffer.clone()) for layer in layers for buffer in layer.buffers(recurse=False)
    ]
    with keeping_modes(model):
        model.eval()
        try:
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None  # torch's name for a cumulative mean
                layer.train()
            for _ in range(passes):
                order = torch.randperm(len(images), generator=generator)
                for index in order.tensor_split(max(1, len(images) // batch_size)):
                    model(on_device(images[index.to(images.device)], device))
        except BaseException:
            for buffer, old in before:
                buffer.copy_(old)
            raise
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
