"""Blobs: immutable bytes under their own digest, written durably."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fedsprig.artifacts.digest import digest
from fedsprig.artifacts.files import read_bytes, sync_folder, write_bytes
from fedsprig.errors import ArtifactError, DigestMismatchError, LibraryError

MAX_BYTES: Final = 2 << 30
_HEX: Final = frozenset("0123456789abcdef")


class BlobStore:
    """A folder ``<first two digits>/<digest>``; content never changes under a digest.

    Any number of threads and processes may use one folder. What a crash leaves half-written has a
    name that begins with a dot and is never read.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open a store; the folder is made if it is not there.

        Raises:
            LibraryError: The folder cannot be made.
        """
        self.folder = Path(folder)
        try:
            _make_folder(self.folder)
        except OSError as error:
            raise LibraryError(
                f"cannot make {self.folder}: {error.strerror}; choose a folder you may write to"
            ) from error

    def put(self, data: bytes) -> str:
        """Store bytes and return their digest; when this returns, they survive a loss of power.

        Bytes that are stored already are not written again, unless the file has rotted.

        Raises:
            ArtifactError: The disk is full, or the folder not writable.
        """
        name = digest(data)
        path = self._path(name)
        if self._intact(name):
            # Another process may have renamed the file but not yet synced the folder.
            sync_folder(path.parent)
            return name
        try:
            _make_folder(path.parent)
        except OSError as error:
            raise ArtifactError(
                f"cannot make {path.parent}: {error.strerror}; check the folder"
            ) from error
        write_bytes(path, data)
        return name

    def get(self, name: str) -> bytes:
        """The bytes of a digest, checked against it.

        Raises:
            LibraryError: No such blob, or a name that is no digest.
            DigestMismatchError: The file holds other bytes than it was stored with.
        """
        path = self._path(name)
        if not path.is_file():
            raise LibraryError(
                f"blob {name[:12]} is not in {self.folder}: restore it from a backup"
            )
        data = read_bytes(path, max_bytes=MAX_BYTES)
        if digest(data) != name:
            raise DigestMismatchError(
                f"blob {name[:12]} in {self.folder} is damaged: restore it from a backup"
            )
        return data

    def has(self, name: str) -> bool:
        """Whether a blob of that digest is there; its bytes are not looked at."""
        return self._path(name).is_file()

    def __iter__(self) -> Iterator[str]:
        """Digests of all blobs, sorted."""
        for shard in sorted(self.folder.iterdir()):
            if shard.is_dir():
                yield from sorted(p.name for p in shard.iterdir() if is_digest(p.name))

    def _intact(self, name: str) -> bool:
        try:
            return self.has(name) and digest(self._path(name).read_bytes()) == name
        except OSError:
            return False

    def _path(self, name: str) -> Path:
        # Also what keeps a forged "../../etc/passwd" out of the file system.
        if not is_digest(name):
            raise LibraryError(f"{name!r:.80} is no digest: use 64 hexadecimal digits")
        return self.folder / name[:2] / name


def is_digest(name: object) -> bool:
    """Whether this is a SHA-256 in lower-case hexadecimal."""
    return isinstance(name, str) and len(name) == 64 and _HEX.issuperset(name)


def _make_folder(folder: Path) -> None:
    """Make a folder whose name in its parent survives a loss of power."""
    if folder.is_dir():
        return
    folder.mkdir(parents=True, exist_ok=True)
    sync_folder(folder.parent)
