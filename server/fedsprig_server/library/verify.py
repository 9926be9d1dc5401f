"""Checking a whole library: every row's blob is there, intact and what the row says it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fedsprig.errors import FedsprigError
from fedsprig.graph.plan import GroupPlan
from fedsprig.tasks.task_sketch import TaskSketch
from fedsprig_server.library.blobs import BlobStore
from fedsprig_server.library.records import BaseRecord, Entry, Round, Run


def problems_of(
    blobs: BlobStore,
    *,
    bases: Sequence[BaseRecord],
    entries: Sequence[Entry],
    runs: Sequence[tuple[Run, Sequence[Round]]],
) -> list[str]:
    """Every fault in one line.

    Args:
        blobs: The store; each blob is read once, one at a time.
        bases: All base models.
        entries: All entries.
        runs: All runs, each with its rounds in order.
    """
    check = _Checker(blobs)
    problems = []
    for record in bases:
        what = f"base {record.model}"
        problems += check(record.plan, f"{what}, plan", GroupPlan.from_bytes)
        problems += check(record.probe, f"{what}, probe")
    for entry in entries:
        what = f"entry {entry.name!r}"
        problems += check(entry.sketch, f"{what}, sketch", TaskSketch.from_bytes)
        problems += check(entry.scores, f"{what}, scores")
        for label, mask in entry.masks.items():
            problems += check(mask, f"{what}, mask {label!r}")
        if entry.adapter is not None:
            problems += check(entry.adapter, f"{what}, adapter")
    for run, rounds in runs:
        what = f"run {run.name!r}"
        for named, blob in run.blobs.items():
            problems += check(blob, f"{what}, {named}")
        for done in rounds:
            problems += check(done.adapter, f"{what}, round {done.round}")
        numbers = [done.round for done in rounds]
        if numbers and numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            problems.append(f"{what}: its rounds {numbers} have gaps")
        if numbers and run.round < numbers[-1]:
            problems.append(f"{what}: it is at round {run.round}, but {numbers[-1]} is committed")
    return problems


class _Checker:
    """Checks blobs, each once however many rows name it."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._found: dict[str, str] = {}

    def __call__(
        self, digest: str, what: str, parse: Callable[[bytes], Any] | None = None
    ) -> list[str]:
        if digest not in self._found:
            self._found[digest] = ""
            try:
                data = self._blobs.get(digest)
                if parse is not None:
                    parse(data)
            except FedsprigError as error:
                self._found[digest] = str(error)
        return [f"{what}: {self._found[digest]}"] if self._found[digest] else []
