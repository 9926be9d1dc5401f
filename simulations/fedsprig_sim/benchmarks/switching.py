"""Time to switch from one task to another on a device whose base model is in memory.

Weights, masks and what the tasks have learnt are random: that changes no time. Beside switching
stands what a device does that keeps no base: building the network from its package, which is
already in memory here too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fedsprig.adapters import adapter_state, load_adapter_state
from fedsprig.bases import BaseWeights, leave_out_base
from fedsprig.graph import GroupPlan, trace_groups
from fedsprig.masks import Budget, solve
from fedsprig.models import build
from fedsprig.scoring import score
from fedsprig.subnetwork import AdapterConfig, build_subnetwork, pack_subnetwork
from fedsprig.switching import TaskSwitch
from fedsprig.updates import encode_state
from fedsprig_sim.benchmarks.machine import machine

TARGET_SECONDS = 0.05
WAYS = ("cut anew", "cut before", "another adapter", "built from a package")
"""The weights of the task's cut layers are selected from the base; they are still in memory; only
what the task has learnt is replaced; there is no base."""

Progress = Callable[[str], None]


def run(
    *,
    model: str = "torchvision/resnet18",
    image_size: int = 64,
    tasks: int = 3,
    classes: int = 10,
    keep_macs: float = 0.25,
    rank: int = 8,
    codec: str = "float16",
    repeats: int = 15,
    threads: int | None = None,
    seed: int = 0,
    progress: Progress = lambda line: None,
) -> dict[str, Any]:
    """Measure every way in turns, task by task.

    Args:
        model: Base model; its weights are random.
        image_size: Side of its pictures.
        tasks: How many there are; each has a mask of its own.
        classes: Of every task.
        keep_macs: Their budget, as a share of the base model's multiply-accumulates.
        rank: Of the adapters.
        codec: What the weights were rounded by when the tasks were trained.
        repeats: Turns after the first, which does not count.
        threads: Threads of torch; as it is set when ``None``.
        seed: For everything random.
        progress: Called with a line before every long step.

    Returns:
        Plain data: settings, the machine, ``seconds`` (the median by way) with their target,
        ``fastest_seconds`` (what a machine with other work would reach without it), ``sizes`` in
        bytes: what a task takes on the way to a device and in its memory.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    progress(f"building {model} and its group plan")
    module = build(model, num_classes=2, image_size=image_size)
    plan = trace_groups(module, torch.zeros(1, 3, image_size, image_size), name=model)
    base = BaseWeights.of(model, module, plan.head)
    progress(f"cutting {tasks} tasks")
    packages, states = {}, {}
    for number in range(tasks):
        scores = score("random", module, plan, (), seed=seed + number)
        mask = solve(scores, plan, Budget.fraction(plan, macs=keep_macs))
        name = f"task {number}"
        packages[name] = pack_subnetwork(
            plan,
            mask,
            base.state,
            num_classes=classes,
            adapter=AdapterConfig(rank=rank, seed=seed),
            codec=codec,
            with_plan=False,
        )
        states[name] = _learnt(packages[name], plan, seed + number)
    anew, before = TaskSwitch(plan, base.state, cache_bytes=0), TaskSwitch(plan, base.state)
    for name, package in packages.items():
        anew.add_package(name, package, states[name])
        before.add_package(name, package, states[name])
    known = {plan.digest: plan.to_bytes()}

    def from_package(name: str) -> None:
        network = build_subnetwork(packages[name], plan_of=known.get)
        load_adapter_state(network.module, states[name])

    ways: dict[str, Callable[[str], object]] = {
        "cut anew": anew.switch,
        "cut before": before.switch,
        "another adapter": lambda name: before.update(name, states[name]),
        "built from a package": from_package,
    }
    progress(f"switching, {repeats} turns")
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(repeats + 1):
        for name in packages:
            for way, switch in ways.items():
                start = time.perf_counter()
                switch(name)
                if turn:
                    seconds[way].append(time.perf_counter() - start)
    package, state = packages["task 0"], states["task 0"]
    short = leave_out_base(package, plan, base.state, base.digest, with_plan=False)
    held = before.held
    return {
        "model": model,
        "tasks": tasks,
        "keep_macs": keep_macs,
        "rank": rank,
        "codec": codec,
        "seed": seed,
        "machine": machine(),
        "seconds": {way: statistics.median(times) for way, times in seconds.items()},
        "fastest_seconds": {way: min(times) for way, times in seconds.items()},
        "target_seconds": TARGET_SECONDS,
        "sizes": {
            "package": len(package),
            "package without weights": len(short),
            "adapter": len(encode_state(state, codec)),
            "base in memory": held.base,
            "a task in memory": held.tasks // tasks,
            "its cut layers in memory": held.cuts // tasks,
        },
    }


def table(figures: dict[str, Any]) -> str:
    """The figures of :func:`run` as lines of text."""
    lines = []
    for way, seconds in figures["seconds"].items():
        fastest = figures["fastest_seconds"][way]
        aim = f"   target {figures['target_seconds']:.3f} s" if way == WAYS[0] else ""
        lines.append(f"{way:<28} {seconds:9.4f} s   fastest {fastest:.4f} s{aim}")
    lines += [f"{what:<28} {size / 1e6:9.3f} MB" for what, size in figures["sizes"].items()]
    return "\n".join(lines)


def _learnt(package: bytes, plan: GroupPlan, seed: int) -> dict[str, Tensor]:
    network = build_subnetwork(package, plan_of=lambda _: plan.to_bytes()).module
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(value.shape, generator=generator)
        for name, value in adapter_state(network).items()
    }
