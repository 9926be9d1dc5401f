import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from fedsprig.training import TrainConfig, fit
from fedsprig.training.strides import subsampled_strides


def shortcut_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.Conv2d(6, 8, 1, stride=2, bias=False),
        nn.Conv2d(8, 8, 1, stride=(1, 3), groups=2),
        nn.Conv2d(8, 4, 1, stride=2, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


@pytest.mark.parametrize("side", [16, 15])
def test_gives_the_same_outputs_and_gradients(side):
    # Contiguous pictures are safe without the guard, so that there is something to compare with.
    images = torch.randn(6, 3, side, side)
    outputs, gradients = [], []
    for guarded in (False, True):
        model = shortcut_net()
        if guarded:
            with subsampled_strides(model):
                out = model(images)
                out.square().sum().backward()
        else:
            out = model(images)
            out.square().sum().backward()
        outputs.append(out)
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_changes_strided_pointwise_convolutions_and_puts_them_back():
    model = shortcut_net()
    strides = [(2, 2), (1, 3), (2, 2)]
    with subsampled_strides(model):
        assert [model[i].stride for i in (1, 2, 3)] == [(1, 1), (1, 1), (2, 2)]
    assert [model[i].stride for i in (1, 2, 3)] == strides
    with pytest.raises(RuntimeError), subsampled_strides(model):
        model(torch.zeros(1, 5, 8, 8))
    assert [model[i].stride for i in (1, 2, 3)] == strides
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_fit_runs_within_it():
    model, seen = shortcut_net(), []
    model[1].register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape[2:])))
    labels = torch.arange(6) % 4
    fit(model, torch.randn(6, 3, 16, 16), labels, TrainConfig(steps=1, batch_size=6), seed=0)
    assert seen == [(8, 8)]
    assert model[1].stride == (2, 2)


def test_a_narrow_residual_network_trains_on_two_threads():
    """Without the guard this process is killed by its allocator or by a segmentation fault."""
    program = (
        "import torch; torch.set_num_threads(2)\n"
        "from fedsprig.models.cifar_resnet import CifarResNet\n"
        "from fedsprig.training import TrainConfig, fit\n"
        "model = CifarResNet(8, num_classes=2, width=8, shortcut='conv')\n"
        "images, labels = torch.randn(9, 3, 32, 32), torch.arange(9) % 2\n"
        "report = fit(model, images, labels, TrainConfig(steps=2, batch_size=9), seed=0)\n"
        "print(report.steps)\n"
    )
    patient = os.environ | {"OMP_WAIT_POLICY": "passive"}  # two threads on a busy machine
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=patient
    )
    assert (done.returncode, done.stdout.strip()) == (0, "2"), done.stderr
