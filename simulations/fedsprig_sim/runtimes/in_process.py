"""Server and devices in one process, without sockets: for tests, sweeps and the demo.

It implements Flower's ``Grid`` over a thread pool and calls the same application objects that the
other runtimes load. Three internal names of Flower are needed and used here alone:
``TaskIdentity`` (a ``Message`` cannot be built without it), ``Run`` (in the signature of
``Grid.set_run``) and the field ``_message_id`` of a message's metadata (nothing public sets it).
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

RUN_ID = 1
SERVER_NODE = 1
FIRST_NODE = 1000
APP_FAILED = 2  # Flower's code for a ClientApp that raised
PULL_SECONDS = 0.005


class InProcessGrid(Grid):
    """A message queue over threads; a node works on one message at a time, as a SuperNode does."""

    def __init__(
        self,
        client_app: ClientApp,
        node_configs: list[dict[str, Any]],
        run_config: dict[str, Any],
        *,
        workers: int,
    ) -> None:
        TaskIdentity.run_id = RUN_ID
        TaskIdentity.node_id = SERVER_NODE
        TaskIdentity.task_id = RUN_ID
        self._client_app = client_app
        self._contexts = {
            FIRST_NODE + number: Context(
                run_id=RUN_ID,
                node_id=FIRST_NODE + number,
                node_config=config,
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for number, config in enumerate(node_configs)
        }
        self._busy = {node: threading.Lock() for node in self._contexts}
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="device")
        self._answers: dict[str, Future[Message]] = {}

    def set_run(self, run: Run) -> None:
        """There is one run only."""

    @property
    def run(self) -> Run:
        """Not there: nothing of ours asks for it."""
        raise AttributeError("the in-process grid has no run description")

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Build a message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes are there from the start."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand messages to the devices' threads."""
        ids = []
        for message in messages:
            message_id = uuid.uuid4().hex
            message.metadata.__dict__["_message_id"] = message_id
            self._answers[message_id] = self._pool.submit(self._work, message)
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The answers that are ready; each is handed out once."""
        ready = [i for i in message_ids if i in self._answers and self._answers[i].done()]
        return [self._answers.pop(message_id).result() for message_id in ready]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push, and pull until all answers are here or the time is up."""
        waiting = set(self.push_messages(messages))
        ends = time.monotonic() + (timeout if timeout is not None else float("inf"))
        answers: list[Message] = []
        while waiting and time.monotonic() < ends:
            arrived = list(self.pull_messages(waiting))
            waiting -= {answer.metadata.reply_to_message_id for answer in arrived}
            answers += arrived
            time.sleep(PULL_SECONDS)
        return answers

    def close(self) -> None:
        """Drop what is queued and wait for what is being worked on."""
        self._pool.shutdown(cancel_futures=True)

    def _work(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        with self._busy[node]:
            try:
                return self._client_app(message, self._contexts[node])
            except Exception as error:
                # What any other runtime does with an application that raises.
                return Message(Error(APP_FAILED, f"{type(error)}:<{error!r}>"), reply_to=message)


def run_in_process(*, fleet: Path, devices: int, server_config: Path, workers: int) -> None:
    """Run the two applications to the end; see :func:`fedsprig_sim.runtimes.run_apps`."""
    from fedsprig_client.app import app as client_app
    from fedsprig_server.app import app as server_app

    run_apps_in_process(
        server_app,
        client_app,
        [{"partition-id": number, "num-partitions": devices} for number in range(devices)],
        {"fleet": str(fleet), "server-config": str(server_config)},
        workers=workers,
    )


def run_apps_in_process(
    server_app: ServerApp,
    client_app: ClientApp,
    node_configs: list[dict[str, Any]],
    run_config: dict[str, Any],
    *,
    workers: int,
) -> None:
    """Run any ServerApp and ClientApp over threads."""
    grid = InProcessGrid(client_app, node_configs, run_config, workers=workers)
    context = Context(
        run_id=RUN_ID,
        node_id=SERVER_NODE,
        node_config={},
        state=RecordDict(),
        run_config=dict(run_config),
    )
    try:
        server_app(grid, context)
    finally:
        grid.close()
