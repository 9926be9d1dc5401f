"""The adapter of a cohort on the server, for devices of every width.

Weights, biases and normalisation parameters are shared by all devices that keep their unit.
Normalisation statistics are
not: a narrower network sees other activations, so each mask (a stratum) has its own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedsprig.adapters import adapter_state, is_statistic
from fedsprig.artifacts import pack, unpack
from fedsprig.graph import KeptIndex, restrict
from fedsprig.models import replace_head
from fedsprig.subnetwork import AdapterConfig, attach_configured
from fedsprig_server.aggregation import Contribution, aggregate
from fedsprig_server.base import Base

Array = NDArray[Any]
Aggregation = Literal["fixed", "refactored"]


@dataclass(frozen=True, slots=True)
class CohortState:
    """Adapter values in the base's coordinates; statistics by mask digest, at its width."""

    values: Mapping[str, Array]
    statistics: Mapping[str, Mapping[str, Array]]

    @classmethod
    def start(cls, base: Base, adapter: AdapterConfig, *, num_classes: int) -> CohortState:
        """What devices start from: the base's own values, B and the head zero."""
        module = replace_head(copy.deepcopy(base.module), base.card, num_classes)
        module = attach_configured(module, adapter, base.plan.with_num_classes(num_classes), {})
        state = {name: value.numpy().copy() for name, value in adapter_state(module).items()}
        values = {name: value for name, value in state.items() if not is_statistic(name)}
        for name in head_names(base):
            values[name] = np.zeros_like(values[name])
        return cls(values, {})

    def with_head(self, base: Base, weight: Array, bias: Array) -> CohortState:
        """The same with a head: weight ``[classes, features]`` and bias ``[classes]``."""
        values = dict(self.values)
        for name, value in zip(head_names(base), (weight, bias), strict=False):
            values[name] = value.reshape(values[name].shape)
        return CohortState(values, self.statistics)

    def for_device(self, index: KeptIndex, stratum: str) -> dict[str, Array]:
        """What a device of this width gets."""
        return {**restrict(self.values, index), **self.statistics[stratum]}

    def averaged(self, contributions: Sequence[Contribution], *, how: Aggregation) -> CohortState:
        """The state after a round; see :func:`fedsprig_server.aggregation.aggregate`."""
        values, report = aggregate(self.values, contributions, a=how, statistics=self.statistics)
        return CohortState(values, report.statistics)

    def to_bytes(self) -> bytes:
        """One artefact; equal states give equal bytes."""
        arrays = {f"values/{name}": value for name, value in self.values.items()}
        for stratum, statistics in self.statistics.items():
            arrays |= {f"{stratum}/{name}": value for name, value in statistics.items()}
        return pack(arrays)

    @classmethod
    def from_bytes(cls, data: bytes) -> CohortState:
        """The state of :meth:`to_bytes`."""
        values: dict[str, Array] = {}
        statistics: dict[str, dict[str, Array]] = {}
        for key, array in unpack(data)[0].items():
            part, _, name = key.partition("/")
            if part == "values":
                values[name] = array
            else:
                statistics.setdefault(part, {})[name] = array
        return cls(values, statistics)


def head_names(base: Base) -> list[str]:
    """State names of the head: its weight and, where it has one, its bias."""
    module = base.module.get_submodule(base.card.head)
    return [f"{base.card.head}.{name}" for name, _ in module.named_parameters()]
