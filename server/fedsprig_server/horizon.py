"""What each task may draw from: the library as it was when the task was first expected.

Tasks of one run must not see each other, or the result would depend on which device was faster. A
task that failed is tried again by a later run, which publishes the others before: what it may see
is therefore written down at the first start.
"""

from __future__ import annotations

from collections.abc import Iterable

from fedsprig.errors import RunError
from fedsprig_server.base import Base
from fedsprig_server.library import Library, Run

SERVER = "server"


def visible_entries(library: Library, base: Base, tasks: Iterable[str]) -> dict[str, int]:
    """How many entries of the base, in the order in which they were added, each task may see.

    Entries never go away, so a number says which. The first call for a task fixes it.

    Raises:
        RunError: A task has the name of the row in which this is kept.
    """
    wanted = sorted(tasks)
    if SERVER in wanted:
        raise RunError(f"no task may be called {SERVER!r}: rename it")
    row = library.run(SERVER)
    same = row is not None and row.spec == {"base": base.digest}
    known: dict[str, int] = dict(row.state["entries"]) if row is not None and same else {}
    if not known.keys() >= set(wanted):
        now = len(library.index(base.digest))
        known = dict.fromkeys(wanted, now) | known
        library.save_run(Run(SERVER, "serving", 0, {"base": base.digest}, {"entries": known}))
    return {task: known[task] for task in wanted}
