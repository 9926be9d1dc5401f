"""A device that cannot take part is left out by name, and its gaps falsify no figure."""

import dataclasses
import shutil
import tomllib

import pytest
import tomli_w
from flwr.clientapp import ClientApp

import fedsprig_client.app as client_module
from fedsprig.errors import RunError
from fedsprig.wire import EVALUATE, INSTALL, KINDS, ROUND
from fedsprig_client.app import relay
from fedsprig_server.app import app as server_app
from fedsprig_server.config import ServerConfig
from fedsprig_server.ledger import Ledger
from fedsprig_server.library import Library
from fedsprig_sim.progress import Silence
from fedsprig_sim.runner import run_scenario
from fedsprig_sim.runtimes.in_process import run_apps_in_process

GUILTY = 1
IMPOSSIBLE = {"macs": 1}


def client_that(does):
    """The real ClientApp; ``does`` is called before one device works on a message."""
    app = ClientApp()
    seen = []

    def answer(message, context):
        if context.node_config["partition-id"] == GUILTY:
            seen.append(message.metadata.message_type)
            does(seen)
        return relay(message, context)

    for kind in KINDS:
        category, _, action = kind.partition(".")
        getattr(app, category)(action)(answer)
    return app


def boom_at(kind, times=10):
    def does(seen):
        if seen[-1] == kind and seen.count(kind) <= times:
            raise ValueError("boom on the device")

    return does


@pytest.fixture
def prepared(world, tmp_path):
    shutil.copytree(world, tmp_path / "world")
    config = ServerConfig.load(world / "server.json")
    return tmp_path / "world", dataclasses.replace(
        config,
        library=tmp_path / "world" / "library",
        tasks={"low": 2},
        arms=("one_shot",),
        rounds=dataclasses.replace(config.rounds, quorum=0.5, deadline_seconds=120),
    )


def run(folder, config, does=lambda seen: None):
    config.save(folder / "server.json")
    run_apps_in_process(
        server_app,
        client_that(does),
        [{"partition-id": number} for number in range(2)],
        {"fleet": str(folder / "fleet"), "server-config": str(folder / "server.json")},
        workers=2,
    )
    with Library(config.library) as library:
        assert library.verify() == []
        done = library.run("low.one_shot")
        assert done.phase == "done"
        return Ledger.from_json(done.state["ledger"]), library.entry("low").metrics


def strictly(config):
    return dataclasses.replace(config, rounds=dataclasses.replace(config.rounds, quorum=1.0))


def restate(folder, number, budget):
    file = folder / "fleet" / f"{number:05d}" / "device.toml"
    file.write_text(tomli_w.dumps(tomllib.loads(file.read_text()) | {"budget": budget}))


def test_a_device_that_cannot_install_is_left_out_with_its_width(prepared):
    folder, config = prepared
    ledger, metrics = run(folder, config, boom_at(INSTALL))
    assert ledger.rounds == {"low.device-1": config.rounds.count}
    assert metrics["devices"] == 1
    assert any("boom" in line for line in ledger.refusals)


def test_a_device_that_lost_its_network_gets_it_again(prepared):
    folder, config = prepared
    store = folder / "fleet" / f"{GUILTY:05d}"

    told = []

    def lose(seen):
        told[:] = seen
        if seen[-1] == ROUND and seen.count(ROUND) == 1:
            for runs in store.rglob("runs"):
                shutil.rmtree(runs)
                runs.mkdir()

    ledger, _ = run(folder, strictly(config), lose)
    assert ledger.rounds == dict.fromkeys(("low.device-1", "low.device-2"), config.rounds.count)
    assert ledger.accuracy["low.device-2"].keys() == {"0", "1", "2"}
    assert ledger.refusals == []
    assert told[-6:] == [INSTALL, ROUND, INSTALL, ROUND, ROUND, EVALUATE]


@pytest.mark.parametrize(
    ("budget", "words"),
    [(IMPOSSIBLE, "InfeasibleBudgetError"), ({"latency_ms": 5.0}, "BudgetError")],
)
def test_a_budget_that_cannot_be_solved_costs_its_device_alone(prepared, budget, words):
    folder, config = prepared
    restate(folder, GUILTY, budget)
    with pytest.raises(RunError) as caught:
        run(folder, strictly(config))
    assert next(iter(budget)) in str(caught.value)  # and not that devices are missing
    assert "\n" not in str(caught.value)
    ledger, metrics = run(folder, config)
    assert metrics["devices"] == 1
    (refusal,) = ledger.refusals
    assert refusal.startswith("low.device-2: ")
    assert words in refusal


def test_where_no_budget_can_be_met_the_error_says_which_limit_and_by_how_much(prepared):
    folder, config = prepared
    for number in range(2):
        restate(folder, number, IMPOSSIBLE)
    with pytest.raises(RunError, match=r"smallest network needs .* macs") as caught:
        run(folder, config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "gaps", "devices"), [(ROUND, {"0"}, 2), (EVALUATE, {"2"}, 1)])
def test_a_missed_message_leaves_a_gap_and_moves_no_figure(
    scenario, tmp_path, monkeypatch, kind, gaps, devices
):
    monkeypatch.setattr(client_module, "app", client_that(boom_at(kind, times=1)))
    lax = scenario.model_copy(
        update={
            "tasks": scenario.tasks[:1],
            "compare": (),
            "rounds": scenario.rounds.model_copy(update={"quorum": 0.5}),
        }
    )
    result = run_scenario(lax, tmp_path / "out", runtime="in-process", progress=Silence())
    with Library(tmp_path / "out" / "library") as library:
        figures = Ledger.from_json(library.run("low.one_shot").state["ledger"]).accuracy
        metrics = library.entry("low").metrics
    assert {"0", "1", "2"} - figures["low.device-2"].keys() == gaps
    ended = [name for name, curve in figures.items() if "2" in curve]
    means = []
    for state in ("0", "1", "2"):
        points = [figures[name][state] for name in ended if state in figures[name]]
        means.append(sum(points) / len(points))
    (task,) = result.tasks
    assert task.arms["one_shot"].curve == pytest.approx(means)
    assert [device.name for device in task.device_records] == ended
    assert len(ended) == devices == metrics["devices"]
    assert metrics["accuracy"] == pytest.approx(means[-1])
