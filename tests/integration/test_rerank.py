"""Where devices order the library's best entries anew: what they say is what counts."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from flwr.clientapp import ClientApp

from fedsprig.errors import RunError
from fedsprig.subnetwork import build_subnetwork
from fedsprig.tasks import SIMILARITIES, observe
from fedsprig.training import to_tensor
from fedsprig.wire import COMPARE, DESCRIBE, KINDS
from fedsprig_client.app import relay
from fedsprig_client.device import Device
from fedsprig_server.app import app as server_app
from fedsprig_server.config import ServerConfig
from fedsprig_server.ledger import Ledger
from fedsprig_server.library import Library
from fedsprig_sim.runtimes.in_process import run_apps_in_process

DEVICES = ("low.device-1", "low.device-2")


def settle(world, folder, **selection):
    shutil.copytree(world, folder)
    config = ServerConfig.load(world / "server.json")
    return dataclasses.replace(
        config,
        library=folder / "library",
        tasks={"low": 2},
        arms=("one_shot",),
        rounds=dataclasses.replace(config.rounds, count=1, deadline_seconds=120),
        selection=dataclasses.replace(config.selection, **selection),
    )


def run(folder, config, does=lambda number, kind: None):
    """One server over the real devices; ``does`` is called before a device works on a message."""
    client = ClientApp()

    def answer(message, context):
        does(context.node_config["partition-id"], message.metadata.message_type)
        return relay(message, context)

    for kind in KINDS:
        category, _, action = kind.partition(".")
        getattr(client, category)(action)(answer)
    config.save(folder / "server.json")
    nodes = [{"partition-id": number} for number in range(2)]
    files = {"fleet": str(folder / "fleet"), "server-config": str(folder / "server.json")}
    run_apps_in_process(server_app, client, nodes, files, workers=2)


def left_behind(config):
    """What was found, what was made of it, and the ledger of the search."""
    with Library(config.library) as library:
        assert library.verify() == []
        found, entry = library.run("low"), library.entry("low")
        return (
            found.state["neighbours"],
            found.state["scores"],
            (entry.sketch, entry.scores, entry.masks, entry.adapter),
            Ledger.from_json(found.state["ledger"]),
        )


def of_the_devices(folder, config, value):
    """The mean over pictures of what the entries are worth on each device, computed here."""
    with Library(config.library) as library:
        (record,) = library.bases()
        index = library.index(record.digest).first(2)
        package = library.blobs.get(record.probe)
    probe = build_subnetwork(package, plan_of=lambda _: None)
    total, pictures = np.zeros(2), 0
    for number in range(2):
        data = Device.open(folder / "fleet" / f"{number:05d}" / "device.toml").pictures
        images, labels = to_tensor(data.images, probe.card), data.labels
        seen = observe(
            probe.module,
            None,
            probe.card.head,
            images,
            torch.from_numpy(labels),
            data.classes,
            probe=index.probe,
        )
        total += len(labels) * SIMILARITIES[value].compare(seen, index)
        pictures += len(labels)
    return dict(zip(index.names, total / pictures, strict=True))


@pytest.mark.parametrize("value", ["leep", "h_score"])
def test_an_entry_is_as_near_as_the_devices_say(world, tmp_path, value):
    config = settle(world, tmp_path / "world", rerank=value)
    run(tmp_path / "world", config)
    neighbours, _, _, ledger = left_behind(config)
    expected = of_the_devices(tmp_path / "world", config, value)
    found = {near["name"]: near["similarity"] for near in neighbours}
    assert found.keys() == expected.keys()
    for name, similarity in found.items():
        assert similarity == pytest.approx(expected[name], rel=0.01)
    order = [near["similarity"] for near in neighbours]
    assert order == sorted(order, reverse=True)
    assert sum(near["weight"] for near in neighbours) == pytest.approx(1)
    for device in DEVICES:
        assert ledger.bytes[device].keys() == {DESCRIBE, COMPARE}
        assert ledger.bytes[device][COMPARE][0] < ledger.bytes[device][DESCRIBE][0] / 10


def test_entries_that_nobody_was_asked_about_get_no_weight(world, tmp_path):
    plain = settle(world, tmp_path / "plain")
    run(tmp_path / "plain", plain)
    one = settle(world, tmp_path / "one", rerank="leep", shortlist=1)
    run(tmp_path / "one", one)
    first, second = left_behind(plain)[0]
    (only,) = left_behind(one)[0]
    assert first["weight"] > second["weight"] > 0
    assert (only["name"], only["weight"]) == (first["name"], 1)
    assert COMPARE not in left_behind(plain)[3].bytes[DEVICES[0]]
    assert not list((tmp_path / "plain").rglob("features"))


def test_a_device_that_lost_its_features_makes_them_again(world, tmp_path):
    whole = settle(world, tmp_path / "whole", rerank="leep")
    run(tmp_path / "whole", whole)
    config = settle(world, tmp_path / "lost", rerank="leep")
    asked = []

    def lose(number, kind):
        asked.append((number, kind))
        if (number, kind) == (1, COMPARE):
            for kept in (tmp_path / "lost" / "fleet" / "00001").rglob("features"):
                kept.unlink()

    run(tmp_path / "lost", config, lose)
    assert asked.count((0, COMPARE)) == 1
    assert asked.count((1, COMPARE)) == 2
    assert left_behind(config)[:3] == left_behind(whole)[:3]
    ledger = left_behind(config)[3]
    assert ledger.refusals == []
    assert ledger.bytes[DEVICES[1]][COMPARE][0] > ledger.bytes[DEVICES[0]][COMPARE][0]


def test_stopped_between_the_two_stages_it_ends_the_same(world, tmp_path):
    whole = settle(world, tmp_path / "whole", rerank="leep")
    run(tmp_path / "whole", whole)
    config = settle(world, tmp_path / "stopped", rerank="leep")

    def stop(number, kind):
        if kind == COMPARE:
            raise ValueError("boom on the device")

    with pytest.raises(RunError, match="1 of 1 tasks failed"):
        run(tmp_path / "stopped", config, stop)
    with Library(config.library) as library:
        assert library.run("low") is None
    run(tmp_path / "stopped", config)
    again, undisturbed = left_behind(config), left_behind(whole)
    assert again[:3] == undisturbed[:3]
    assert again[3].bytes == undisturbed[3].bytes
