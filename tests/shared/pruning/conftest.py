"""A residual network that trains in a moment, with the embedded digits."""

import numpy as np
import pytest
import torch

from fedsprig.graph import trace_groups
from fedsprig.models import describe
from fedsprig.models.cifar_resnet import CifarResNet
from fedsprig.pruning import Job, Labelled, Target
from fedsprig.training import hold_out, read, to_tensor


def labelled(pictures):
    card = describe("cifar_resnet20")
    images = to_tensor(pictures.images, card)[:, :, ::4, ::4].contiguous()  # 8 x 8, as digits are
    return Labelled(images, torch.from_numpy(pictures.labels))


@pytest.fixture(scope="session")
def digits():
    """60 training and 30 validation pictures of three digits."""
    pictures = read("embedded", name="digits").only([0, 1, 2])
    index = np.concatenate([np.flatnonzero(pictures.labels == n)[:30] for n in range(3)])
    return tuple(labelled(part) for part in hold_out(pictures.subset(index), 1 / 3, seed=0))


@pytest.fixture(scope="session")
def small_net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CifarResNet(8, num_classes=3, width=8, shortcut="pad").eval()


@pytest.fixture(scope="session")
def small_plan(small_net):
    return trace_groups(small_net, torch.zeros(1, 3, 8, 8), name="tiny")


@pytest.fixture(scope="session")
def job_for(small_net, small_plan, digits):
    def make(policy="memory", text="50%", **changes):
        values = {
            "model": small_net,
            "plan": small_plan,
            "train": digits[0],
            "validation": digits[1],
            "target": Target.parse(policy, text, small_plan),
            "seed": 3,
        }
        return Job(**{**values, **changes})

    return make


class StoppedError(Exception):
    """A run that is stopped where it stands."""


@pytest.fixture
def stopped_in_every_epoch(tmp_path):
    """Runs a method to its end and again, stopped amid every epoch of four steps: the same product.

    Returns the number of epochs.
    """

    def compare(method, job):
        plain, stopped, steps = [], set(), []
        whole = method.prune(job, progress=lambda stage, done, total: plain.append((stage, done)))

        def stop(stage, done, total):
            steps.append((stage, done))
            if done % 4 == 2 and (stage, done) not in stopped:
                stopped.add((stage, done))
                raise StoppedError

        for _ in range(100):
            try:
                product = method.prune(job, progress=stop, checkpoint=tmp_path)
                break
            except StoppedError:
                continue
        # Every epoch was stopped once, and none that was whole was done again.
        ends = [step for step in plain if step[1] % 4 == 0]
        assert [step for step in steps if step[1] % 4 == 0] == ends
        assert len(stopped) == len(ends)
        assert product.weights_bytes() == whole.weights_bytes()
        assert (product.scores, product.mask) == (whole.scores, whole.mask)
        assert product.weight_mask == whole.weight_mask
        assert product.metrics == whole.metrics
        assert product.settings == whole.settings
        return len(ends)

    return compare
