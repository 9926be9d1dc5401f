"""The ServerApp: Flower's grid as a transport, and one long run that specialises every task."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedsprig.errors import FedsprigError
from fedsprig.wire import Envelope
from fedsprig_server.config import ServerConfig
from fedsprig_server.serve import serve
from fedsprig_server.transport import Reply, Request

app = ServerApp()


class GridTransport:
    """Flower's message queue, without waiting: :class:`fedsprig_server.transport.Transport`."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._kinds: dict[str, str] = {}

    def nodes(self) -> list[int]:
        """The nodes that are reachable now."""
        return list(self._grid.get_node_ids())

    def push(self, requests: Sequence[Request], *, ttl_seconds: float) -> list[str]:
        """Send messages; their identifiers in the same order."""
        messages = []
        for request in requests:
            content = RecordDict({"message": ConfigRecord({"body": request.envelope.body})})
            if blob := request.envelope.blob:
                array = Array("uint8", (len(blob),), "bytes", blob)
                content["blob"] = ArrayRecord({"blob": array})
            messages.append(Message(content, request.node, request.envelope.kind, ttl=ttl_seconds))
        ids = list(self._grid.push_messages(messages))
        self._kinds.update(
            (message_id, request.envelope.kind)
            for message_id, request in zip(ids, requests, strict=True)
        )
        return ids

    def pull(self, message_ids: Collection[str]) -> list[Reply]:
        """The answers that have arrived for these messages; each is handed out once."""
        return [self._reply(message) for message in self._grid.pull_messages(message_ids)]

    def _reply(self, message: Message) -> Reply:
        answered = message.metadata.reply_to_message_id
        kind = self._kinds.pop(answered, "")
        if message.has_error():
            return Reply(
                answered, None, f"Flower error {message.error.code}: {message.error.reason}"
            )
        try:
            record = message.content.config_records["message"]
            if "refusal" in record:
                return Reply(answered, None, str(record["refusal"]))
            blob = message.content.array_records.get("blob")
            data = blob["blob"].data if blob else b""
            return Reply(answered, Envelope(kind, bytes(record["body"]), data))  # type: ignore[arg-type]
        except (FedsprigError, KeyError, TypeError) as error:
            return Reply(answered, None, f"malformed answer: {type(error).__name__}: {error}")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Specialise every task that the settings (``server-config``, a file) expect."""
    config = ServerConfig.load(Path(str(context.run_config["server-config"])))
    serve(GridTransport(grid), config)
