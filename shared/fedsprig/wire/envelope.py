"""Message kinds and the envelope that carries a message with its blob.

A kind is a Flower message type (``category.action``); the body is a message of
``protos/fedsprig/v1/device.proto``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from fedsprig.errors import LimitError, MessageError

PROFILE: Final = "query.profile"
DESCRIBE: Final = "query.describe"
COMPARE: Final = "query.compare"
INSTALL: Final = "query.install"
ROUND: Final = "train.round"
ATTENTION: Final = "query.attention"
CUT: Final = "query.cut"
EVALUATE: Final = "evaluate.adapter"
KINDS: Final = (PROFILE, DESCRIBE, COMPARE, INSTALL, ROUND, ATTENTION, CUT, EVALUATE)

BODY_BYTES: Final = 1 << 20
BLOB_BYTES: Final = 1 << 30

AnyMessage = TypeVar("AnyMessage", bound=Message)


@dataclass(frozen=True, slots=True)
class Envelope:
    """One message: its kind, its serialised body and the large value beside it."""

    kind: str
    body: bytes
    blob: bytes = b""

    def __post_init__(self) -> None:
        """Refuse what is too large before anything looks at it."""
        for what, size, limit in (
            ("body", len(self.body), BODY_BYTES),
            ("blob", len(self.blob), BLOB_BYTES),
        ):
            if size > limit:
                raise LimitError(
                    f"{self.kind}: the {what} has {size:,} bytes, {limit:,} are allowed: "
                    "send a smaller one"
                )


def parse(message_type: type[AnyMessage], data: bytes) -> AnyMessage:
    """Parse a protobuf message from bytes that may come from outside.

    Raises:
        LimitError: More than ``BODY_BYTES`` (sub-networks, which hold weights: ``BLOB_BYTES``).
        MessageError: The bytes are no such message.
    """
    limit = BLOB_BYTES if message_type.__name__ == "SubNetwork" else BODY_BYTES
    if len(data) > limit:
        raise LimitError(
            f"a {message_type.__name__} of {len(data):,} bytes, {limit:,} are allowed: "
            "send a smaller one"
        )
    message = message_type()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise MessageError(
            f"bytes that are no {message_type.__name__}: server and device must run the same "
            f"release ({error})"
        ) from error
    return message
