"""The ways to train and average the two factors of an adapter, from round to round.

What a layer computes is the product ``B A``. With A fixed by its seed the mean of B is exact, and A
never travels. Training both and averaging both is wrong, since ``mean(B) mean(A)`` is not
``mean(B A)``; so products are averaged and factored again (``refactor.py``), which loses what the
rank cannot hold. Or the factors take turns: then every round's mean is exact, and A learns too.

Fixed: Sun et al. 2024, "Improving LoRA in Privacy-preserving Federated Learning" (FFA-LoRA).
Alternating: Chen et al. 2024, "Robust Federated Finetuning of Foundation Models via Alternating
Minimization of LoRA" (RoLoRA).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from fedsprig.adapters.factors import Trains


@dataclass(frozen=True, slots=True)
class Mode:
    """One way to aggregate.

    Attributes:
        name: In settings.
        turns: What trains in one round after the other, over and over; ``both`` is factored again.
    """

    name: str
    turns: tuple[Trains, ...]

    @property
    def trains_a(self) -> bool:
        """Whether A ever leaves its seeded start, so that it has to travel."""
        return self.turns != ("b",)

    def trains(self, number: int) -> Trains:
        """What trains in a round; the first one has number 1."""
        return self.turns[(number - 1) % len(self.turns)]


AGGREGATIONS: Final[Mapping[str, Mode]] = MappingProxyType(
    {
        mode.name: mode
        for mode in (
            Mode("fixed", ("b",)),
            Mode("refactored", ("both",)),
            Mode("alternating", ("b", "a")),
        )
    }
)
