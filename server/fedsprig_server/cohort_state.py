"""The adapter of a cohort on the server, for devices of every width.

Each width (a mask, a stratum) has its own adapter. A device of another width helps to train the
units that both keep, but counts for less: what a unit should compute depends on which other units
are there (docs/experiments.md, "Averaging across widths"). The head and the normalisation
statistics read what comes out of a whole network, and are shared within a width alone.

Where every device keeps statistics of its own (``AdapterConfig.local_statistics``), there are none
in the state: a device measures them on its own pictures from whatever adapter it gets. FedBN (Li et
al. 2021) keeps scale and shift of the normalisation local too; here they travel and are averaged,
for three reasons. They train beside B and are scaled against it. A device that was away, or lost
what it kept, goes on from the adapter alone; and so does one that comes when the task is in the
library. And an answer stays a function of the request, not of which rounds a device saw.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsprig.adapters import adapter_state, is_statistic
from fedsprig.adapters.factors import Trains
from fedsprig.artifacts import pack, unpack
from fedsprig.graph import KeptIndex, kept_axes, restrict
from fedsprig.models import replace_head
from fedsprig.models.head import is_of_head
from fedsprig.subnetwork import AdapterConfig, attach_configured
from fedsprig_server.aggregation import Contribution, aggregate
from fedsprig_server.base import Base

Array = NDArray[Any]
Truncation = Mapping[str, Mapping[str, float]]
"""Mask digest -> layer -> relative error of its refactored product; empty where none was."""


@dataclass(frozen=True, slots=True)
class Narrowing:
    """Where a smaller network comes from.

    Attributes:
        of: Mask digest of the network that it is cut from.
        index: What its own mask leaves of the base's tensors.
        within: The same of the network that it is cut from; :func:`fedsprig.graph.index_within`.
    """

    of: str
    index: KeptIndex
    within: KeptIndex


@dataclass(frozen=True, slots=True)
class CohortState:
    """What a cohort has trained, by mask digest.

    Attributes:
        body: Adapters, biases and normalisation parameters, in the base's coordinates; what a width
            does not keep stays as it was at the start.
        own: Head and statistics, at the width of the network.
    """

    body: Mapping[str, Mapping[str, Array]]
    own: Mapping[str, Mapping[str, Array]]

    @classmethod
    def start(
        cls,
        base: Base,
        adapter: AdapterConfig,
        heads: Mapping[str, Mapping[str, Array]],
        *,
        num_classes: int,
        healed: Mapping[str, tuple[KeptIndex, Mapping[str, Array]]] = MappingProxyType({}),
    ) -> CohortState:
        """What devices start from before any training: the base's or healed values, B zero.

        Args:
            base: The base model.
            adapter: What trains.
            heads: The first head of every width, by mask digest.
            num_classes: Classes of the task.
            healed: Of networks that were healed, by mask digest: what their masks leave, and their
                own values at their own width.
        """
        module = replace_head(copy.deepcopy(base.module), base.card, num_classes)
        module = attach_configured(module, adapter, base.plan.with_num_classes(num_classes), {})
        body = {
            name: value.numpy().copy()
            for name, value in adapter_state(module).items()
            if not is_own(name, base.plan.head)
        }
        bodies = {
            width: _placed(body, *healed[width]) if width in healed else body for width in heads
        }
        return cls(bodies, heads)

    def for_device(self, index: KeptIndex, stratum: str) -> dict[str, Array]:
        """What a device of this width gets."""
        return {**restrict(self.body[stratum], index), **self.own[stratum]}

    def narrowed(self, cuts: Mapping[str, Narrowing], start: Mapping[str, Array]) -> CohortState:
        """The state of smaller networks: units that are left have what they had, to the bit.

        Units that are gone are as they were at the start.

        Args:
            cuts: By mask digest of a smaller network: what it is cut from.
            start: A body before any training.
        """
        return CohortState(
            {
                new: {
                    name: _kept(value, start[name], kept_axes(name, cut.index))
                    for name, value in self.body[cut.of].items()
                }
                for new, cut in cuts.items()
            },
            {new: restrict(self.own[cut.of], cut.within) for new, cut in cuts.items()},
        )

    def averaged(
        self,
        contributions: Sequence[Contribution],
        *,
        head: str,
        trains: Trains = "b",
        sharing: float,
    ) -> tuple[CohortState, Truncation]:
        """The state after a round; see :func:`fedsprig_server.aggregation.aggregate`.

        Args:
            contributions: The devices' adapters after their training.
            head: Module path of the classifier.
            trains: Which factors trained in the round.
            sharing: How much a device of another width counts beside one of the same: from 0 (not
                at all) to 1 (the same).

        Returns:
            The state, and what refactoring lost.
        """
        bodies = [_with(item, lambda name: not is_own(name, head)) for item in contributions]
        body, own, truncation = {}, {}, {}
        for stratum, before in self.body.items():
            helpers = [
                item if item.stratum == stratum else replace(item, weight=item.weight * sharing)
                for item in bodies
                if item.stratum == stratum or sharing > 0
            ]
            members = [item for item in contributions if item.stratum == stratum]
            within = members[0].index if members else None
            body[stratum], report = aggregate(before, helpers, trains=trains, within=within)
            own[stratum] = _average_own(self.own[stratum], members, head)
            if report.truncation:
                truncation[stratum] = report.truncation
        return CohortState(body, own), truncation

    def to_bytes(self) -> bytes:
        """One artefact; equal states give equal bytes."""
        return pack(
            {
                f"{part}/{stratum}/{name}": value
                for part, strata in (("body", self.body), ("own", self.own))
                for stratum, values in strata.items()
                for name, value in values.items()
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> CohortState:
        """The state of :meth:`to_bytes`."""
        parts: dict[str, dict[str, dict[str, Array]]] = {"body": {}, "own": {}}
        for key, array in unpack(data)[0].items():
            part, stratum, name = key.split("/", 2)
            parts[part].setdefault(stratum, {})[name] = array
        return cls(parts["body"], parts["own"])


def is_own(name: str, head: str) -> bool:
    """Whether a value belongs to one width alone."""
    return is_statistic(name) or is_of_head(name, head)


def _kept(value: Array, rest: Array, kept: Mapping[int, NDArray[np.int64]]) -> Array:
    """``value`` at the kept positions, ``rest`` elsewhere."""
    if not kept:
        return value
    at = np.ix_(*(kept.get(axis, np.arange(size)) for axis, size in enumerate(value.shape)))
    result = rest.copy()
    result[at] = value[at]
    return result


def _placed(
    body: Mapping[str, Array], index: KeptIndex, small: Mapping[str, Array]
) -> dict[str, Array]:
    """A body with a small network's own values where it has them."""
    found = dict(body)
    for name in body.keys() & small.keys():
        kept = kept_axes(name, index)
        at = np.ix_(
            *(kept.get(axis, np.arange(size)) for axis, size in enumerate(body[name].shape))
        )
        found[name] = body[name].copy()
        found[name][at] = small[name]
    return found


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
