"""A pruning job: network, pictures and target, checked before any training."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsprig.artifacts.digest import state_digest
from fedsprig.errors import (
    BudgetError,
    DataError,
    InfeasibleBudgetError,
    LabelRangeError,
    PlanError,
    TooFewClassesError,
)
from fedsprig.graph.plan import GroupPlan
from fedsprig.masks import Mask, PlanCosts
from fedsprig.masks.costs import BYTES_PER_PARAMETER
from fedsprig.masks.order import Rules
from fedsprig.masks.solver import check_protected
from fedsprig.masks.weights import WeightMask
from fedsprig.pruning.target import Target

_CHECKED_AT_ONCE: Final = 1024


class Labelled(NamedTuple):
    """Pictures ``float32 [n, c, h, w]`` as the network takes them, and labels ``int64 [n]``."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """What every pruner gets.

    Attributes:
        model: the whole network with the head of the task; left as it is.
        plan: its groups; its head is brought to the model's width.
        train: what weights are trained on, and units are scored on.
        validation: what selects; never trained on.
        target: the policy and its number.
        seed: all randomness follows from it.
        latency_ms: measures the sub-network of a mask in milliseconds; for a target in them. What
            it says follows from how many units of each group stay, whichever they are.

    Raises:
        PlanError: the plan has no group to prune.
        TooFewClassesError: the pictures are of fewer than two classes.
        DataError: no pictures, or pictures and labels that do not fit each other.
        LabelRangeError: a label that the head does not have.
        BudgetError: a target in milliseconds without a measurement.
    """

    model: nn.Module
    plan: GroupPlan
    train: Labelled
    validation: Labelled
    target: Target
    seed: int = 0
    latency_ms: Callable[[Mask], float] | None = None
    _costs: PlanCosts = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.plan.groups:
            raise PlanError(
                f"{self.plan.model or 'the model'} has no group that can be pruned: "
                "take another base model"
            )
        weight = self.model.state_dict().get(f"{self.plan.head}.weight") if self.plan.head else None
        if weight is not None:
            object.__setattr__(self, "plan", self.plan.with_num_classes(len(weight)))
        object.__setattr__(self, "_costs", PlanCosts(self.plan))
        if self.latency_ms is not None:
            object.__setattr__(self, "latency_ms", _milliseconds(self.latency_ms))
        classes = None if weight is None else len(weight)
        for pictures, what in ((self.train, "training"), (self.validation, "validation")):
            _check(pictures, what, classes, self.plan.input_shape[1:])
        if bool((self.train.labels == self.train.labels[0]).all()):
            raise TooFewClassesError(
                "the training pictures are of one class: give pictures of at least 2 classes"
            )
        if self.target.unit == "ms" and self.latency_ms is None:
            raise BudgetError(
                "the target is in milliseconds: pass latency_ms=, a function that measures a mask"
            )

    def size(self, mask: Mask, weight_mask: WeightMask | None = None) -> float:
        """What the target limits, of a mask's sub-network; bytes under the accuracy policy.

        Args:
            mask: units that stay.
            weight_mask: single weights that are zero: they take a bit each to store, and no fewer
                multiply-accumulates.
        """
        if self.target.unit == "ms" and self.latency_ms is not None:
            return self.latency_ms(mask)
        kept = self._costs.kept(mask)
        if self.target.unit == "macs":
            return self._costs.macs(kept)
        parameters = self._costs.parameters(kept)
        if weight_mask is not None:
            return weight_mask.stored_bytes(parameters)
        return BYTES_PER_PARAMETER * parameters

    def check_feasible(self, floor: float, protect: Collection[str] = ()) -> None:
        """Refuse a hard limit that even the smallest mask breaks.

        Args:
            floor: share of every group's units that stays.
            protect: groups or kinds that stay whole.

        Raises:
            InfeasibleBudgetError: says by how much.
            BudgetError: a floor that is no share.
        """
        if not 0 <= floor < 1:
            raise BudgetError(f"floor is a share of units from 0 to below 1, not {floor}")
        check_protected(protect, self.plan)
        if self.target.budget is None:
            return
        least = least_units(self.plan, floor, protect)
        groups: dict[str, NDArray[np.bool_]] = {
            group.name: np.arange(group.units) < least[group.name] for group in self.plan.groups
        }
        needs = self.size(Mask(groups))
        if not needs <= self.target.amount:
            raise InfeasibleBudgetError(
                f"the smallest network needs {needs:,.6g} {self.target.unit}, the target allows "
                f"{self.target.amount:,.6g}: raise the target, lower floor (now {floor:g}) or take "
                "a smaller base model"
            )

    def digest(self, settings: object) -> str:
        """A SHA-256 (hex) that differs for another network, pictures, target, seed or settings."""
        parts = [
            state_digest({n: v.detach().cpu() for n, v in self.model.state_dict().items()}),
            self.plan.digest,
            state_digest({"images": self.train.images.cpu(), "labels": self.train.labels.cpu()}),
            state_digest(
                {"images": self.validation.images.cpu(), "labels": self.validation.labels.cpu()}
            ),
            repr((self.target, self.seed)),
            json.dumps(settings, sort_keys=True),
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def least_units(plan: GroupPlan, floor: float, protect: Collection[str] = ()) -> dict[str, int]:
    """Units that every mask keeps, by group: at least one of each."""
    rules = Rules(floor, 1, frozenset(protect), plan.macs_per_weight)
    return {group.name: rules.least(group) for group in plan.groups}


def _milliseconds(measure: Callable[[Mask], float]) -> Callable[[Mask], float]:
    """A measuring function whose answers are checked numbers."""

    def measured(mask: Mask) -> float:
        found = measure(mask)
        try:
            time = float(found)
        except (TypeError, ValueError):
            time = math.nan
        if not 0 <= time < math.inf:
            raise BudgetError(
                f"latency_ms says {found!r:.40} of a mask: return milliseconds, 0 or more"
            )
        return time

    return measured


def _check(pictures: Labelled, what: str, classes: int | None, shape: tuple[int, ...]) -> None:
    images, labels = pictures
    if images.dtype != torch.float32 or images.shape[1:] != shape:
        raise DataError(
            f"{what} pictures are {images.dtype} {list(images.shape)}: pass float32 "
            f"{['n', *shape]}, or a plan that was traced for theirs"
        )
    if not all(bool(torch.isfinite(part).all()) for part in torch.split(images, _CHECKED_AT_ONCE)):
        raise DataError(f"some of the {what} pictures are not finite: look for NaN or infinity")
    if not len(images) or labels.shape != images.shape[:1]:
        raise DataError(
            f"{len(images)} {what} pictures with labels {list(labels.shape)}: "
            "pass one picture at least and one label each"
        )
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or (classes is not None and highest >= classes):
        raise LabelRangeError(
            f"{what} labels go from {lowest} to {highest}, the model has {classes} classes: "
            "build it with num_classes to fit, or relabel from 0"
        )
