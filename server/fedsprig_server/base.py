"""The base model on the server: its weights, its plan, and the probe that describes pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedsprig.adapters import is_statistic
from fedsprig.artifacts.digest import state_digest
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
    """

    module: nn.Module
    card: ModelCard
    plan: GroupPlan
    state: Mapping[str, Array]
    digest: str

    @classmethod
    def load(cls, name: str, weights: str | None, *, image_size: int | None = None) -> Base:
        """Build a base model by name and trace its groups.

        Args:
            name: A builder's name.
            weights: As :func:`fedsprig.models.build` takes them.
            image_size: Side of the pictures, where it is not to be the model's usual one.

        Raises:
            UnknownModelError: No builder has that name.
            WeightsError: The weights are absent or do not fit.
        """
        card = describe(name)
        card = replace(card, input_size=image_size or card.input_size)
        size = card.input_size
        module = build(name, num_classes=2, weights=weights, image_size=size)
        example = torch.zeros(1, 3, size, size)
        plan = trace_groups(module, example, name=name)
        state = {
            key: value.numpy().copy()
            for key, value in module.state_dict().items()
            if key.rpartition(".")[0] != card.head and not key.endswith("num_batches_tracked")
        }
        return cls(module, card, plan, state, state_digest(state))

    def macs(self, mask: Mask) -> int:
        """Multiply-accumulates of one picture through the sub-network."""
        return plan_macs(self.plan, mask)

    def parameters(self, mask: Mask, *, num_classes: int) -> int:
        """Parameters of the sub-network with a classifier for ``num_classes``."""
        return plan_parameters(self.plan.with_num_classes(num_classes), mask)

    def peak_bytes(self, mask: Mask) -> int:
        """Peak bytes of activations for one picture, walked on shapes alone."""
        size = self.card.input_size
        skeleton = build(self.plan.model, num_classes=2, device="meta", image_size=size)
        return peak_of(skeleton, self.plan, torch.zeros(1, 3, size, size, device="meta"))(mask)

    def probe(self, images: Tensor) -> bytes:
        """The package of the probe: the base cut by magnitude to a quarter of its MACs.

        It is the same for all devices and tasks of the base. Its normalisation statistics are those
        of ``images`` (``[n, 3, h, w]``, the server's own), since those of the full network are
        wrong for the cut one.
        """
        limit = Budget(macs=int(PROBE_MACS_RATIO * self.macs(Mask.full(self.plan))))
        mask = solve(score("magnitude", self.module, self.plan, ()), self.plan, limit)
        small = materialize(self.module, self.plan, mask)
        recalibrate(small, images)
        statistics = {
            key: value.numpy() for key, value in small.state_dict().items() if is_statistic(key)
        }
        return pack_subnetwork(
            self.plan, mask, self.state, num_classes=2, adapter=None, statistics=statistics
        )
