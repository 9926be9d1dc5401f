"""Networks shrink while their cohort trains: whatever devices do, limits hold at the end."""

import dataclasses
import shutil
import tomllib

import numpy as np
import pytest
import tomli_w
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from rich.console import Console

from fedsprig.artifacts import pack, unpack
from fedsprig.errors import InfeasibleBudgetError, RunError, ScenarioError
from fedsprig.graph import GroupPlan
from fedsprig.masks import Mask
from fedsprig.wire import ATTENTION, CUT, EVALUATE, INSTALL, KINDS, ROUND
from fedsprig.wire import device_pb2 as pb
from fedsprig_client.app import _device as opened
from fedsprig_client.app import relay
from fedsprig_client.store import DeviceStore
from fedsprig_server.app import app as server_app
from fedsprig_server.cohort_state import CohortState
from fedsprig_server.config import PruningConfig, ServerConfig
from fedsprig_server.ledger import Ledger
from fedsprig_server.library import Library
from fedsprig_sim.progress import Silence
from fedsprig_sim.report import render
from fedsprig_sim.result import Result
from fedsprig_sim.runner import run_scenario
from fedsprig_sim.runtimes.in_process import run_apps_in_process
from fedsprig_sim.scenario import Scenario
from fedsprig_sim.sections import PruningSection
from fedsprig_sim.table import result_table

GUILTY, NAME = 1, "low.device-2"
PRUNING = PruningConfig(every=1, cuts=2, start=3.0, pictures=10)


@pytest.fixture(scope="module")
def shrinking(scenario):
    """Task ``low``, whose two devices have budgets of their own."""
    return scenario.model_copy(
        update={
            "tasks": scenario.tasks[:1],
            "compare": ("full_finetune",),
            "pruning": PruningSection(every=1, cuts=2, start=3.0),
            "rounds": scenario.rounds.model_copy(update={"count": 3}),
        }
    )


@pytest.fixture(scope="module")
def shrunk(shrinking, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "shrunk"
    return out, run_scenario(shrinking, out, runtime="in-process", progress=Silence())


def masks_of(library, name):
    plan = GroupPlan.from_bytes(library.blobs.get(library.entry("low").plan))
    masks = library.run(name).state["masks"]
    return {device: Mask.from_bytes(library.blobs.get(key), plan) for device, key in masks.items()}


def test_limits_hold_from_the_last_cut_on_and_masks_stay_nested(shrunk, shrinking):
    out, result = shrunk
    for task in result.tasks:
        for mask in task.masks:
            assert mask.macs <= shrinking.budgets[mask.budget].macs_ratio * task.base_macs
        cuts = task.arms["one_shot"].cuts
        for budget in {mask.budget for mask in task.masks}:
            own = [cut for cut in cuts if cut.budget == budget]
            limit = shrinking.budgets[budget].macs_ratio
            assert [cut.round for cut in own] == [1, 2]
            assert own[0].macs > own[1].macs == task.mask(budget).macs
            assert own[1].parameters == task.mask(budget).parameters
            assert own[1].units == sum(group.kept for group in task.mask(budget).groups)
            # Half of the way, by factors, from three times the limit (or everything) down to it.
            first = min(3 * limit, 1.0)
            assert 0.95 < own[0].macs / (task.base_macs * (first * limit) ** 0.5) <= 1
        assert task.arms["full_finetune"].cuts == ()
    with Library(out / "library") as library:
        assert library.verify() == []
        masks = masks_of(library, "low.one_shot")
        assert masks["low.device-1"].is_subset_of(masks["low.device-2"])
        assert library.entry("low").masks == library.run("low.one_shot").state["masks"]
        state = CohortState.from_bytes(library.blobs.get(library.entry("low").adapter))
    assert state.body.keys() == {mask.digest for mask in masks.values()}


def test_nobody_downloads_a_smaller_network(shrunk):
    out, result = shrunk
    with Library(out / "library") as library:
        ledger = Ledger.from_json(library.run("low.one_shot").state["ledger"])
        masks = masks_of(library, "low.one_shot")
    assert ledger.refusals == []
    for number, device in enumerate(sorted(masks)):
        store = DeviceStore(out / "fleet" / f"{number:05d}" / "store")
        package = store.package("low.one_shot")
        assert pb.SubNetwork.FromString(package).mask == masks[device].to_bytes()
        spent = ledger.bytes[device]
        # Two questions and two cuts cost about what the adapters cost that go with them.
        assert spent[ATTENTION][0] + spent[CUT][0] < 2 * spent[ROUND][0]
        assert len(package) < spent[INSTALL][0]
    low = result.tasks[0]
    assert low.download.pruning > 0
    assert low.download_bytes == sum(
        getattr(low.download, part) for part in ("probe", "sub_network", "rounds", "pruning")
    )
    means = [device.download_bytes for device in low.device_records]
    assert low.download_bytes == pytest.approx(np.mean(means), abs=2)


def test_results_tell_of_the_cuts(shrunk):
    out, result = shrunk
    assert Result.read(out / "result.json") == result
    console = Console(width=110, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(result_table(result))
    text = console.export_text()
    cuts = [cut for cut in result.tasks[0].arms["one_shot"].cuts if cut.budget == "small"]
    macs = [f"{100 * cut.macs / result.tasks[0].base_macs:.0f}" for cut in cuts]
    line = next(line for line in text.splitlines() if line.strip().startswith("low, small: "))
    assert [pair.split("/")[0] for pair in line.split()[2:4]] == macs
    assert line.rstrip().endswith("after rounds 1 and 2")
    page = render(result)
    assert "Shrunk while it trained" in page
    assert all(f"{cut.threshold:.3g}" in page for cut in cuts)
    assert 0 <= cuts[0].accuracy_before <= 1


@pytest.mark.slow
def test_flowers_simulation_engine_shrinks_them_alike(shrunk, shrinking, tmp_path):
    _, result = shrunk
    again = run_scenario(shrinking, tmp_path / "ray", runtime="ray", progress=Silence())
    for one, other in zip(again.tasks, result.tasks, strict=True):
        assert one.masks == other.masks
        for arm, record in one.arms.items():
            assert record.cuts == other.arms[arm].cuts
            assert record.curve == other.arms[arm].curve


def test_a_scenario_of_cuts_that_cannot_be_made_is_refused(scenario):
    tables = scenario.model_dump(mode="json", exclude_none=True)
    for pruning, changes, words in (
        ({"cuts": 2}, {}, "raise rounds.count to 3 or more"),
        ({"cuts": 1}, {"adapter": {"rank_rule": "kept"}}, "rank_rule"),
        ({"cuts": 1}, {"selection": {"round_to": 2}}, "round_to"),
        ({"start": 1.0}, {}, "pruning.start"),
        ({"evry": 1}, {}, "did you mean 'every'"),
    ):
        with pytest.raises(ScenarioError, match=words):
            Scenario.parse(tables | changes | {"pruning": pruning})


# What devices do meanwhile


@pytest.fixture
def prepared(world, tmp_path):
    return prepare(world, tmp_path / "world")


def prepare(world, folder, **changes):
    shutil.copytree(world, folder)
    config = ServerConfig.load(world / "server.json")
    rounds = dataclasses.replace(config.rounds, count=3, deadline_seconds=120)
    settings = {"tasks": {"low": 2}, "arms": ("one_shot",), "rounds": rounds, "pruning": PRUNING}
    return folder, dataclasses.replace(config, library=folder / "library", **(settings | changes))


def lax(config):
    return dataclasses.replace(config, rounds=dataclasses.replace(config.rounds, quorum=0.5))


def run(
    folder, config, before=lambda kind, seen: None, spoil=lambda kind, body, blob: (body, blob)
):
    """Run to the end; one device is told of its messages first, and its answers are spoilt."""
    app, seen = ClientApp(), []

    def answer(message, context):
        opened.cache_clear()  # as in a new process
        kind = message.metadata.message_type
        guilty = context.node_config["partition-id"] == GUILTY
        if guilty:
            seen.append(kind)
            before(kind, seen)
        answered = relay(message, context)
        if not guilty or "refusal" in answered.content["message"]:
            return answered
        blob = answered.content["blob"]["blob"].data if "blob" in answered.content else b""
        body, blob = spoil(kind, answered.content["message"]["body"], blob)
        content = RecordDict({"message": ConfigRecord({"body": body})})
        if blob:
            content["blob"] = ArrayRecord({"blob": Array("uint8", (len(blob),), "bytes", blob)})
        return Message(content, reply_to=message)

    for kind in KINDS:
        category, _, action = kind.partition(".")
        getattr(app, category)(action)(answer)
    config.save(folder / "server.json")
    run_apps_in_process(
        server_app,
        app,
        [{"partition-id": number} for number in range(2)],
        {"fleet": str(folder / "fleet"), "server-config": str(folder / "server.json")},
        workers=2,
    )
    with Library(config.library) as library:
        assert library.verify() == []
        done = library.run("low.one_shot")
        assert done.phase == "done"
        found = {part: done.state[part] for part in ("masks", "adapter", "scores", "cuts")}
        return found, Ledger.from_json(done.state["ledger"]), seen


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    return run(*prepare(world, tmp_path_factory.mktemp("undisturbed") / "world"))


def test_every_message_comes_in_its_place(undisturbed):
    _, ledger, seen = undisturbed
    assert seen[-9:] == [INSTALL, ROUND, ATTENTION, CUT, ROUND, ATTENTION, CUT, ROUND, EVALUATE]
    assert ledger.refusals == []
    assert ledger.accuracy[NAME].keys() == {"0", "1", "2", "3"}


@pytest.mark.parametrize("kind", [ATTENTION, CUT])
def test_a_device_that_lost_its_network_gets_it_again(prepared, undisturbed, kind):
    folder, config = prepared
    store = folder / "fleet" / f"{GUILTY:05d}" / "store" / "runs"

    def lose(now, seen):
        if now == kind and seen.count(kind) == 1:
            shutil.rmtree(store)
            store.mkdir()

    found, ledger, seen = run(folder, config, lose)
    assert found == undisturbed[0]
    assert ledger.refusals == []
    assert seen.count(INSTALL) == 2


def test_a_device_that_keeps_the_base_cuts_from_it(prepared, undisturbed, weights):
    folder, config = prepared
    home = folder / "fleet" / f"{GUILTY:05d}"
    shutil.copy(weights, home / "base.safetensors")
    settings = tomllib.loads((home / "device.toml").read_text())
    table = {"model": "cifar_resnet20", "weights": "base.safetensors"}
    (home / "device.toml").write_text(tomli_w.dumps(settings | {"base": table}))
    found, ledger, _ = run(folder, config)
    assert found == undisturbed[0]
    assert ledger.refusals == []
    assert ledger.bytes[NAME][INSTALL][0] < 1_000
    (kept,) = (home / "store" / "runs").iterdir()
    assert kept.stat().st_size < 1_000


def test_weights_that_a_device_cannot_cut_to_the_bit_are_sent(world, tmp_path):
    folder, config = prepare(world, tmp_path / "world", weights_codec="int8")
    found, ledger, seen = run(folder, config)
    assert seen.count(INSTALL) == 3  # the first network, and one after each cut
    assert ledger.refusals == []
    assert len(found["cuts"]) == 2


def test_a_device_that_slept_through_a_cut_comes_back(prepared):
    folder, config = prepared

    def sleep(kind, seen):
        if kind == CUT and seen.count(CUT) == 1:
            raise ValueError("asleep")

    found, ledger, seen = run(folder, lax(config), sleep)
    assert ledger.rounds[NAME] == config.rounds.count
    assert seen.count(CUT) == 2
    assert seen.count(INSTALL) == 2  # for the round after: it held the network of before
    (refusal,) = ledger.refusals
    assert "asleep" in refusal
    assert len(set(found["masks"].values())) == 2


def arrays(change):
    def spoil(kind, body, blob):
        if kind != ATTENTION:
            return body, blob
        return body, pack({name: change(values) for name, values in unpack(blob)[0].items()})

    return spoil


def pictures(number):
    def spoil(kind, body, blob):
        if kind != ATTENTION:
            return body, blob
        reply = pb.AttentionReply.FromString(body)
        reply.pictures = number
        return reply.SerializeToString(), blob

    return spoil


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (arrays(lambda values: values * np.nan), "NonFiniteUpdateError"),
        (pictures(11), "1 to 10 to look at"),
        (lambda kind, body, blob: (body, blob[:-9] if kind == CUT else blob), "Truncated"),
    ],
    ids=["NaN", "more than asked", "torn statistics"],
)
def test_an_answer_that_cannot_be_is_left_out_of_the_cut(prepared, spoil, words):
    folder, config = prepared
    found, ledger, _ = run(folder, lax(config), spoil=spoil)
    assert len(ledger.refusals) == 2  # once for each cut
    for refusal in ledger.refusals:
        assert refusal.startswith(f"{NAME}: ")
        assert words in refusal
    measured = {"low.device-1", NAME} if words == "Truncated" else {"low.device-1"}
    assert [set(cut["accuracy"]) for cut in found["cuts"]] == [measured] * 2
    assert ledger.rounds[NAME] == config.rounds.count  # it trained all the same
    assert len(set(found["masks"].values())) == 2


def test_a_budget_below_the_smallest_network_is_refused_before_anything_is_trained(prepared):
    folder, config = prepared
    home = folder / "fleet" / f"{GUILTY:05d}" / "device.toml"
    home.write_text(tomli_w.dumps(tomllib.loads(home.read_text()) | {"budget": {"macs": 150_000}}))
    with pytest.raises(RunError, match="smallest network needs"):
        run(folder, config)
    _, ledger, _ = run(folder, lax(config))
    assert NAME not in ledger.rounds
    assert any(InfeasibleBudgetError.__name__ in line for line in ledger.refusals)
