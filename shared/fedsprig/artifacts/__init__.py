"""Artefacts: the container for arrays, durable files, digests. Nothing in here ever unpickles."""

from fedsprig.artifacts.container import DEFAULT, Limits, pack, read_file, unpack
from fedsprig.artifacts.digest import digest, state_digest
from fedsprig.artifacts.files import read_bytes, require_writable, write_bytes

__all__ = [
    "DEFAULT",
    "Limits",
    "digest",
    "pack",
    "read_bytes",
    "read_file",
    "require_writable",
    "state_digest",
    "unpack",
    "write_bytes",
]
