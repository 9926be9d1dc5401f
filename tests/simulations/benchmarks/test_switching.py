"""The benchmark switches between real tasks in every way, and reports it whole."""

from __future__ import annotations

import json

import torch

from fedsprig_sim.benchmarks import switching


def test_it_measures_every_way() -> None:
    lines: list[str] = []
    threads = torch.get_num_threads()
    try:
        result = switching.run(
            model="cifar_resnet20",
            image_size=32,
            tasks=2,
            classes=3,
            rank=2,
            repeats=2,
            threads=1,
            progress=lines.append,
        )
    finally:
        torch.set_num_threads(threads)
    assert json.loads(json.dumps(result)) == result
    assert tuple(result["seconds"]) == switching.WAYS
    for way, seconds in result["seconds"].items():
        assert 0 < result["fastest_seconds"][way] <= seconds
    assert result["target_seconds"] == 0.05
    sizes = result["sizes"]
    assert sizes["package without weights"] < 1_000 < sizes["package"] < sizes["base in memory"]
    # A task without its cut layers is its adapter and little more; they are the bulk of it.
    assert sizes["adapter"] < 2 * sizes["a task in memory"]
    assert sizes["a task in memory"] + sizes["its cut layers in memory"] < sizes["base in memory"]
    assert len(lines) == 3
    assert result["machine"]["torch_threads"] == 1
    shown = switching.table(result).splitlines()
    assert len(shown) == len(switching.WAYS) + len(sizes)
    assert [line for line in shown if "target" in line] == shown[:1]
