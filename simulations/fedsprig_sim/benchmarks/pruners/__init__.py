"""The methods that fill a library, against their papers' claims and the baselines.

Every figure is of test pictures that nothing selected on; what is measured lies in a folder, so
that a study that was killed goes on where it stood.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import torch

from fedsprig.errors import UnknownNameError
from fedsprig.spelling import lookup
from fedsprig_sim.benchmarks.machine import machine
from fedsprig_sim.benchmarks.pruners import aap, policies, prompts, sparsity
from fedsprig_sim.benchmarks.pruners.case import Case, measured
from fedsprig_sim.benchmarks.pruners.world import HeldOut, Options, World, read_training
from fedsprig_sim.progress import Progress, Silence

__all__ = ["STUDIES", "HeldOut", "Options", "Study", "read_training", "run", "table"]


@dataclass(frozen=True, slots=True)
class Study:
    """A question: the cases that answer it, and how their figures are shown."""

    cases: Callable[[World, Sequence[int]], list[Case]]
    table: Callable[[Sequence[Mapping[str, Any]]], str]


STUDIES: Final[Mapping[str, Study]] = MappingProxyType(
    {
        "aap": Study(aap.cases, aap.table),
        "policies": Study(policies.cases, policies.table),
        "prompts": Study(prompts.cases, prompts.table),
        "sparsity": Study(sparsity.cases, sparsity.table),
    }
)


def run(
    folder: Path,
    study: str,
    options: Options,
    *,
    seeds: int = 1,
    only: Sequence[str] = (),
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a study's cases, one after the other.

    Args:
        folder: what it holds is not measured again.
        study: a name in ``STUDIES``.
        options: data, network and training.
        seeds: repetitions.
        only: parts of the names of rows or arms that are measured; all by default.
        threads: of torch; all by default.
        progress: told of every case.

    Returns:
        Plain data: settings, the machine, and every case's figures.

    Raises:
        UnknownNameError: no such study, or no case of such a name.
        FedsprigError: data, model or weights that cannot be used.
    """
    progress = progress or Silence()
    chosen = lookup(STUDIES, study, "study")
    if threads is not None:
        torch.set_num_threads(threads)
    world = World.of(options, folder)
    cases = chosen.cases(world, range(seeds))
    names = {case: f"{case.row}, {case.arm}" for case in cases}
    if only:
        cases = [case for case in cases if any(part in names[case] for part in only)]
    if not cases:
        rows = "; ".join(dict.fromkeys(names.values()))
        raise UnknownNameError(f"no case of {study} has {' or '.join(only)} in its name: {rows}")
    progress.begin(study, len(cases))
    figures = []
    for case in cases:
        found = measured(case, world, folder, progress)
        figures.append(found)
        progress.step(study, f"{names[case]}, seed {case.seed}: {100 * found['test']:.2f} %")
    return {
        "study": study,
        "options": _plain(options),
        "pictures": {
            name: len(getattr(world, name).labels) for name in ("train", "validation", "test")
        },
        "machine": machine(),
        "cases": figures,
    }


def _plain(options: Options) -> dict[str, Any]:
    """Options as JSON has them, without folders of a machine."""
    named = {
        "data": Path(options.data).name,
        "weights": options.weights and Path(options.weights).name,
    }
    found: dict[str, Any] = json.loads(json.dumps({**asdict(options), **named}))
    return found


def table(figures: Mapping[str, Any]) -> str:
    """Lines of text."""
    return STUDIES[figures["study"]].table(figures["cases"])
