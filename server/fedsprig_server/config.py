"""The server's settings, in one JSON file: a restarted process goes on with the same ones."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, get_args

from fedsprig.adapters import ADAPTERS
from fedsprig.errors import RunError
from fedsprig.preparing import Distance, HealConfig
from fedsprig.pruning.aap.thresholds import Weighting
from fedsprig.scoring.attention import MAX_POWER, Form
from fedsprig.spelling import lookup, unknown
from fedsprig.subnetwork import AdapterConfig
from fedsprig.tasks import SCORE_MASKS
from fedsprig.tasks.score_mask.weights import LOWEST
from fedsprig.tasks.similarity import HEAD_VALUES, SIMILARITIES
from fedsprig_server.aggregation import AGGREGATIONS
from fedsprig_server.arms import ARMS

AUTO: Final = "auto"
MAX_PICTURES: Final = 10_000_000
"""That attention is measured on, on one device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsConfig:
    """How a cohort trains.

    Attributes:
        count: Rounds.
        epochs: Passes of each device over its pictures in a round.
        steps: Optimiser steps in a round; takes the place of ``epochs`` where it is not zero.
        full_learning_rate: Learning rate of full fine-tuning, the comparison, which wants a smaller
            one.
        optimiser: ``sgd`` or ``adam``, which wants a learning rate of about a twentieth.
        head_learning_rate_scale: Factor of the classifier's learning rate.
        sharing: How much a device of another width counts; see :meth:`CohortState.averaged`.
        deadline_seconds: How long the server waits for the answers to one message.
        quorum: Share of a cohort that must answer by then.
        join_seconds: How long the server waits for the expected devices before it starts.
    """

    count: int = 3
    epochs: int = 1
    steps: int = 0
    batch_size: int = 32
    learning_rate: float = 0.05
    full_learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "constant"
    augment: str = "none"
    optimiser: str = "sgd"
    head_learning_rate_scale: float = 1.0
    sharing: float = 0.0
    deadline_seconds: float = 600.0
    quorum: float = 1.0
    join_seconds: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionConfig:
    """How neighbours become a mask; see ``fedsprig.tasks.score_mask``, ``fedsprig.masks.solve``.

    Attributes:
        similarity: What the library is searched by, a name of ``fedsprig.tasks.SIMILARITIES`` that
            needs a sketch alone.
        rerank: What devices are asked about the best entries, a name of
            ``fedsprig.tasks.similarity.HEAD_VALUES``; empty: nothing. The score mask must be one
            that reads similarities.
        shortlist: How many entries that are; the others then get no weight.
        score_mask: A name of ``SCORE_MASKS`` there; ``auto``: the library decides on both and on
            the temperature (docs/retrieval.md).
    """

    similarity: str = "prototypes"
    rerank: str = ""
    shortlist: int = 20
    score_mask: str = "weighted"
    temperature: float = 0.5
    floor: float = 0.05
    round_to: int = 1
    protect: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check what the types cannot say."""
        by_sketch = {name: item for name, item in SIMILARITIES.items() if item.by_sketch}
        lookup(by_sketch, self.similarity, "similarity", error=RunError)
        if self.rerank:
            lookup(HEAD_VALUES, self.rerank, "value to rerank by", error=RunError)
        if self.shortlist < 1:
            raise RunError(f"shortlist {self.shortlist}: rerank 1 entry or more")
        if not LOWEST <= self.temperature < math.inf:
            raise RunError(f"temperature {self.temperature}: use a number from {LOWEST:g} up")
        if self.score_mask not in (AUTO, *SCORE_MASKS):
            raise RunError(unknown("score mask", self.score_mask, (AUTO, *SCORE_MASKS)))
        if self.rerank and self.score_mask not in by_similarity():
            raise RunError(
                f"rerank with score_mask {self.score_mask!r}, which does not read what devices "
                f"say: use {', '.join(by_similarity())}, or leave rerank away"
            )


def by_similarity() -> tuple[str, ...]:
    """The score masks that make something of :attr:`SelectionConfig.rerank`."""
    return tuple(name for name, way in SCORE_MASKS.items() if way.by_similarity)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartConfig:
    """Where sub-networks start: docs/starting.md.

    Attributes:
        heal_steps: Steps in which the server distils the base into every network that it cuts,
            before it sends it; 0: networks are sent as they are cut.
        pictures: Files (.npz) of the server's own pictures for that, of any classes.
        batch_size: Pictures in a step.
        learning_rate: At the first step.
        distance: Between features and the base's: ``squared``, or by their ``direction`` alone.
    """

    heal_steps: int = 0
    pictures: tuple[str, ...] = ()
    batch_size: int = 64
    learning_rate: float = 0.02
    distance: Distance = "squared"

    def __post_init__(self) -> None:
        """Refuse what would only fail when the first network is cut."""
        if self.heal_steps and not self.pictures:
            raise RunError("start: heal_steps needs pictures: name a file of them, or heal for 0")
        _ = self.healing

    @property
    def healing(self) -> HealConfig:
        """The settings of every healing."""
        return HealConfig(
            steps=self.heal_steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            distance=self.distance,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningConfig:
    """How networks go on shrinking while their cohort trains: docs/pruning.md, "Federated AAP".

    Attributes:
        every: Rounds before the first cut, and between one and the next.
        cuts: How many there are; after the last one every device's limits hold.
        start: Size of the first networks over that of the limits, above 1, but never more than the
            whole base model. Limits that are left shrink by the same factor with every cut.
        weighting: Layers are pruned by their share of ``parameters`` or of ``macs``; ``budget``
            takes ``macs`` where a device limits those, and ``parameters`` otherwise.
        power: p of the attention.
        form: How the attention takes pixels together.
        pictures: That a device measures attention on, at most.
    """

    every: int = 1
    cuts: int = 2
    start: float = 2.0
    weighting: Weighting | Literal["budget"] = "budget"
    power: float = 1.0
    form: Form = "mean"
    pictures: int = 1024

    def __post_init__(self) -> None:
        """Check what the types cannot say."""
        if self.form not in get_args(Form):
            raise RunError(unknown("form of attention", self.form, get_args(Form)))
        weightings = (*get_args(Weighting), "budget")
        if self.weighting not in weightings:
            raise RunError(unknown("weighting", self.weighting, weightings))
        if min(self.every, self.cuts, self.pictures) < 1:
            raise RunError("pruning: every, cuts and pictures are 1 or more")
        if self.pictures > MAX_PICTURES:
            raise RunError(f"pruning: pictures is {self.pictures}: choose up to {MAX_PICTURES:,}")
        if not (1 < self.start < math.inf and 0 < self.power <= MAX_POWER):
            raise RunError(
                f"pruning: start is above 1, not {self.start}, and power above 0 "
                f"and up to {MAX_POWER:g}, not {self.power}"
            )

    def due(self, number: int) -> bool:
        """Whether a round is followed by a cut."""
        return number % self.every == 0 and number <= self.last

    @property
    def last(self) -> int:
        """The round that the last cut follows."""
        return self.every * self.cuts


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Everything that a ServerApp needs to know.

    Attributes:
        library: Folder of the library.
        model: The base model's builder.
        weights: Its weights, as :func:`fedsprig.models.build` takes them.
        image_size: Side of the pictures, where it is not to be the model's usual one.
        tasks: Expected number of devices by task.
        arms: What each task is specialised with: ``one_shot``, and what it is compared with.
        adapter: What devices train.
        start: Where networks start.
        pruning: How networks go on shrinking meanwhile; ``None``: they stay as they were cut.
        aggregation: How A and B are averaged, a name of
            ``fedsprig_server.aggregation.AGGREGATIONS``; the adapter trains A where that does.
        update_codec: How updates are quantised.
        adapter_codec: How the adapter is quantised on its way to the devices.
        weights_codec: How the sub-network's weights are quantised on their way to the devices.
        publish: Whether finished one-shot tasks become library entries.
        scorer: What devices score their units with when a task is published.
        sketch_noise: Standard deviation of the noise that devices add to their class means.
        poll_seconds: Pause between two looks for answers.
    """

    library: Path
    model: str
    weights: str | None
    image_size: int | None
    tasks: dict[str, int]
    seed: int = 0
    arms: tuple[str, ...] = ("one_shot",)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    rounds: RoundsConfig = field(default_factory=RoundsConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    start: StartConfig = field(default_factory=StartConfig)
    pruning: PruningConfig | None = None
    aggregation: str = "fixed"
    update_codec: str = "int8"
    adapter_codec: str = "float16"
    weights_codec: str = "float16"
    publish: bool = True
    scorer: str = "taylor"
    sketch_noise: float = 0.0
    poll_seconds: float = 0.2

    def __post_init__(self) -> None:
        """Check what the types cannot say."""
        if strangers := [arm for arm in self.arms if arm not in ARMS]:
            raise RunError(unknown("arm", strangers[0], ARMS))
        mode = lookup(AGGREGATIONS, self.aggregation, "aggregation", error=RunError)
        kind = lookup(ADAPTERS, self.adapter.kind, "adapter")
        if mode.trains_a and not kind.factors:
            raise RunError(
                f"aggregation {mode.name!r} is for adapters with factors A and B, not for "
                f"{self.adapter.kind!r}: use 'fixed'"
            )
        if self.adapter.train_a != mode.trains_a:
            raise RunError(
                f"aggregation {mode.name!r} with train_a = {self.adapter.train_a}: "
                f"set train_a to {mode.trains_a}"
            )
        if len(mode.turns) > 1 and 0 < self.rounds.sharing < 1:
            raise RunError(
                f"aggregation {mode.name!r} with sharing {self.rounds.sharing}: widths come to "
                "have an A each, so their B cannot be averaged; use sharing 0 or 1"
            )
        if self.pruning is not None:
            self._check_pruning(self.pruning)
        if self.start.heal_steps and self.rounds.sharing:
            raise RunError(
                f"start.heal_steps with sharing {self.rounds.sharing}: widths that are healed have "
                "weights of their own, and what one learns fits no other; use sharing 0"
            )
        if not 0 < self.rounds.quorum <= 1:
            raise RunError(f"quorum {self.rounds.quorum}: use a share above 0 and at most 1")
        if not self.tasks or min(self.tasks.values()) < 1:
            raise RunError("no task is expected, or one without devices: name at least one of each")

    def _check_pruning(self, pruning: PruningConfig) -> None:
        if self.start.heal_steps:
            raise RunError(
                "start.heal_steps with pruning: networks that go on shrinking are cut from the "
                "base again, not from what was healed; use one or the other"
            )
        if pruning.last >= self.rounds.count:
            raise RunError(
                f"the last of {pruning.cuts} cuts follows round {pruning.last} of "
                f"{self.rounds.count}, and nothing trains after it: use more rounds, or fewer cuts"
            )
        if self.adapter.rank_rule != "layer":
            raise RunError(
                f"rank_rule {self.adapter.rank_rule!r} lowers ranks where layers shrink, and would "
                "throw away what is trained: prune with 'layer'"
            )
        if self.selection.round_to != 1:
            raise RunError(
                f"round_to is {self.selection.round_to}: networks that shrink while they train "
                "lose single units; prune with 1"
            )

    def save(self, path: Path) -> None:
        """Write the settings as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2, default=str) + "\n")

    @classmethod
    def load(cls, path: Path) -> ServerConfig:
        """Read settings.

        Raises:
            RunError: The file cannot be read or does not hold server settings.
        """
        try:
            raw = json.loads(path.read_text())
            return cls(
                **{
                    **raw,
                    "library": Path(raw["library"]),
                    "arms": tuple(raw["arms"]),
                    "adapter": AdapterConfig(**raw["adapter"]),
                    "rounds": RoundsConfig(**raw["rounds"]),
                    "selection": _selection(raw["selection"]),
                    "start": _start(raw.get("start", {})),
                    "pruning": PruningConfig(**raw["pruning"]) if raw.get("pruning") else None,
                }
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            known = ", ".join(item.name for item in fields(cls))
            raise RunError(f"{path}: no server settings ({error}); keys are {known}") from error


def _start(raw: dict[str, Any]) -> StartConfig:
    return StartConfig(**{**raw, "pictures": tuple(raw.get("pictures", ()))})


def _selection(raw: dict[str, Any]) -> SelectionConfig:
    return SelectionConfig(**{**raw, "protect": tuple(raw.get("protect", ()))})
