"""What a pruner hands back, and the interface that all pruners share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from torch import nn

from fedsprig.artifacts.container import Array, pack
from fedsprig.graph import materialize
from fedsprig.graph.plan import GroupPlan
from fedsprig.masks import Mask, ScoreSet
from fedsprig.masks.weights import WeightMask
from fedsprig.pruning.input_frame import INPUT_FRAME, add_to_input
from fedsprig.pruning.job import Job

WEIGHT_MASK: Final = "weight_mask"
STATE: Final = "state:"
"""Before the names of what else a method keeps, where it lies beside weights."""

Progress = Callable[[str, int, int], None]
"""Told of the stage (``"round 3"``), the steps done in it and all its steps."""


def silent(stage: str, done: int, steps: int) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """A pruned network and all that a library entry is made of.

    Attributes:
        method: the pruner's name.
        scores: a number for every unit of the whole network; a unit that was dropped never
            outranks one of its group that was kept.
        mask: what the network keeps; it meets the target.
        masks: nested masks by label: ``"target"`` is ``mask``, ``"macs-50"`` keeps at most 50 % of
            the whole network's multiply-accumulates. Budgets that cannot be met are left out.
        weights: the trained small network, by state name.
        weight_mask: single weights that are zero in it; ``None`` where whole units alone went.
        state: what else a method keeps with an entry, by name; what is called ``"input_frame"`` is
            added to every picture that the network is given.
        metrics: finite figures by name.
        settings: the settings that made it and what happened in every round, as plain JSON data.
    """

    method: str
    scores: ScoreSet
    mask: Mask
    masks: Mapping[str, Mask]
    weights: Mapping[str, Array]
    metrics: Mapping[str, float]
    settings: Mapping[str, Any]
    weight_mask: WeightMask | None = None
    state: Mapping[str, Array] = field(default_factory=dict)

    def network(self, model: nn.Module, plan: GroupPlan) -> nn.Module:
        """The pruned network, in evaluation mode.

        Args:
            model: the whole network of the job.
            plan: its groups.
        """
        small = materialize(model, plan, self.mask)
        small.load_state_dict({name: torch.from_numpy(a) for name, a in self.weights.items()})
        if INPUT_FRAME in self.state:
            add_to_input(small, torch.from_numpy(self.state[INPUT_FRAME]))
        return small.eval()

    def weights_bytes(self) -> bytes:
        """The trained weights as one safetensors artefact; equal weights give equal bytes.

        Beside the weights by their state names: ``weight_mask``, the mask's bytes, and ``state:``
        and a name, what else the method keeps.
        """
        arrays = dict(self.weights) | {STATE + name: a for name, a in self.state.items()}
        if self.weight_mask is not None:
            arrays[WEIGHT_MASK] = np.frombuffer(self.weight_mask.to_bytes(), np.uint8)
        return pack(arrays, {"kind": "pruned weights", "mask": self.mask.digest})


class Pruner(Protocol):
    """A method with its settings: a frozen dataclass whose fields are the settings.

    The same job and settings give the same product to the bit on a CPU with the same number of
    threads, whether or not the run was killed on its way.
    """

    @property
    def name(self) -> str:
        """The method's name in ``PRUNERS``."""

    def check(self, job: Job) -> None:
        """Refuse, before any training, a job that this method cannot do.

        Raises:
            FedsprigError: the target cannot be met, or a setting does not fit the job.
        """

    def prune(
        self, job: Job, *, progress: Progress = silent, checkpoint: Path | None = None
    ) -> Product:
        """Prune.

        Args:
            job: what and to which target.
            progress: told of every step.
            checkpoint: a folder to go on from, and to write every finished round to.

        Raises:
            FedsprigError: before any training, what :meth:`check` refuses.
        """
