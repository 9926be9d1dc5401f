"""Methods that fill a library: each turns a network and a task's pictures into a pruned network.

A method is one file and one line in ``PRUNERS``; docs/pruning.md says how to add one.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from fedsprig.pruning.aap import AAP
from fedsprig.pruning.job import Job, Labelled
from fedsprig.pruning.one_shot import OneShot
from fedsprig.pruning.product import Product, Progress, Pruner, silent
from fedsprig.pruning.rewinding import Schedule
from fedsprig.pruning.sparse import PDP, GradualMagnitude
from fedsprig.pruning.target import Policy, Target
from fedsprig.pruning.visual_prompt import PASS

__all__ = [
    "AAP",
    "PASS",
    "PDP",
    "PRUNERS",
    "GradualMagnitude",
    "Job",
    "Labelled",
    "OneShot",
    "Policy",
    "Product",
    "Progress",
    "Pruner",
    "Schedule",
    "Target",
    "silent",
]

PRUNERS: Final[Mapping[str, Pruner]] = MappingProxyType(
    {
        "aap": AAP(),
        "attention": OneShot(criterion="attention"),
        "fpgm": OneShot(criterion="fpgm"),
        "gmp": GradualMagnitude(),
        "magnitude": OneShot(criterion="magnitude"),
        "magnitude-l2": OneShot(criterion="magnitude", options=(("p", 2.0),), label="magnitude-l2"),
        "pass": PASS(),
        "pdp": PDP(),
        "random": OneShot(criterion="random"),
        "snip": OneShot(criterion="snip"),
        "taylor": OneShot(criterion="taylor"),
    }
)
"""Methods by name, with their default settings: ``dataclasses.replace`` gives others."""
