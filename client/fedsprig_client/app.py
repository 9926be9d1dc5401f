"""The ClientApp: hands Flower's messages to the device and its answers back.

The device's file is named by the node's configuration (``device="..."``). In a simulation, where
Flower numbers the nodes itself, the run's configuration names a folder of numbered devices
(``fleet``), and the node's number picks one.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedsprig.errors import FedsprigError, RunError
from fedsprig.wire import KINDS, Envelope
from fedsprig_client.device import Device

app = ClientApp()


def relay(message: Message, context: Context) -> Message:
    """Answer one message; a refusal travels as text, so that the server can name the reason."""
    try:
        blob = message.content.array_records.get("blob")
        request = Envelope(
            message.metadata.message_type,
            bytes(message.content.config_records["message"]["body"]),  # type: ignore[arg-type]
            blob["blob"].data if blob else b"",
        )
        answer = _device(_device_file(context)).answer(request)
        content = RecordDict({"message": ConfigRecord({"body": answer.body})})
        if answer.blob:
            array = Array("uint8", (len(answer.blob),), "bytes", answer.blob)
            content["blob"] = ArrayRecord({"blob": array})
    except FedsprigError as error:
        refusal = f"{type(error).__name__}: {error}"
        content = RecordDict({"message": ConfigRecord({"refusal": refusal})})
    return Message(content, reply_to=message)


for _kind in KINDS:
    _category, _, _action = _kind.partition(".")
    getattr(app, _category)(_action)(relay)


@lru_cache(maxsize=64)
def _device(path: Path) -> Device:
    # A device keeps nothing between messages but its pictures in memory.
    return Device.open(path)


def _device_file(context: Context) -> Path:
    if "device" in context.node_config:
        return Path(str(context.node_config["device"]))
    fleet, number = context.run_config.get("fleet"), context.node_config.get("partition-id")
    if fleet and number is not None:
        return Path(str(fleet)) / f"{int(number):05d}" / "device.toml"
    raise RunError("no device file: start the SuperNode with --node-config 'device=\"FILE\"'")
