"""Each way to train and average, through the real applications: what travels and what is told."""

import pytest

from fedsprig.adapters import is_statistic
from fedsprig.wire import INSTALL, ROUND
from fedsprig_server.cohort_state import CohortState
from fedsprig_server.ledger import Ledger
from fedsprig_server.library import Library
from fedsprig_sim.progress import Silence
from fedsprig_sim.report import render
from fedsprig_sim.runner import run_scenario
from fedsprig_sim.scenario import Scenario

WAYS = {
    "fixed": {},
    "local": {"statistics": "local"},
    "refactored": {"aggregation": "refactored"},
    "alternating": {"aggregation": "alternating"},
}


@pytest.fixture(scope="module")
def ran(scenario, tmp_path_factory):
    """One task, two devices of one width, two rounds, every way: result, states and ledger."""
    found = {}
    for name, adapter in WAYS.items():
        tables = scenario.model_dump(mode="json", exclude_none=True)
        tables |= {"compare": [], "tasks": tables["tasks"][:1]}
        tables["devices"]["budgets"] = ["small"]
        tables["adapter"] |= adapter
        out = tmp_path_factory.mktemp("ways") / name
        result = run_scenario(Scenario.parse(tables), out, runtime="in-process", progress=Silence())
        with Library(out / "library") as library:
            assert library.verify() == []
            ledger = Ledger.from_json(library.run("low.one_shot").state["ledger"])
            states = [
                CohortState.from_bytes(library.blobs.get(row.adapter))
                for row in library.rounds("low.one_shot")
            ]
        found[name] = result, states, ledger
    return found


def sent(ledger, kind):
    """Bytes down and up of both devices."""
    return [sum(exchange[kind][way] for exchange in ledger.bytes.values()) for way in (0, 1)]


def test_local_statistics_are_in_no_message_and_no_state(ran):
    (_, pooled, before), (_, local, after) = ran["fixed"], ran["local"]
    for own in pooled[-1].own.values():
        assert any(map(is_statistic, own))
    for state in local:
        for own in state.own.values():
            assert not any(map(is_statistic, own))
    assert sent(after, INSTALL)[1] < sent(before, INSTALL)[1]
    for way in (0, 1):
        assert sent(after, ROUND)[way] < sent(before, ROUND)[way]
    assert max(after.largest_update.values()) < min(before.largest_update.values())


def test_factors_in_turns_change_in_their_turns(ran):
    _, states, ledger = ran["alternating"]
    bodies = [next(iter(state.body.values())) for state in states]
    factors = {name: name[-1] for name in bodies[0] if name.endswith(("adapter_a", "adapter_b"))}
    assert set(factors.values()) == {"a", "b"}
    for before, after, trained in ((*bodies[:2], "b"), (*bodies[1:], "a")):
        moved = {factors[n] for n in factors if (before[n] != after[n]).any()}
        assert moved == {trained}
    _, _, both = ran["refactored"]
    assert sent(ledger, ROUND)[1] < sent(both, ROUND)[1]
    for name in ("fixed", "local"):  # A is the seed's: it is no part of what travels
        body = next(iter(ran[name][1][-1].body.values()))
        assert not any(n.endswith("adapter_a") for n in body)


def test_what_refactoring_lost_is_in_the_result(ran):
    for name, (result, _, _) in ran.items():
        (task,) = result.tasks
        lost = task.arms["one_shot"].truncation
        told = "Factoring the averaged adapters again lost"
        if name != "refactored":
            assert lost == ()
            assert told not in render(result)
            continue
        assert len(lost) == 2
        assert all(0 < item.mean < item.worst <= 1 for item in lost)
        assert told in render(result)


def test_every_way_trains(ran):
    curves = {name: result.tasks[0].arms["one_shot"].curve for name, (result, _, _) in ran.items()}
    assert {len(curve) for curve in curves.values()} == {3}
    losses = [states[-1].to_bytes() for _, states, _ in ran.values()]
    assert len(set(losses)) == len(WAYS)
