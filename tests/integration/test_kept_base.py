"""A device that keeps the base model downloads kilobytes, and changes nothing else of a run."""

import dataclasses
import shutil
import tomllib

import pytest
import tomli_w
import torch
from flwr.clientapp import ClientApp

from fedsprig.training import evaluate, read, to_tensor
from fedsprig.wire import DESCRIBE, EVALUATE, INSTALL, KINDS, PROFILE, ROUND
from fedsprig_client.app import _device as opened
from fedsprig_client.app import relay
from fedsprig_client.config import DeviceConfig
from fedsprig_client.tasks import open_tasks
from fedsprig_server.app import app as server_app
from fedsprig_server.config import ServerConfig
from fedsprig_server.ledger import Ledger
from fedsprig_server.library import Library
from fedsprig_sim.runtimes.in_process import run_apps_in_process

KEEPER, KEEPS = 1, "low.device-2"


def prepare(world, folder):
    shutil.copytree(world, folder)
    config = ServerConfig.load(world / "server.json")
    return folder, dataclasses.replace(
        config, library=folder / "library", tasks={"low": 2}, arms=("one_shot",)
    )


@pytest.fixture
def prepared(world, tmp_path):
    return prepare(world, tmp_path / "world")


@pytest.fixture(scope="module")
def ordinary(world, tmp_path_factory):
    """What comes of the run where nobody keeps the base."""
    return run(*prepare(world, tmp_path_factory.mktemp("ordinary") / "world"))


def keep_base(folder, weights):
    """One device gets a copy of the base model; returns where it lies."""
    home = folder / "fleet" / f"{KEEPER:05d}"
    shutil.copy(weights, home / "base.safetensors")
    settings = tomllib.loads((home / "device.toml").read_text())
    table = {"model": "cifar_resnet20", "weights": "base.safetensors"}
    (home / "device.toml").write_text(tomli_w.dumps(settings | {"base": table}))
    return home / "base.safetensors"


def run(folder, config, before=lambda kind: None):
    """Run to the end; every message is answered by a new Device, as by a new process."""
    app, seen = ClientApp(), []

    def answer(message, context):
        if context.node_config["partition-id"] == KEEPER:
            before(message.metadata.message_type)
            seen.append(message.metadata.message_type)
        opened.cache_clear()
        return relay(message, context)

    for kind in KINDS:
        category, _, action = kind.partition(".")
        getattr(app, category)(action)(answer)
    config.save(folder / "server.json")
    run_apps_in_process(
        server_app,
        app,
        [{"partition-id": number} for number in range(2)],
        {"fleet": str(folder / "fleet"), "server-config": str(folder / "server.json")},
        workers=1,
    )
    with Library(config.library) as library:
        assert library.verify() == []
        done = library.run("low.one_shot")
        sketch = library.run("low").state["sketch"]
        rounds = Ledger.from_json(done.state["ledger"])
        described = Ledger.from_json(library.run("low").state["ledger"])
        return (sketch, done.state["adapter"], done.state["scores"]), rounds, described, seen


def test_the_run_is_the_same_and_the_download_a_hundredth(prepared, weights, ordinary):
    folder, config = prepared
    keep_base(folder, weights)
    result, rounds, described, seen = run(folder, config)
    assert result == ordinary[0]
    assert rounds.accuracy == ordinary[1].accuracy
    assert rounds.refusals == described.refusals == []
    install, describe = rounds.bytes[KEEPS][INSTALL][0], described.bytes[KEEPS][DESCRIBE][0]
    assert install < 1_000 < 100_000 < ordinary[1].bytes[KEEPS][INSTALL][0]
    # The probe's statistics and the plan, which no device has before its first run, are left of it.
    assert describe < ordinary[2].bytes[KEEPS][DESCRIBE][0] / 6
    other = "low.device-1"
    assert rounds.bytes[other][INSTALL] == ordinary[1].bytes[other][INSTALL]
    assert seen[-5:] == [DESCRIBE, INSTALL, ROUND, ROUND, EVALUATE]
    home = folder / "fleet" / f"{KEEPER:05d}"
    (kept,) = (home / "store" / "runs").iterdir()
    assert kept.stat().st_size < 1_000
    tasks = open_tasks(home / "device.toml")
    check = read(**DeviceConfig.load(home / "device.toml").evaluation)
    images, labels = to_tensor(check.images, tasks.card), torch.from_numpy(check.labels)
    assert tasks.names == ("low.one_shot",)
    found = evaluate(tasks.switch("low.one_shot"), images, labels)
    assert found.accuracy == rounds.accuracy[KEEPS][str(config.rounds.count)]


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x11  # still a valid file, of other weights
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def remove(path):
    path.unlink()


@pytest.mark.parametrize(
    ("when", "spoil"),
    [
        (PROFILE, remove),
        (PROFILE, truncate),
        (DESCRIBE, damage),
        (DESCRIBE, remove),
        (INSTALL, truncate),
        (ROUND, damage),
    ],
)
def test_a_base_that_is_lost_on_the_way_costs_a_download_and_nothing_else(
    prepared, weights, ordinary, when, spoil
):
    folder, config = prepared
    path, pending = keep_base(folder, weights), [spoil]

    def before(kind):
        if kind == when and pending:
            pending.pop()(path)

    result, rounds, described, seen = run(folder, config, before)
    assert result == ordinary[0]
    assert rounds.accuracy == ordinary[1].accuracy
    assert rounds.refusals == described.refusals == []
    again = {
        PROFILE: [],
        DESCRIBE: [DESCRIBE, INSTALL],
        INSTALL: [INSTALL],
        ROUND: [INSTALL, ROUND],
    }
    expected = [DESCRIBE, INSTALL, ROUND, ROUND, EVALUATE]
    assert sorted(seen[seen.index(DESCRIBE) :]) == sorted(expected + again[when])
    # Whoever got weights after all got all of them, and both sendings are counted.
    whole = ordinary[1].bytes[KEEPS][INSTALL][0]
    sent = rounds.bytes[KEEPS][INSTALL][0]
    assert whole <= sent < whole + 20_000


def test_a_base_of_other_weights_is_no_base_of_this_run(prepared, weights, ordinary):
    folder, config = prepared
    damage(keep_base(folder, weights))
    result, rounds, _, seen = run(folder, config)
    assert result == ordinary[0]
    assert rounds.bytes[KEEPS][INSTALL] == ordinary[1].bytes[KEEPS][INSTALL]
    assert seen.count(INSTALL) == 1
