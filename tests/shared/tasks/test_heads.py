"""LEEP and H-score: by hand, against slow loops, and through the library's classifiers."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsprig.errors import ProbeMismatchError, SketchError
from fedsprig.tasks import SIMILARITIES, Evidence, Features, SketchIndex, TaskSketch, prototype_head
from fedsprig.tasks.similarity import HEAD_VALUES, Head, HeadValue, entry_heads, head_values
from fedsprig.tasks.similarity.h_score import h_score, shrinkage
from fedsprig.tasks.similarity.leep import leep, leep_of_outputs

PROBE = "a" * 64


def sketch(prototypes: np.ndarray, spread: float = 0.0, probe: str = PROBE) -> TaskSketch:
    """A sketch whose last class has no pictures."""
    rows = np.concatenate([prototypes, np.zeros((1, prototypes.shape[1]))]).astype(np.float32)
    counts = np.array([3] * len(prototypes) + [0], np.int64)
    names = ("",) * len(rows)
    return TaskSketch(probe, rows, counts, names, np.zeros(0, np.float32), spread=spread)


def test_leep_by_hand() -> None:
    # P(y, z) = [[.4, .1], [.2, .3]], P(y|z) = [[2/3, 1/4], [1/3, 3/4]]:
    # both pictures expect their label with 2/3 * .8 + 1/4 * .2 = 1/3 * .4 + 3/4 * .6 = 7/12.
    probabilities, labels = np.array([[0.8, 0.2], [0.4, 0.6]]), np.array([0, 1])
    assert leep(probabilities, labels, 2) == pytest.approx(log(7 / 12))
    assert leep(probabilities, labels, 5) == pytest.approx(log(7 / 12))


def test_leep_of_a_classifier_that_knows_all_or_nothing() -> None:
    labels = np.array([0, 0, 2, 2])
    assert leep(np.eye(3)[[1, 1, 0, 0]], labels, 3) == 0
    assert leep(np.full((4, 3), 1 / 3), labels, 3) == pytest.approx(log(1 / 2))
    # Outputs so far apart that a class gets probability 0 everywhere.
    assert leep_of_outputs(np.array([[0.0, 9e3], [0.0, 9e3]]), np.array([0, 1])) == log(1 / 2)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32))
def test_leep_is_the_formula_term_by_term(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, z, classes = (int(rng.integers(1, high)) for high in (12, 5, 4))
    outputs, labels = rng.normal(size=(n, z)), rng.integers(0, classes, n)
    p = [[np.exp(a) / sum(np.exp(b) for b in row) for a in row] for row in outputs]
    joint = [
        [sum(p[i][s] for i in range(n) if labels[i] == y) / n for s in range(z)]
        for y in range(classes)
    ]
    total = 0.0
    for i in range(n):
        given_z = [joint[labels[i]][s] / sum(row[s] for row in joint) for s in range(z)]
        total += log(sum(a * b for a, b in zip(given_z, p[i], strict=True)))
    assert leep_of_outputs(outputs, labels) == pytest.approx(total / n, abs=1e-9)


def test_h_score_by_hand() -> None:
    # In one direction nothing can be shrunk: variance 2, of which 1 lies between the classes.
    outputs = np.array([[-2.0], [0.0], [0.0], [2.0]])
    labels = np.array([0, 0, 1, 1])
    assert h_score(outputs, labels) == pytest.approx(1 / 2)
    assert h_score(7 * outputs + 3, labels) == pytest.approx(1 / 2)
    # In two, with variances 2 and 0: n |x|^4 sums give noise ((32 / 4) - 4) / 4 = 1 against a
    # distance of 2 (1, -1 on the diagonal), so that a = 1/2, the shrunk covariance is
    # diag(1.5, 0.5), and the score (1 - 1/2) * 1 / 1.5.
    flat = np.concatenate([outputs, np.zeros((4, 1))], axis=1)
    assert shrinkage(flat, np.diag([2.0, 0.0])) == pytest.approx(1 / 2)
    assert h_score(flat, labels) == pytest.approx(1 / 3)


def test_h_score_without_variance_is_nothing() -> None:
    assert h_score(np.array([[3.0, 1.0]]), np.array([2])) == 0
    assert h_score(np.full((5, 2), 0.1), np.array([0, 1, 0, 1, 1])) == 0
    assert h_score(np.array([[1.0, 0], [0, 1], [5, 2]]), np.zeros(3, np.int64)) == 0


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32))
def test_the_shrunk_covariance_is_that_of_ledoit_and_wolf_picture_by_picture(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, z = int(rng.integers(3, 9)), int(rng.integers(2, 5))
    outputs, labels = rng.normal(size=(n, z)), rng.integers(0, 3, n)
    x = outputs - outputs.mean(0)
    sample = sum(np.outer(row, row) for row in x) / n
    target = np.trace(sample) / z * np.eye(z)
    noise = sum(np.sum((np.outer(row, row) - sample) ** 2) for row in x) / n**2
    distance = np.sum((sample - target) ** 2)
    a = min(noise, distance) / distance
    assert shrinkage(x, sample) == pytest.approx(a)
    between = np.zeros((z, z))
    for label in labels:
        mean = x[labels == label].mean(0)
        between += np.outer(mean, mean) / n
    expected = np.trace(np.linalg.inv((1 - a) * sample + a * target) @ ((1 - a) * between))
    assert h_score(outputs, labels) == pytest.approx(expected, abs=1e-8)
    assert -1e-9 <= h_score(outputs, labels) <= min(z, 2) + 1e-9


def test_every_entry_has_the_classifier_of_its_class_means() -> None:
    rng = np.random.default_rng(0)
    means = [rng.normal(size=(classes, 4)) for classes in (2, 3, 2)]
    spreads = (0.5, 0.0, 1.5)
    index = SketchIndex.build("abc", [sketch(m, s) for m, s in zip(means, spreads, strict=True)])
    heads = entry_heads(index, np.array([2, 0, 1]))
    for place, taken, head in zip((2, 0, 1), (1.5, 0.5, 1.0), heads, strict=True):
        kept = means[place].astype(np.float32)
        weight, bias = prototype_head(kept, np.ones(len(kept)), taken)
        np.testing.assert_array_equal(head.weight, weight)
        np.testing.assert_array_equal(head.bias, bias)
    told = entry_heads(index, np.array([1]), spread=2.0)[0]
    np.testing.assert_allclose(told.weight, heads[2].weight / 2, rtol=1e-5)


@pytest.mark.parametrize("name", ["leep", "h_score"])
def test_a_classifier_of_like_classes_suits_a_task_best(name: str) -> None:
    rng = np.random.default_rng(1)
    axes = 4 * np.eye(6)
    index = SketchIndex.build(
        ["same", "other", "part"],
        [sketch(axes[:3], 1.0), sketch(axes[3:], 1.0), sketch(axes[2:5], 1.0)],
    )
    labels = rng.integers(0, 3, 90)
    array = (axes[labels] + rng.normal(size=(90, 6))).astype(np.float32)
    evidence = Evidence(sketch(axes[:3]), Features(array, labels))
    compare = SIMILARITIES[name].compare
    values = compare(evidence, index)
    assert np.argsort(-values).tolist() == [0, 2, 1]
    np.testing.assert_array_equal(compare(evidence, index, np.array([1, 0])), values[[1, 0]])
    assert compare(evidence, index.first(0)).shape == (0,)
    # What is compared here is what a device finds that was sent the heads.
    assert evidence.features is not None
    heads = entry_heads(index, np.arange(3))
    np.testing.assert_array_equal(head_values(HEAD_VALUES[name], evidence.features, heads), values)
    with pytest.raises(SketchError, match="needs the features"):
        compare(Evidence(evidence.sketch), index)
    with pytest.raises(ProbeMismatchError):
        compare(Evidence(sketch(axes[:3], probe="b" * 64), evidence.features), index)
    few = Features(array[:, :4], labels)
    with pytest.raises(SketchError, match="4 features of the task's pictures, the library has 6"):
        compare(Evidence(evidence.sketch, few), index)


def test_a_head_gives_logits() -> None:
    head = Head(np.array([[1, 2], [0, -1]], np.float32), np.array([0.5, 0], np.float32))
    found = head.outputs(np.array([[1, 1], [0, 2]], np.float32))
    np.testing.assert_array_equal(found, [[3.5, -1], [4.5, -2]])


@pytest.mark.parametrize(
    ("array", "labels"),
    [
        (np.zeros((2, 3)), np.zeros(2, np.int64)),
        (np.zeros((2, 3), np.float32), np.zeros(3, np.int64)),
        (np.zeros((2, 3), np.float32), np.zeros(2, np.int32)),
        (np.zeros((2, 3), np.float32), np.array([0, -1])),
        (np.zeros((0, 3), np.float32), np.zeros(0, np.int64)),
        (np.full((2, 3), np.nan, np.float32), np.zeros(2, np.int64)),
    ],
)
def test_features_that_are_none_are_refused(array: np.ndarray, labels: np.ndarray) -> None:
    with pytest.raises(SketchError, match="use finite float32"):
        Features(array, labels)


@pytest.mark.parametrize("scale", [1e-200, 1e38, 1e100, 1e200])
def test_the_h_score_is_the_same_at_every_scale(scale: float) -> None:
    rng = np.random.default_rng(0)
    outputs, labels = rng.normal(size=(40, 4)), rng.integers(0, 3, 40)
    assert h_score(scale * outputs, labels) == pytest.approx(h_score(outputs, labels))


@pytest.mark.parametrize("value", HEAD_VALUES.values())
def test_values_of_nothing_or_of_no_numbers_are_refused(value: HeadValue) -> None:
    with pytest.raises(SketchError, match="no pictures"):
        value(np.zeros((0, 3)), np.zeros(0, np.int64))
    for wrong in (np.inf, -np.inf, np.nan):
        with pytest.raises(SketchError, match="not finite"):
            value(np.array([[0.0, wrong], [1.0, 2.0]]), np.array([0, 1]))
    with pytest.raises(SketchError, match="no pictures"):
        leep(np.zeros((0, 3)), np.zeros(0, np.int64), 2)


@pytest.mark.parametrize("value", HEAD_VALUES.values())
def test_only_classes_that_are_there_take_room(value: HeadValue) -> None:
    rng = np.random.default_rng(0)
    outputs, labels = rng.normal(size=(9, 3)), rng.integers(0, 3, 9)
    # An array by label would take 2^65 bytes.
    far = np.array([5, 2**62, 7])[labels]
    assert value(outputs, far) == pytest.approx(value(outputs, labels))


@pytest.mark.parametrize("name", ["leep", "h_score"])
def test_labels_that_the_sketch_does_not_have_are_refused(name: str) -> None:
    index = SketchIndex.build(["a"], [sketch(np.eye(6)[:3], 1.0)])
    array = np.ones((2, 6), np.float32)
    evidence = Evidence(sketch(np.eye(6)[:3]), Features(array, np.array([0, 4])))
    with pytest.raises(SketchError, match="label 4, the sketch has 4 classes"):
        SIMILARITIES[name].compare(evidence, index)
