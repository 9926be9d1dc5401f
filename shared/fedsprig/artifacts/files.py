"""Reading and writing whole files so that a crash leaves either the old or the new bytes, never
half of them."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from fedsprig.errors import ArtifactError, LimitError


def write_bytes(path: str | Path, data: bytes | bytearray | memoryview) -> None:
    """Write a file durably: a temporary file beside it, synced, renamed over it, and the folder
    synced.

    The folder is made if it is not there. When this returns, the bytes survive a loss of power.

    Raises:
        ArtifactError: The file cannot be written; what was there before is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:80]}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unlike tempfile's, this file has the access rights that the user's umask gives.
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ArtifactError(f"cannot write {path}: {reason}; check the folder") from error
    finally:
        # After the rename it is gone already; after any failure nothing may be left behind.
        with contextlib.suppress(OSError):
            temporary.unlink()
    _sync_folder(path.parent)


def read_bytes(path: str | Path, *, max_bytes: int) -> bytes:
    """Read a whole file, refusing one larger than ``max_bytes`` before a byte of it is read.

    Raises:
        ArtifactError: The file cannot be read.
        LimitError: The file is too large.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            # One byte more than allowed: a file that grows meanwhile, or a pipe, cannot get past
            # the limit either.
            data = file.read(max_bytes + 1) if size <= max_bytes else b""
    except OSError as error:
        reason = error.strerror or str(error)
        raise ArtifactError(f"cannot read {path}: {reason}; check the path") from error
    if max(size, len(data)) > max_bytes:
        size = max(size, len(data))
        raise LimitError(f"{path} has {size:,} bytes, {max_bytes:,} are allowed: raise the limit")
    return data


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; systems that cannot open a folder (Windows) do so on their own."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
