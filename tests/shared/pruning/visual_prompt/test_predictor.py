"""One hyper-network for several tasks: a prompt is a task; bytes in, bytes out."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsprig.artifacts.container import pack, unpack
from fedsprig.errors import (
    ArtifactError,
    BudgetError,
    DataError,
    InfeasibleBudgetError,
    PlanError,
    TrainingError,
)
from fedsprig.graph import trace_groups
from fedsprig.masks import ScoreSet
from fedsprig.pruning import PASS, Labelled, Target
from fedsprig.pruning.visual_prompt import MaskPredictor, prompt_for, trained_together
from fedsprig.training import TrainConfig

METHOD = PASS(
    search=TrainConfig(epochs=6, batch_size=16, learning_rate=0.01, optimiser="adam"), width=8
)


@pytest.fixture(scope="module")
def jobs(job_for):
    """Two tasks of one network: digits, and the same turned on their side with other labels."""
    first = job_for("latency", "40%")
    turned = Labelled(first.train.images.rot90(1, (2, 3)), (first.train.labels + 1) % 3)
    return first, job_for("latency", "40%", train=turned)


@pytest.fixture(scope="module")
def learnt(jobs):
    return trained_together(jobs, METHOD)


def test_two_prompts_are_two_scores(learnt):
    predictor, (first, second) = learnt
    assert not np.array_equal(first, second)
    assert predictor.scores(first) != predictor.scores(second)


def test_learning_together_is_repeatable(learnt, jobs):
    told = []
    predictor, frames = trained_together(jobs, METHOD, progress=lambda *step: told.append(step))
    assert predictor.to_bytes() == learnt[0].to_bytes()
    assert all(map(np.array_equal, frames, learnt[1]))
    assert told == [(n, 24) for n in range(1, 25)]  # 60 pictures, 4 batches, 6 epochs


def test_round_trips_are_equal_to_the_bit(learnt, jobs):
    predictor, frames = learnt
    data = predictor.to_bytes()
    back = MaskPredictor.from_bytes(data, jobs[0].plan)
    assert back.to_bytes() == data
    assert back.digest == predictor.digest
    for frame in frames:
        assert back.scores(frame) == predictor.scores(frame)


def test_a_new_task_learns_its_prompt_alone(learnt, jobs, job_for):
    predictor, frames = learnt
    before = predictor.to_bytes()
    first = jobs[0]
    mirrored = Labelled(first.train.images.flip(3), (first.train.labels + 2) % 3)
    job = job_for("latency", "40%", train=mirrored)
    told = []
    frame = prompt_for(predictor, job, METHOD, progress=lambda *step: told.append(step))
    assert predictor.to_bytes() == before
    assert frame.any()
    assert frame.shape == (3, 8, 8)
    assert told[-1] == (24, 24)
    scores = predictor.scores(frame)
    assert isinstance(scores, ScoreSet)
    assert all(scores != predictor.scores(other) for other in frames)
    np.testing.assert_array_equal(prompt_for(predictor, job, METHOD), frame)


@pytest.mark.parametrize("changes", [{}, {"prompt": "none"}, {"recurrent": False}])
def test_a_product_holds_its_predictor(job_for, changes):
    job = job_for("memory", "50%")
    method = replace(METHOD, training=replace(METHOD.training, epochs=1), **changes)
    product = method.prune(job)
    stored, _ = unpack(product.weights_bytes())
    state = {n.removeprefix("state:"): a for n, a in stored.items() if n.startswith("state:")}
    predictor = MaskPredictor.from_arrays(state, job.plan)
    assert predictor.scores(state.get("prompt")) == product.scores


def test_prompts_that_are_none_are_refused(learnt):
    predictor, (frame, _) = learnt
    for wrong in (None, frame[:, 1:], frame.astype(np.float64), np.full_like(frame, np.nan)):
        with pytest.raises(DataError, match="the prompt is"):
            predictor.scores(wrong)


def test_jobs_that_cannot_be_learnt_together_are_refused(jobs, job_for, small_net):
    first, second = jobs
    with pytest.raises(TrainingError, match="two at least"):
        trained_together([first], METHOD)
    with pytest.raises(BudgetError, match="set prompt=learned"):
        trained_together(jobs, replace(METHOD, prompt="fixed"))
    sgd = replace(METHOD.search, optimiser="sgd")
    with pytest.raises(BudgetError, match=r"search\.optimiser=adam"):
        trained_together(jobs, replace(METHOD, search=sgd))
    with pytest.raises(BudgetError, match="bytes or multiply-accumulates"):
        trained_together([first, job_for("accuracy", "1%")], METHOD)
    with pytest.raises(InfeasibleBudgetError):
        trained_together([first, job_for("memory", "100")], METHOD)
    other = type(small_net)(8, num_classes=3, width=8, shortcut="pad").eval()
    with pytest.raises(PlanError, match="different base models"):
        trained_together([first, job_for("latency", "40%", model=other)], METHOD)
    with pytest.raises(PlanError, match="picture size"):
        trained_together([first, wide(job_for, small_net, second)], METHOD)


def wide(job_for, net, job):
    """A job with pictures of twice the width, and the plan for them."""
    large = [
        Labelled(torch.cat([images, images], 3), labels)
        for images, labels in (job.train, job.validation)
    ]
    plan = trace_groups(net, torch.zeros(1, 3, 8, 16), name="tiny")
    return job_for("latency", "40%", train=large[0], validation=large[1], plan=plan)


def test_a_task_that_does_not_fit_the_predictor_is_refused(learnt, jobs, job_for, small_net):
    predictor, _ = learnt
    with pytest.raises(PlanError, match=r"resize them|another plan"):
        prompt_for(predictor, wide(job_for, small_net, jobs[0]), METHOD)
    with pytest.raises(BudgetError, match="settings with one"):
        prompt_for(predictor, jobs[0], replace(METHOD, prompt="none"))
    slow = job_for(target=Target("latency", 5.0, "ms"), latency_ms=lambda mask: 1.0)
    with pytest.raises(BudgetError, match="bytes or multiply-accumulates"):
        prompt_for(predictor, slow, METHOD)


def test_a_predictor_of_another_plan_is_refused(learnt, small_plan):
    fewer = replace(small_plan, groups=small_plan.groups[:-1], unit_macs={})
    with pytest.raises(PlanError, match="another plan"):
        MaskPredictor.from_bytes(learnt[0].to_bytes(), fewer)


def settings_of(arrays):
    return json.loads(arrays["predictor:settings"].tobytes())


def changed(arrays, **values):
    text = json.dumps({**settings_of(arrays), **values}).encode()
    return {**arrays, "predictor:settings": np.frombuffer(text, np.uint8)}


@pytest.mark.parametrize(
    "values",
    [
        {"width": 1 << 40},
        {"width": 0},
        {"width": True},
        {"width": 4096},
        {"picture": [3, 8]},
        {"picture": [1 << 20, 8, 8]},
        {"statistics": []},
        {"statistics": ["mode"]},
        {"statistics": ["mean", "std"]},
        {"recurrent": 1},
        {"recurrent": False},
        {"prompted": False},
        {"groups": []},
        {"groups": 7},
        {"more": 1},
    ],
)
def test_settings_that_do_not_fit_the_arrays_are_refused(learnt, small_plan, values):
    arrays = learnt[0].arrays()
    with pytest.raises((ArtifactError, PlanError)):
        MaskPredictor.from_arrays(changed(arrays, **values), small_plan)


def test_arrays_that_do_not_fit_are_refused(learnt, small_plan):
    arrays = learnt[0].arrays()
    name = "predictor:hyper_network.slopes"
    for wrong in (
        arrays[name][:-1],
        arrays[name].astype(np.float64),
        np.full_like(arrays[name], np.inf),
    ):
        with pytest.raises(ArtifactError, match="slopes"):
            MaskPredictor.from_arrays({**arrays, name: wrong}, small_plan)
    with pytest.raises(ArtifactError, match="slopes"):
        MaskPredictor.from_arrays({n: a for n, a in arrays.items() if n != name}, small_plan)
    with pytest.raises(ArtifactError, match="unknown part 'more'"):
        MaskPredictor.from_arrays({**arrays, "predictor:more": arrays[name]}, small_plan)
    with pytest.raises(ArtifactError, match="no mask predictor"):
        MaskPredictor.from_arrays({}, small_plan)
    with pytest.raises(ArtifactError, match="is no fedsprig"):
        MaskPredictor.from_bytes(pack(arrays), small_plan)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_are_named_errors_or_the_whole_of_a_predictor(learnt, small_plan, data):
    whole = learnt[0].to_bytes()
    if data.draw(st.booleans()):
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        end = int.from_bytes(whole[:8], "little") + 400  # the header and the first values
        place = data.draw(st.integers(0, end))
        damaged = bytearray(whole)
        damaged[place] ^= data.draw(st.integers(1, 255))
    try:
        found = MaskPredictor.from_bytes(bytes(damaged), small_plan)
    except (ArtifactError, PlanError):
        return
    assert len(found.to_bytes()) == len(whole)
