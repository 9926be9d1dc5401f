"""The library as one object."""

from __future__ import annotations

from fedsprig_server.library.entries import EntryStore
from fedsprig_server.library.runs import RunStore
from fedsprig_server.library.verify import problems_of


class Library(EntryStore, RunStore):
    """All that the server knows, durable.

    Bases, entries and rounds never change once they are there, and adding the same one again does
    nothing, so that a step which a killed server repeats has no second effect. Runs are rewritten.
    Threads may share a library; processes may open one folder together.
    """

    def stored_plan(self, digest: str) -> bytes | None:
        """The plan that lies with a base, as ``Base.load`` asks for it; ``None`` for a new base."""
        record = self.find_base(digest)
        return None if record is None else self.blobs.get(record.plan)

    def verify(self) -> list[str]:
        """Every fault of rows and blobs in one line each; an empty list is a sound library.

        Reads each blob that a row names once. Blobs that no row names are no fault: a process
        killed between a blob and its row leaves them.
        """
        # Rounds before their runs: a round that is committed meanwhile must not look as if its run
        # had not heard of it.
        rounds = {run.name: self.rounds(run.name) for run in self.runs()}
        return self.database.damage() + problems_of(
            self.blobs,
            bases=self.bases(),
            entries=self.entries(),
            runs=[(run, rounds.get(run.name, [])) for run in self.runs()],
        )
