"""One server run: gather the devices, specialise all tasks, publish what was finished."""

from __future__ import annotations

from fedsprig.errors import RunError
from fedsprig_server.base import Base
from fedsprig_server.config import ServerConfig
from fedsprig_server.library import Library
from fedsprig_server.lobby import Lobby
from fedsprig_server.publish import publish
from fedsprig_server.scheduler import run_flows
from fedsprig_server.specialise import Specialisation
from fedsprig_server.transport import Transport


def serve(transport: Transport, config: ServerConfig) -> None:
    """Bring every expected task to its end, from wherever an earlier run left it.

    Tasks of one run do not see each other in the library: they are published together at the end,
    in the order of their names, so that the result does not depend on which device was faster.

    Raises:
        RunError: A task failed; the others have been finished and published.
    """
    with Library(config.library) as library:
        serve_from(library, transport, config)


def serve_from(library: Library, transport: Transport, config: ServerConfig) -> None:
    """The same with an open library."""
    base = Base.load(config.model, config.weights, image_size=config.image_size)
    record = library.find_base(base.digest)
    if record is None:
        raise RunError(
            f"the library {config.library} has no task of base {config.model!r} with these "
            "weights: build it first"
        )
    probe = library.blobs.get(record.probe)
    lobby = Lobby(
        transport,
        base.plan,
        config.tasks,
        join_seconds=config.rounds.join_seconds,
        poll_seconds=config.poll_seconds,
    )
    failed = run_flows({"lobby": lobby.gather()}, transport, poll_seconds=config.poll_seconds)
    if failed:
        raise failed["lobby"]
    flows = {
        task: Specialisation(task, members, base, library, config, probe=probe).run()
        for task, members in lobby.cohorts.items()
    }
    failed = run_flows(flows, transport, poll_seconds=config.poll_seconds)
    if config.publish:
        for task in sorted(set(config.tasks) - set(failed)):
            publish(library, base, task)
    if failed:
        first = failed[min(failed)]
        raise RunError(f"{len(failed)} of {len(config.tasks)} tasks failed; the first: {first}")
