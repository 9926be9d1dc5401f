"""Opening the database: durability, locking, and which version of the tables it holds."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine, create_engine, event, inspect
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.orm import Session

from fedsprig.errors import LibraryError, NewerSchemaError
from fedsprig_server.library.tables import SCHEMA, SchemaRow, Table

FILE: Final = "library.sqlite3"
BUSY_SECONDS: Final = 60


class Database:
    """A database of library tables; transactions over it.

    SQLite runs with a write-ahead log synced at every commit (a commit survives a loss of power),
    foreign keys, and writers that take the lock at their beginning, so that two processes wait for
    each other instead of failing.
    """

    def __init__(self, url: URL) -> None:
        """Connect, and make the tables where there are none.

        Raises:
            NewerSchemaError: A later version of fedsprig made the tables.
            LibraryError: The database cannot be opened, or is another program's.
        """
        self.url = url
        self._lite = url.get_backend_name() == "sqlite"
        # Not url.render_as_string: a message must not show a password.
        self.name = str(url.database) if self._lite else f"{url.host}/{url.database}"
        try:
            self._engine = create_engine(
                url, connect_args={"timeout": BUSY_SECONDS} if self._lite else {}
            )
        except (ModuleNotFoundError, SQLAlchemyError) as error:
            raise LibraryError(
                f"cannot use {url.drivername}: {_cause(error)}; install its driver or use a folder"
            ) from error
        if self._lite:
            _configure_sqlite(self._engine)
        self._writer = self._engine.execution_options(fedsprig_write=True)
        with _named_errors(self.name), self._writer.begin() as connection:
            self._prepare(connection)
        if self._lite:
            self._log_ahead()

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A consistent view.

        Raises:
            LibraryError: The database fails.
        """
        with _named_errors(self.name), Session(self._engine) as session, session.begin():
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A transaction: all of it is durable when this ends, or nothing of it happened.

        Raises:
            LibraryError: The database fails.
        """
        with _named_errors(self.name), Session(self._writer) as session, session.begin():
            yield session

    def damage(self) -> list[str]:
        """What the database itself finds wrong with its file."""
        if not self._lite:
            return []
        found = []
        with _named_errors(self.name), self._engine.connect() as connection:
            for (line,) in connection.exec_driver_sql("PRAGMA integrity_check"):
                if line != "ok":
                    found.append(f"{self.name}: {line}")
            for table, row, parent, _ in connection.exec_driver_sql("PRAGMA foreign_key_check"):
                found.append(f"{self.name}: row {row} of {table} names a row of {parent} not there")
        return found

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _log_ahead(self) -> None:
        """Switch to the write-ahead log, which lets readers go on while one writes.

        Only now, when the file is known to be ours: the switch is written into it. It needs the
        file for itself; where another process has it, that one (or the next to open) switches.
        """
        connection = self._engine.raw_connection()
        try:
            with contextlib.suppress(sqlite3.OperationalError):
                connection.cursor().execute("PRAGMA journal_mode = WAL")
        finally:
            connection.close()

    def _prepare(self, connection: Connection) -> None:
        tables = set(inspect(connection).get_table_names())
        ours = set(Table.metadata.tables)
        if SchemaRow.__tablename__ not in tables:
            if tables & ours:
                raise LibraryError(f"{self.name} has tables of another program: choose another one")
            Table.metadata.create_all(connection)
            connection.execute(SchemaRow.__table__.insert().values(id=1, version=SCHEMA))  # type: ignore[attr-defined]
            return
        version = connection.exec_driver_sql(
            f"SELECT MAX(version) FROM {SchemaRow.__tablename__}"  # noqa: S608 - a constant
        ).scalar()
        if not isinstance(version, int) or version < SCHEMA:
            raise LibraryError(f"{self.name} has tables of version {version}: it is damaged")
        if version > SCHEMA:
            raise NewerSchemaError(
                f"{self.name} has tables of version {version}, this fedsprig knows up to {SCHEMA}: "
                "update fedsprig"
            )


def database_url(location: str | Path) -> URL:
    """The URL of a library: given as one, or the SQLite file in a folder.

    Raises:
        LibraryError: A malformed URL, or SQLite in memory, which no second connection would see.
    """
    if not isinstance(location, str) or "://" not in location:
        return URL.create("sqlite", database=str(Path(location) / FILE))
    try:
        url = make_url(location)
    except ArgumentError as error:
        raise LibraryError("the library's URL is malformed: use driver://host/database") from error
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise LibraryError("a library cannot live in memory: name a folder")
    return url


@contextmanager
def _named_errors(name: str) -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        raise LibraryError(
            f"the library {name} failed: {_cause(error)}; check disk and access"
        ) from error
    except json.JSONDecodeError as error:
        raise LibraryError(
            f"the library {name} has a row that is no JSON ({error}): restore it from a copy"
        ) from error


def _cause(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).partition("\n")[0]


def _configure_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        # The driver must not open transactions by itself: it would do so too late (only at the
        # first write), where waiting for another writer is no longer possible.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("fedsprig_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
