"""Server time from a task's sketch to a finished sub-network, and search time in a large library.

The pictures behind the sketches, and so scores and masks, are random: that changes no time. The
server's own functions are measured, over a real library on disk.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedsprig.graph import GroupPlan, materialize
from fedsprig.masks import Budget, ScoreSet
from fedsprig.tasks import Evidence, SketchIndex, TaskSketch, nearest
from fedsprig_server.base import Base
from fedsprig_server.config import SelectionConfig
from fedsprig_server.library import Entry, Library
from fedsprig_server.one_shot import arm_scores, cut, find
from fedsprig_sim.benchmarks.machine import machine

TARGET_SECONDS = 1.0
TARGET_SEARCH_SECONDS = 0.1
GROWTH = (10, 100, 1_000, 10_000, 100_000)
"""Entries of the libraries that the command compares."""
WRITTEN_ENTRIES = 10_000
"""Larger libraries are searched only: the nearest thousand are all that one-shot reads of them."""
STEPS = ("read the sketch", "find", "score", "solve", "cut")

Progress = Callable[[str], None]


def run(
    *,
    model: str = "torchvision/resnet50",
    entries: int = 1_000,
    search_entries: int = 100_000,
    search_features: int = 512,
    classes: int = 5,
    keep_macs: float = 0.25,
    repeats: int = 5,
    growth: Sequence[int] = (),
    threads: int | None = None,
    seed: int = 0,
    progress: Progress = lambda line: None,
) -> dict[str, Any]:
    """Measure both.

    Args:
        model: Base model; its weights are random.
        entries: Tasks in the library for the way from a sketch to a sub-network.
        search_entries: Tasks in the library for the search alone.
        search_features: Length of their prototypes.
        classes: Classes of every task.
        keep_macs: The budget, as a share of the base model's multiply-accumulates.
        repeats: Measurements after the first. The first reads the library's scores from disk; the
            others find them in memory, as a running server does.
        growth: Numbers of entries at which both are measured too.
        threads: Threads of torch; as it is set when ``None``.
        seed: For everything random.
        progress: Called with a line before every long step.

    Returns:
        Plain data: settings, the machine, ``one_shot`` (seconds of the first and the median other
        run, by step) and ``search`` (seconds), each with its target; ``growth`` where asked for.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    rng = np.random.default_rng(seed)
    progress(f"building {model} and its group plan")
    base = Base.load(model, None)
    one_shot = _one_shot(base, entries, classes, keep_macs, repeats, rng, progress)
    progress(f"making {search_entries:,} sketches")
    search = _search(search_entries, search_features, classes, repeats, rng)
    found = {
        "model": model,
        "seed": seed,
        "machine": machine(),
        "one_shot": one_shot,
        "search": search,
    }
    if growth:
        found["growth"] = [
            {
                "entries": count,
                "one_shot_seconds": _one_shot(
                    base, count, classes, keep_macs, repeats, rng, progress
                )["seconds"]
                if count <= WRITTEN_ENTRIES
                else None,
                "search_seconds": _search(count, search_features, classes, repeats, rng)["seconds"],
            }
            for count in growth
        ]
    return found


def table(figures: dict[str, Any]) -> str:
    """The figures of :func:`run` as lines of text."""
    whole, search = figures["one_shot"], figures["search"]
    rows = [(f"  {name}", seconds, None) for name, seconds in whole["steps"].items()]
    rows += [
        (
            f"sketch to sub-network, {whole['entries']:,} tasks",
            whole["seconds"],
            whole["target_seconds"],
        ),
        (f"search in {search['entries']:,} tasks", search["seconds"], search["target_seconds"]),
    ]
    lines = [
        f"{name:<44} {seconds:8.3f} s" + ("" if target is None else f"   target {target:.3f} s")
        for name, seconds, target in rows
    ]
    if "growth" in figures:
        lines += ["", f"{'entries':>8} {'search, ms':>11} {'sketch to sub-network, ms':>26}"]
        lines += [
            f"{item['entries']:>8,} {1e3 * item['search_seconds']:>11.2f} "
            + (
                ""
                if item["one_shot_seconds"] is None
                else f"{1e3 * item['one_shot_seconds']:>26.0f}"
            )
            for item in figures["growth"]
        ]
    return "\n".join(lines)


def _one_shot(
    base: Base,
    entries: int,
    classes: int,
    keep_macs: float,
    repeats: int,
    rng: np.random.Generator,
    progress: Progress,
) -> dict[str, Any]:
    plan = base.plan.with_num_classes(classes)
    budget = Budget.fraction(plan, macs=keep_macs)
    selection = SelectionConfig()
    features = base.plan.shapes[f"{base.card.head}.weight"][1]
    with tempfile.TemporaryDirectory() as folder, Library(folder) as library:
        progress(f"writing a library of {entries:,} tasks")
        for number in range(entries):
            library.add_entry(_entry(library, base, number, classes, features, rng))
        start = time.perf_counter()
        library.index(base.digest)
        index_seconds = time.perf_counter() - start

        def once(data: bytes) -> _Watch:
            watch = _Watch()
            with watch.step("read the sketch"):
                sketch = TaskSketch.from_bytes(data)
            with watch.step("find"):
                near = [neighbour for _, neighbour in find(sketch, library, base, selection)]
            with watch.step("score"):
                scores = arm_scores("one_shot", sketch, near, base, selection, seed=0, task="new")
            with watch.step("solve"):
                mask = cut(scores, base, budget, selection, num_classes=classes)
            with watch.step("cut"):
                materialize(base.module, base.plan, mask)
            whole = base.macs(type(mask).full(base.plan), num_classes=classes)
            watch.kept_macs = base.macs(mask, num_classes=classes) / whole
            return watch

        progress("from a sketch to a sub-network")
        runs = [once(_sketch(classes, features, rng).to_bytes()) for _ in range(repeats + 1)]
    first, others = runs[0], runs[1:] or runs
    return {
        "entries": entries,
        "units": base.plan.units,
        "kept_macs": first.kept_macs,
        "index_seconds": index_seconds,
        "first_seconds": first.total,
        "seconds": statistics.median(watch.total for watch in others),
        "steps": {
            name: statistics.median(watch.seconds[name] for watch in others) for name in STEPS
        },
        "target_seconds": TARGET_SECONDS,
    }


def _search(
    entries: int, features: int, classes: int, repeats: int, rng: np.random.Generator
) -> dict[str, Any]:
    index = _large_index(entries, features, classes, rng)
    seconds = []
    for _ in range(repeats + 1):
        query = Evidence(_sketch(classes, features, rng))
        start = time.perf_counter()
        nearest(query, index)
        seconds.append(time.perf_counter() - start)
    return {
        "entries": entries,
        "features": features,
        "first_seconds": seconds[0],
        "seconds": statistics.median(seconds[1:] or seconds),
        "target_seconds": TARGET_SEARCH_SECONDS,
    }


def _large_index(
    entries: int, features: int, classes: int, rng: np.random.Generator
) -> SketchIndex:
    sketches = [_sketch(classes, features, rng) for _ in range(entries)]
    index = SketchIndex.build([f"task {number}" for number in range(entries)], sketches)
    del sketches
    gc.collect()  # the index has its own copy; a gigabyte less while the search is measured
    return index


def _entry(
    library: Library,
    base: Base,
    number: int,
    classes: int,
    features: int,
    rng: np.random.Generator,
) -> Entry:
    return Entry(
        name=f"task {number}",
        base=base.digest,
        plan=base.plan.digest,
        method="random",
        sketch=library.blobs.put(_sketch(classes, features, rng).to_bytes()),
        scores=library.blobs.put(_scores(base.plan, rng).to_bytes()),
    )


def _sketch(classes: int, features: int, rng: np.random.Generator) -> TaskSketch:
    prototypes: NDArray[np.float32] = rng.standard_normal((classes, features), np.float32)
    return TaskSketch(
        probe="0" * 64,
        prototypes=np.abs(prototypes),
        counts=np.full(classes, 100, np.int64),
        classes=("",) * classes,
        fingerprint=np.zeros(0, np.float32),
    )


def _scores(plan: GroupPlan, rng: np.random.Generator) -> ScoreSet:
    return ScoreSet({group.name: rng.random(group.units, np.float32) for group in plan.groups})


@dataclass(slots=True)
class _Watch:
    """Seconds by step."""

    seconds: dict[str, float] = field(default_factory=dict)
    kept_macs: float = 0.0

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
