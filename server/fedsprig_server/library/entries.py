"""Base models and what was learned about tasks on them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import func, select

from fedsprig.errors import LibraryError, PlanError, ProbeMismatchError
from fedsprig.graph.plan import GroupPlan
from fedsprig.tasks.similarity.index import SketchIndex
from fedsprig.tasks.task_sketch import TaskSketch
from fedsprig_server.library.records import BaseRecord, Entry, check_digest, check_name, plain
from fedsprig_server.library.store import Store
from fedsprig_server.library.tables import BaseRow, EntryRow, MaskRow

if TYPE_CHECKING:
    from fedsprig.masks.scores import ScoreSet

SCORES_KEPT_BYTES: Final = 128 << 20
_NAMES_A_QUERY: Final = 500
_EMPTY: Final = SketchIndex.build((), ())
_ENTRY_FIELDS: Final = (
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


class EntryStore(Store):
    """Bases and entries; they never change once they are there."""

    def __init__(self, location: str | Path, *, blobs: str | Path | None = None) -> None:
        """Open; see :class:`Store`."""
        super().__init__(location, blobs=blobs)
        self._indices: dict[str, tuple[int, SketchIndex]] = {}
        self._scores: OrderedDict[tuple[str, str], ScoreSet] = OrderedDict()
        self._lock = threading.Lock()

    def add_base(self, record: BaseRecord) -> None:
        """Add a base model.

        Raises:
            LibraryError: It is there with another plan or probe, or a blob is missing.
        """
        check_name(record.model, "model")
        check_digest(record.digest, "base")
        self.require_blobs((record.plan, record.probe), f"base {record.model}")
        with self.database.writing() as session:
            row = session.get(BaseRow, record.digest)
            if row is None:
                session.add(BaseRow(**asdict(record)))
            elif _base(row) != record:
                raise LibraryError(
                    f"base {record.model} is in the library with another plan or probe: "
                    "use those, or another library"
                )

    def bases(self) -> list[BaseRecord]:
        """All base models by builder's name."""
        query = select(BaseRow).order_by(BaseRow.model, BaseRow.digest)
        with self.database.reading() as session:
            return [_base(row) for row in session.scalars(query)]

    def find_base(self, digest: str) -> BaseRecord | None:
        """The base model of that digest, or ``None``."""
        with self.database.reading() as session:
            row = session.get(BaseRow, digest)
            return None if row is None else _base(row)

    def add_entry(self, entry: Entry) -> None:
        """Add an entry; the same one again (whenever it was ``created``) is no error.

        Raises:
            LibraryError: Its name is taken by another entry, a name is malformed, a blob missing.
            ProbeMismatchError: Its sketch is of another probe than the base's other entries.
            SketchError: Its sketch is malformed.
        """
        entry = _checked(entry)
        self.require_blobs(entry.blobs, f"entry {entry.name!r}")
        sketch = TaskSketch.from_bytes(self.blobs.get(entry.sketch))
        features = sketch.prototypes.shape[1]
        with self.database.writing() as session:
            row = session.scalar(select(EntryRow).where(EntryRow.name == entry.name))
            if row is not None:
                if replace(_entry(row), created=entry.created) != entry:
                    raise LibraryError(f"the library has another entry {entry.name!r}: rename one")
                return
            other = session.scalar(select(EntryRow).where(EntryRow.base == entry.base).limit(1))
            if other is not None and (other.probe, other.features) != (sketch.probe, features):
                raise ProbeMismatchError(
                    f"the sketch of {entry.name!r} is of probe {sketch.probe[:12]}, that of "
                    f"{other.name!r} of {other.probe[:12]}: describe the task with the latter"
                )
            fields = {name: getattr(entry, name) for name in _ENTRY_FIELDS}
            masks = [MaskRow(label=label, digest=mask) for label, mask in entry.masks.items()]
            session.add(EntryRow(**fields, probe=sketch.probe, features=features, masks=masks))

    def entries(self, base: str | None = None) -> list[Entry]:
        """All entries, or those of one base model, in the order in which they were added."""
        query = select(EntryRow).order_by(EntryRow.id)
        if base is not None:
            query = query.where(EntryRow.base == base)
        with self.database.reading() as session:
            return [_entry(row) for row in session.scalars(query)]

    def entry(self, name: str) -> Entry:
        """The entry of that name.

        Raises:
            LibraryError: There is none.
        """
        with self.database.reading() as session:
            row = session.scalar(select(EntryRow).where(EntryRow.name == name))
            if row is None:
                raise LibraryError(f"the library has no entry {name!r:.80}: list its entries")
            return _entry(row)

    def entries_named(self, names: Sequence[str]) -> list[Entry]:
        """Many entries by name, in the order of the names; a few queries, however many.

        Raises:
            LibraryError: One of them is not there.
        """
        found: dict[str, Entry] = {}
        with self.database.reading() as session:
            for start in range(0, len(names), _NAMES_A_QUERY):
                some = names[start : start + _NAMES_A_QUERY]
                query = select(EntryRow).where(EntryRow.name.in_(some))
                found.update((row.name, _entry(row)) for row in session.scalars(query))
        for name in names:
            if name not in found:
                raise LibraryError(f"the library has no entry {name!r:.80}: list its entries")
        return [found[name] for name in names]

    def index(self, base: str) -> SketchIndex:
        """The sketches of a base model's entries, ready for search.

        Kept between calls; entries that came since (from whatever process) are added to it.
        """
        with self._lock:
            last, index = self._indices.get(base, (0, _EMPTY))
            query = (
                select(EntryRow.id, EntryRow.name, EntryRow.sketch)
                .where(EntryRow.base == base)
                .order_by(EntryRow.id)
            )
            count = select(func.count()).select_from(EntryRow).where(EntryRow.base == base)
            with self.database.reading() as session:
                new = session.execute(query.where(EntryRow.id > last)).all()
                if session.scalar(count) != len(index) + len(new):
                    # Database servers may commit a lower number after a higher one.
                    index, new = _EMPTY, session.execute(query).all()
            if new:
                sketches = [TaskSketch.from_bytes(self.blobs.get(row.sketch)) for row in new]
                index = index.extended([row.name for row in new], sketches)
                self._indices[base] = (new[-1].id, index)
            return index

    def scores(self, entry: Entry, plan: GroupPlan) -> ScoreSet:
        """The score set of an entry; the last used ones are kept in memory.

        Raises:
            PlanError: The entry follows another plan.
        """
        from fedsprig.masks.scores import ScoreSet

        if entry.plan != plan.digest:
            raise PlanError(
                f"entry {entry.name!r} follows plan {entry.plan[:12]}, not {plan.digest[:12]}: "
                "use the base model that it was made with"
            )
        key = (entry.scores, entry.plan)
        with self._lock:
            if key in self._scores:
                self._scores.move_to_end(key)
                return self._scores[key]
        made = ScoreSet.from_bytes(self.blobs.get(entry.scores), plan)
        with self._lock:
            self._scores[key] = made
            kept = max(1, SCORES_KEPT_BYTES // max(1, made.flat.nbytes))
            while len(self._scores) > kept:
                self._scores.popitem(last=False)
        return made


def _checked(entry: Entry) -> Entry:
    for what in ("name", "base", "method"):
        check_name(getattr(entry, what), what)
    for label in entry.masks:
        check_name(label, "mask label")
    check_digest(entry.plan, "plan")
    lineage = plain(entry.lineage, "the entry's lineage")
    return replace(entry, metrics=plain(entry.metrics, "the entry's metrics"), lineage=lineage)


def _base(row: BaseRow) -> BaseRecord:
    return BaseRecord(row.digest, row.model, row.plan, row.probe)


def _entry(row: EntryRow) -> Entry:
    fields = {name: getattr(row, name) for name in _ENTRY_FIELDS}
    return Entry(**fields, masks={mask.label: mask.digest for mask in row.masks})
