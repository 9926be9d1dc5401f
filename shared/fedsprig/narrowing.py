"""From the package of a sub-network to that of a smaller one within it.

A device whose network loses units while it trains has all that the smaller one consists of: it
needs a mask, not weights. What it cuts must be what the server would send for that mask, to the
bit, since all devices of a cohort train the same network; the server says which digest must come
out. Codecs that look at a whole tensor may round the weights of the smaller network otherwise than
those of the larger one: then the digests differ, the device refuses, and is sent the weights.
"""

from __future__ import annotations

from collections.abc import Callable

from fedsprig.artifacts import state_digest, unpack
from fedsprig.errors import DigestMismatchError, MissingPartError
from fedsprig.graph import GroupPlan, index_within, kept_index, restrict
from fedsprig.masks import Mask
from fedsprig.updates import decode_state, encode_state
from fedsprig.wire import device_pb2 as pb
from fedsprig.wire import parse


def narrow_package(
    package: bytes, mask: bytes, content: str, *, plan_of: Callable[[str], bytes | None]
) -> bytes:
    """The package of what ``mask`` leaves of a package's network.

    One that names the base instead of bringing weights stays so: its weights are cut, and checked,
    when it is built.

    Args:
        package: Bytes of :func:`fedsprig.subnetwork.pack_subnetwork`, as a device keeps them.
        mask: What is to stay, in the base's units; the mask that the package has already is fine.
        content: Digest of the weights that must come out.
        plan_of: Finds the bytes of a plan by digest where the package leaves it out.

    Raises:
        MissingPartError: The plan is not here, or units of the mask are not in the network.
        DigestMismatchError: Other weights come out.
        FedsprigError: A mask or a package that is malformed, by its own named error.
    """
    message = parse(pb.SubNetwork, package)
    plan_bytes = message.plan or plan_of(message.plan_digest)
    if plan_bytes is None:
        raise MissingPartError(
            f"the group plan {message.plan_digest[:12]} is not here: ask for the whole package"
        )
    plan = GroupPlan.from_bytes(plan_bytes)
    outer, inner = Mask.from_bytes(message.mask, plan), Mask.from_bytes(mask, plan)
    if not inner.is_subset_of(outer):
        raise MissingPartError(
            "the network here has lost units that the smaller one has: ask for the whole package"
        )
    within = index_within(kept_index(plan, outer), kept_index(plan, inner))
    if message.base:
        own = restrict(decode_state(message.weights), within) if message.weights else {}
        message.weights = encode_state(own, "float32") if own else b""
        message.content = content
    else:
        if inner != outer:  # what is encoded twice may come out otherwise
            codec = unpack(message.weights)[1].get("codec", "")
            message.weights = encode_state(restrict(decode_state(message.weights), within), codec)
        if state_digest(decode_state(message.weights)) != content:
            raise DigestMismatchError(
                "what was cut from the network here is not what the server would send: ask for a "
                "package with its weights"
            )
    message.mask = mask
    return bytes(message.SerializeToString(deterministic=True))
