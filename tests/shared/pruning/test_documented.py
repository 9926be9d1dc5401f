"""The worked example of docs/pruning.md is a pruner."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fedsprig.training import TrainConfig

PAGE = Path(__file__).parents[3] / "docs" / "pruning.md"


class StoppedError(Exception):
    pass


@pytest.fixture
def example(monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    module = ModuleType("documented")
    monkeypatch.setitem(sys.modules, "documented", module)  # dataclasses look their module up
    exec(compile(code, str(PAGE), "exec"), module.__dict__)
    return module


def test_it_prunes_and_resumes(example, job_for, tmp_path):
    job = job_for("memory", "40%")
    method = example.Slimming(training=TrainConfig(epochs=1, batch_size=16))
    product = method.prune(job)
    assert 0 < product.metrics["size"] <= job.target.amount
    assert product.masks["macs-10"].is_subset_of(product.mask)

    def stop(stage, done, steps):
        if stage == "cut network":
            raise StoppedError

    with pytest.raises(StoppedError):
        method.prune(job, checkpoint=tmp_path, progress=stop)
    told = []
    resumed = method.prune(job, checkpoint=tmp_path, progress=lambda *step: told.append(step[0]))
    assert set(told) == {"cut network"}
    assert resumed.weights_bytes() == product.weights_bytes()
    assert resumed.scores == product.scores
