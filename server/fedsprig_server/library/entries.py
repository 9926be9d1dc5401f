"""Base models and what was learned about tasks on them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from fedsprig.errors import LibraryError, PlanError, ProbeMismatchError, SketchError
from fedsprig.graph.plan import GroupPlan
from fedsprig.tasks.similarity.index import SketchIndex
from fedsprig.tasks.task_sketch import TaskSketch
from fedsprig_server.library.records import BaseRecord, Entry, check_digest, check_name, plain
from fedsprig_server.library.rows import ENTRY_FIELDS, base_of, entries_of
from fedsprig_server.library.store import Store
from fedsprig_server.library.tables import BaseRow, EntryRow, MaskRow

if TYPE_CHECKING:
    from fedsprig.masks.scores import ScoreSet

SCORES_KEPT_BYTES: Final = 128 << 20
_NAMES_A_QUERY: Final = 500
_EMPTY: Final = SketchIndex.build((), ())


class _Units(NamedTuple):
    """What the fingerprints of a base are of, after the entries up to one; 0 and () unknown."""

    last: int = 0
    units: int = 0
    groups: tuple[int, ...] = ()


class EntryStore(Store):
    """Bases and entries; they never change once they are there."""

    def __init__(self, location: str | Path, *, blobs: str | Path | None = None) -> None:
        """Open; see :class:`Store`."""
        super().__init__(location, blobs=blobs)
        self._indices: dict[str, tuple[int, SketchIndex]] = {}
        self._units: dict[str, _Units] = {}
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
            elif base_of(row) != record:
                raise LibraryError(
                    f"base {record.model} is in the library with another plan or probe: "
                    "use those, or another library"
                )

    def bases(self) -> list[BaseRecord]:
        """All base models by builder's name."""
        query = select(BaseRow).order_by(BaseRow.model, BaseRow.digest)
        with self.database.reading() as session:
            return [base_of(row) for row in session.scalars(query)]

    def find_base(self, digest: str) -> BaseRecord | None:
        """The base model of that digest, or ``None``."""
        with self.database.reading() as session:
            row = session.get(BaseRow, digest)
            return None if row is None else base_of(row)

    def add_entry(self, entry: Entry) -> None:
        """Add an entry; the same one again (whenever it was ``created``) is no error.

        Raises:
            LibraryError: Its name is taken by another entry, a name is malformed, a blob missing.
            ProbeMismatchError: Its sketch is of another probe than the base's other entries.
            SketchError: Its sketch is malformed, or its fingerprint is of other units or groups
                than those of the base's other entries.
        """
        entry = _checked(entry)
        self.require_blobs(entry.blobs, f"entry {entry.name!r}")
        sketch = TaskSketch.from_bytes(self.blobs.get(entry.sketch))
        features = sketch.prototypes.shape[1]
        with self.database.writing() as session:
            same = entries_of(session, select(EntryRow).where(EntryRow.name == entry.name))
            if same:
                if replace(same[0], created=entry.created) != entry:
                    raise LibraryError(f"the library has another entry {entry.name!r}: rename one")
                return
            columns = select(EntryRow.name, EntryRow.probe, EntryRow.features)
            other = session.execute(columns.where(EntryRow.base == entry.base).limit(1)).first()
            if other is not None and (other.probe, other.features) != (sketch.probe, features):
                raise ProbeMismatchError(
                    f"the sketch of {entry.name!r} is of probe {sketch.probe[:12]}, that of "
                    f"{other.name!r} of {other.probe[:12]}: describe the task with the latter"
                )
            self._check_units(session, entry, sketch)
            fields = {name: getattr(entry, name) for name in ENTRY_FIELDS}
            masks = [MaskRow(label=label, digest=mask) for label, mask in entry.masks.items()]
            session.add(EntryRow(**fields, probe=sketch.probe, features=features, masks=masks))

    def entries(self, base: str | None = None) -> list[Entry]:
        """All entries, or those of one base model, in the order in which they were added."""
        query = select(EntryRow).order_by(EntryRow.id)
        if base is not None:
            query = query.where(EntryRow.base == base)
        with self.database.reading() as session:
            return entries_of(session, query)

    def entry(self, name: str) -> Entry:
        """The entry of that name.

        Raises:
            LibraryError: There is none.
        """
        with self.database.reading() as session:
            found = entries_of(session, select(EntryRow).where(EntryRow.name == name))
        if not found:
            raise LibraryError(f"the library has no entry {name!r:.80}: list its entries")
        return found[0]

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
                found.update((entry.name, entry) for entry in entries_of(session, query))
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

    def _check_units(self, session: Session, entry: Entry, sketch: TaskSketch) -> None:
        """Refuse a fingerprint that an index could not hold beside the base's others."""
        if not sketch.fingerprint.size:
            return
        known = self._units.get(entry.base, _Units())
        if not known.groups:
            query = select(EntryRow.id, EntryRow.sketch).order_by(EntryRow.id)
            of_base = query.where(EntryRow.base == entry.base, EntryRow.id > known.last)
            for number, blob in session.execute(of_base):
                other = TaskSketch.from_bytes(self.blobs.get(blob))
                units = known.units or other.fingerprint.size
                known = _Units(number, units, known.groups or other.groups)
                if known.groups:  # which tell the units too
                    break
            self._units[entry.base] = known
        if (
            known.units not in (0, sketch.fingerprint.size)
            or len({known.groups, sketch.groups} - {()}) > 1
        ):
            raise SketchError(
                f"the sketch of {entry.name!r} has a fingerprint of {sketch.fingerprint.size} "
                f"units, in groups other than those of this base's entries ({known.units} units): "
                "describe the task again with the server's probe"
            )


def _checked(entry: Entry) -> Entry:
    for what in ("name", "base", "method"):
        check_name(getattr(entry, what), what)
    for label in entry.masks:
        check_name(label, "mask label")
    check_digest(entry.plan, "plan")
    lineage = plain(entry.lineage, "the entry's lineage")
    return replace(entry, metrics=plain(entry.metrics, "the entry's metrics"), lineage=lineage)
