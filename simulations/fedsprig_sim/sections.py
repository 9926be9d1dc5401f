"""The sections of a scenario file: strict pydantic models, most of whose keys have a default.

A key that no section has is refused, and so is a value of another type (``"3"`` is no number): a
scenario that runs is a scenario that says what it means. ``fedsprig_sim.scenario`` puts the
sections together and reads them from TOML.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Fraction = Annotated[float, Field(gt=0, le=1)]
Arm = Literal["magnitude", "random", "full_finetune"]
Runtime = Literal["in-process", "ray"]
ClassPool = Literal["base", "library", "new"]
Aggregation = Literal["fixed", "refactored", "alternating"]

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kMG]?)(i?)B\s*")


def parse_bytes(value: object) -> object:
    """``"1.5MB"`` to 1,500,000 and ``"1.5MiB"`` to 1,572,864; what is no string passes as it is.

    Raises:
        ValueError: A string that is no size.
    """
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value)
    if match is None:
        raise ValueError(f"{value!r} is no size: write bytes as a number or as '1.5MB' or '1.5MiB'")
    number, prefix, binary = match.groups()
    exponent = ("", "k", "M", "G").index(prefix)
    return round(float(number) * (1024 if binary else 1000) ** exponent)


Size = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0)]


class Section(BaseModel):
    """A table of a scenario file."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class BaseSection(Section):
    """The pretrained network that all tasks start from."""

    model: str = "sprig20"
    """Name that ``fedsprig.models.build`` knows."""
    weights: str = "shipped"
    """``shipped``, ``imagenet`` or the path of a .safetensors file."""
    image_size: Annotated[int, Field(ge=8)] | None = None
    """Side of the pictures that the model gets; by default what its weights were trained on."""


class DataSection(Section):
    """A source of labelled pictures."""

    kind: Literal["embedded", "npz", "folder", "torchvision"]
    path: Path | None = None
    """File or folder; relative to the scenario's folder. May be left to ``--data NAME=PATH``."""
    name: str | None = None
    """``fashion`` or ``digits`` of the embedded sets; the class of a torchvision data set."""
    split_train: str = "train"
    split_test: str = "test"
    held_out: Fraction = 0.2
    """Share of each class that is kept for testing where the source has one split only."""
    note: str = ""
    """A caveat that is printed beside every figure of a task on these data."""

    @model_validator(mode="after")
    def _name_where_needed(self) -> DataSection:
        if self.kind in ("embedded", "torchvision") and not self.name:
            raise ValueError(f'{self.kind} data need a name, for example name = "fashion"')
        return self


class TaskSection(Section):
    """One task, written out."""

    name: Name
    data: str
    classes: Annotated[tuple[str | int, ...], Field(min_length=2)]
    """Class names, or label numbers of the source."""
    camera: str = "plain"
    """What the pictures are seen through, such as ``rotate90`` or ``invert+blur``."""


class LabelRange(Section):
    """The classes of consecutive labels, both ends included."""

    first: Annotated[int, Field(ge=0)]
    last: Annotated[int, Field(ge=0)]


class DrawSection(Section):
    """Tasks drawn from a pool of classes, the same for the same seed.

    The pool is dealt like a shuffled pack of cards: tasks share no class until too few are left,
    then it is shuffled anew.
    """

    data: str
    prefix: Name
    """The tasks are called ``prefix-1``, ``prefix-2``, ..."""
    count: Annotated[int, Field(ge=1)]
    classes_per_task: Annotated[int, Field(ge=2)]
    pool: ClassPool | LabelRange | tuple[str | int, ...] | None = None
    """Classes to draw from: a list, a range of labels, a part of the shipped base's class split,
    or, without it, all classes of the source."""
    cameras: Annotated[tuple[str, ...], Field(min_length=1)] = ("plain",)
    """Dealt to the tasks in turn."""


class LibrarySection(Section):
    """The tasks that the server has learned from, and how."""

    tasks: tuple[TaskSection, ...] = ()
    draws: tuple[DrawSection, ...] = ()
    method: str = "taylor"
    """Scorer of ``fedsprig.scoring``."""
    images_per_class: Annotated[int, Field(ge=1)] = 40
    steps: Annotated[int, Field(ge=0)] = 40
    """Fine-tuning steps of the base on a task before its units are scored."""
    batch_size: Annotated[int, Field(ge=2)] = 32
    learning_rate: Annotated[float, Field(gt=0)] = 0.02


class DevicesSection(Section):
    """The devices of every new task."""

    per_task: Annotated[int, Field(ge=1)] = 3
    images_per_class: Annotated[int, Field(ge=1)] = 40
    """Training pictures of one device. Devices share none."""
    test_images_per_class: Annotated[int, Field(ge=1)] = 100
    """Test pictures of a task, held out from every device; all where there are fewer."""
    budgets: tuple[str, ...] = ()
    """Names of budget sections, dealt to the devices of all tasks in turn; all when none is named.
    A name that stands twice gives a task two devices of one width, whose updates are averaged."""


class BudgetSection(Section):
    """Limits of a device class; all that are given hold."""

    macs_ratio: Fraction | None = None
    """Multiply-accumulates over those of the base model."""
    parameters_ratio: Fraction | None = None
    """Parameters over those of the base model."""
    units: Fraction | None = None
    """Kept units over all units."""
    weight_bytes: Size | None = None
    """Bytes of the weights in float32, as a number or ``"1.5MB"``."""
    peak_bytes: Size | None = None
    """Bytes of the largest set of activations alive at once, for one picture."""

    @model_validator(mode="after")
    def _some_limit(self) -> BudgetSection:
        if not self.model_dump(exclude_none=True):
            raise ValueError("a budget needs at least one limit, for example macs_ratio = 0.25")
        return self

    def limits(self) -> dict[str, float]:
        """The limits by the names that a device's file and the wire use."""
        return self.model_dump(exclude_none=True)


class AdapterSection(Section):
    """What devices train."""

    kind: str = "splora"
    rank: Annotated[int, Field(ge=1, le=4_096)] = 8
    rank_rule: Literal["layer", "kept", "width"] = "layer"
    """Where a layer gets a lower rank. ``layer``: where more would be waste in the uncut base.
    ``kept``: ``min(rank, kept inputs, kept outputs)``. ``width``: in proportion to the
    smaller kept share of the two."""
    unadapted: Literal["refuse", "freeze"] = "refuse"
    """What becomes of layers that the kind cannot adapt (SPLoPA and 3x3 convolutions, say)."""
    aggregation: Aggregation = "fixed"
    """How the factors A and B of an adapter are averaged. ``fixed``: A stays at its seeded start
    and never travels, B is averaged. ``refactored``: both train, the products BA are averaged and
    factored again, at the cost of what the rank cannot hold. ``alternating``: B trains in odd
    rounds and A in even ones; each mean is exact."""
    statistics: Literal["pooled", "local"] = "pooled"
    """Normalisation statistics. ``pooled``: those of all devices of one width together. ``local``:
    they never travel, and every device measures its own; scale and shift are averaged either
    way."""


class RoundsSection(Section):
    """Federated fine-tuning."""

    count: Annotated[int, Field(ge=1)] = 3
    epochs: Annotated[int, Field(ge=1)] | None = None
    """Passes over a device's pictures in one round; one when neither epochs nor steps are given."""
    steps: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=2)] = 32
    learning_rate: Annotated[float, Field(gt=0)] = 0.05
    full_learning_rate: Annotated[float, Field(gt=0)] = 0.01
    """Of the comparison with fine-tuning the whole base model, which wants a smaller one."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    schedule: Literal["cosine", "constant"] = "constant"
    """How the learning rate goes within a round."""
    augment: Literal["none", "flip", "shift", "flip+shift"] = "none"
    optimiser: Literal["sgd", "adam"] = "sgd"
    """Adam wants a learning rate of about a twentieth of SGD's."""
    head_learning_rate_scale: Annotated[float, Field(gt=0)] = 1.0
    """Factor of the classifier's learning rate."""
    sharing: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How much a device of another width counts in the average, beside one of the same width."""
    deadline_seconds: Annotated[float, Field(gt=0)] = 600.0
    quorum: Fraction = 1.0
    """Share of a task's devices whose good answers are enough. The others are then waited for a
    fifth longer (at least 5 s) and left out of that round, so a quorum below 1 makes results depend
    on speed. At 1 all are waited for, and the task fails when one is silent until the deadline."""

    @model_validator(mode="after")
    def _one_length(self) -> RoundsSection:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs and steps are given both: keep one")
        return self


class CodecsSection(Section):
    """How numbers travel."""

    update: str = "int8"
    """Adapter updates, device to server."""
    adapter: str = "float16"
    """The adapter of a round, server to device."""
    weights: str = "float16"
    """The sub-network, server to device."""


class SelectionSection(Section):
    """How a new task gets its mask."""

    similarity: str = "prototypes"
    rerank: str = ""
    """What the devices order the best entries by anew, on their pictures: ``leep``, ``h_score``, or
    nothing; the other entries then get no weight."""
    shortlist: Annotated[int, Field(ge=1)] = 20
    """How many entries that are."""
    score_mask: str = "weighted"
    """How the neighbours' scores become the task's: a name of ``fedsprig.tasks.SCORE_MASKS``,
    or ``auto``: the library decides on it, on the similarity and on the temperature."""
    temperature: Annotated[float, Field(ge=1e-6)] = 0.5
    """How far similarity is listened to; small values hear the nearest alone."""
    floor: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of a group's units that is always kept."""
    round_to: Annotated[int, Field(ge=1)] = 1
    """Widths are multiples of this number."""
    protect: tuple[str, ...] = ()
    """Groups, or kinds of groups, that stay whole."""


class StartSection(Section):
    """Where sub-networks start: docs/starting.md."""

    heal_steps: Annotated[int, Field(ge=0)] = 0
    """Steps in which the server distils the base into every network that it cuts, on the
    pictures of the library's tasks, before it sends it; 0: it is sent as it was cut."""
    batch_size: Annotated[int, Field(ge=2)] = 64
    learning_rate: Annotated[float, Field(gt=0)] = 0.02
    distance: Literal["squared", "direction"] = "squared"
    """Between features and the base's: squared, or by their direction alone."""


class PruningSection(Section):
    """Networks that go on shrinking while they train, by the attention of their units (AAP)."""

    every: Annotated[int, Field(ge=1)] = 1
    """Rounds before the first cut, and between one and the next."""
    cuts: Annotated[int, Field(ge=1)] = 2
    """How many there are. A budget's limits hold from the last one on."""
    start: Annotated[float, Field(gt=1)] = 2.0
    """Size of the first networks over that of the budget, at most the whole base model; what is
    left of a budget's limits shrinks by the same factor with every cut."""
    weighting: Literal["budget", "parameters", "macs"] = "budget"
    """Layers are pruned by their share of parameters or of multiply-accumulates. ``budget``: the
    latter where a budget limits those."""
    power: Annotated[float, Field(gt=0, le=16)] = 1.0
    """Of the magnitudes that are summed up."""
    form: Literal["mean", "sum", "max"] = "mean"
    """How the pixels of a unit's map are taken together."""
    pictures: Annotated[int, Field(ge=1, le=10_000_000)] = 1024
    """That a device measures on, at most."""
