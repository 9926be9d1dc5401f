"""The arms: a score mask, a base to cut, and what becomes of the cut network before it trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from fedsprig_sim.benchmarks.one_shot_accuracy.masks import MASKS


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to a network for a new task.

    Attributes:
        name: In tables and options.
        mask: A name of ``MASKS``; ``None``: nothing is cut.
        base: Which base is cut, the one as it comes or the one prepared for cutting.
        healed: Whether the cut network is healed on the server.
        iterative: Whether the device prunes for itself, cut by cut, instead of all at once.
    """

    name: str
    mask: str | None
    base: Literal["plain", "prepared"] = "plain"
    healed: bool = False
    iterative: bool = False


def _masks_alone() -> tuple[Arm, ...]:
    return tuple(Arm(name=name, mask=name) for name in MASKS)


_LIST: Final = (
    *_masks_alone(),
    Arm(name="prepared", mask="mean", base="prepared"),
    Arm(name="prepared, ridge", mask="ridge", base="prepared"),
    Arm(name="prepared, own taylor", mask="own taylor", base="prepared"),
    Arm(name="prepared, random", mask="random", base="prepared"),
    Arm(name="healed", mask="mean", healed=True),
    Arm(name="whole start", mask="mean", base="prepared", healed=True),
    Arm(name="uncut", mask=None),
    Arm(name="uncut, prepared", mask=None, base="prepared"),
    Arm(name="iterative", mask="own taylor", iterative=True),
)

ARMS: Final[Mapping[str, Arm]] = MappingProxyType({arm.name: arm for arm in _LIST})
