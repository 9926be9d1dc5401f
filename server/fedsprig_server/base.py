"""The base model on the server: its weights, its plan, and the probe that describes pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsprig.adapters import is_statistic
from fedsprig.bases import BaseWeights, leave_out_base
from fedsprig.errors import PlanError
from fedsprig.graph import GroupPlan, materialize, trace_groups
from fedsprig.masks import Budget, Mask, peak_of, plan_macs, plan_parameters, solve
from fedsprig.models import ModelCard, build, describe
from fedsprig.scoring import score
from fedsprig.subnetwork import pack_subnetwork
from fedsprig.training import recalibrate

Array = NDArray[Any]
PROBE_MACS_RATIO = 0.25


@dataclass(frozen=True, slots=True)
class Base:
    """A pretrained network as the server keeps it.

    Attributes:
        module: The network, in evaluation mode. Its classifier is a placeholder: every task has its
            own.
        state: Its parameters and buffers without the classifier.
        digest: Digest of ``state``: with the builder's name it identifies the base.

    Raises:
        PlanError: The plan is of another network, another picture size or another classifier.
    """

    module: nn.Module
    card: ModelCard
    plan: GroupPlan
    state: Mapping[str, Array]
    digest: str
    _memo: dict[str, Callable[[Mask], int]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        """Refuse a plan that does not fit."""
        _check_plan(self.plan, self.card, self.module)

    @classmethod
    def load(
        cls,
        name: str,
        weights: str | None,
        *,
        image_size: int | None = None,
        stored_plan: Callable[[str], bytes | None] = lambda digest: None,
    ) -> Base:
        """Build a base model by name, with the plan that is stored for it or one traced now.

        Args:
            name: A builder's name.
            weights: As :func:`fedsprig.models.build` takes them.
            image_size: Side of the pictures, where it is not to be the model's usual one.
            stored_plan: Gives the bytes of the plan that is kept for a base's digest, or ``None``
                to trace the network. All that a library holds of a base is in the units of the
                plan that lies with it, so that a stored plan must be used where there is one.

        Raises:
            PlanError: The stored plan does not fit the network, its picture size or classifier.
            UnknownModelError: No builder has that name.
            WeightsError: The weights are absent or do not fit.
        """
        card = describe(name)
        card = replace(card, input_size=image_size or card.input_size)
        size = card.input_size
        module = build(name, num_classes=2, weights=weights, image_size=size)
        own = BaseWeights.of(name, module, card.head)
        stored = stored_plan(own.digest)
        if stored is None:
            plan = trace_groups(module, torch.zeros(1, 3, size, size), name=name)
        else:
            plan = GroupPlan.from_bytes(stored)
        return cls(module, card, plan, own.state, own.digest)

    def macs(self, mask: Mask, *, num_classes: int) -> int:
        """Multiply-accumulates of one picture, with a classifier for ``num_classes``."""
        return plan_macs(self.plan.with_num_classes(num_classes), mask)

    def parameters(self, mask: Mask, *, num_classes: int) -> int:
        """Parameters of the sub-network with a classifier for ``num_classes``."""
        return plan_parameters(self.plan.with_num_classes(num_classes), mask)

    def peak_bytes(self, mask: Mask) -> int:
        """Peak bytes of activations for one picture, walked on shapes alone."""
        if "peak" not in self._memo:
            example = torch.zeros(self.plan.input_shape, device="meta")
            self._memo["peak"] = peak_of(self.module, self.plan, example)
        return self._memo["peak"](mask)

    def probe(self, images: Tensor) -> bytes:
        """The package of the probe: the base cut by magnitude to a quarter of its MACs.

        It is the same for all devices and tasks of the base. Its normalisation statistics are those
        of ``images`` (``[n, 3, h, w]``, the server's own), since those of the full network are
        wrong for the cut one.
        """
        limit = Budget(macs=int(PROBE_MACS_RATIO * self.macs(Mask.full(self.plan), num_classes=2)))
        mask = solve(score("magnitude", self.module, self.plan, ()), self.plan, limit)
        small = materialize(self.module, self.plan, mask)
        recalibrate(small, images)
        statistics = {
            key: value.numpy() for key, value in small.state_dict().items() if is_statistic(key)
        }
        return pack_subnetwork(
            self.plan, mask, self.state, num_classes=2, adapter=None, own=statistics
        )

    def shorten(self, package: bytes, *, with_plan: bool) -> bytes:
        """The package for a device that keeps this base; see ``fedsprig.bases.leave_out_base``."""
        return leave_out_base(package, self.plan, self.state, self.digest, with_plan=with_plan)


def _check_plan(plan: GroupPlan, card: ModelCard, module: nn.Module) -> None:
    """Refuse a plan of another network, picture size or classifier, which would cut at random."""
    mend = "build the library again from this base"
    if plan.model != card.name:
        raise PlanError(f"the plan is of {plan.model!r}, the base is {card.name!r}: {mend}")
    size = (1, 3, card.input_size, card.input_size)
    if plan.input_shape != size:
        raise PlanError(
            f"the plan is of pictures {plan.input_shape}, the base takes {size}: {mend}"
        )
    if plan.head != card.head:
        raise PlanError(
            f"the plan's classifier is {plan.head!r}, that of {card.name!r} is {card.head!r}: "
            + mend
        )
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    for name in sorted(shapes.keys() | plan.shapes.keys()):
        if shapes.get(name) != plan.shapes.get(name):
            raise PlanError(
                f"{name} is {plan.shapes.get(name)} in the plan and {shapes.get(name)} in the "
                f"base: {mend}"
            )
