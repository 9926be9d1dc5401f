"""Measured latency of sub-networks, on the machine that prunes: for targets in milliseconds."""

from __future__ import annotations

import statistics
import time
from typing import Final

import torch
from torch import nn

from fedsprig.graph import materialize
from fedsprig.graph.plan import GroupPlan
from fedsprig.masks import Mask

WARM_UP: Final = 3


class MeasuredLatency:
    """Milliseconds of one forward pass of one picture; every shape of network is measured once.

    The time follows from how many units of each group stay, whichever they are.

    The median of ``repeats`` passes after some that warm up, with as many threads as torch uses.
    What it says is of this machine and its load: measure where the network is to run, or give a
    function of one's own, from a table of the device say, as ``Job(latency_ms=...)``.
    """

    def __init__(self, model: nn.Module, plan: GroupPlan, *, repeats: int = 15) -> None:
        """Take what sub-networks are cut from.

        Args:
            model: the whole network; left as it is.
            plan: its groups; pictures have its input shape.
            repeats: passes that count.
        """
        self._model, self._plan, self._repeats = model, plan, repeats
        self._known: dict[tuple[int, ...], float] = {}

    def __call__(self, mask: Mask) -> float:
        """The time of a mask's sub-network in milliseconds."""
        kept = tuple(mask.kept(group.name) for group in self._plan.groups)
        if kept not in self._known:
            self._known[kept] = self._measure(mask)
        return self._known[kept]

    def _measure(self, mask: Mask) -> float:
        network = materialize(self._model, self._plan, mask).eval()
        device = next(network.parameters()).device
        picture = torch.zeros(self._plan.input_shape, device=device)
        times = []
        with torch.inference_mode():
            for turn in range(WARM_UP + self._repeats):
                started = time.perf_counter()
                network(picture)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if turn >= WARM_UP:
                    times.append(time.perf_counter() - started)
        return 1000 * statistics.median(times)
