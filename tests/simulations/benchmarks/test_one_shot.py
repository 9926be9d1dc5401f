"""The benchmark runs the server's own way from a sketch to a network, and reports it whole."""

from __future__ import annotations

import json

from fedsprig_sim.benchmarks import one_shot


def test_it_measures_every_step_of_a_real_cut() -> None:
    lines: list[str] = []
    result = one_shot.run(
        model="cifar_resnet20",
        entries=4,
        search_entries=300,
        search_features=16,
        repeats=2,
        growth=(2, 10_001),
        progress=lines.append,
    )
    assert json.loads(json.dumps(result)) == result
    way, search = result["one_shot"], result["search"]
    assert way["steps"].keys() == set(one_shot.STEPS)
    assert all(seconds > 0 for seconds in way["steps"].values())
    assert way["first_seconds"] > 0
    assert 0.15 < way["kept_macs"] <= 0.25
    assert (way["entries"], search["entries"]) == (4, 300)
    assert (way["target_seconds"], search["target_seconds"]) == (1.0, 0.1)
    assert search["seconds"] > 0
    small, large = result["growth"]
    assert small["one_shot_seconds"] > 0
    assert large["one_shot_seconds"] is None  # only searched
    assert large["search_seconds"] > 0
    assert "10,001" in one_shot.table(result).splitlines()[-1]
    assert len(lines) == 6
