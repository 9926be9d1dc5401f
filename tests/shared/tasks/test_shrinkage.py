"""Shrinkage by hand, at its limits, and as a score mask."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsprig.errors import LibraryError, PlanError
from fedsprig.masks import ScoreSet
from fedsprig.tasks import SCORE_MASKS, Neighbour, TaskSketch, score_mask
from fedsprig.tasks.score_mask import Settings, shrunk, spread_of
from fedsprig.tasks.score_mask.shrinkage import LEAST, floored

number = st.floats(-100, 100)
variance = st.floats(1e-3, 100)


def one(*values: float) -> list[np.ndarray]:
    return [np.array([value]) for value in values]


def test_by_hand() -> None:
    # Prior 1 with variance 1, own 4 with variance 2: (1/1 + 4/2) / (1/1 + 1/2) = 2.
    np.testing.assert_allclose(shrunk(*one(1.0, 1.0, 4.0, 2.0)), [2.0])


@settings(deadline=None)
@given(number, variance, number, variance)
def test_it_is_the_mean_by_inverse_variances(m: float, t: float, o: float, s: float) -> None:
    expected = (m / t + o / s) / (1 / t + 1 / s)
    np.testing.assert_allclose(shrunk(*one(m, t, o, s)), [expected], rtol=1e-9, atol=1e-9)


@settings(deadline=None)
@given(number, variance, number, variance)
def test_limits_and_direction(m: float, t: float, o: float, s: float) -> None:
    np.testing.assert_allclose(shrunk(*one(m, t, o, 0.0)), [o], atol=1e-12)
    np.testing.assert_allclose(shrunk(*one(m, 0.0, o, s)), [m], atol=1e-12)
    np.testing.assert_allclose(shrunk(*one(m, 0.0, o, 0.0)), [m], atol=1e-12)
    here, noisier = shrunk(*one(m, t, o, s)), shrunk(*one(m, t, o, 2 * s))
    assert abs(noisier - m) <= abs(here - m) + 1e-9
    assert shrunk(*one(m, t, o + 1, s)) > here
    assert shrunk(*one(m + 1, t, o, s)) > here


def test_the_spread_of_equal_weights_is_that_of_one_more_draw() -> None:
    values = np.array([[1.0], [2.0], [6.0]], np.float32)
    # Variance over n - 1 is 7; the mean of three adds a third of it.
    np.testing.assert_allclose(spread_of(values, np.full(3, 1 / 3)), [7 * 4 / 3])
    # One neighbour alone says nothing about a spread, so all count; and two tasks differ by twice
    # the variance.
    np.testing.assert_allclose(spread_of(values, np.array([1.0, 0.0, 0.0])), [7 * 2])
    # By hand: mean 4, variance .5 * 4 + .5 * 4 = 4, over 1 - .5, times 1.5.
    np.testing.assert_allclose(spread_of(values[1:], np.array([0.5, 0.5])), [12.0])


def test_no_unit_is_certain_among_uncertain_ones() -> None:
    starts, sizes = np.array([0, 2]), (2, 2)
    made = floored(np.array([0.0, 4.0, 0.0, 0.0]), starts, sizes)
    np.testing.assert_allclose(made, [2 * LEAST, 4, 0, 0])


TASK = TaskSketch(
    "a" * 64,
    np.ones((2, 2), np.float32),
    np.array([40, 40]),
    ("", ""),
    np.zeros(0, np.float32),
)


def scores(*values: float) -> ScoreSet:
    return ScoreSet({"a": np.array(values, np.float32)})


NEAR = [
    Neighbour("x", 0.2, scores(3, 1, 2, 2)),
    Neighbour("y", 0.4, scores(1, 2, 2, 1)),
    Neighbour("z", 0.9, scores(2, 3, 1, 1)),
]
OWN = scores(1, 5, 1, 3)


@pytest.mark.parametrize("method", ["mean", "weighted", "nearest"])
def test_a_sure_device_is_believed_and_an_unsure_one_is_not(method: str) -> None:
    sure = score_mask(TASK, NEAR, method=method, own=OWN, own_error=scores(0, 0, 0, 0))
    np.testing.assert_allclose(sure.flat, OWN.normalised().flat, rtol=1e-5)
    unsure = score_mask(TASK, NEAR, method=method, own=OWN, own_error=scores(*[1e6] * 4))
    np.testing.assert_allclose(
        unsure.flat, score_mask(TASK, NEAR, method=method).flat, rtol=1e-4, atol=1e-5
    )


def test_every_unit_is_shrunk_by_itself() -> None:
    error = scores(0.1, 9, 0.1, 0.1)
    made = score_mask(TASK, NEAR, method="mean", own=OWN, own_error=error).flat
    library = score_mask(TASK, NEAR, method="mean").flat
    own = OWN.normalised().flat
    trust = (made - library) / (own - library)
    assert trust[1] < 0.1 < trust[[0, 2, 3]].min()


def test_the_scale_of_the_device_does_not_matter() -> None:
    error = scores(1, 2, 1, 1)
    expected = score_mask(TASK, NEAR, own=OWN, own_error=error).flat
    loud = [ScoreSet({"a": 1e3 * item.groups["a"]}) for item in (OWN, error)]
    made = score_mask(TASK, NEAR, own=loud[0], own_error=loud[1]).flat
    np.testing.assert_allclose(made, expected, rtol=1e-5)


def test_the_learned_mask_knows_its_own_errors() -> None:
    vectors = [np.array([x, 1 - x], np.float32) for x in (0.0, 0.5, 1.0)]
    near = [
        Neighbour(item.name, item.similarity, item.scores, vector)
        for item, vector in zip(NEAR, vectors, strict=True)
    ]
    made = score_mask(TASK, near, method="ridge", own=OWN, own_error=scores(1, 1, 1, 1)).flat
    library, own = score_mask(TASK, near, method="ridge").flat, OWN.normalised().flat
    assert ((made - library) / (own - library) < 1).all()
    assert ((made - library) / (own - library) > 0).all()


def test_with_one_neighbour_the_pictures_decide() -> None:
    expected = score_mask(TASK, NEAR[:1], own=OWN)
    assert score_mask(TASK, NEAR[:1], own=OWN, own_error=scores(1, 1, 1, 1)) == expected


@pytest.mark.parametrize(("method", "times"), [("mean", 4 / 3), ("nearest", 2), ("weighted", 2)])
def test_how_far_tasks_lie_from_what_is_said_of_them(method: str, times: float) -> None:
    # At this temperature the weighted scores are those of the nearest, and as uncertain.
    prior = SCORE_MASKS[method].prior(TASK, NEAR, Settings(temperature=0.01))
    assert prior.spread is not None
    variance = np.var([item.scores.normalised().flat for item in NEAR], axis=0, ddof=1)
    np.testing.assert_allclose(prior.spread(), times * variance, rtol=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    error = scores(1, 1, 1, 1)
    with pytest.raises(LibraryError, match="go with own"):
        score_mask(TASK, NEAR, own_error=error)
    with pytest.raises(LibraryError, match="go with own"):
        score_mask(TASK, NEAR, own_weight=0.5)
    with pytest.raises(LibraryError, match="exclude each other"):
        score_mask(TASK, NEAR, own=OWN, own_weight=0.5, own_error=error)
    with pytest.raises(LibraryError, match="votes: nothing tells how far"):
        score_mask(TASK, NEAR, method="votes", own=OWN, own_error=error)
    with pytest.raises(PlanError):
        score_mask(TASK, NEAR, own=OWN, own_error=scores(1, 1))
    with pytest.raises(PlanError):
        score_mask(TASK, NEAR, own=scores(1, 1), own_error=error)
