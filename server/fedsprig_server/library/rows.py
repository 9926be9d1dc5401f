"""From rows of the tables to what the library hands out."""

from __future__ import annotations

import json
from typing import Final

from sqlalchemy import Select, String, select, type_coerce
from sqlalchemy.orm import Session

from fedsprig.errors import LibraryError
from fedsprig_server.library.records import BaseRecord, Entry
from fedsprig_server.library.tables import BaseRow, EntryRow

ENTRY_FIELDS: Final = (
    "name",
    "base",
    "plan",
    "method",
    "sketch",
    "scores",
    "adapter",
    "metrics",
    "lineage",
    "created",
)
_JSON_FIELDS: Final = ("metrics", "lineage")


def base_of(row: BaseRow) -> BaseRecord:
    """The base of a row."""
    return BaseRecord(row.digest, row.model, row.plan, row.probe)


def entries_of(session: Session, query: Select[EntryRow]) -> list[Entry]:
    """The entries of the rows that a query finds.

    Raises:
        LibraryError: One of them is damaged.
    """
    try:
        rows = list(session.scalars(query))
    except (ValueError, RecursionError):  # no JSON; it does not say in which row
        raise LibraryError(_first_damaged(session)) from None
    return [_entry(row) for row in rows]


def _entry(row: EntryRow) -> Entry:
    for what in _JSON_FIELDS:
        if not isinstance(getattr(row, what), dict):
            raise LibraryError(_damaged(row.name, what))
    fields = {name: getattr(row, name) for name in ENTRY_FIELDS}
    return Entry(**fields, masks={mask.label: mask.digest for mask in row.masks})


def _first_damaged(session: Session) -> str:
    columns = [type_coerce(getattr(EntryRow, what), String) for what in _JSON_FIELDS]
    texts = select(EntryRow.name, *columns).order_by(EntryRow.id)
    for name, *values in session.execute(texts):
        for what, text in zip(_JSON_FIELDS, values, strict=True):
            try:
                json.loads(text)
            except (ValueError, RecursionError):
                return _damaged(name, what)
    return "an entry is damaged: restore the library from a copy"


def _damaged(name: str, what: str) -> str:
    return f"entry {name!r:.80} is damaged: its {what} are no JSON object; restore it from a copy"
