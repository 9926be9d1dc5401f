"""Reading what devices answer: everything is checked before it is believed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsprig.adapters import is_statistic
from fedsprig.adapters.factors import Trains, held
from fedsprig.artifacts import unpack
from fedsprig.errors import MessageError, NonFiniteUpdateError
from fedsprig.graph import GroupPlan, KeptIndex, kept_axes, shrink_plan
from fedsprig.masks import Mask, ScoreSet
from fedsprig.tasks import TaskSketch, pooled_variance, prototype_head
from fedsprig.tasks.similarity import HeadValue
from fedsprig.updates import decode_update
from fedsprig.wire import Envelope, parse
from fedsprig.wire import device_pb2 as pb
from fedsprig_server.base import Base
from fedsprig_server.lobby import MAX_PICTURES

Array = NDArray[Any]
STATISTICS = "statistics/"
LARGEST = 1e30
"""Magnitude of any number that a device may send: what is made of it stays a finite float32."""


@dataclass(frozen=True, slots=True)
class Installed:
    """What a device says of its new network.

    Attributes:
        means: Class means of the head's inputs at the network's width, ``[classes, features]``.
        counts: Pictures per class.
        variance: See :func:`fedsprig.tasks.projected_variance`.
        statistics: Normalisation statistics on its pictures, at the network's width; empty where
            devices keep them.
    """

    means: Array
    counts: Array
    variance: float
    statistics: Mapping[str, Array]
    seconds: float


def read_installed(
    answer: Envelope,
    plan: GroupPlan,
    index: KeptIndex,
    *,
    num_classes: int,
    statistics: bool = True,
) -> Installed:
    """Check an answer to ``INSTALL`` against the network that was sent.

    Args:
        answer: From a device.
        plan: Of the base model.
        index: What the device's mask keeps.
        num_classes: Classes of the task.
        statistics: Whether normalisation statistics travel.

    Raises:
        MessageError: Arrays that are missing, unknown or of other shapes.
        NonFiniteUpdateError: Numbers that are not finite, or are too large to count with.
    """
    reply = parse(pb.InstallReply, answer.body)
    arrays, _ = unpack(answer.blob)
    expected = _statistic_shapes(plan, index) if statistics else {}
    features = _kept_shape(f"{plan.head}.weight", plan, index)[1]
    expected |= {"prototypes": (num_classes, features), "counts": (num_classes,)}
    if {name: value.shape for name, value in arrays.items()} != expected:
        raise MessageError("the answer does not fit the network that was sent: install it again")
    if not _are_counts(arrays["counts"]):
        raise MessageError("the counts of pictures are no counts: the device must send its own")
    _check_floats(value for name, value in arrays.items() if name != "counts")
    if not 0 <= reply.projected_variance <= LARGEST:
        raise NonFiniteUpdateError("the spread of the features is none: check the pictures")
    return Installed(
        means=arrays["prototypes"],
        counts=arrays["counts"],
        variance=reply.projected_variance,
        statistics=_checked_statistics(arrays),
        seconds=reply.seconds,
    )


def read_cut(
    answer: Envelope, plan: GroupPlan, index: KeptIndex, *, statistics: bool = True
) -> tuple[dict[str, Array], float]:
    """The normalisation statistics of an answer to ``CUT``, and the seconds that it took.

    Args:
        answer: From a device.
        plan: Of the base model.
        index: What the smaller network keeps.
        statistics: Whether they travel.

    Raises:
        MessageError: Arrays that are missing, unknown or of other shapes.
        NonFiniteUpdateError: Numbers that are not finite, or are too large to count with.
    """
    reply = parse(pb.CutReply, answer.body)
    arrays, _ = unpack(answer.blob)
    expected = _statistic_shapes(plan, index) if statistics else {}
    if {name: value.shape for name, value in arrays.items()} != expected:
        raise MessageError("the answer does not fit the network that is left: cut it again")
    _check_floats(arrays.values())
    return _checked_statistics(arrays), reply.seconds


def read_attention(
    answer: Envelope, plan: GroupPlan, *, pictures: int
) -> tuple[pb.AttentionReply, dict[str, Array]]:
    """The reply to a question for attention, and its sums by group.

    Args:
        answer: From a device.
        plan: Of its network.
        pictures: That it has said to have, or was asked to look at, whichever is less.

    Raises:
        MessageError: Sums of other groups or units, negative ones, a number of pictures that cannot
            be, or an accuracy that is none.
        NonFiniteUpdateError: Numbers that are not finite, or are too large to count with.
    """
    reply = parse(pb.AttentionReply, answer.body)
    _check_evaluation(reply)
    if not 1 <= reply.pictures <= pictures:
        raise MessageError(
            f"attention over {reply.pictures} pictures, the device has 1 to {pictures} to look at: "
            "it must send its own number"
        )
    sums, _ = unpack(answer.blob)
    expected = {group.name: (group.units,) for group in plan.groups}
    if {name: value.shape for name, value in sums.items()} != expected:
        raise MessageError("the attention is not of the network that was meant: measure it again")
    _check_floats(sums.values())
    if any((values < 0).any() for values in sums.values()):
        raise MessageError("an attention is negative: the device must send sums of magnitudes")
    return reply, sums


def _statistic_shapes(plan: GroupPlan, index: KeptIndex) -> dict[str, tuple[int, ...]]:
    """Shapes of the statistics that travel, by the names of an answer's arrays."""
    return {
        STATISTICS + name: _kept_shape(name, plan, index)
        for name in plan.shapes
        if is_statistic(name)
    }


def _checked_statistics(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The statistics among an answer's arrays, by state name."""
    if any((arrays[name] < 0).any() for name in arrays if name.endswith("running_var")):
        raise MessageError("a variance is negative: the device must measure its statistics anew")
    return {
        name.removeprefix(STATISTICS): value
        for name, value in arrays.items()
        if name.startswith(STATISTICS)
    }


def head_from_means(base: Base, replies: Sequence[Installed]) -> dict[str, Array]:
    """The head of devices with the same network, from their class means together.

    Returns:
        Values by state name, at the network's width; empty for a model without a head.
    """
    counts = np.sum([reply.counts for reply in replies], axis=0)
    sums = np.sum([reply.means * reply.counts[:, None] for reply in replies], axis=0)
    pictures = [int(reply.counts.sum()) for reply in replies]
    variance = pooled_variance([reply.variance for reply in replies], pictures)
    values = prototype_head(sums / np.maximum(counts, 1)[:, None], counts, variance)
    head = base.module.get_submodule(base.plan.head)
    parameters = dict(head.named_parameters())  # a weight and, for most, a bias
    return {
        f"{base.plan.head}.{name}": value.reshape(value.shape + (1,) * (like.ndim - value.ndim))
        for (name, like), value in zip(parameters.items(), values, strict=False)
    }


def read_sketch(
    answer: Envelope, *, classes: tuple[str, ...], probe: str, plan: GroupPlan
) -> tuple[TaskSketch, float]:
    """The sketch of an answer to ``DESCRIBE``, and the seconds that it took.

    Args:
        answer: From a device.
        classes: What the device said that it has.
        probe: Digest of the package that was sent.
        plan: Of the network in it; see :func:`plan_of`.

    Raises:
        MessageError: A sketch of other classes, of another probe, of another number of features or
            units than it has, or of counts that cannot be.
        NonFiniteUpdateError: Numbers that are not finite, or are too large to count with.
    """
    seconds = parse(pb.DescribeReply, answer.body).seconds
    sketch = TaskSketch.from_bytes(answer.blob)
    if sketch.classes != classes or sketch.probe != probe:
        raise MessageError("the sketch is of other classes or another probe: describe it again")
    features = plan.shapes[f"{plan.head}.weight"][1]
    groups = tuple(group.units for group in plan.groups)
    if (sketch.prototypes.shape[1], sketch.groups) != (features, groups):
        raise MessageError("the sketch does not fit the probe that was sent: describe it again")
    if not _are_counts(sketch.counts):
        raise MessageError("the counts of pictures are no counts: the device must send its own")
    _check_floats((sketch.prototypes, sketch.fingerprint, np.array(sketch.spread)))
    return sketch, seconds


def read_compared(
    answer: Envelope, *, heads: int, pictures: int, value: HeadValue, classes: int
) -> pb.CompareReply:
    """The answer to ``COMPARE``.

    Args:
        answer: From a device.
        heads: Classifiers that it was sent.
        pictures: That it has said to have.
        value: That was asked for.
        classes: Of the task.

    Raises:
        MessageError: Another number of values, or a number of pictures that cannot be.
        SketchError: A value that this cannot be.
        NonFiniteUpdateError: Values that are not finite, or are too large to count with.
    """
    reply = parse(pb.CompareReply, answer.body)
    if len(reply.values) != heads:
        raise MessageError(
            f"{len(reply.values)} values for {heads} classifiers: the device must compare with all"
        )
    if not 1 <= reply.pictures <= pictures:
        raise MessageError(
            f"values of {reply.pictures} pictures, the device has 1 to {pictures}: "
            "it must send its own number"
        )
    _check_floats([np.array(reply.values, np.float64)])
    value.check(reply.values, classes)
    return reply


def plan_of(package: bytes, plan: GroupPlan) -> GroupPlan:
    """The plan of the sub-network in a package that was cut from the network of ``plan``."""
    return shrink_plan(plan, Mask.from_bytes(parse(pb.SubNetwork, package).mask, plan))


def read_update(
    answer: Envelope, received: Mapping[str, Array], base_digest: str, trains: Trains = "both"
) -> tuple[pb.RoundReply, dict[str, Array]]:
    """The reply of a round and the adapter that it leads to: what was received plus the change.

    Args:
        answer: From a device.
        received: What it was sent.
        base_digest: Digest of that.
        trains: The factors that trained; one that did not is in neither answer nor result.

    Raises:
        UpdateError: The update is stale, not finite, too large to count with or of other tensors.
        MessageError: No accuracy, or one that is none.
    """
    reply = parse(pb.RoundReply, answer.body)
    _check_evaluation(reply)
    stays = held(received, trains)
    delta = decode_update(
        answer.blob,
        shapes={name: value.shape for name, value in received.items() if name not in stays},
        base_digest=base_digest,
    )
    if not math.isfinite(reply.loss):
        raise NonFiniteUpdateError("the training loss is not finite: lower the learning rate")
    _check_floats(delta.values())
    return reply, {name: received[name] + change for name, change in delta.items()}


def read_evaluation(answer: Envelope, plan: GroupPlan | None = None) -> pb.EvaluateReply:
    """The reply of an evaluation.

    Args:
        answer: From a device.
        plan: Of its network, where its units' scores were asked for too.

    Raises:
        MessageError: No accuracy, or one that is none.
        ArtifactError: The blob holds no scores.
        PlanError: Scores of other units.
        ScoreError: Scores that are not finite.
        NonFiniteUpdateError: Scores that are too large to count with.
    """
    reply = parse(pb.EvaluateReply, answer.body)
    _check_evaluation(reply)
    if plan is not None:
        _check_floats((ScoreSet.from_bytes(answer.blob, plan).flat,))
    return reply


def _check_evaluation(reply: pb.RoundReply | pb.AttentionReply | pb.EvaluateReply) -> None:
    if not reply.HasField("evaluation"):
        raise MessageError("the answer has no evaluation, which was asked for: update the device")
    if not 0 <= reply.evaluation.accuracy <= 1:
        raise MessageError(f"an accuracy of {reply.evaluation.accuracy}: it lies between 0 and 1")


def _are_counts(counts: Array) -> bool:
    # Each one is bounded first: a sum of large ones overflows to a small one.
    return (
        counts.dtype == np.int64
        and bool(((counts >= 0) & (counts <= MAX_PICTURES)).all())
        and bool(counts.any())
    )


def _check_floats(arrays: Iterable[Array]) -> None:
    for value in arrays:
        # Comparisons with NaN are false.
        if value.dtype.kind != "f" or not (np.abs(value) <= LARGEST).all():
            raise NonFiniteUpdateError(
                "numbers that are not finite, or too large: check the pictures, lower the learning "
                "rate"
            )


def _kept_shape(name: str, plan: GroupPlan, index: KeptIndex) -> tuple[int, ...]:
    kept = kept_axes(name, index)
    return tuple(
        len(kept[axis]) if axis in kept else size for axis, size in enumerate(plan.shapes[name])
    )
