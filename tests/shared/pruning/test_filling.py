"""What a mask has room for, against trying every unit again and again."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedsprig.pruning.filling import filled


def bools(**groups):
    return {name: np.array(units, np.bool_) for name, units in groups.items()}


def equal(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[n], other[n]) for n in one)


def test_the_best_that_fits_comes_back_by_hand():
    costs = {"a": 5, "b": 2}
    start = bools(a=[0, 1, 1], b=[0, 1, 1, 1])
    values = {"a": np.array([9.0, 8, 1]), "b": np.array([9.0, 3, 3, 0.5])}

    def fits(drop):
        return sum(costs[name] * (~units).sum() for name, units in drop.items()) <= 11

    # 7 are in, and 4 are left: no unit of a fits, two of b do, of equal ones the first.
    assert equal(filled(values, start, fits), bools(a=[0, 1, 1], b=[0, 0, 0, 1]))
    assert equal(start, bools(a=[0, 1, 1], b=[0, 1, 1, 1]))


@given(st.data())
def test_it_equals_the_slow_reference(data):
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    names = [f"g{n}" for n in range(len(sizes))]
    cost = {name: data.draw(st.integers(1, 9)) for name in names}
    values = {
        name: np.array(data.draw(st.lists(st.integers(0, 5), min_size=n, max_size=n)), np.float64)
        for name, n in zip(names, sizes, strict=True)
    }
    start = {name: np.arange(n) > 0 for name, n in zip(names, sizes, strict=True)}
    limit = sum(cost.values()) + data.draw(st.integers(0, 60))

    def fits(drop):
        return sum(cost[name] * (~units).sum() for name, units in drop.items()) <= limit

    slow = {name: units.copy() for name, units in start.items()}
    for value in sorted({v for row in values.values() for v in row}, reverse=True):
        for name in names:
            for unit in range(len(slow[name])):
                if values[name][unit] == value and slow[name][unit]:
                    slow[name][unit] = False
                    slow[name][unit] = not fits(slow)
    found = filled(values, start, fits)
    assert equal(found, slow)
    assert fits(found)
