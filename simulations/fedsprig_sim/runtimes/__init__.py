"""The runtimes: the same applications in this process, or in Flower's simulation engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from fedsprig.spelling import lookup
from fedsprig_sim.runtimes.in_process import run_in_process
from fedsprig_sim.runtimes.ray import run_ray

Runtime = Callable[..., None]

RUNTIMES: Mapping[str, Runtime] = {"in-process": run_in_process, "ray": run_ray}


def run_apps(name: str, *, fleet: Path, devices: int, server_config: Path, workers: int) -> None:
    """Run server and devices to the end of the run.

    Args:
        name: A name of ``RUNTIMES``.
        fleet: Folder of numbered device folders (``00000/device.toml``, ...).
        devices: How many of them there are.
        server_config: The server's settings.
        workers: How many devices compute at the same time.

    Raises:
        UnknownNameError: No such runtime.
    """
    run = lookup(RUNTIMES, name, "runtime")
    run(fleet=fleet, devices=devices, server_config=server_config, workers=workers)
