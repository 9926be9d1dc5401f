"""Long trainings, epoch by epoch: after a kill they go on from their last whole epoch.

What a training needs beside its weights is what its optimiser remembers, and how far it is. Every
epoch draws from a seed of its own, so that a resumed training sees what it would have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from fedsprig.artifacts.container import Array
from fedsprig.pruning.job import Labelled
from fedsprig.pruning.journal import UNSAVED, Checkpoint
from fedsprig.pruning.product import Progress
from fedsprig.pruning.rewinding import part
from fedsprig.seeds import derive_seed
from fedsprig.training import TrainConfig, fit

_EPOCHS: Final = "epochs"
_MOMENTUM: Final = "momentum:"


def fit_by_epochs(
    network: nn.Module,
    pictures: Labelled,
    config: TrainConfig,
    *,
    seed: int,
    name: str,
    head: str,
    progress: Progress,
    learnt: Callable[[], Mapping[str, Array]],
    checkpoint: Checkpoint = UNSAVED,
    before_step: Callable[[int, int], None] = lambda done, steps: None,
) -> None:
    """Train in place, or what is left of a training; saved after every epoch.

    A training that counts steps is one epoch.

    Args:
        network: as it was at the last save, where there was one.
        pictures: what it learns from.
        config: how long and how.
        seed: epochs draw from seeds that follow from it, the name and their numbers.
        name: of the training, for the progress.
        head: module path of the classifier.
        progress: told of the steps done and all steps of the whole training.
        learnt: all arrays that bring the network back to where it is.
        checkpoint: where it begins and what it is saved to.
        before_step: told of the steps done and all steps, before every step and after the last.
    """
    total = config.total_steps(len(pictures.images))
    epochs = 1 if config.epochs is None else config.epochs
    momenta = {
        key.removeprefix(_MOMENTUM): torch.from_numpy(array)
        for key, array in checkpoint.arrays.items()
        if key.startswith(_MOMENTUM)
    }
    for epoch in range(int(checkpoint.state.get(_EPOCHS, 0)), epochs):
        first = epoch * (total // epochs)

        def told(step: int, _steps: int, _loss: float, first: int = first) -> None:
            before_step(first + step, total)
            progress(name, first + step, total)

        before_step(first, total)
        fit(
            network,
            pictures.images,
            pictures.labels,
            config if config.epochs is None else part(config, epoch, epoch + 1),
            seed=derive_seed(seed, name, str(epoch)),
            head=head,
            progress=told,
            momenta=momenta,
        )
        checkpoint.save({_EPOCHS: epoch + 1}, {**learnt(), **_arrays(momenta)})
    before_step(total, total)


def _arrays(momenta: Mapping[str, Tensor]) -> dict[str, Array]:
    return {
        _MOMENTUM + key: np.array(value.cpu().numpy(), order="C") for key, value in momenta.items()
    }
