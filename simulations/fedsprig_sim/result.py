"""What a run found, as checked data: the file ``result.json``.

Figures that follow from others (means over tasks, the last point of a curve) are written for
readers of the JSON, but passed over and derived again when it is read.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, computed_field, model_validator

from fedsprig.artifacts import read_bytes, write_bytes
from fedsprig.errors import ArtifactError
from fedsprig_sim.sections import Name

if TYPE_CHECKING:
    from fedsprig.graph import GroupPlan
    from fedsprig.masks import Mask

ArmName = Literal["one_shot", "magnitude", "random", "full_finetune"]
ARMS: tuple[ArmName, ...] = ("one_shot", "magnitude", "random", "full_finetune")
_LARGEST_FILE_BYTES = 1 << 28
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Bits = Annotated[str, Field(pattern=r"^([0-9a-f]{2})+$")]


class Record(BaseModel):
    """A table of the result. Derived and unknown fields are passed over when it is read."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


class GroupKept(Record):
    """One group of a mask."""

    name: str
    kind: Literal["inner", "stream", "heads"]
    units: Annotated[int, Field(ge=1)]
    bits: Bits
    """One bit a unit, 1 is kept, packed into bytes with the highest bit first, in hexadecimal."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.bits) != 2 * -(-self.units // 8):
            raise ValueError(f"the bits of {self.name} are not those of {self.units} units")
        return self

    @computed_field
    @property
    def kept(self) -> int:
        """Number of units that are kept."""
        return sum(self.unpack())

    def unpack(self) -> list[bool]:
        """One bool a unit; True is kept."""
        packed = np.frombuffer(bytes.fromhex(self.bits), np.uint8)
        return [bool(bit) for bit in np.unpackbits(packed, count=self.units)]


class MaskRecord(Record):
    """A task's mask for one budget, and the network that it cuts."""

    budget: str
    groups: tuple[GroupKept, ...]
    parameters: Count
    macs: Count
    peak_bytes: Count
    """Largest set of activations alive at once, for one picture."""

    @classmethod
    def of(
        cls,
        mask: Mask,
        plan: GroupPlan,
        *,
        budget: str,
        parameters: int,
        macs: int,
        peak_bytes: int,
    ) -> MaskRecord:
        """The record of a mask."""
        return cls(
            budget=budget,
            groups=tuple(
                GroupKept(
                    name=group.name,
                    kind=group.kind,
                    units=group.units,
                    bits=np.packbits(mask.groups[group.name]).tobytes().hex(),
                )
                for group in plan.groups
            ),
            parameters=parameters,
            macs=macs,
            peak_bytes=peak_bytes,
        )

    @computed_field
    @property
    def keep_units(self) -> float:
        """Kept units over all units."""
        return sum(g.kept for g in self.groups) / max(1, sum(g.units for g in self.groups))


class NeighbourRecord(Record):
    """A library task that a new task drew from."""

    name: str
    similarity: float
    weight: Share


class Download(Record):
    """Bytes that one device of a task receives, mean over its devices."""

    probe: Count
    """Probe network that describes the data."""
    sub_network: Count
    """Plan, mask and weights of the sub-network."""
    rounds: Count
    """Adapters of all rounds."""
    pruning: Count = 0
    """Adapters that attention was measured with, masks, and adapters of the smaller networks."""


class TruncationRecord(Record):
    """What factoring averaged products again lost in one round, over all layers and widths."""

    worst: Share
    """Relative error (Frobenius norm) of the layer that lost most."""
    mean: Share
    """Mean of the relative errors."""


class CutRecord(Record):
    """A network that lost units while it trained."""

    round: Annotated[int, Field(ge=1)]
    """That it followed."""
    budget: str
    threshold: Annotated[float, Field(ge=0)]
    """The largest threshold T of a dropped unit; 0 where none was dropped."""
    units: Count
    """That were left."""
    parameters: Count
    macs: Count
    accuracy_before: Share
    """Of the network that was cut, mean over the devices of this budget. How the smaller one did is
    the curve's point of the same round."""


class ArmRecord(Record):
    """One way to get a network for a task, and how it did."""

    curve: Annotated[tuple[Share, ...], Field(min_length=1)]
    """Accuracy right after the cut (``full_finetune``: of the uncut base) and after every round,
    mean over devices."""
    device_seconds: Seconds
    """Training on one device, all rounds, mean over devices."""
    truncation: tuple[TruncationRecord, ...] = ()
    """By round, where products were refactored."""
    cuts: tuple[CutRecord, ...] = ()
    """By round and budget, where networks went on shrinking."""


class DeviceRecord(Record):
    """One device of a task."""

    name: str
    budget: str
    pictures: Count
    """Training pictures."""
    accuracy: dict[ArmName, Share]
    """After fine-tuning."""
    update_bytes: Count
    """Largest update."""
    download_bytes: Count
    """All that it received."""
    seconds: Seconds
    """Computing for the one-shot arm: describing, recalibrating, training, evaluating."""
    rounds: Count
    """Rounds that its update was part of."""


class TaskRecord(Record):
    """A new task."""

    name: Name
    data: str
    classes: tuple[str, ...]
    camera: str
    note: str = ""
    """A caveat to print beside every figure."""
    device_records: Annotated[tuple[DeviceRecord, ...], Field(min_length=1)]
    base_bytes: Annotated[int, Field(ge=1)]
    """Weights of the whole base model in float32."""
    base_macs: Annotated[int, Field(ge=1)]
    base_parameters: Annotated[int, Field(ge=1)]
    download: Download
    neighbours: tuple[NeighbourRecord, ...]
    """Library tasks by falling weight."""
    masks: Annotated[tuple[MaskRecord, ...], Field(min_length=1)]
    """One for every budget that the task's devices have."""
    arms: dict[ArmName, ArmRecord]
    server_seconds: Seconds
    """From the sketch to the finished sub-networks."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if "one_shot" not in self.arms:
            raise ValueError(f"task {self.name} has no arm one_shot")
        budgets = {mask.budget for mask in self.masks}
        missing = {device.budget for device in self.device_records} - budgets
        if missing:
            raise ValueError(f"task {self.name} has no mask for budget {sorted(missing)[0]}")
        return self

    def mask(self, budget: str) -> MaskRecord:
        """The mask of a budget that a device of this task has."""
        return next(mask for mask in self.masks if mask.budget == budget)

    def _device_mean(self, figure: str) -> float:
        return statistics.fmean(
            getattr(self.mask(device.budget), figure) for device in self.device_records
        )

    @computed_field
    @property
    def devices(self) -> int:
        """Number of devices."""
        return len(self.device_records)

    @computed_field
    @property
    def keep_units(self) -> float:
        """Kept units over all units, mean over devices."""
        return self._device_mean("keep_units")

    @computed_field
    @property
    def keep_macs(self) -> float:
        """Multiply-accumulates over those of the base model, mean over devices."""
        return self._device_mean("macs") / self.base_macs

    @computed_field
    @property
    def keep_params(self) -> float:
        """Parameters over those of the base model, mean over devices."""
        return self._device_mean("parameters") / self.base_parameters

    @computed_field
    @property
    def update_bytes(self) -> int:
        """Largest update that a device of the task sent in one round."""
        return max(device.update_bytes for device in self.device_records)

    @computed_field
    @property
    def download_bytes(self) -> int:
        """Bytes that one device received in all, mean over devices."""
        download = self.download
        return download.probe + download.sub_network + download.rounds + download.pruning

    @computed_field
    @property
    def accuracy(self) -> dict[ArmName, float | None]:
        """After fine-tuning, mean over devices, on pictures held out from all of them.

        None for an arm that was not run.
        """
        return {arm: self.arms[arm].curve[-1] if arm in self.arms else None for arm in ARMS}

    @computed_field
    @property
    def accuracy_after_cut(self) -> float:
        """Of the one-shot sub-networks before any training, mean over devices."""
        return self.arms["one_shot"].curve[0]

    @computed_field
    @property
    def device_seconds(self) -> float:
        """Computing on one device, mean over devices."""
        return statistics.fmean(device.seconds for device in self.device_records)


class LibraryRecord(Record):
    """A task of the library that the run started with."""

    name: str
    data: str
    classes: tuple[str, ...]
    camera: str
    training_accuracy: Share | None = None
    """Of the base fine-tuned on the task, on the very pictures that it was tuned on."""


class BaseSummary(Record):
    """The base model."""

    model: str
    weights: str
    digest: str
    parameters: Count
    macs: Count
    bytes: Count
    units: Count


class Result(Record):
    """A whole run."""

    format: Literal[1] = 1
    name: Name
    seed: Count
    seconds: Seconds
    """Wall clock of the run, without installation."""
    runtime: str
    base: BaseSummary
    library: tuple[LibraryRecord, ...]
    tasks: Annotated[tuple[TaskRecord, ...], Field(min_length=1)]
    scenario: dict[str, Any]
    """The scenario as it was run (``Scenario.model_dump(mode="json")``)."""
    versions: dict[str, str]
    """Versions of fedsprig, Python and the libraries that the figures depend on."""

    @model_validator(mode="after")
    def _names_once(self) -> Self:
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names):
            raise ValueError("two tasks have the same name")
        return self

    def mean_accuracy(self) -> dict[ArmName, float]:
        """Mean over the tasks for every arm that all of them have."""
        return {
            arm: statistics.fmean(task.arms[arm].curve[-1] for task in self.tasks)
            for arm in ARMS
            if all(arm in task.arms for task in self.tasks)
        }

    def mean(self, figure: str) -> float:
        """Mean over the tasks of a figure that every one of them has, such as ``keep_macs``."""
        return statistics.fmean(getattr(task, figure) for task in self.tasks)

    @computed_field
    @property
    def summary(self) -> dict[str, float]:
        """Means over the tasks, and the largest update over the base model's bytes."""
        means = ("accuracy_after_cut", "keep_units", "keep_macs", "keep_params")
        return {
            **{f"accuracy_{arm}": value for arm, value in self.mean_accuracy().items()},
            **{figure: self.mean(figure) for figure in means},
            "update_share": max(task.update_bytes / task.base_bytes for task in self.tasks),
            "devices": float(sum(task.devices for task in self.tasks)),
        }

    def to_json(self) -> str:
        """The result as indented JSON with a final newline."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"

    def write(self, path: Path) -> None:
        """Write the JSON, all at once."""
        write_bytes(path, self.to_json().encode())

    @classmethod
    def read(cls, path: Path) -> Result:
        """Read and check a result.

        Raises:
            ArtifactError: The file cannot be read or is no result.
        """
        try:
            return cls.model_validate_json(read_bytes(path, max_bytes=_LARGEST_FILE_BYTES))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise ArtifactError(
                f"{path} is no result of a run: {place}: {first['msg']}; run its scenario again"
            ) from None


def versions(*distributions: str) -> Mapping[str, str]:
    """Versions of Python and of the given distributions that are installed."""
    import platform
    from importlib import metadata

    found = {"python": platform.python_version()}
    for name in distributions:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
