"""One server run: gather the devices, specialise all tasks, publish what was finished."""

from __future__ import annotations

from collections.abc import Iterable

from fedsprig.errors import RunError
from fedsprig_server.base import Base
from fedsprig_server.begin import arm_name
from fedsprig_server.config import ServerConfig
from fedsprig_server.healing import Healer
from fedsprig_server.horizon import visible_entries
from fedsprig_server.library import BaseRecord, Library
from fedsprig_server.lobby import Lobby
from fedsprig_server.publish import publish
from fedsprig_server.scheduler import run_flows
from fedsprig_server.specialise import Specialisation
from fedsprig_server.transport import Transport


def serve(transport: Transport, config: ServerConfig) -> None:
    """Bring every expected task to its end, from wherever an earlier run left it.

    Tasks of one run do not see each other in the library (:mod:`fedsprig_server.horizon`), and are
    published in the order of their names, so that the result does not depend on which device was
    faster.

    Raises:
        RunError: A task failed; the others have been finished and published.
    """
    with Library(config.library) as library:
        serve_from(library, transport, config)


def serve_from(library: Library, transport: Transport, config: ServerConfig) -> None:
    """The same with an open library."""
    base = Base.load(
        config.model,
        config.weights,
        image_size=config.image_size,
        stored_plan=lambda digest: library.blobs.get(_record(library, config, digest).plan),
    )
    probe = library.blobs.get(_record(library, config, base.digest).probe)
    visible = visible_entries(library, base, config.tasks)
    # First what an earlier attempt finished but did not publish: that takes no device.
    ended = [task for task in sorted(config.tasks) if _ended(library, config, task)]
    _publish(library, base, config, ended)
    expected = {task: count for task, count in config.tasks.items() if task not in ended}
    if not expected:
        return
    lobby = Lobby(
        transport,
        base.plan,
        expected,
        join_seconds=config.rounds.join_seconds,
        poll_seconds=config.poll_seconds,
    )
    if stopped := run_flows({"lobby": lobby.gather()}, transport, poll_seconds=config.poll_seconds):
        raise stopped["lobby"]
    heals = config.start.heal_steps > 0
    with Healer(base, library, config.start, seed=config.seed) as healer:
        flows = {
            task: Specialisation(
                task,
                members,
                base,
                library,
                config,
                probe=probe,
                expected=expected[task],
                visible=visible[task],
                healer=healer if heals else None,
            ).run()
            for task, members in lobby.cohorts.items()
        }
        failed = {
            **lobby.missing,
            **run_flows(flows, transport, poll_seconds=config.poll_seconds),
        }
    _publish(library, base, config, sorted(set(expected) - set(failed)))
    if failed:
        first = failed[min(failed)]
        raise RunError(f"{len(failed)} of {len(config.tasks)} tasks failed; the first: {first}")


def _record(library: Library, config: ServerConfig, digest: str) -> BaseRecord:
    record = library.find_base(digest)
    if record is None:
        raise RunError(
            f"the library {config.library} has no task of base {config.model!r} with these "
            "weights: build it first"
        )
    return record


def _ended(library: Library, config: ServerConfig, task: str) -> bool:
    runs = [library.run(arm_name(task, arm)) for arm in config.arms]
    return all(run is not None and run.phase == "done" for run in runs)


def _publish(library: Library, base: Base, config: ServerConfig, tasks: Iterable[str]) -> None:
    for task in tasks if config.publish else ():
        publish(library, base, task)
