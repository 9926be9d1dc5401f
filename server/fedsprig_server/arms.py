"""The arms: ways to get a network for a task, the product's own and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from fedsprig.masks import ScoreSet
from fedsprig.scoring import score
from fedsprig.seeds import derive_seed
from fedsprig.subnetwork import AdapterConfig
from fedsprig.tasks import Neighbour, TaskSketch, score_mask

if TYPE_CHECKING:
    from fedsprig_server.base import Base
    from fedsprig_server.config import RoundsConfig, SelectionConfig


@dataclass(frozen=True, slots=True)
class Described:
    """What is known of a task when its units are scored."""

    task: str
    sketch: TaskSketch
    neighbours: Sequence[Neighbour]
    base: Base
    selection: SelectionConfig
    seed: int


def _as_set(adapter: AdapterConfig) -> AdapterConfig:
    return adapter


def _rate(rounds: RoundsConfig) -> float:
    return rounds.learning_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """What one arm does otherwise than the others.

    Attributes:
        name: In settings, runs and results.
        scores: The unit scores that the mask is solved from; ``None``: nothing is pruned, whatever
            the budget.
        adapter: What devices train, from what the settings say.
        learning_rate: Which one.
        update_codec: Takes the place of the settings' one.
        aggregation: Takes the place of the settings' one.
        publishes: Whether a finished task becomes a library entry.
    """

    name: str
    scores: Callable[[Described], ScoreSet] | None
    adapter: Callable[[AdapterConfig], AdapterConfig] = _as_set
    learning_rate: Callable[[RoundsConfig], float] = _rate
    update_codec: str | None = None
    aggregation: str | None = None
    publishes: bool = False


def _one_shot(known: Described) -> ScoreSet:
    return score_mask(
        known.sketch,
        known.neighbours,
        method=known.selection.score_mask,
        temperature=known.selection.temperature,
    )


def _magnitude(known: Described) -> ScoreSet:
    return score("magnitude", known.base.module, known.base.plan, ())


def _random(known: Described) -> ScoreSet:
    seed = derive_seed(known.seed, "random", known.task)
    return score("random", known.base.module, known.base.plan, (), seed=seed)


ARMS: Final[Mapping[str, Arm]] = MappingProxyType(
    {
        arm.name: arm
        for arm in (
            Arm(name="one_shot", scores=_one_shot, publishes=True),
            Arm(name="magnitude", scores=_magnitude),
            Arm(name="random", scores=_random),
            # The comparison that pays for everything: all weights train and travel, at 16 bits.
            Arm(
                name="full_finetune",
                scores=None,
                adapter=lambda adapter: replace(adapter, kind="full", train_a=False),
                learning_rate=lambda rounds: rounds.full_learning_rate,
                update_codec="float16",
                aggregation="fixed",
            ),
        )
    }
)

(PUBLISHED,) = (arm for arm in ARMS.values() if arm.publishes)
