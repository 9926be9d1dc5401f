"""From the network that a run chose to its product: figures, nested masks, settings."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

from fedsprig.artifacts.container import Array
from fedsprig.masks import Mask, ScoreSet, plan_macs, plan_parameters
from fedsprig.masks.weights import WeightMask
from fedsprig.pruning.job import Job
from fedsprig.pruning.nesting import nested_masks
from fedsprig.pruning.network import Stage, weights_of
from fedsprig.pruning.product import Product


def figures(job: Job, mask: Mask, weight_mask: WeightMask | None = None) -> dict[str, Any]:
    """What every run notes of a network: its masks' digest, parameters, MACs, and target's size."""
    found: dict[str, Any] = {
        "mask": mask.digest,
        "parameters": plan_parameters(job.plan, mask),
        "macs": plan_macs(job.plan, mask),
        "size": job.size(mask, weight_mask),
    }
    if weight_mask is not None:
        found |= {"weight_mask": weight_mask.digest, "zeros": weight_mask.size - weight_mask.kept}
    return found


def finished(
    method: str,
    job: Job,
    stage: Stage,
    scores: ScoreSet,
    *,
    floor: float,
    protect: Collection[str] = (),
    comparable: bool = False,
    metrics: Mapping[str, float],
    settings: Mapping[str, Any],
    weight_mask: WeightMask | None = None,
    state: Mapping[str, Array] | None = None,
) -> Product:
    """The product of a run.

    Args:
        method: the pruner's name.
        job: what it was asked.
        stage: the network that it chose.
        scores: of all units.
        floor: share of a group's units that every mask keeps.
        protect: groups or kinds that every mask keeps whole.
        comparable: whether scores of different groups compare as they are.
        metrics: the run's own figures; those that follow from the masks are added.
        settings: of the method, and what happened; target and seed are added.
        weight_mask: single weights that are zero.
        state: what else the entry keeps.
    """
    own, full = figures(job, stage.mask, weight_mask), figures(job, Mask.full(job.plan))
    counted = {
        "parameters": own["parameters"],
        "macs": own["macs"],
        "parameters_ratio": own["parameters"] / full["parameters"],
        "macs_ratio": own["macs"] / full["macs"],
        "size": own["size"],
    }
    if weight_mask is not None:
        counted["zeros"] = own["zeros"]
    return Product(
        method=method,
        scores=scores,
        mask=stage.mask,
        masks=nested_masks(
            scores, job.plan, stage.mask, floor=floor, protect=protect, normalise=not comparable
        ),
        weights=weights_of(stage.network),
        weight_mask=weight_mask,
        state=state or {},
        metrics={name: float(value) for name, value in (counted | dict(metrics)).items()},
        settings={**settings, "target": asdict(job.target), "seed": job.seed},
    )
