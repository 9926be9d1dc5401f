"""Every adapter kind, and ranks by width, through the real applications."""

import numpy as np
import pytest
from safetensors.torch import save_file

from fedsprig.models import build
from fedsprig_server.cohort_state import CohortState
from fedsprig_server.library import Library
from fedsprig_sim.progress import Silence
from fedsprig_sim.runner import run_scenario
from fedsprig_sim.scenario import Scenario

SETTINGS = {
    "sppara": {"kind": "sppara"},
    "splopa": {"kind": "splopa", "unadapted": "freeze"},
    "ranks by width, shared": {"rank": 8, "rank_rule": "width"},
    "ranks by width, refactored": {"rank": 8, "rank_rule": "width", "aggregation": "refactored"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_cohort_of_two_widths_trains(name, scenario, tmp_path):
    tables = scenario.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    tables |= {"compare": [], "tasks": tables["tasks"][:1], "adapter": SETTINGS[name]}
    if name == "splopa":  # a network with linear layers
        path = tmp_path / "vit.safetensors"
        save_file(build("sprig_vit", num_classes=4).state_dict(), path)
        tables["base"] = {"model": "sprig_vit", "weights": str(path)}
    tables["rounds"] |= {"sharing": 1.0 if "shared" in name else 0.0}
    result = run_scenario(
        Scenario.parse(tables), tmp_path / "run", runtime="in-process", progress=Silence()
    )
    (task,) = result.tasks
    assert task.devices == 2
    assert len({mask.budget for mask in task.masks}) == 2
    assert len(task.arms["one_shot"].curve) == 3
    with Library(tmp_path / "run" / "library") as library:
        rounds = [
            CohortState.from_bytes(library.blobs.get(library.round_("low.one_shot", n).adapter))
            for n in (0, 2)
        ]
    for stratum, before in rounds[0].body.items():
        after = rounds[1].body[stratum]
        moved = [n for n in before if not np.array_equal(before[n], after[n]) and "adapter" in n]
        assert moved, "no adapter was trained"
