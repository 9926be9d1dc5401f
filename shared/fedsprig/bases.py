"""A base model that a device keeps, and packages that leave out what can be cut from it.

A device that has the base needs a mask, not weights: it cuts its own, and rounds them by the codec
by which they travel to others, tensor by tensor. So all devices of a cohort train the same network,
to the bit; the package says which digest must come out, and nothing else is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import nn

from fedsprig.artifacts import state_digest, unpack
from fedsprig.errors import DigestMismatchError, MissingPartError
from fedsprig.graph import GroupPlan, KeptIndex, kept_index, restrict
from fedsprig.masks import Mask
from fedsprig.models import build, describe
from fedsprig.models.head import is_of_head
from fedsprig.updates import decode_state, encode_state
from fedsprig.wire import device_pb2 as pb
from fedsprig.wire import parse

Array = NDArray[Any]
State = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class BaseWeights:
    """The weights of a base model, as server and devices name and cut them.

    Attributes:
        model: The builder's name.
        state: Parameters and buffers without the classifier and counters, full size.
        digest: Digest of ``state``.
    """

    model: str
    state: State
    digest: str

    @classmethod
    def load(
        cls, model: str, weights: str | Path | None, *, image_size: int | None = None
    ) -> BaseWeights:
        """Build the model and take its weights.

        Args:
            model: A builder's name.
            weights: As :func:`fedsprig.models.build` takes them.
            image_size: Side of the pictures, for models whose weights depend on it.

        Raises:
            UnknownModelError: No builder has that name.
            WeightsError: The weights are absent or do not fit.
            ArtifactError: They are damaged.
        """
        module = build(model, num_classes=2, weights=weights, image_size=image_size)
        return cls.of(model, module, describe(model).head)

    @classmethod
    def of(cls, model: str, module: nn.Module, head: str) -> BaseWeights:
        """The weights of a module on the CPU; copies."""
        state = {
            name: value.numpy().copy()
            for name, value in module.state_dict().items()
            if belongs_to_base(name, head)
        }
        return cls(model, state, state_digest(state))


def belongs_to_base(name: str, head: str) -> bool:
    """Whether a state name is of what tasks share: no classifier, no counter of batches."""
    return not name.endswith("num_batches_tracked") and not is_of_head(name, head)


def cut_base(state: State, index: KeptIndex, head: str, codec: str) -> dict[str, Array]:
    """What a package's weights decode to: the kept part of the base, rounded by ``codec``."""
    kept = {name: value for name, value in state.items() if belongs_to_base(name, head)}
    return decode_state(encode_state(restrict(kept, index), codec))


def leave_out_base(
    package: bytes, plan: GroupPlan, base: State, base_digest: str, *, with_plan: bool
) -> bytes:
    """The same package for a device that holds the base.

    Weights that are not the base's own (statistics that were measured after the cut) stay in it, as
    the other devices decode them.

    Args:
        package: Bytes of :func:`fedsprig.subnetwork.pack_subnetwork`.
        plan: The base's.
        base: Its weights.
        base_digest: Their digest.
        with_plan: Leave the plan out too where the device is known to hold it.
    """
    message = parse(pb.SubNetwork, package)
    _, metadata = unpack(message.weights)
    weights = decode_state(message.weights)
    index = kept_index(plan, Mask.from_bytes(message.mask, plan))
    cut = cut_base(base, index, plan.head, metadata["codec"])
    own = {
        name: value
        for name, value in weights.items()
        if name not in cut or value.tobytes() != cut[name].tobytes()
    }
    message.weights = encode_state(own, "float32") if own else b""
    message.base, message.codec = base_digest, metadata["codec"]
    message.content = state_digest(weights)
    if not with_plan:
        message.ClearField("plan")
    return bytes(message.SerializeToString(deterministic=True))


def weights_of(
    package: pb.SubNetwork,
    plan: GroupPlan,
    index: KeptIndex,
    base_of: Callable[[str], State | None],
) -> dict[str, Array]:
    """The weights of a package, whether it brings them or names the base to cut them from.

    Args:
        package: Possibly from outside.
        plan: The base's.
        index: What the package's mask leaves of it.
        base_of: Finds a base by its digest.

    Raises:
        MissingPartError: The base is not here.
        DigestMismatchError: What was cut from it is not what the package says must come out.
        FedsprigError: Weights that are malformed, by their own named error.
    """
    if not package.base:
        return decode_state(package.weights)
    base = base_of(package.base)
    if base is None:
        raise MissingPartError(
            f"the base model {package.base[:12]!r} is not here: ask for a package with its weights"
        )
    own = decode_state(package.weights) if package.weights else {}
    weights = {**cut_base(base, index, plan.head, package.codec), **own}
    if state_digest(weights) != package.content:
        raise DigestMismatchError(
            "what was cut from the base model here is not what the package says: ask for one with "
            "its weights"
        )
    return weights
