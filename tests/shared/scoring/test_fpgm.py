"""The geometric median criterion by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsprig.errors import PlanError, ScoreError
from fedsprig.scoring import score
from fedsprig.scoring.fpgm import _squared_distances


def sums_of_distances(filters):
    return [sum(np.linalg.norm(one - other) for other in filters) for one in filters]


def test_it_is_the_sum_of_distances_to_all_filters_of_the_group(net, plan):
    state = {name: value.numpy() for name, value in net.state_dict().items()}
    scores = score("fpgm", net, plan)
    inner = [state["conv1.weight"][unit].ravel() for unit in range(3)]
    stream = [
        np.concatenate([state["conv2.weight"][unit].ravel(), state["skip.weight"][unit].ravel()])
        for unit in range(4)
    ]
    heads = [state["wide.weight"][2 * unit : 2 * unit + 2].ravel() for unit in range(2)]
    for name, filters in (("conv1", inner), ("conv2", stream), ("wide", heads)):
        np.testing.assert_allclose(scores.groups[name], sums_of_distances(filters), rtol=1e-6)


def test_the_filter_in_the_middle_of_a_line_goes_first(net, plan):
    """Three filters at 0, 1 and 3 on one line: sums of distances 4, 3 and 5."""
    with torch.no_grad():
        net.conv1.weight.zero_()
        net.conv1.weight[1, 0, 1, 1] = 1
        net.conv1.weight[2, 0, 1, 1] = 3
    assert score("fpgm", net, plan).groups["conv1"].tolist() == [4, 3, 5]


def test_equal_filters_score_exactly_zero(net, plan):
    with torch.no_grad():
        net.conv1.weight.copy_(net.conv1.weight[:1].expand(3, -1, -1, -1).clone())
    assert not score("fpgm", net, plan).groups["conv1"].any()


@given(st.integers(-15, 0), st.integers(0, 2**16))
def test_filters_that_nearly_agree_are_told_apart(exponent, seed):
    rng = np.random.default_rng(seed)
    rows = np.repeat(rng.normal(size=(3, 7)), 2, axis=0)
    rows[::2] += 10.0**exponent * rng.normal(size=(3, 7))
    found = _squared_distances(torch.from_numpy(rows)).sqrt().numpy()
    exact = np.linalg.norm(rows[:, None] - rows, axis=2)
    np.testing.assert_allclose(found, exact, rtol=1e-8)


def test_bad_input_is_refused(net, plan):
    with pytest.raises(PlanError, match=r"no conv1\.weight of full width"):
        score("fpgm", torch.nn.Linear(2, 2), plan)
    with torch.no_grad():
        net.skip.weight[3] = torch.nan
    with pytest.raises(ScoreError, match="of group conv2"):
        score("fpgm", net, plan)
