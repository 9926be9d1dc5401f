"""Who is compared: what trains, and whether what is pruned stays pruned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from fedsprig.errors import TrainingError
from fedsprig.spelling import lookup


@dataclass(frozen=True, slots=True)
class Method:
    """What trains.

    Attributes:
        kind: A name of ``fedsprig.adapters.ADAPTERS``.
        rank: Of the adapter.
        rates: Learning rates that are tried on the validation pictures.
    """

    kind: str
    rank: int
    rates: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Arm:
    """One row of the comparison.

    Attributes:
        method: A name of ``METHODS``.
        leaks: Pruned filters are set to zero once and then left to training, as the published code
            does, where an exact arm has them cut out of the network.
    """

    method: str
    leaks: bool

    @property
    def name(self) -> str:
        """The method, and the leak."""
        return self.method + ("-leaking" if self.leaks else "")


METHODS: Final[Mapping[str, Method]] = MappingProxyType(
    {
        "fine-pruning": Method("full", 1, (0.01, 0.05, 0.1)),
        "splora-8": Method("splora", 8, (0.1, 0.2, 0.4)),
        "splora-32": Method("splora", 32, (0.1, 0.2)),
    }
)


def read_rates(items: Iterable[str]) -> dict[str, list[float]]:
    """Learning rates by method, from ``METHOD=RATE`` texts; a method may come more than once.

    Raises:
        UnknownNameError: No such method.
        TrainingError: A text of another form.
    """
    rates: dict[str, list[float]] = {}
    for item in items:
        method, _, rate = item.partition("=")
        lookup(METHODS, method, "method")
        try:
            rates.setdefault(method, []).append(float(rate))
        except ValueError:
            raise TrainingError(f"{item!r} is not of the form METHOD=RATE: {method}=0.1") from None
    return rates


ARMS: Final[Mapping[str, Arm]] = MappingProxyType(
    {
        arm.name: arm
        for arm in (
            Arm("fine-pruning", leaks=False),
            Arm("splora-8", leaks=False),
            Arm("splora-32", leaks=False),
            Arm("fine-pruning", leaks=True),
            Arm("splora-8", leaks=True),
        )
    }
)
