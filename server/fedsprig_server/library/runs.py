"""Runs and their rounds: what a restarted server goes on from."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from fedsprig.errors import LibraryError, RoundConflictError
from fedsprig_server.library.records import Round, Run, check_name, check_round, plain
from fedsprig_server.library.store import Store
from fedsprig_server.library.tables import RoundRow, RunRow


class RunStore(Store):
    """Runs, which are rewritten as they go on, and rounds, which never change."""

    def save_run(self, run: Run) -> None:
        """Write a run, new or not, all at once.

        Raises:
            RoundConflictError: The record is older than the last committed round, and would undo
                it.
        """
        check_name(run.name, "run")
        check_name(run.phase, "phase")
        check_round(run.round)
        spec, state = plain(run.spec, "the run's spec"), plain(run.state, "the run's state")
        with self.database.writing() as session:
            latest = _latest(session, run.name)
            if latest is not None and run.round < latest:
                raise RoundConflictError(
                    f"run {run.name!r} has committed round {latest}, the record says {run.round}: "
                    "read the run again before saving it"
                )
            row = session.get(RunRow, run.name, with_for_update=True)
            if row is None:
                row = RunRow(name=run.name)
                session.add(row)
            row.phase, row.round, row.spec, row.state = run.phase, run.round, spec, state

    def runs(self) -> list[Run]:
        """All runs by name."""
        with self.database.reading() as session:
            return [_run(row) for row in session.scalars(select(RunRow).order_by(RunRow.name))]

    def run(self, name: str) -> Run | None:
        """The run of that name, or ``None``."""
        with self.database.reading() as session:
            row = session.get(RunRow, name)
            return None if row is None else _run(row)

    def commit_round(
        self,
        run_name: str,
        round: int,
        adapter_blob: bytes,
        metrics: dict[str, Any],
        state: dict[str, Any],
    ) -> Round:
        """Make a round durable: first its blob, then, in one transaction, its row and its run.

        The run's ``round`` becomes this one, and the keys of ``state`` are set in the run's state.
        A round that is there already with the same blob is left as it is and returned: a server
        that was killed after the commit may commit again.

        Args:
            run_name: A run that was saved before.
            round: Its number: one more than the last, or any for the first.
            adapter_blob: The adapter after the round.
            metrics: Finite figures by name.
            state: What the round changes in the run's state, as plain JSON data.

        Raises:
            RoundConflictError: The round is there with another blob, or would leave a gap.
            LibraryError: No such run, or data that cannot be stored.
        """
        number = check_round(round)
        figures = plain(metrics, "the round's metrics")
        changes = plain(state, "the round's state")
        digest = self.blobs.put(adapter_blob)
        with self.database.writing() as session:
            run = session.get(RunRow, run_name, with_for_update=True)
            if run is None:
                raise LibraryError(f"the library has no run {run_name!r:.80}: save it first")
            row = session.get(RoundRow, (run_name, number))
            if row is not None:
                if row.adapter != digest:
                    raise RoundConflictError(
                        f"round {number} of run {run_name!r} is committed with another adapter: "
                        "go on from the committed one"
                    )
                return _round(row)
            latest = _latest(session, run_name)
            if latest is not None and number != latest + 1:
                raise RoundConflictError(
                    f"run {run_name!r} has committed round {latest}: commit {latest + 1} next, "
                    f"not {number}"
                )
            row = RoundRow(
                run=run_name, round=number, adapter=digest, metrics=figures, state=changes
            )
            session.add(row)
            run.round, run.state = number, {**run.state, **changes}
            return _round(row)

    def round_(self, run: str, number: int) -> Round:
        """A committed round.

        Raises:
            LibraryError: It is not there.
        """
        with self.database.reading() as session:
            row = session.get(RoundRow, (run, number))
            if row is None:
                raise LibraryError(f"run {run!r:.80} has no round {number}: see latest_round")
            return _round(row)

    def latest_round(self, run: str) -> Round | None:
        """The last committed round of a run, or ``None`` before the first."""
        query = select(RoundRow).where(RoundRow.run == run).order_by(RoundRow.round.desc()).limit(1)
        with self.database.reading() as session:
            row = session.scalar(query)
            return None if row is None else _round(row)

    def rounds(self, run: str) -> list[Round]:
        """All committed rounds of a run, in order."""
        query = select(RoundRow).where(RoundRow.run == run).order_by(RoundRow.round)
        with self.database.reading() as session:
            return [_round(row) for row in session.scalars(query)]


def _latest(session: Session, run: str) -> int | None:
    return session.scalar(select(func.max(RoundRow.round)).where(RoundRow.run == run))


def _run(row: RunRow) -> Run:
    return Run(row.name, row.phase, row.round, row.spec, row.state)


def _round(row: RoundRow) -> Round:
    return Round(row.run, row.round, row.adapter, row.metrics, row.state)
