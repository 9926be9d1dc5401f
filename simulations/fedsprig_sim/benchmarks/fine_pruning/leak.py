"""How much of what was pruned is still there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsprig.graph.plan import Group, Tap
from fedsprig.scoring.taps import owners, visiting
from fedsprig_sim.benchmarks.fine_pruning.pruning import Network

_SILENT = 1e-6
"""Of an activation that normalisation has brought near one."""


@dataclass(frozen=True, slots=True)
class Leak:
    """What the pruned units of a network still do.

    Attributes:
        answering: Share of the pruned units whose activation depends on the picture.
        loudness: By how much: the standard deviation of a pruned unit's activation over pictures
            and pixels, as a share of that of the kept units of its group; the mean over the pruned.
    """

    answering: float
    loudness: float


@torch.no_grad()
def measure_leak(network: Network, images: Tensor) -> Leak:
    """Watch the pruned units at their taps: after normalisation, before the nonlinearity.

    Args:
        network: One that leaks, with something pruned.
        images: ``float32 [n, 3, h, w]``, all in one batch.
    """
    spread: dict[str, Tensor] = {}

    def watch(group: Group, tap: Tap, value: Tensor) -> None:
        axis = tap.axis % value.ndim
        rows = value.movedim(axis, 0).flatten(1).float()
        deviation = torch.cat([rows.std(1), rows.new_zeros(1)])
        owner = owners(tap, value.shape[axis])
        widest = torch.zeros(group.units + 1).scatter_reduce(0, owner, deviation[:-1], "amax")
        known = spread.get(group.name, torch.zeros(group.units))
        spread[group.name] = torch.maximum(known, widest[:-1])

    network.module.eval()
    with visiting(network.module, network.plan, watch):
        network.module(images)
    answering: list[Tensor] = []
    loudness: list[Tensor] = []
    for name, units in network.mask.groups.items():
        kept = torch.from_numpy(units.copy())
        pruned = spread[name][~kept]
        answering.append((pruned > _SILENT).float())
        loudness.append(pruned / spread[name][kept].mean().clamp(min=_SILENT))
    return Leak(float(torch.cat(answering).mean()), float(torch.cat(loudness).mean()))
