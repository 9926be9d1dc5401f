"""CIFAR ResNets: the padded shortcut by hand, and the public layout of names."""

import torch

from fedsprig.models import build
from fedsprig.models.cifar_resnet import PadShortcut


def test_the_padded_shortcut_by_hand():
    x = torch.arange(32.0).view(1, 2, 4, 4)
    shortcut = PadShortcut(1)
    out = shortcut(x)
    assert out.shape == (1, 4, 2, 2)
    assert not out[0, 0].any()
    assert out[0, 1].tolist() == [[0, 2], [8, 10]]
    assert out[0, 2].tolist() == [[16, 18], [24, 26]]
    assert not out[0, 3].any()
    shortcut.before, shortcut.after = 0, 2
    assert shortcut(x)[0, 0].tolist() == [[0, 2], [8, 10]]


def test_names_are_those_of_the_public_weights():
    names = set(build("cifar_resnet20", num_classes=10).state_dict())
    assert {"conv1.weight", "bn1.running_var", "layer3.2.conv2.weight", "linear.bias"} <= names
    assert not any("shortcut" in name for name in names)
    assert {"layer2.0.shortcut.0.weight", "layer2.0.shortcut.1.bias"} <= set(
        build("sprig20", num_classes=10).state_dict()
    )
