"""Whole files, read and written so that a crash leaves the old bytes or the new, never a half."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from fedsprig.errors import ArtifactError, LimitError


def write_bytes(path: str | Path, data: bytes | bytearray | memoryview) -> None:
    """Write a file durably and all at once.

    A temporary file beside it is written, synced and renamed over it, and the folder is synced:
    when this returns, the bytes survive a loss of power. The folder is made if it is not there.

    Raises:
        ArtifactError: The file cannot be written; what was there before is untouched.
    """
    path = Path(path)
    temporary = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unlike tempfile's, this file has the access rights that the user's umask gives.
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        # After the rename it is gone already; after any failure nothing may be left behind.
        with contextlib.suppress(OSError):
            temporary.unlink()
    sync_folder(path.parent)


def require_writable(path: str | Path) -> None:
    """Refuse a path that :func:`write_bytes` could not write to, before the work for it is done.

    The folder is made if it is not there; a file that is there already is not touched.

    Raises:
        ArtifactError: The folder cannot be written to, or the path is that of no regular file.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise ArtifactError(f"cannot write {path}: no regular file; choose another path")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(path)
        temporary.touch(exist_ok=False)
        temporary.unlink()
    except OSError as error:
        raise _unwritable(path, error) from error


def read_bytes(path: str | Path, *, max_bytes: int) -> bytes:
    """Read a whole file, refusing one larger than ``max_bytes`` before a byte of it is read.

    Raises:
        ArtifactError: The file cannot be read, or is no regular file.
        LimitError: The file is too large.
    """
    try:
        status = os.stat(path)
        # Before it is opened: opening a pipe waits for its other end, maybe for ever.
        if not stat.S_ISREG(status.st_mode):
            raise ArtifactError(f"cannot read {path}: no regular file; check the path")
        if status.st_size > max_bytes:
            raise LimitError(
                f"{path} has {status.st_size:,} bytes, {max_bytes:,} are allowed: "
                "raise the limit or choose a smaller file"
            )
        with open(path, "rb") as file:
            return file.read(status.st_size)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ArtifactError(f"cannot read {path}: {reason}; check the path") from error


def sync_folder(folder: Path) -> None:
    """Make a rename durable; systems that cannot open a folder (Windows) do so on their own."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _beside(path: Path) -> Path:
    """A name for a temporary file in the same folder."""
    return path.with_name(f".{path.name[:80]}.{secrets.token_hex(8)}")


def _unwritable(path: Path, error: OSError) -> ArtifactError:
    return ArtifactError(f"cannot write {path}: {error.strerror or str(error)}; check the folder")
