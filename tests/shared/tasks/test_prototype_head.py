"""The first classifier: class means as a linear layer, as sure as the pictures warrant."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsprig.errors import SketchError
from fedsprig.tasks import class_means, pooled_variance, projected_variance, prototype_head


def test_by_hand():
    features = np.array([[1.0, 0.0], [3.0, 0.0], [-2.0, 1.0], [-2.0, -1.0]])
    labels = np.array([0, 0, 1, 1])
    means, counts = class_means(features, labels, 2)
    np.testing.assert_array_equal(means, [[2, 0], [-2, 0]])
    np.testing.assert_array_equal(counts, [2, 2])
    # Along the one direction between the means: 1, 1, 0, 0 squared.
    assert projected_variance(features, labels, means) == pytest.approx(0.5)
    weight, bias = prototype_head(means, counts, 0.5)
    np.testing.assert_allclose(weight, [[4, 0], [-4, 0]])
    np.testing.assert_allclose(bias, [-4, -4])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.floats(0.01, 100))
def test_it_decides_as_the_nearest_class_mean_does(seed, classes, variance):
    rng = np.random.default_rng(seed)
    means, counts = rng.normal(size=(classes, 5)), rng.integers(1, 9, classes)
    weight, bias = prototype_head(means, counts, variance)
    pictures = rng.normal(size=(40, 5)).astype(np.float64)
    distance = np.square(pictures[:, None] - means[None]).sum(2)
    logits = pictures @ weight.T + bias
    chosen = logits.argmax(1)
    nearest = np.sort(distance, axis=1)
    clear = nearest[:, 1] - nearest[:, 0] > 1e-3 * nearest[:, 0]
    np.testing.assert_array_equal(chosen[clear], distance.argmin(1)[clear])


def test_its_sureness_is_that_of_gaussian_classes():
    """Two classes one apart, unit variance: log odds at a mean are half the squared distance."""
    means = np.array([[0.5], [-0.5]])
    weight, bias = prototype_head(means, np.array([5, 5]), 1.0)
    logits = means @ weight.T + bias
    assert logits[0, 0] - logits[0, 1] == pytest.approx(0.5)


def test_a_class_without_pictures_is_never_preferred():
    means = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    weight, bias = prototype_head(means, np.array([3, 3, 0]), 1.0)
    assert not weight[2].any()
    assert bias[2] == bias[:2].min()
    assert np.isfinite(weight).all()


@pytest.mark.parametrize(
    ("means", "counts", "variance"),
    [
        (np.zeros((2, 3)), np.zeros(2), 1.0),
        (np.full((2, 3), np.nan), np.ones(2), 1.0),
        (np.zeros((2, 3)), np.ones(2), np.inf),
        (np.zeros((2, 3)), np.ones(2), -1.0),
    ],
)
def test_nonsense_is_refused(means, counts, variance):
    with pytest.raises(SketchError, match="class means"):
        prototype_head(means, counts, variance)


def test_classes_that_cannot_be_told_apart_give_finite_values():
    weight, bias = prototype_head(np.ones((3, 4)), np.ones(3), 0.0)
    assert np.isfinite(weight).all()
    assert np.isfinite(bias).all()


def test_devices_count_by_their_pictures_and_one_that_cannot_tell_does_not_count():
    assert pooled_variance([1.0, 4.0], [3, 1]) == 7 / 4
    assert pooled_variance([1.0, 0.0, 4.0], [3, 50, 1]) == 7 / 4
    assert pooled_variance([0.0, 0.0], [3, 1]) == 0
