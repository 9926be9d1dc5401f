"""The tables. A change of them is a new ``SCHEMA`` number and a migration."""

from __future__ import annotations

from typing import Any, ClassVar, Final

from sqlalchemy import JSON, ForeignKey, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

SCHEMA: Final = 1
_NAME = String(200)
_DIGEST = String(64)


class Table(DeclarativeBase):
    """Root of the tables."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {dict[str, Any]: JSON, str: _NAME}


class SchemaRow(Table):
    """One row: which tables these are."""

    __tablename__ = "fedsprig_schema"

    id: Mapped[int] = mapped_column(primary_key=True)
    version: Mapped[int]


class BaseRow(Table):
    """A base model."""

    __tablename__ = "bases"

    digest: Mapped[str] = mapped_column(_DIGEST, primary_key=True)
    model: Mapped[str]
    plan: Mapped[str] = mapped_column(_DIGEST)
    probe: Mapped[str] = mapped_column(_DIGEST)


class EntryRow(Table):
    """A library entry. ``id`` grows, so that an index knows which entries are new to it."""

    __tablename__ = "entries"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    name: Mapped[str] = mapped_column(unique=True)
    base: Mapped[str] = mapped_column(index=True)
    plan: Mapped[str] = mapped_column(_DIGEST)
    method: Mapped[str]
    # The sketch's space, repeated here so that a sketch of another one is refused at the door.
    probe: Mapped[str] = mapped_column(_DIGEST)
    features: Mapped[int]
    sketch: Mapped[str] = mapped_column(_DIGEST)
    scores: Mapped[str] = mapped_column(_DIGEST)
    adapter: Mapped[str | None] = mapped_column(_DIGEST)
    metrics: Mapped[dict[str, Any]]
    lineage: Mapped[dict[str, Any]]
    created: Mapped[float]
    masks: Mapped[list[MaskRow]] = relationship(
        order_by="MaskRow.label", lazy="selectin", cascade="all, delete-orphan"
    )


class MaskRow(Table):
    """One mask of an entry."""

    __tablename__ = "entry_masks"

    entry: Mapped[int] = mapped_column(ForeignKey("entries.id"), primary_key=True)
    label: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(_DIGEST)


class RunRow(Table):
    """A run."""

    __tablename__ = "runs"

    name: Mapped[str] = mapped_column(primary_key=True)
    phase: Mapped[str]
    round: Mapped[int]
    spec: Mapped[dict[str, Any]]
    state: Mapped[dict[str, Any]]


class RoundRow(Table):
    """A committed round; the key makes a second commit of the same one impossible."""

    __tablename__ = "rounds"

    run: Mapped[str] = mapped_column(ForeignKey("runs.name"), primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    adapter: Mapped[str] = mapped_column(_DIGEST)
    metrics: Mapped[dict[str, Any]]
    state: Mapped[dict[str, Any]]
