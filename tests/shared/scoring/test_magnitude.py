"""The weight criterion by hand."""

import numpy as np
import pytest
import torch

from fedsprig.errors import PlanError, ScoreError
from fedsprig.scoring import score


@pytest.mark.parametrize("p", [1, 2])
def test_it_is_the_norm_of_all_filters_that_make_the_unit(net, plan, p):
    state = {name: value.numpy() for name, value in net.state_dict().items()}
    scores = score("magnitude", net, plan, p=p)
    for unit in range(3):
        expected = np.linalg.norm(state["conv1.weight"][unit].ravel(), p)
        assert scores.groups["conv1"][unit] == pytest.approx(expected, rel=1e-6)
    for unit in range(4):
        filters = [state["conv2.weight"][unit].ravel(), state["skip.weight"][unit].ravel()]
        expected = np.linalg.norm(np.concatenate(filters), p)
        assert scores.groups["conv2"][unit] == pytest.approx(expected, rel=1e-6)
    for head in range(2):
        expected = np.linalg.norm(state["wide.weight"][2 * head : 2 * head + 2].ravel(), p)
        assert scores.groups["wide"][head] == pytest.approx(expected, rel=1e-6)


def test_bad_input_is_refused(net, plan):
    with pytest.raises(ScoreError, match="power above 0"):
        score("magnitude", net, plan, p=0)
    with pytest.raises(PlanError, match=r"no conv1\.weight of full width"):
        score("magnitude", torch.nn.Linear(2, 2), plan)
    net.conv1 = torch.nn.Conv2d(2, 2, 3)
    with pytest.raises(PlanError, match=r"no conv1\.weight of full width"):
        score("magnitude", net, plan)
    with torch.no_grad():
        net.skip.weight[3] = torch.inf
    net.conv1 = torch.nn.Conv2d(2, 3, 3)
    with pytest.raises(ScoreError, match="unit 3 of group conv2"):
        score("magnitude", net, plan)
