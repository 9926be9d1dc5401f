"""The rules that say which rank a layer gets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedsprig.adapters import RANK_RULES, adapter_state, attach, with_ranks
from fedsprig.adapters.ranks import by_kept, by_layer, by_width
from fedsprig.errors import UnknownNameError
from fedsprig.graph import kept_index, materialize, restrict


@pytest.mark.parametrize(
    ("rank", "shape", "expected"),
    [
        (8, (64, 3, 3, 3), 8),  # a first convolution, as in the paper
        (32, (64, 3, 7, 7), 32),
        (32, (64, 64, 1, 1), 32),  # exactly at the break-even: 32 * 128 == 64 * 64
        (33, (64, 64, 1, 1), 33),  # past it, but a rank that the product can have
        (100, (64, 64, 1, 1), 64),  # past it and past every rank
        (8, (96, 1, 3, 3), 1),  # depthwise
        (8, (96, 1, 7, 7), 1),
        (8, (32, 4, 1, 1), 4),  # squeeze: 8 * 36 > 128
        (8, (10, 4), 4),
        (1, (1, 1), 1),
    ],
)
def test_rank_by_layer(rank, shape, expected):
    assert by_layer(rank, shape, (1, 1)) == expected


@pytest.mark.parametrize(
    ("rank", "full", "kept", "kept_rule", "width_rule"),
    [
        (8, (64, 64, 3, 3), (64, 64, 3, 3), 8, 8),
        (8, (64, 64, 3, 3), (5, 40, 3, 3), 5, 1),  # 8 * 5 / 64
        (8, (64, 64, 3, 3), (40, 16, 3, 3), 8, 2),  # 8 * 16 / 64
        (8, (64, 64, 3, 3), (33, 64, 3, 3), 8, 5),  # 8 * 33 / 64 = 4.1
        (8, (64, 3, 7, 7), (64, 3, 7, 7), 3, 3),
        (16, (20, 20), (2, 20), 2, 2),
        (56, (112, 200, 1, 1), (58, 200, 1, 1), 56, 29),  # exactly 29
    ],
)
def test_rank_by_what_the_mask_left(rank, full, kept, kept_rule, width_rule):
    assert by_kept(rank, full, kept) == kept_rule
    assert by_width(rank, full, kept) == width_rule


@given(st.data())
def test_every_rule_gives_one_at_least_and_what_was_asked_for_at_most(data):
    full = data.draw(st.tuples(*[st.integers(1, 300)] * 3))
    kept = tuple(data.draw(st.integers(1, size)) for size in full[:2]) + full[2:]
    rank = data.draw(st.integers(1, 64))
    for rule in RANK_RULES.values():
        assert 1 <= rule(rank, full, kept) <= rank


def test_attaching_follows_the_rule(net, plan, mask):
    index = kept_index(plan, mask)
    small = materialize(net, plan, mask)
    attach(small, rank=4, rank_rule="kept", head="head", kept=index, shapes=plan.shapes)
    ranks = {
        name: module.adapter_b.shape[1]
        for name, module in small.named_modules()
        if hasattr(module, "adapter_b")
    }
    assert ranks == {"conv1": 3, "depthwise": 1, "conv2": 3, "fc": 3}
    full = attach(nn.Linear(6, 5), rank=4, rank_rule="width", head="")
    assert full.adapter_a.shape == (4, 6)
    assert np.array_equal(
        small.conv1.adapter_a.detach(),
        attach(net, rank=4, head="head").conv1.adapter_a.detach()[:3],
    )
    with pytest.raises(UnknownNameError, match="did you mean 'width'"):
        attach(nn.Linear(2, 2), rank_rule="widht", head="")


def test_lower_ranks_are_a_part_of_the_index(net, plan, mask):
    index = with_ranks(kept_index(plan, mask), plan.shapes, 4, "kept")
    small = materialize(net, plan, mask)
    attach(small, rank=4, rank_rule="kept", head="head", kept=index, shapes=plan.shapes)
    full = attach(net, rank=4, rank_rule="kept", head="head")
    cut = restrict(adapter_state(full), index)
    state = adapter_state(small)
    assert {name: value.shape for name, value in cut.items()} == {
        name: value.shape for name, value in state.items()
    }
    a = {n: p.detach() for n, p in full.named_parameters() if n.endswith("adapter_a")}
    for name, rows in restrict(a, index).items():
        assert np.array_equal(rows, small.get_parameter(name).detach())
    same = with_ranks(kept_index(plan, mask), plan.shapes, 4, "layer")
    assert same.keys() == kept_index(plan, mask).keys()  # that rule follows the uncut shapes
