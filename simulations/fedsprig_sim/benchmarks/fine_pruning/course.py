"""One trajectory: train, then prune and train in turn, down to a tenth of the filters.

Every stage is written to disk under a digest of all that led to it, so a run that was stopped goes
on, arms that begin alike share their beginning, and a figure can be taken later.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fedsprig.adapters import attach
from fedsprig.artifacts import digest, pack, read_file, write_bytes
from fedsprig.errors import DataError
from fedsprig.graph import GroupPlan, materialize
from fedsprig.masks import Mask
from fedsprig.seeds import derive_seed
from fedsprig.training import TrainConfig, evaluate, fit, labelled_batches
from fedsprig_sim.benchmarks.fine_pruning.methods import METHODS, Arm
from fedsprig_sim.benchmarks.fine_pruning.pruning import Network, prune

_CODE = 1
"""Raise it when the same settings lead to other networks: what is on disk is then left aside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """The way down, the same for every arm.

    Attributes:
        densities: Shares of the filters, falling; the first stage prunes nothing.
        reported: Those of them whose accuracy is reported, and which train longer for it.
        first_steps: Optimiser steps of the whole network.
        steps: After each cut.
        reported_steps: After the cuts to the reported densities.
        batch_size: Pictures a step.
        scoring_pictures: Pictures that a cut is decided by.
        bf16: Train and evaluate in bfloat16 (autocast).

    Raises:
        DataError: Densities that do not fall, or reported ones that are not among them.
    """

    densities: tuple[float, ...] = (0.6, 0.3, 0.17, 0.1)
    reported: tuple[float, ...] = (0.3, 0.1)
    first_steps: int = 60
    steps: int = 40
    reported_steps: int = 120
    batch_size: int = 64
    scoring_pictures: int = 256
    bf16: bool = True

    def __post_init__(self) -> None:
        way = (1.0, *self.densities, 0.0)
        if any(a <= b for a, b in pairwise(way)):
            raise DataError(f"the densities {self.densities} do not fall from below 1 to above 0")
        if not self.reported or not set(self.reported) <= set(self.densities):
            raise DataError(f"report some of the densities {self.densities}, not {self.reported}")

    def stages(self) -> tuple[tuple[float, int], ...]:
        """Density and optimiser steps of every stage."""
        later = (
            (d, self.reported_steps if d in self.reported else self.steps) for d in self.densities
        )
        return ((1.0, self.first_steps), *later)


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """Where every trajectory begins.

    Attributes:
        base: The pretrained network with a head for the task.
        plan: Its groups.
        images: Training pictures ``float32 [n, 3, h, w]``.
        labels: ``int64 [n]``.
        digest: Of all of these.
        folder: Where stages are kept.
    """

    base: nn.Module
    plan: GroupPlan
    images: Tensor
    labels: Tensor
    digest: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Stage:
    """A network after one stage of a trajectory, and what it is kept under.

    The next stage may change the network: measure it before.
    """

    density: float
    key: str
    network: Network


def trajectory(start: Start, course: Course, arm: Arm, rate: float, seed: int) -> Iterator[Stage]:
    """Walk down; stages that are on disk are read.

    Args:
        start: Base and pictures.
        course: The way.
        arm: What trains and what leaks.
        rate: Learning rate at the begin of every stage; it falls along half a cosine in each.
        seed: Of the order of the pictures, their augmentation, the adapter and the pictures that
            cuts are decided by.
    """
    method = METHODS[arm.method]
    key = _key(
        start.digest, _CODE, method.kind, method.rank, rate, seed, course.batch_size, course.bf16
    )
    network = _begin(start, arm, seed)
    for density, steps in course.stages():
        key = _key(key, density, steps)
        if density < 1:
            key = _key(key, arm.leaks, course.scoring_pictures)
        path = start.folder / f"{key}.safetensors"
        if path.exists():
            network = _read(path, start, arm, seed)
        else:
            if density < 1:
                drawn = _some(start, course.scoring_pictures, derive_seed(seed, f"score {density}"))
                network = prune(network, density, drawn)
            config = TrainConfig(
                steps=steps,
                batch_size=course.batch_size,
                learning_rate=rate,
                augment="flip+shift",
                bf16=course.bf16,
            )
            order = derive_seed(seed, f"train {density}")
            fit(network.module, start.images, start.labels, config, seed=order)
            _write(path, network)
        yield Stage(density, key, network)


def accuracy(module: nn.Module, images: Tensor, labels: Tensor, course: Course) -> float:
    """Accuracy as the course computes."""
    with torch.autocast("cpu", torch.bfloat16, enabled=course.bf16):
        return evaluate(module, images, labels).accuracy


def _begin(start: Start, arm: Arm, seed: int) -> Network:
    method = METHODS[arm.method]
    module = copy.deepcopy(start.base)
    attach(module, kind=method.kind, rank=method.rank, seed=seed, head=start.plan.head)
    return Network(module, start.plan, Mask.full(start.plan), arm.leaks)


def _some(start: Start, count: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(len(start.images), generator=generator)[:count]
    return labelled_batches(start.images[index], start.labels[index], 128)


def _write(path: Path, network: Network) -> None:
    arrays = {name: value.numpy() for name, value in network.module.state_dict().items()}
    mask = np.frombuffer(network.mask.to_bytes(), np.uint8)
    write_bytes(path, pack({"mask": mask, **{f"state.{n}": v for n, v in arrays.items()}}))


def _read(path: Path, start: Start, arm: Arm, seed: int) -> Network:
    arrays, _ = read_file(path)
    network = _begin(start, arm, seed)
    network.mask = Mask.from_bytes(arrays.pop("mask").tobytes(), start.plan)
    if not arm.leaks:
        network.module = materialize(network.module, start.plan, network.mask)
    state = {n.removeprefix("state."): torch.from_numpy(v) for n, v in arrays.items()}
    network.module.load_state_dict(state)
    return network


def _key(*parts: object) -> str:
    return digest(json.dumps(parts).encode())[:40]
