"""Reading what devices answer: everything is checked before it is believed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsprig.adapters import is_statistic
from fedsprig.artifacts import unpack
from fedsprig.errors import MessageError, NonFiniteUpdateError
from fedsprig.graph import GroupPlan, KeptIndex, kept_axes
from fedsprig.tasks import TaskSketch, prototype_head
from fedsprig.updates import decode_update
from fedsprig.wire import Envelope, parse
from fedsprig.wire import device_pb2 as pb
from fedsprig_server.base import Base

Array = NDArray[Any]
STATISTICS = "statistics/"


@dataclass(frozen=True, slots=True)
class Installed:
    """What a device says of its new network.

    Attributes:
        means: Class means of the head's inputs at the network's width, ``[classes, features]``.
        counts: Pictures per class.
        variance: See :func:`fedsprig.tasks.projected_variance`.
        statistics: Normalisation statistics on its pictures, at the network's width.
    """

    means: Array
    counts: Array
    variance: float
    statistics: Mapping[str, Array]
    seconds: float


def read_installed(
    answer: Envelope, plan: GroupPlan, index: KeptIndex, *, num_classes: int
) -> Installed:
    """Check an answer to ``INSTALL`` against the network that was sent.

    Raises:
        MessageError: Arrays that are missing, unknown or of other shapes.
        NonFiniteUpdateError: NaN or an infinity in them.
    """
    reply = parse(pb.InstallReply, answer.body)
    arrays, _ = unpack(answer.blob)
    expected: dict[str, tuple[int, ...]] = {
        STATISTICS + name: _kept_shape(name, plan, index)
        for name in plan.shapes
        if is_statistic(name)
    }
    features = _kept_shape(f"{plan.head}.weight", plan, index)[1]
    expected |= {"prototypes": (num_classes, features), "counts": (num_classes,)}
    if {name: value.shape for name, value in arrays.items()} != expected:
        raise MessageError("the answer does not fit the network that was sent: install it again")
    counts = arrays["counts"]
    if counts.dtype != np.int64 or counts.min() < 0 or not 0 < counts.sum() < 1 << 40:
        raise MessageError("the counts of pictures are no counts: the device must send its own")
    floats = [value for name, value in arrays.items() if name != "counts"]
    finite = all(value.dtype.kind == "f" and np.isfinite(value).all() for value in floats)
    if not finite or not (
        math.isfinite(reply.projected_variance) and reply.projected_variance >= 0
    ):
        raise NonFiniteUpdateError("class means or statistics are not finite: check the pictures")
    return Installed(
        means=arrays["prototypes"],
        counts=counts,
        variance=reply.projected_variance,
        statistics={
            name.removeprefix(STATISTICS): value
            for name, value in arrays.items()
            if name.startswith(STATISTICS)
        },
        seconds=reply.seconds,
    )


def head_from_means(base: Base, replies: Sequence[Installed]) -> dict[str, Array]:
    """The head of devices with the same network, from their class means together.

    Returns:
        Values by state name, at the network's width; empty for a model without a head.
    """
    counts = np.sum([reply.counts for reply in replies], axis=0)
    sums = np.sum([reply.means * reply.counts[:, None] for reply in replies], axis=0)
    pictures = [reply.counts.sum() for reply in replies]
    variance = float(np.average([reply.variance for reply in replies], weights=pictures))
    values = prototype_head(sums / np.maximum(counts, 1)[:, None], counts, variance)
    head = base.module.get_submodule(base.plan.head)
    parameters = dict(head.named_parameters())  # a weight and, for most, a bias
    return {
        f"{base.plan.head}.{name}": value.reshape(value.shape + (1,) * (like.ndim - value.ndim))
        for (name, like), value in zip(parameters.items(), values, strict=False)
    }


def read_sketch(
    answer: Envelope, *, classes: tuple[str, ...], probe: str
) -> tuple[TaskSketch, float]:
    """The sketch of an answer to ``DESCRIBE``, and the seconds that it took.

    Raises:
        MessageError: A sketch of other classes than the device said it has, or of another probe.
    """
    seconds = parse(pb.DescribeReply, answer.body).seconds
    sketch = TaskSketch.from_bytes(answer.blob)
    if sketch.classes != classes or sketch.probe != probe:
        raise MessageError("the sketch is of other classes or another probe: describe it again")
    return sketch, seconds


def read_update(
    answer: Envelope, received: Mapping[str, Array], base_digest: str
) -> tuple[pb.RoundReply, dict[str, Array]]:
    """The reply of a round and the adapter that it leads to: what was received plus the change.

    Raises:
        UpdateError: The update is stale, not finite or of other tensors.
        MessageError: No accuracy, or one that is none.
    """
    reply = parse(pb.RoundReply, answer.body)
    _check_evaluation(reply)
    delta = decode_update(
        answer.blob,
        shapes={name: value.shape for name, value in received.items()},
        base_digest=base_digest,
    )
    if not math.isfinite(reply.loss):
        raise NonFiniteUpdateError("the training loss is not finite: lower the learning rate")
    return reply, {name: received[name] + change for name, change in delta.items()}


def read_evaluation(answer: Envelope) -> pb.EvaluateReply:
    """The reply of an evaluation.

    Raises:
        MessageError: No accuracy, or one that is none.
    """
    reply = parse(pb.EvaluateReply, answer.body)
    _check_evaluation(reply)
    return reply


def _check_evaluation(reply: pb.RoundReply | pb.EvaluateReply) -> None:
    if not reply.HasField("evaluation"):
        raise MessageError("the answer has no evaluation, which was asked for: update the device")
    if not 0 <= reply.evaluation.accuracy <= 1:
        raise MessageError(f"an accuracy of {reply.evaluation.accuracy}: it lies between 0 and 1")


def _kept_shape(name: str, plan: GroupPlan, index: KeptIndex) -> tuple[int, ...]:
    kept = kept_axes(name, index)
    return tuple(
        len(kept[axis]) if axis in kept else size for axis, size in enumerate(plan.shapes[name])
    )
