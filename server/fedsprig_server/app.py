"""The ServerApp: Flower's grid as a transport, and one long run that specialises every task."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedsprig.errors import FedsprigError, MessageError
from fedsprig.wire import Envelope
from fedsprig_server.config import ServerConfig
from fedsprig_server.serve import serve
from fedsprig_server.transport import Reply, Request

app = ServerApp()
REFUSAL_CHARACTERS = 300


class GridTransport:
    """Flower's message queue, without waiting: :class:`fedsprig_server.transport.Transport`."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._kinds: dict[str, str] = {}

    def nodes(self) -> list[int]:
        """The nodes that are reachable now."""
        return list(self._grid.get_node_ids())

    def push(self, requests: Sequence[Request], *, ttl_seconds: float) -> list[str]:
        """Send messages; their identifiers in the same order, empty for one that was not sent."""
        # One by one, so that a node that has gone, or a message that is too large, fails alone.
        return [self._push(request, ttl_seconds) for request in requests]

    def pull(self, message_ids: Collection[str]) -> list[Reply]:
        """The answers that have arrived for these messages; each is handed out once."""
        return [self._reply(message) for message in self._grid.pull_messages(message_ids)]

    def _push(self, request: Request, ttl_seconds: float) -> str:
        content = RecordDict({"message": ConfigRecord({"body": request.envelope.body})})
        if blob := request.envelope.blob:
            array = Array("uint8", (len(blob),), "bytes", blob)
            content["blob"] = ArrayRecord({"blob": array})
        message = Message(content, request.node, request.envelope.kind, ttl=ttl_seconds)
        ids = list(self._grid.push_messages([message]))
        if not ids or not ids[0]:
            return ""
        self._kinds[ids[0]] = request.envelope.kind
        return ids[0]

    def _reply(self, message: Message) -> Reply:
        answered = message.metadata.reply_to_message_id
        kind = self._kinds.pop(answered, "")
        if message.has_error():
            error = message.error
            return Reply(answered, None, one_line(f"Flower error {error.code}: {error.reason}"))
        try:
            record = message.content.config_records["message"]
            if "refusal" in record:
                return Reply(answered, None, one_line(str(record["refusal"])))
            blob = message.content.array_records.get("blob")
            body, data = record["body"], blob["blob"].data if blob else b""
            # A number would be taken for a length by bytes(), and be allocated.
            if not isinstance(body, bytes) or not isinstance(data, bytes):
                raise MessageError("body and blob are bytes: the device must run the same release")
            return Reply(answered, Envelope(kind, body, data))
        except (FedsprigError, KeyError, TypeError, ValueError) as fault:
            return Reply(
                answered, None, one_line(f"malformed answer: {type(fault).__name__}: {fault}")
            )


def one_line(text: str) -> str:
    """What a device says of itself, fit for a log: one line, printable, not too long."""
    line = "".join(c if c.isprintable() else " " for c in text[: 4 * REFUSAL_CHARACTERS])
    return " ".join(line.split())[:REFUSAL_CHARACTERS]


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Specialise every task that the settings (``server-config``, a file) expect."""
    config = ServerConfig.load(Path(str(context.run_config["server-config"])))
    serve(GridTransport(grid), config)
