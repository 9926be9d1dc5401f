"""Score sets: bytes, normalisation, sums, finite values only."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsprig.artifacts import pack
from fedsprig.errors import ArtifactError, PlanError, ScoreError, TruncatedArtifactError
from fedsprig.masks import ScoreSet, weighted_sum
from fedsprig.masks.layout import levelled, loudness

values = st.floats(-(2.0**100), 2.0**100, width=32)
pairs = st.tuples(
    hnp.arrays(np.float32, 4, elements=values), hnp.arrays(np.float32, 6, elements=values)
)


def scores(conv1, conv2):
    return ScoreSet({"conv1": np.asarray(conv1), "conv2": np.asarray(conv2)})


@given(pair=pairs)
@settings(max_examples=50, deadline=None)
def test_scores_survive_the_round_trip(tiny_plan, pair):
    original = scores(*pair)
    back = ScoreSet.from_bytes(original.to_bytes(), tiny_plan)
    assert back == original
    assert back.flat.tobytes() == original.flat.tobytes()
    assert back.digest == original.digest


@given(pair=pairs)
@settings(max_examples=50, deadline=None)
def test_normalised_groups_have_a_mean_square_of_one(pair):
    for original, scaled in zip(pair, scores(*pair).normalised().groups.values(), strict=True):
        rms = np.sqrt(np.mean(original.astype(np.float64) ** 2))
        expected = original / (rms or 1)
        np.testing.assert_allclose(scaled, expected, rtol=1e-6, atol=1e-38)


def test_normalised_by_hand():
    result = scores([3, 0, 0, -4], [0] * 6).normalised()
    np.testing.assert_array_equal(result.groups["conv1"], np.float32([1.2, 0, 0, -1.6]))
    np.testing.assert_array_equal(result.groups["conv2"], np.zeros(6))


@given(first=pairs, second=pairs)
@settings(max_examples=30, deadline=None)
def test_rows_are_levelled_as_score_sets_are(first, second):
    rows = np.stack([np.concatenate(pair) for pair in (first, second)])
    made = levelled(rows, (4, 6))
    for pair, row, scale in zip((first, second), made, loudness(rows, (4, 6)), strict=True):
        np.testing.assert_array_equal(row.astype(np.float32), scores(*pair).normalised().flat)
        for part, size, own in zip(np.split(scale, [4]), (4, 6), pair, strict=True):
            rms = np.sqrt(np.mean(own.astype(np.float64) ** 2)) or 1
            np.testing.assert_allclose(part, np.full(size, rms))
    assert levelled(rows[:0], (4, 6)).shape == (0, 10)
    assert levelled(np.zeros((2, 0), np.float32), ()).shape == (2, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_what_is_not_finite_is_refused_by_its_place(tiny_plan, bad):
    with pytest.raises(ScoreError, match="unit 2 of group conv2"):
        scores([0.0] * 4, [0, 0, bad, 0, 0, 0])


def test_bytes_with_a_nan_are_refused(tiny_plan):
    good = scores([0.0] * 4, [1.0] * 6)
    data = good.to_bytes()
    nan = data.replace(np.float32(1).tobytes() * 6, np.float32(np.nan).tobytes() * 6)
    assert nan != data
    with pytest.raises(ScoreError):
        ScoreSet.from_bytes(nan, tiny_plan)


def test_bytes_that_do_not_fit_are_refused(tiny_plan, chain_plan):
    good = scores(np.arange(4), np.arange(6))
    data = good.to_bytes()
    with pytest.raises(PlanError, match="another plan"):
        ScoreSet.from_bytes(data, chain_plan([4, 6]))
    with pytest.raises(TruncatedArtifactError):
        ScoreSet.from_bytes(data[:-1], tiny_plan)
    with pytest.raises(ArtifactError, match="no score set"):
        ScoreSet.from_bytes(pack({"scores": good.flat}, {"kind": "mask"}), tiny_plan)
    metadata = {"kind": "score set", "version": "1", "layout": good.layout.digest.hex()}
    for wrong in (good.flat[:-1], good.flat.astype(np.float64)):
        with pytest.raises(ArtifactError, match=r"float32 \[10\]"):
            ScoreSet.from_bytes(pack({"scores": wrong}, metadata), tiny_plan)


def test_equal_scores_have_equal_bytes():
    one = scores([0.0, 1, 2, 3], np.arange(6))
    two = ScoreSet({"conv2": np.arange(6), "conv1": np.array([-0.0, 1, 2, 3])})
    assert (one, hash(one), one.digest) == (two, hash(two), two.digest)
    assert one != scores([0.0, 1, 2, 4], np.arange(6))


@given(sets=st.lists(pairs, min_size=1, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_the_weighted_sum_is_that_of_a_plain_loop(sets, seed):
    weights = np.random.default_rng(seed).normal(size=len(sets))
    total = weighted_sum([scores(*pair) for pair in sets], weights)
    for position, name in enumerate(("conv1", "conv2")):
        expected = sum(
            w * pair[position].astype(np.float64) for w, pair in zip(weights, sets, strict=True)
        )
        np.testing.assert_array_equal(total.groups[name], expected.astype(np.float32))


def test_sums_that_make_no_sense_are_refused(chain_plan):
    one = scores([1.0] * 4, [1.0] * 6)
    with pytest.raises(ScoreError, match="one for each"):
        weighted_sum([one], [1.0, 2.0])
    with pytest.raises(ScoreError, match="at least one"):
        weighted_sum([], [])
    with pytest.raises(ScoreError, match="not finite"):
        weighted_sum([one], [np.nan])
    with pytest.raises(ScoreError, match="unit 0 of group conv1"):
        weighted_sum([scores([3e38] * 4, [0.0] * 6)] * 2, [1, 1])
    with pytest.raises(PlanError):
        weighted_sum([one, ScoreSet({"conv1": np.ones(4)})], [1, 1])


def test_scores_cannot_be_changed_and_are_numbers(tiny_plan):
    one = scores([1.0] * 4, [1.0] * 6)
    with pytest.raises(ValueError, match="read-only"):
        one.groups["conv1"][0] = 2
    with pytest.raises(PlanError, match="use float"):
        scores(np.ones(4, bool), np.ones(6))
    with pytest.raises(PlanError, match="use float"):
        scores(np.ones((4, 1)), np.ones(6))
    with pytest.raises(PlanError, match="nothing for group conv2"):
        ScoreSet({"conv1": np.ones(4)}).check(tiny_plan)
