"""From a scenario to published library entries, through the real applications."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fedsprig.errors import RunError
from fedsprig.graph import GroupPlan, kept_index
from fedsprig.masks import Mask
from fedsprig_server.cohort_state import CohortState
from fedsprig_server.library import Library
from fedsprig_sim.progress import Silence
from fedsprig_sim.result import Result
from fedsprig_sim.runner import run_scenario


def published(out):
    """Everything that a run leaves to later ones, but for the moment it was written."""
    with Library(out / "library") as library:
        return {
            entry.name: (
                entry.base,
                entry.plan,
                entry.method,
                entry.sketch,
                entry.scores,
                entry.masks,
                entry.adapter,
                entry.metrics,
                entry.lineage,
            )
            for entry in library.entries()
        }


def figures(result):
    """What must not depend on runtime, restarts or speed."""
    return {
        task.name: (
            {arm: record.curve for arm, record in task.arms.items()},
            [(mask.budget, mask.macs, mask.parameters, mask.groups) for mask in task.masks],
            [(near.name, near.weight) for near in task.neighbours],
            [(d.name, d.update_bytes, d.accuracy) for d in task.device_records],
        )
        for task in result.tasks
    }


def test_it_ends_with_every_task_specialised_and_published(finished, scenario):
    out, result = finished
    assert [task.name for task in result.tasks] == ["low", "high"]
    for task in result.tasks:
        assert task.devices == 2
        for arm in ("one_shot", "magnitude"):
            assert len(task.arms[arm].curve) == scenario.rounds.count + 1
        assert task.accuracy["full_finetune"] is None
        assert 0 < task.update_bytes < task.base_bytes / 20
        assert sum(near.weight for near in task.neighbours) == pytest.approx(1)
    assert set(published(out)) == {"lib-1", "lib-2", "low", "high"}
    assert Result.read(out / "result.json") == result
    with Library(out / "library") as library:
        assert library.verify() == []


def test_every_budget_holds_and_the_cohorts_masks_nest(finished, scenario):
    out, result = finished
    for task in result.tasks:
        for mask in task.masks:
            assert mask.macs <= scenario.budgets[mask.budget].macs_ratio * task.base_macs
    with Library(out / "library") as library:
        plan = GroupPlan.from_bytes(library.blobs.get(library.entry("low").plan))
        small, large = (
            Mask.from_bytes(library.blobs.get(library.entry("low").masks[name]), plan)
            for name in ("low.device-1", "low.device-2")
        )
    assert small.is_subset_of(large)
    assert not large.is_subset_of(small)


def test_units_that_no_device_keeps_keep_their_value(finished):
    out, _ = finished
    with Library(out / "library") as library:
        entry = library.entry("low")
        plan = GroupPlan.from_bytes(library.blobs.get(entry.plan))
        mask = Mask.from_bytes(library.blobs.get(entry.masks["low.device-1"]), plan)
        state = CohortState.from_bytes(library.blobs.get(entry.adapter))
    kept = kept_index(plan, mask)["layer1.0.conv1.weight"][0]
    lost = np.setdiff1d(np.arange(16), kept)
    trained = state.body[mask.digest]["layer1.0.conv1.adapter_b"]
    assert np.abs(trained[kept]).max() > 0
    assert np.all(trained[lost] == 0)


def test_the_same_seed_gives_the_same_figures(finished, scenario, tmp_path):
    out, result = finished
    again = run_scenario(scenario, tmp_path / "again", runtime="in-process", progress=Silence())
    assert figures(again) == figures(result)
    assert published(tmp_path / "again") == published(out)


@pytest.mark.slow
def test_flowers_simulation_engine_gives_the_same_figures(finished, scenario, tmp_path):
    out, result = finished
    again = run_scenario(scenario, tmp_path / "ray", runtime="ray", progress=Silence())
    assert figures(again) == figures(result)
    assert published(tmp_path / "ray") == published(out)


CHILD = """
import sys
from pathlib import Path
from fedsprig_sim.progress import Silence
from fedsprig_sim.runner import run_scenario
from fedsprig_sim.scenario import Scenario
scenario = Scenario.model_validate_json(Path(sys.argv[1]).read_text())
run_scenario(scenario, Path(sys.argv[2]), runtime="in-process", progress=Silence(), resume=True)
"""


def test_a_run_that_was_killed_and_resumed_ends_like_one_that_was_not(finished, scenario, tmp_path):
    """Killed while it works, at three depths; each time it goes on where it was."""
    whole, result = finished
    out, file = tmp_path / "killed", tmp_path / "scenario.json"
    file.write_text(scenario.model_dump_json())
    out.mkdir()
    (out / "scenario.json").write_text((whole / "scenario.json").read_text())
    for depth in (1, 3, 5):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(file), str(out)])
        ends = time.monotonic() + 200
        while committed(out) < depth and child.poll() is None and time.monotonic() < ends:
            time.sleep(0.02)
        assert child.poll() is None, "the run ended before it could be killed"
        child.send_signal(signal.SIGKILL)
        child.wait()
    with Library(out / "library") as library:
        assert library.verify() == []
    resumed = run_scenario(scenario, out, runtime="in-process", progress=Silence(), resume=True)
    assert figures(resumed) == figures(result)
    assert published(out) == published(whole)


def committed(out):
    if not (out / "library").exists():
        return 0
    try:
        with Library(out / "library") as library:
            return sum(len(library.rounds(run.name)) for run in library.runs())
    except Exception:  # the child is just making it
        return 0


def test_resume_wants_the_same_scenario(finished, scenario):
    out, _ = finished
    other = scenario.model_copy(update={"seed": 4})
    with pytest.raises(RunError, match="another scenario"):
        run_scenario(other, out, runtime="in-process", progress=Silence(), resume=True)


def test_a_folder_of_somebody_else_is_left_alone(scenario, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="--out"):
        run_scenario(scenario, tmp_path, runtime="in-process", progress=Silence())
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
