"""The adapter of a cohort on the server, for devices of every width.

Adapters, biases and normalisation parameters are shared: a device that keeps a unit trains it for
all that keep it. Normalisation statistics and the head are not: they read what comes out of a whole
network, and networks of other widths compute other things, so each mask (a stratum) has its own
(docs/experiments.md, "One head for all widths").
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

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
    """What a cohort has trained.

    Attributes:
        shared: Values of all widths, in the base's coordinates.
        own: Head and statistics by mask digest, at the width of its network.
    """

    shared: Mapping[str, Array]
    own: Mapping[str, Mapping[str, Array]]

    @classmethod
    def start(cls, base: Base, adapter: AdapterConfig, *, num_classes: int) -> CohortState:
        """What devices start from before they have said anything: the base's values, B zero."""
        module = replace_head(copy.deepcopy(base.module), base.card, num_classes)
        module = attach_configured(module, adapter, base.plan.with_num_classes(num_classes), {})
        state = {name: value.numpy().copy() for name, value in adapter_state(module).items()}
        return cls({name: v for name, v in state.items() if not is_own(name, base.plan.head)}, {})

    def for_device(self, index: KeptIndex, stratum: str) -> dict[str, Array]:
        """What a device of this width gets."""
        return {**restrict(self.shared, index), **self.own[stratum]}

    def averaged(
        self, contributions: Sequence[Contribution], *, head: str, how: Aggregation
    ) -> CohortState:
        """The state after a round; see :func:`fedsprig_server.aggregation.aggregate`.

        Args:
            contributions: The devices' adapters after their training.
            head: Module path of the classifier.
            how: What becomes of A and B.
        """
        parts = {
            stratum: [item for item in contributions if item.stratum == stratum]
            for stratum in sorted({item.stratum for item in contributions})
        }
        own = dict(self.own)
        for stratum, members in parts.items():
            before = self.own.get(stratum, {})
            own[stratum] = _average_own(before, members, head)
        bodies = [_with(item, lambda name: not is_own(name, head)) for item in contributions]
        shared, _ = aggregate(self.shared, bodies, a=how)
        return CohortState(shared, own)

    def to_bytes(self) -> bytes:
        """One artefact; equal states give equal bytes."""
        arrays = {f"shared/{name}": value for name, value in self.shared.items()}
        for stratum, values in self.own.items():
            arrays |= {f"{stratum}/{name}": value for name, value in values.items()}
        return pack(arrays)

    @classmethod
    def from_bytes(cls, data: bytes) -> CohortState:
        """The state of :meth:`to_bytes`."""
        parts: dict[str, dict[str, Array]] = {}
        for key, array in unpack(data)[0].items():
            part, _, name = key.partition("/")
            parts.setdefault(part, {})[name] = array
        return cls(parts.pop("shared", {}), parts)


def is_own(name: str, head: str) -> bool:
    """Whether a value belongs to one width alone."""
    return is_statistic(name) or (bool(head) and name.startswith(f"{head}."))


def _average_own(
    before: Mapping[str, Array], members: Sequence[Contribution], head: str
) -> dict[str, Array]:
    """Head and statistics of one stratum, whose devices all have the same network."""
    heads = {name: value for name, value in before.items() if not is_statistic(name)}
    alike = [replace(_with(item, lambda name: is_own(name, head)), index={}) for item in members]
    heads, report = aggregate(heads, alike)
    (statistics,) = report.statistics.values() if report.statistics else ({},)
    return {**before, **heads, **statistics}


def _with(item: Contribution, wanted: Callable[[str], bool]) -> Contribution:
    return replace(item, state={n: value for n, value in item.state.items() if wanted(n)})
