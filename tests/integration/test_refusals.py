"""What a faulty or hostile device sends is refused by name; the task goes on without it."""

import dataclasses
import shutil

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from fedsprig.artifacts import pack, unpack
from fedsprig.errors import RunError
from fedsprig.wire import KINDS, ROUND
from fedsprig_client.app import relay
from fedsprig_server.app import app as server_app
from fedsprig_server.config import ServerConfig
from fedsprig_server.ledger import Ledger
from fedsprig_server.library import Library
from fedsprig_sim.runtimes.in_process import run_apps_in_process

TRAITOR = 1  # the number of the device that misbehaves


def client_that(spoils):
    """The real ClientApp, but one device's answers to rounds go through ``spoils``."""
    app = ClientApp()

    def misbehave(message, context):
        answer = relay(message, context)
        guilty = context.node_config["partition-id"] == TRAITOR
        if guilty and message.metadata.message_type == ROUND:
            return spoils(message, answer)
        return answer

    for kind in KINDS:
        category, _, action = kind.partition(".")
        getattr(app, category)(action)(misbehave)
    return app


def with_blob(message, answer, blob):
    body = answer.content["message"]["body"]
    content = RecordDict({"message": ConfigRecord({"body": body})})
    content["blob"] = ArrayRecord({"blob": Array("uint8", (len(blob),), "bytes", blob)})
    return Message(content, reply_to=message)


def nan_update(message, answer):
    arrays, metadata = unpack(answer.content["blob"]["blob"].data)
    for name, value in arrays.items():
        if value.dtype.kind == "f":
            arrays[name] = np.full_like(value, np.nan)
    return with_blob(message, answer, pack(arrays, metadata))


def stale_update(message, answer):
    """The update that fits the round before: its base is another."""
    arrays, metadata = unpack(answer.content["blob"]["blob"].data)
    forged = {k: ("0" * 64 if len(v) == 64 else v) for k, v in metadata.items()}
    return with_blob(message, answer, pack(arrays, forged))


def truncated_update(message, answer):
    return with_blob(message, answer, answer.content["blob"]["blob"].data[:-20])


def nonsense(message, answer):
    return Message(RecordDict({"message": ConfigRecord({"body": b"\xff" * 40})}), reply_to=message)


def empty(message, answer):
    return Message(RecordDict(), reply_to=message)


def crash(message, answer):
    raise ValueError("boom on the device")


@pytest.fixture
def prepared(world, tmp_path):
    """A library and devices of one's own: task ``low`` alone, half of its devices are enough."""
    shutil.copytree(world, tmp_path / "world")
    config = ServerConfig.load(world / "server.json")
    config = dataclasses.replace(
        config,
        library=tmp_path / "world" / "library",
        tasks={"low": 2},
        arms=("one_shot",),
        rounds=dataclasses.replace(config.rounds, quorum=0.5, deadline_seconds=120),
    )
    return tmp_path / "world", config


def run(folder, config, spoils):
    config.save(folder / "server.json")
    run_apps_in_process(
        server_app,
        client_that(spoils),
        [{"partition-id": number} for number in range(2)],
        {"fleet": str(folder / "fleet"), "server-config": str(folder / "server.json")},
        workers=2,
    )


@pytest.mark.parametrize(
    ("spoils", "words"),
    [
        (nan_update, "NonFiniteUpdateError"),
        (stale_update, "StaleUpdateError"),
        (truncated_update, "TruncatedArtifactError"),
        (nonsense, "MessageError"),
        (empty, "malformed answer"),
        (crash, "boom on the device"),
    ],
)
def test_a_bad_answer_is_named_and_left_out(prepared, spoils, words):
    folder, config = prepared
    run(folder, config, spoils)
    with Library(folder / "library") as library:
        assert library.verify() == []
        done = library.run("low.one_shot")
        assert done.phase == "done"
        ledger = Ledger.from_json(done.state["ledger"])
        assert library.entry("low").metrics["devices"] == 2.0
    assert ledger.rounds == {"low.device-1": config.rounds.count}
    assert len(ledger.refusals) == config.rounds.count
    for refusal in ledger.refusals:
        assert refusal.startswith("low.device-2: ")
        assert words in refusal


def test_without_quorum_the_task_fails_in_one_line_and_can_be_resumed(prepared):
    folder, config = prepared
    strict = dataclasses.replace(config, rounds=dataclasses.replace(config.rounds, quorum=1.0))
    with pytest.raises(RunError, match="quorum") as caught:
        run(folder, strict, nan_update)
    assert "\n" not in str(caught.value)
    with Library(folder / "library") as library:
        assert library.verify() == []
        assert library.latest_round("low.one_shot").round == 0
    run(folder, strict, lambda message, answer: answer)
    with Library(folder / "library") as library:
        assert library.run("low.one_shot").phase == "done"
