from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsprig.errors import ArtifactError
from fedsprig_sim.result import GroupKept, Result


def test_the_file_has_the_promised_form(result: Result, tmp_path: Path) -> None:
    result.write(tmp_path / "result.json")
    data = json.loads((tmp_path / "result.json").read_text())
    assert {"tasks", "seconds", "seed"} <= data.keys()
    for task in data["tasks"]:
        assert {
            "name",
            "devices",
            "keep_macs",
            "keep_params",
            "update_bytes",
            "download_bytes",
            "base_bytes",
            "accuracy",
            "accuracy_after_cut",
            "neighbours",
            "device_seconds",
        } <= task.keys()
        assert task["accuracy"].keys() == {"one_shot", "magnitude", "random", "full_finetune"}


def test_what_is_read_is_what_was_written(result: Result, tmp_path: Path) -> None:
    result.write(tmp_path / "result.json")
    assert Result.read(tmp_path / "result.json") == result


def test_derived_figures(result: Result) -> None:
    task = result.tasks[0]
    assert task.devices == 3
    assert task.accuracy["one_shot"] == task.arms["one_shot"].curve[-1]
    assert task.accuracy_after_cut == task.arms["one_shot"].curve[0]
    assert task.update_bytes == 24_200
    assert task.download_bytes == 182_000 + 265_000 + 104_000
    assert task.device_seconds == pytest.approx((6.5 + 8.5 + 10.5) / 3)
    assert task.keep_macs == pytest.approx(0.9 * (0.2 + 0.35 + 0.55) / 3, abs=1e-6)
    assert result.summary["update_share"] == 24_200 / (4 * 1_090_000)
    means = [t.arms["random"].curve[-1] for t in result.tasks]
    assert result.mean_accuracy()["random"] == pytest.approx(np.mean(means))


def test_an_arm_that_one_task_lacks_has_no_mean(result: Result) -> None:
    tasks = list(result.tasks)
    arms = {arm: record for arm, record in tasks[0].arms.items() if arm != "random"}
    tasks[0] = tasks[0].model_copy(update={"arms": arms})
    less = result.model_copy(update={"tasks": tuple(tasks)})
    assert "random" not in less.mean_accuracy()
    assert less.tasks[0].accuracy["random"] is None


@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_bits_are_the_mask(kept: list[bool]) -> None:
    bits = np.packbits(np.array(kept)).tobytes().hex()
    group = GroupKept(name="g", kind="inner", units=len(kept), bits=bits)
    assert group.unpack() == kept
    assert group.kept == sum(kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("base"), "base: Field required"),
        (lambda d: d.update(seed="0"), "seed: Input should be a valid integer"),
        (lambda d: d.update(format=2), "format: Input should be 1"),
        (lambda d: d["tasks"][0]["arms"].pop("one_shot"), "has no arm one_shot"),
        (lambda d: d["tasks"][0]["masks"].pop(0), "has no mask for budget small"),
        (lambda d: d["tasks"][0]["masks"][0]["groups"][0].update(bits="ff"), "not those of 32"),
        (lambda d: d["tasks"].append(d["tasks"][0]), "two tasks have the same name"),
        (lambda d: d["tasks"][0]["arms"]["random"].update(curve=[1.2]), "less than or equal to 1"),
    ],
)
def test_a_result_that_is_none_is_refused(
    result: Result, tmp_path: Path, change: object, message: str
) -> None:
    data = json.loads(result.to_json())
    change(data)
    (tmp_path / "result.json").write_text(json.dumps(data))
    with pytest.raises(ArtifactError) as raised:
        Result.read(tmp_path / "result.json")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_cut_file_is_refused(result: Result, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(result.to_json()[:-100])
    with pytest.raises(ArtifactError, match="is no result of a run"):
        Result.read(tmp_path / "result.json")
