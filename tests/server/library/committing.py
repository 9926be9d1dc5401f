"""A server that does nothing but commit rounds, for the tests to kill.

Goes on from the last committed round, as a restarted server does, and says on standard output which
rounds are committed.
"""

from __future__ import annotations

import sys

from fedsprig_server.library import Library, Run

LAST = 10_000


def adapter(number: int) -> bytes:
    """What a round's adapter is: large enough that writing it takes a while, and recomputable."""
    return number.to_bytes(4, "little") * 50_000


def main(folder: str) -> None:
    """Commit rounds for ever."""
    library = Library(folder)
    run = library.run("run")
    if run is None:
        run = Run("run", "rounds", 0, {}, {"sum": 0, "starts": 0})
    total = run.state["sum"]
    # The restart itself is a write too, and must not disturb what is committed.
    library.save_run(
        Run("run", run.phase, run.round, {}, {**run.state, "starts": run.state["starts"] + 1})
    )
    latest = library.latest_round("run")
    for number in range(latest.round + 1 if latest else 1, LAST):
        total += number
        library.commit_round("run", number, adapter(number), {"n": number}, {"sum": total})
        print(number, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
