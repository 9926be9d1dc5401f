import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsprig.errors import TrainingError
from fedsprig.training import TrainConfig
from fedsprig.training.config import batch_sizes


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"steps": 1, "epochs": 1},
        {"steps": -1},
        {"epochs": 10**9},
        {"steps": 1, "batch_size": 1},
        {"steps": 1, "learning_rate": 0},
        {"steps": 1, "learning_rate": float("nan")},
        {"steps": 1, "head_learning_rate_scale": -1},
        {"steps": 1, "momentum": 1.0},
        {"steps": 1, "weight_decay": -1e-4},
        {"steps": 1, "weight_decay": float("inf")},
        {"steps": 1, "label_smoothing": 1.0},
        {"steps": 1, "schedule": "linear"},
        {"steps": 1, "augment": "shift+flip"},
    ],
)
def test_refuses_settings_out_of_range(options):
    with pytest.raises(TrainingError) as caught:
        TrainConfig(**options)
    assert "\n" not in str(caught.value)


def test_cosine_starts_at_the_learning_rate_and_halves_in_the_middle():
    config = TrainConfig(steps=4, learning_rate=0.8)
    rates = [config.learning_rate_at(step, 4) for step in range(4)]
    assert rates == pytest.approx([0.8, 0.8 * 0.853553, 0.4, 0.8 * 0.146447], rel=1e-5)
    constant = TrainConfig(steps=4, learning_rate=0.8, schedule="constant")
    assert {constant.learning_rate_at(step, 4) for step in range(4)} == {0.8}


def test_counts_steps():
    assert TrainConfig(steps=7).total_steps(1000) == 7
    assert TrainConfig(epochs=3, batch_size=32).total_steps(100) == 12
    assert TrainConfig(epochs=3, batch_size=32).total_steps(97) == 9  # 32, 32, 33
    assert TrainConfig(epochs=3, batch_size=32).total_steps(5) == 3


@given(st.integers(2, 500), st.integers(2, 80))
def test_a_pass_is_every_picture_once_and_never_a_batch_of_one(pictures, batch_size):
    sizes = batch_sizes(pictures, batch_size)
    assert sum(sizes) == pictures
    assert min(sizes) >= 2
    assert set(sizes[:-1]) <= {batch_size}
    assert sizes[-1] <= batch_size + 1


def test_a_constant_rate_falls_at_its_milestones():
    config = TrainConfig(epochs=4, learning_rate=0.1, schedule="constant", milestones=(1, 3))
    rates = [config.learning_rate_at(step, 8) for step in range(8)]
    assert rates == pytest.approx([0.1] * 2 + [0.01] * 4 + [0.001] * 2)
    for wrong in ({"epochs": 4}, {"steps": 4, "schedule": "constant"}):
        with pytest.raises(TrainingError, match="milestones are epochs of a constant rate"):
            TrainConfig(**wrong, milestones=(1,))
