"""What the parts of the library share: where it lives, how it opens and closes."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from fedsprig.errors import LibraryError
from fedsprig_server.library.blobs import BlobStore
from fedsprig_server.library.database import Database, database_url


class Store:
    """A database of rows and a folder of blobs, opened together."""

    def __init__(self, location: str | Path, *, blobs: str | Path | None = None) -> None:
        """Open a library, or make one.

        Args:
            location: A folder (SQLite in it), or a database URL.
            blobs: The blobs' folder; beside an SQLite file by default, needed for other databases.

        Raises:
            LibraryError: It cannot be opened (see :class:`Database`), or ``blobs`` is missing.
        """
        url = database_url(location)
        if blobs is None:
            if url.get_backend_name() != "sqlite":
                raise LibraryError("a library in a database server needs a folder: pass blobs")
            blobs = Path(str(url.database)).parent / "blobs"
        self.blobs = BlobStore(blobs)
        self.database = Database(url)

    def close(self) -> None:
        """Close the database's connections."""
        self.database.close()

    def __enter__(self) -> Self:
        """Use as a context that closes the library."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def require_blobs(self, digests: tuple[str, ...], what: str) -> None:
        """Refuse rows that would name a blob which is not there.

        Raises:
            LibraryError: A blob is missing.
        """
        for digest in digests:
            if not self.blobs.has(digest):
                raise LibraryError(f"{what} names blob {digest[:12]}, not stored: put it first")
