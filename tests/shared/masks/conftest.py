"""Small plans written by hand, so that these tests need no tracer."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedsprig.graph import AxisMap, Group, GroupPlan, Tap


def rows(units, k=1):
    """Unit u owns the k positions from u * k on."""
    return np.arange(units * k, dtype=np.int32).reshape(units, k)


class TinyNet(nn.Module):
    """conv 2 -> 4, norm, relu, conv 4 -> 6, relu, mean, linear 6 -> 3; 4x4 pictures."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        return self.fc(F.relu(self.conv2(x)).mean((2, 3)))


@pytest.fixture
def tiny_net():
    torch.manual_seed(0)
    return TinyNet().eval()


@pytest.fixture(scope="session")
def tiny_plan():
    """The plan of TinyNet: 317 parameters, 4,626 MACs."""
    first = Group(
        "conv1",
        4,
        "inner",
        (
            AxisMap("conv1.weight", 0, rows(4), "out"),
            *(
                AxisMap(f"bn1.{name}", 0, rows(4), "norm")
                for name in ("weight", "bias", "running_mean", "running_var")
            ),
            AxisMap("conv2.weight", 1, rows(4), "in"),
        ),
        (Tap("bn1", "output", 1, rows(4)),),
    )
    second = Group(
        "conv2",
        6,
        "inner",
        (
            AxisMap("conv2.weight", 0, rows(6), "out"),
            AxisMap("fc.weight", 1, rows(6), "in"),
        ),
        (Tap("conv2", "output", 1, rows(6)),),
    )
    return GroupPlan(
        model="tiny",
        input_shape=(1, 2, 4, 4),
        head="fc",
        groups=(first, second),
        shapes={
            "conv1.weight": (4, 2, 3, 3),
            "bn1.weight": (4,),
            "bn1.bias": (4,),
            "bn1.running_mean": (4,),
            "bn1.running_var": (4,),
            "bn1.num_batches_tracked": (),
            "conv2.weight": (6, 4, 3, 3),
            "fc.weight": (3, 6),
            "fc.bias": (3,),
        },
        macs_per_weight={"conv1.weight": 16, "conv2.weight": 16, "fc.weight": 1},
        unit_macs={},
        frozen={},
        buffers=frozenset({"bn1.running_mean", "bn1.running_var", "bn1.num_batches_tracked"}),
    )


@pytest.fixture(scope="session")
def chain_plan() -> Callable[..., GroupPlan]:
    """Builds plans of chains: ``chain_plan(sizes, wide=k, pixels=p)``.

    Layer i maps group i - 1 to group i. The second layer's units own ``wide`` channels each (as
    heads do) and have a table that no product uses; the last group is read by a linear layer after
    a flatten of ``pixels``; a concatenation puts groups 0, 1 and again 0 side by side.
    """

    def build(sizes, *, wide=1, pixels=1):
        owned = [wide if i == 1 else 1 for i in range(len(sizes))]
        widths = [units * k for units, k in zip(sizes, owned, strict=True)]
        shapes, macs, buffers = {"stem": (3, 5)}, {"stem": 2}, set()
        axes = [[] for _ in sizes]
        for i, width in enumerate(widths):
            before = widths[i - 1] if i else 3
            shapes[f"l{i}.weight"] = (width, before, 3, 3)
            shapes[f"l{i}.bias"] = (width,)
            shapes[f"l{i}.mean"] = (width,)
            buffers.add(f"l{i}.mean")
            macs[f"l{i}.weight"] = 5 + i
            at = rows(sizes[i], owned[i])
            axes[i].append(AxisMap(f"l{i}.weight", 0, at, "out"))
            axes[i].append(AxisMap(f"l{i}.bias", 0, at, "out"))
            axes[i].append(AxisMap(f"l{i}.mean", 0, at, "norm"))
            if i:
                axes[i - 1].append(
                    AxisMap(f"l{i}.weight", 1, rows(sizes[i - 1], owned[i - 1]), "in")
                )
        shapes["fc.weight"] = (2, widths[-1] * pixels)
        macs["fc.weight"] = 1
        axes[-1].append(AxisMap("fc.weight", 1, rows(sizes[-1], owned[-1] * pixels), "in"))
        if len(sizes) > 1:
            shapes["l1.table"] = (3, sizes[1])
            axes[1].append(AxisMap("l1.table", 1, rows(sizes[1]), "out"))
            shapes["cat.weight"] = (4, 2 * widths[0] + widths[1] + 1)
            macs["cat.weight"] = 3
            for start in (0, widths[0] + widths[1]):
                axes[0].append(AxisMap("cat.weight", 1, rows(sizes[0]) + start, "in"))
            axes[1].append(AxisMap("cat.weight", 1, rows(sizes[1], wide) + widths[0], "in"))
        return GroupPlan(
            model="chain",
            input_shape=(1, 3, 8, 8),
            head="fc",
            groups=tuple(
                Group(f"l{i}", units, "heads" if i == 1 else "inner", tuple(axes[i]), ())
                for i, units in enumerate(sizes)
            ),
            shapes=shapes,
            macs_per_weight=macs,
            unit_macs={"l0": 7},
            frozen={},
            buffers=frozenset(buffers),
        )

    return build
