"""What travels between server and device: kinds, envelopes, and the parsing of their bytes."""

from fedsprig.wire.envelope import (
    ATTENTION,
    COMPARE,
    CUT,
    DESCRIBE,
    EVALUATE,
    INSTALL,
    KINDS,
    PROFILE,
    ROUND,
    Envelope,
    parse,
)

__all__ = [
    "ATTENTION",
    "COMPARE",
    "CUT",
    "DESCRIBE",
    "EVALUATE",
    "INSTALL",
    "KINDS",
    "PROFILE",
    "ROUND",
    "Envelope",
    "parse",
]
