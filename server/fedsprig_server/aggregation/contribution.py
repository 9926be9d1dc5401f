"""What one device brings to a round, checked before anything is added up."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsprig.adapters import is_statistic
from fedsprig.errors import NonFiniteUpdateError, UpdateError, UpdateShapeError
from fedsprig.graph.index import KeptIndex, kept_axes

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Contribution:
    """The adapter of one device after its local training.

    Attributes:
        device: Its name; a device contributes once.
        weight: How much it counts, above 0: its number of pictures.
        state: Adapter tensors at the width of the device's sub-network. A tensor that is absent
            takes no part in that tensor's mean.
        index: What its mask keeps of every tensor.
        stratum: Digest of its mask: devices of one stratum have the same sub-network.
    """

    device: str
    weight: float
    state: Mapping[str, Array]
    index: KeptIndex
    stratum: str


def checked(
    contributions: Sequence[Contribution], shapes: Mapping[str, tuple[int, ...]]
) -> list[Contribution]:
    """The contributions in the order of the devices' names, after all checks.

    The order makes the sums independent of who answered first.

    Args:
        contributions: From the devices.
        shapes: Full shapes of the adapter's tensors; statistics need not be among them.

    Raises:
        UpdateError: Two contributions of one device, or a weight that is not above 0.
        UpdateShapeError: A tensor that the adapter does not have, or of another width than the
            device's mask leaves.
        NonFiniteUpdateError: NaN or an infinity.
    """
    ordered = sorted(contributions, key=lambda item: item.device)
    for one, other in itertools.pairwise(ordered):
        if one.device == other.device:
            raise UpdateError(f"device {one.device!r} contributes twice: count each device once")
    for item in ordered:
        if not (math.isfinite(item.weight) and item.weight > 0):
            raise UpdateError(
                f"device {item.device!r} has weight {item.weight}: use its number of pictures"
            )
        for name, value in item.state.items():
            _check_tensor(item, name, value, shapes)
    return ordered


def _check_tensor(
    item: Contribution, name: str, value: Array, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    if name not in shapes and not is_statistic(name):
        raise UpdateShapeError(f"device {item.device!r} sent {name!r:.80}, no part of the adapter")
    if value.dtype.kind != "f":
        raise UpdateShapeError(f"device {item.device!r} sent {name} as {value.dtype}: use floats")
    if name in shapes:
        kept = kept_axes(name, item.index)
        full = shapes[name]
        if any(a >= len(full) or not len(k) or k[-1] >= full[a] for a, k in kept.items()):
            raise UpdateShapeError(
                f"the mask of device {item.device!r} does not fit {name} of shape {full}: "
                "use the plan that it was made with"
            )
        expected = tuple(len(kept[a]) if a in kept else size for a, size in enumerate(full))
        if value.shape != expected:
            raise UpdateShapeError(
                f"device {item.device!r} sent {name} of shape {value.shape}, its mask leaves "
                f"{expected}"
            )
    if not np.isfinite(value).all():
        raise NonFiniteUpdateError(
            f"{name} of device {item.device!r} is not finite: leave the device out of this round"
        )
