"""On real families: masked, small and merged are one network; cutting and attaching commute."""

import numpy as np
import pytest
import torch

from fedsprig.adapters import attach, attach_report, merge
from fedsprig.graph import apply_mask, kept_index, materialize, trace_groups
from fedsprig.masks import Mask
from fedsprig.models import build, describe

FAST = [
    "sprig20",
    "cifar_resnet20",
    "sprig_vit",
    "efficientnet_lite0",
    "torchvision/mobilenet_v3_small",
]
SLOW = [
    "torchvision/resnet18",
    "torchvision/swin_t",
    "cifar_resnet56",
    "torchvision/resnet50",
    "torchvision/mobilenet_v2",
    "torchvision/efficientnet_b0",
    "torchvision/densenet121",
    "torchvision/convnext_tiny",
    "torchvision/vit_b_16",
    "timm/vit_tiny_patch16_224",
]
CASES = [
    *((name, "splora") for name in FAST),
    ("cifar_resnet20", "sppara"),
    ("sprig_vit", "sppara"),
    *(pytest.param(name, "splora", marks=pytest.mark.slow) for name in SLOW),
    pytest.param("torchvision/swin_t", "sppara", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_masked_small_and_merged_agree(name, kind):
    card = describe(name)
    size = card.input_size if "vit" in name else min(card.input_size, 64)
    model = build(name, num_classes=5)
    pictures = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    plan = trace_groups(model, pictures[:1], name=name)
    mask = Mask.random(plan, 0.6, np.random.default_rng(1))
    cut_first = materialize(model, plan, mask)
    options = {"kind": kind, "rank": 2, "seed": 3, "head": plan.head, "shapes": plan.shapes}
    attach(cut_first, kept=kept_index(plan, mask), **options)
    attach(model, **options)
    attached_first = materialize(model, plan, mask).state_dict()
    assert attached_first.keys() == cut_first.state_dict().keys()
    assert all(torch.equal(t, attached_first[n]) for n, t in cut_first.state_dict().items())

    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        head = model.get_submodule(plan.head)
        head.weight.normal_(generator=generator)  # some families begin with a head of zeros
        head.bias.zero_()
        base = model(pictures)
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith(("adapter_b", "adapter_d")):
                parameter.normal_(std=0.05, generator=generator)
        masked, small = apply_mask(model, plan, mask), materialize(model, plan, mask)
        expected = masked(pictures)
        scale = float(expected.abs().max())
        assert (model(pictures) - base).abs().max() > 1e-4 * scale  # the adapter does something
        for other in (small, merge(small), materialize(merge(model), plan, mask)):
            torch.testing.assert_close(other(pictures), expected, rtol=0, atol=1e-4 * scale)
    adapters = [n for n, _ in small.named_parameters() if n.endswith(("adapter_b", "adapter_d"))]
    frozen = [
        n for n in attach_report(small) if n.endswith(".weight") and small.get_parameter(n).ndim > 1
    ]
    assert len(adapters) > 5
    assert not frozen, "a convolution or linear layer has no adapter"
