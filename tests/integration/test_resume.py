"""Killed at any moment, a run ends as if it had not been; nobody else's doing changes it."""

import dataclasses
import shutil
import tomllib

import numpy as np
import pytest
import tomli_w
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedsprig.errors import RunError
from fedsprig.training import read
from fedsprig.wire import DESCRIBE, KINDS
from fedsprig_client.app import relay
from fedsprig_server.aggregation import AGGREGATIONS
from fedsprig_server.app import GridTransport
from fedsprig_server.config import PruningConfig, ServerConfig, StartConfig
from fedsprig_server.ledger import Ledger
from fedsprig_server.library import Library
from fedsprig_server.serve import serve_from
from fedsprig_sim.runtimes.in_process import run_apps_in_process


class Killed(Exception):
    """The server is gone."""


class Mortal(Library):
    """Makes one step durable, and is killed when it wants to make the next one so."""

    steps = 0

    def _step(self):
        self.steps += 1
        if self.steps > 1:
            raise Killed

    def save_run(self, run):
        self._step()
        super().save_run(run)

    def commit_round(self, *arguments):
        self._step()
        return super().commit_round(*arguments)

    def add_entry(self, entry):
        self._step()
        super().add_entry(entry)


class Nobody:
    """A transport without a device."""

    def nodes(self):
        return []

    def push(self, requests, *, ttl_seconds):
        raise AssertionError("nobody is here")

    def pull(self, message_ids):
        return []


def attempt(folder, config, *, library=Library, fails=lambda number, kind: False):
    """One server over the real devices of a folder, in this process."""
    server, client = ServerApp(), ClientApp()

    @server.main()
    def main(grid, context):
        with library(config.library) as opened:
            serve_from(opened, GridTransport(grid), config)

    def answer(message, context):
        if fails(context.node_config["partition-id"], message.metadata.message_type):
            raise ValueError("boom on the device")
        return relay(message, context)

    for kind in KINDS:
        category, _, action = kind.partition(".")
        getattr(client, category)(action)(answer)
    devices = 2 * len(config.tasks)
    nodes = [{"partition-id": number} for number in range(devices)]
    run_apps_in_process(server, client, nodes, {"fleet": str(folder / "fleet")}, workers=2)


def settle(world, folder, *, quorum=1.0, tasks=("low",)):
    """Copy a world, and the settings for it."""
    shutil.copytree(world, folder)
    config = ServerConfig.load(world / "server.json")
    return dataclasses.replace(
        config,
        library=folder / "library",
        tasks=dict.fromkeys(tasks, 2),
        arms=("one_shot",),
        rounds=dataclasses.replace(config.rounds, quorum=quorum, deadline_seconds=120),
    )


def left_behind(config):
    """All that must not depend on how often the server was killed."""
    with Library(config.library) as library:
        assert library.verify() == []
        ledgers = {run.name: run.state.get("ledger") for run in library.runs()}
        entries = {
            entry.name: (entry.sketch, entry.scores, entry.masks, entry.adapter, entry.metrics)
            for entry in library.entries()
        }
        neighbours = {
            run.name: run.state["neighbours"] for run in library.runs() if run.phase == "described"
        }
    kept = ("bytes", "accuracy", "largest_update", "rounds", "refusals")
    return (
        {name: {part: ledger[part] for part in kept} for name, ledger in ledgers.items() if ledger},
        entries,
        neighbours,
    )


def training(config, aggregation, *, local):
    """The settings with another way to train and average."""
    trains_a = AGGREGATIONS[aggregation].trains_a
    adapter = dataclasses.replace(config.adapter, train_a=trains_a, local_statistics=local)
    return dataclasses.replace(config, adapter=adapter, aggregation=aggregation)


@pytest.mark.parametrize(
    ("aggregation", "local"), [("fixed", False), ("alternating", True), ("refactored", False)]
)
def test_killed_after_every_single_step_it_ends_the_same(world, tmp_path, aggregation, local):
    whole = training(settle(world, tmp_path / "whole"), aggregation, local=local)
    attempt(tmp_path / "whole", whole)
    config = training(settle(world, tmp_path / "killed"), aggregation, local=local)
    phases = []
    for _ in range(20):
        with pytest.raises(Killed):
            attempt(tmp_path / "killed", config, library=Mortal)
        with Library(config.library) as library:
            arm, latest = library.run("low.one_shot"), library.latest_round("low.one_shot")
            described = library.run("low") is not None
        phases.append((described, arm and arm.phase, latest and latest.round))
        if arm and arm.phase == "done":
            break
    assert phases == [
        (False, None, None),
        (True, None, None),
        (True, "training", None),
        (True, "training", 0),
        (True, "training", 1),
        (True, "training", 2),
        (True, "done", 2),
    ]
    with Library(config.library) as library:  # trained and not published: that takes no device
        serve_from(library, Nobody(), config)
        serve_from(library, Nobody(), config)
    assert left_behind(config) == left_behind(whole)


@pytest.mark.parametrize(("aggregation", "local"), [("fixed", False), ("alternating", True)])
def test_killed_while_its_networks_shrink_it_ends_the_same(world, tmp_path, aggregation, local):
    """Killed after devices have cut their networks, before the round is committed."""

    def settled(folder):
        config = training(settle(world, folder), aggregation, local=local)
        rounds = dataclasses.replace(config.rounds, count=3)
        return dataclasses.replace(
            config, rounds=rounds, pruning=PruningConfig(every=1, cuts=2, start=3.0)
        )

    whole = settled(tmp_path / "whole")
    attempt(tmp_path / "whole", whole)
    config = settled(tmp_path / "killed")
    cuts = []
    for _ in range(20):
        with pytest.raises(Killed):
            attempt(tmp_path / "killed", config, library=Mortal)
        with Library(config.library) as library:
            arm = library.run("low.one_shot")
        cuts.append(len(arm.state.get("cuts", [])) if arm else None)
        if arm and arm.phase == "done":
            break
    assert cuts == [None, None, 0, 0, 1, 2, 2, 2]
    with Library(config.library) as library:
        serve_from(library, Nobody(), config)
    assert left_behind(config) == left_behind(whole)
    found = []
    for one in (config, whole):
        with Library(one.library) as library:
            state = library.run("low.one_shot").state
            found.append((state["cuts"], state["masks"], state["adapter"]))
    assert found[0] == found[1]


def healing(config, folder):
    """The settings of a run whose networks are healed on the library owner's digits."""
    rounds = dataclasses.replace(config.rounds, count=1)
    digits = read("embedded", name="digits").only([3, 4, 5, 6])
    path = folder / "own.npz"
    np.savez(path, images=digits.images[:40], labels=digits.labels[:40])
    start = StartConfig(heal_steps=2, pictures=(str(path),), batch_size=8)
    return dataclasses.replace(config, rounds=rounds, start=start)


def test_killed_around_its_healing_it_ends_the_same(world, tmp_path):
    """Killed when the masks are durable, when networks are healed, and when they are trained."""
    plain = settle(world, tmp_path / "plain")
    plain = dataclasses.replace(plain, rounds=dataclasses.replace(plain.rounds, count=1))
    attempt(tmp_path / "plain", plain)
    whole = healing(settle(world, tmp_path / "whole"), tmp_path)
    attempt(tmp_path / "whole", whole)
    config = healing(settle(world, tmp_path / "killed"), tmp_path)
    healed = []
    for _ in range(20):
        with pytest.raises(Killed):
            attempt(tmp_path / "killed", config, library=Mortal)
        with Library(config.library) as library:
            arm = library.run("low.one_shot")
        healed.append(arm and arm.state.get("healed"))
        if arm and arm.phase == "done":
            break
    with Library(config.library) as library:
        serve_from(library, Nobody(), config)
    assert left_behind(config) == left_behind(whole)
    assert left_behind(config) != left_behind(plain)
    assert healed[:3] == [None, None, None]
    assert all(found == healed[3] for found in healed[3:])
    # The two devices have two widths: each was healed, and written down once.
    assert sorted(healed[3]) == sorted(set(arm.state["masks"].values()))
    with Library(whole.library) as library:
        assert library.run("low.one_shot").state["healed"] == healed[3]


def test_a_task_that_is_tried_again_sees_no_task_of_its_own_run(world, tmp_path):
    tasks = ("low", "high")
    whole = settle(world, tmp_path / "whole", tasks=tasks)
    attempt(tmp_path / "whole", whole)
    config = settle(world, tmp_path / "again", tasks=tasks)
    with pytest.raises(RunError, match="1 of 2 tasks failed"):
        attempt(
            tmp_path / "again",
            config,
            fails=lambda number, kind: kind == DESCRIBE and number >= 2,
        )
    with Library(config.library) as library:
        assert {entry.name for entry in library.entries()} == {"lib-1", "lib-2", "low"}
    attempt(tmp_path / "again", config)
    assert left_behind(config) == left_behind(whole)


def test_a_device_that_states_another_budget_than_at_the_start_is_left_out(world, tmp_path):
    config = settle(world, tmp_path / "first", quorum=0.5)
    for _ in range(4):  # until the state after the cut is committed
        with pytest.raises(Killed):
            attempt(tmp_path / "first", config, library=Mortal)
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    config = dataclasses.replace(config, library=tmp_path / "second" / "library")
    restate(tmp_path / "second", 1, {"macs_ratio": 0.3})
    strict = dataclasses.replace(config, rounds=dataclasses.replace(config.rounds, quorum=1.0))
    with pytest.raises(RunError, match=r"macs_ratio = 0\.3, and had macs_ratio = 0\.5 .* put that"):
        attempt(tmp_path / "second", strict)
    attempt(tmp_path / "second", config)
    with Library(config.library) as library:
        ledger = Ledger.from_json(library.run("low.one_shot").state["ledger"])
    assert ledger.rounds == {"low.device-1": config.rounds.count}
    assert [line for line in ledger.refusals if "now has the budget" in line]


def restate(folder, number, budget):
    """Write another budget into a device's file."""
    file = folder / "fleet" / f"{number:05d}" / "device.toml"
    file.write_text(tomli_w.dumps(tomllib.loads(file.read_text()) | {"budget": budget}))
