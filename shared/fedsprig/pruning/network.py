"""Networks on their way through a pruning run: cut, trained, stored as arrays and brought back."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import nn

from fedsprig.artifacts.container import Array
from fedsprig.graph import materialize
from fedsprig.masks import Mask
from fedsprig.pruning.by_epochs import fit_by_epochs
from fedsprig.pruning.job import Job, Labelled
from fedsprig.pruning.journal import UNSAVED, Checkpoint
from fedsprig.pruning.product import Progress
from fedsprig.training import TrainConfig, evaluate, recalibrate

_WEIGHT: Final = "weight:"
_MASK: Final = "mask"


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """A network of a run and what it keeps of the whole one."""

    network: nn.Module
    mask: Mask

    def arrays(self) -> dict[str, Array]:
        """All of it, for the journal."""
        return {
            **{_WEIGHT + name: array for name, array in weights_of(self.network).items()},
            _MASK: np.frombuffer(self.mask.to_bytes(), np.uint8),
        }

    @classmethod
    def restored(cls, job: Job, arrays: Mapping[str, Array]) -> Stage:
        """What :meth:`arrays` was of, to the bit.

        Raises:
            PlanError: the mask is of another plan.
        """
        mask = Mask.from_bytes(arrays[_MASK].tobytes(), job.plan)
        stage = cls(trainable(materialize(job.model, job.plan, mask)), mask)
        stage._load(arrays)
        return stage

    def resumed(self, checkpoint: Checkpoint) -> Checkpoint:
        """Take the weights of a checkpoint, where it is of the same mask.

        A mask that follows from measured milliseconds may be another one after a kill: then what
        was saved is of no use.

        Returns:
            Where the network stands now.
        """
        if not checkpoint.arrays:
            return checkpoint
        if checkpoint.arrays[_MASK].tobytes() != self.mask.to_bytes():
            return checkpoint.anew()
        self._load(checkpoint.arrays)
        return checkpoint

    def _load(self, arrays: Mapping[str, Array]) -> None:
        self.network.load_state_dict(
            {
                name.removeprefix(_WEIGHT): torch.from_numpy(array)
                for name, array in arrays.items()
                if name.startswith(_WEIGHT)
            }
        )


def whole(job: Job) -> Stage:
    """A copy of the job's network, with everything in it to be trained."""
    return Stage(trainable(copy.deepcopy(job.model)), Mask.full(job.plan))


def trainable(network: nn.Module) -> nn.Module:
    """The network itself: all parameters require a gradient, evaluation mode."""
    return network.requires_grad_(True).eval()


def weights_of(network: nn.Module) -> dict[str, Array]:
    """Copies of all parameters and buffers by state name."""
    return {
        name: np.array(tensor.detach().cpu().numpy(), order="C")
        for name, tensor in network.state_dict().items()
    }


def train(
    stage: Stage,
    job: Job,
    config: TrainConfig,
    *,
    seed: int,
    calibration: Labelled,
    name: str,
    progress: Progress,
    checkpoint: Checkpoint = UNSAVED,
) -> None:
    """Train a stage's network in place, then measure its normalisation statistics anew.

    A training that counts epochs is saved after each.

    Args:
        stage: what to train.
        job: whose training pictures.
        config: how long and how.
        seed: of this training.
        calibration: pictures that the statistics are measured on.
        name: of the stage, for the progress.
        progress: told of every step.
        checkpoint: where it begins and what it is saved to.
    """
    fit_by_epochs(
        stage.network,
        job.train,
        config,
        seed=seed,
        name=name,
        head=job.plan.head,
        progress=progress,
        learnt=stage.arrays,
        checkpoint=stage.resumed(checkpoint),
    )
    if len(calibration.images) >= 2:
        recalibrate(stage.network, calibration.images)


def accuracy(stage: Stage, job: Job) -> float:
    """Share of the validation pictures that the network gets right."""
    return evaluate(stage.network, job.validation.images, job.validation.labels).accuracy


def some_pictures(job: Job, count: int, generator: torch.Generator) -> Labelled:
    """Up to ``count`` training pictures, drawn evenly, in the order of the set."""
    total = len(job.train.images)
    index = torch.randperm(total, generator=generator)[:count].sort().values
    index = index.to(job.train.images.device)
    return Labelled(job.train.images[index], job.train.labels[index])
