"""Sums of attention add up: whoever holds which picture, the mean is that of all pictures."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsprig.errors import UnknownNameError
from fedsprig.pruning.aap.attention import attention, attention_sums

FORMS = ["mean", "sum", "max"]


class Exact(tuple):
    """A short name, for hypothesis shows its arguments."""

    def __repr__(self):
        return "exact"


@pytest.fixture(scope="module")
def exact(small_net, small_plan, digits):
    """In double precision, where a batch's size does not show in a convolution's last bits."""
    return Exact((copy.deepcopy(small_net).double(), small_plan, digits[0].images[:12].double()))


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=12, deadline=None)
@given(
    owners=st.lists(st.integers(0, 3), min_size=12, max_size=12),
    power=st.sampled_from([1.0, 2.0]),
)
def test_any_split_of_the_pictures_gives_the_attention_over_all(exact, form, owners, power):
    network, plan, images = exact
    whole = attention(network, plan, images, power=power, form=form)
    parts = [
        attention_sums(network, plan, images[np.array(owners) == device], power=power, form=form)
        for device in sorted(set(owners))
    ]
    for group in plan.groups:
        pooled = sum(part[group.name] for part in parts) / len(images)
        np.testing.assert_allclose(pooled, whole[group.name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_a_picture_that_is_there_twice_counts_twice(exact, form):
    network, plan, images = exact
    once = attention_sums(network, plan, images[:1], form=form)
    others = attention_sums(network, plan, images[1:3], form=form)
    twice = attention_sums(network, plan, images[[0, 0, 1, 2]], form=form)
    for name, values in twice.items():
        assert values.dtype == np.float64
        np.testing.assert_allclose(values, 2 * once[name] + others[name], rtol=1e-10, atol=1e-12)


def test_a_form_that_there_is_not_is_named(small_net, small_plan, digits):
    with pytest.raises(UnknownNameError, match="did you mean 'mean'"):
        attention_sums(small_net, small_plan, digits[0].images[:2], form="maen")
