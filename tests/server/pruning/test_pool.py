"""Shares of devices add up to the attention over all of their pictures."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsprig.masks import Mask
from fedsprig_server.pruning.pool import Share


def mask(**groups):
    return Mask({name: np.array(units, np.bool_) for name, units in groups.items()})


def test_by_hand():
    wide, narrow = mask(a=[1, 1, 1], b=[1, 1]), mask(a=[0, 1, 0], b=[1, 1])
    total = Share.total(
        [
            Share.of(wide, {"a": np.array([2.0, 4.0, 6.0]), "b": np.array([1.0, 3.0])}, 2),
            Share.of(narrow, {"a": np.array([9.0]), "b": np.array([5.0, 0.0])}, 3),
        ]
    )
    found = total.attention(wide)
    np.testing.assert_allclose(found["a"], [1.0, 13 / 5, 3.0])
    np.testing.assert_allclose(found["b"], [6 / 5, 3 / 5])
    np.testing.assert_allclose(total.attention(narrow)["a"], [13 / 5])


def test_a_unit_that_nobody_measured_is_as_strong_as_its_group():
    narrow = mask(a=[1, 0, 1, 0])
    share = Share.of(narrow, {"a": np.array([2.0, 8.0])}, 2)
    np.testing.assert_allclose(share.attention(mask(a=[1, 1, 1, 0]))["a"], [1.0, 2.5, 4.0])


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_pooling_is_a_plain_sum_in_any_order(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    units, devices = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 5))
    shares, seen, counts = [], np.zeros(units), np.zeros(units, int)
    for _ in range(devices):
        kept = rng.random(units) < 0.7
        kept[rng.integers(units)] = True
        pictures = rng.integers(0, 9, (int(rng.integers(1, 7)), int(kept.sum())))
        shares.append(Share.of(mask(a=kept), {"a": pictures.sum(0).astype(float)}, len(pictures)))
        seen[kept] += pictures.sum(0)
        counts[kept] += len(pictures)
    total = Share.total(shares)
    backwards = Share.total([Share.total(shares[1:][::-1] or shares[:1]), *shares[: devices > 1]])
    known = counts > 0
    for found in (total, backwards):
        attention = found.attention(mask(a=np.ones(units)))["a"]
        np.testing.assert_allclose(attention[known], seen[known] / counts[known])
