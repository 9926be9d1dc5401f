"""Cut modules: loading, attributes, adapters, other processes."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from fedsprig.adapters import attach, merge
from fedsprig.artifacts import state_digest
from fedsprig.errors import WeightsError
from fedsprig.graph import apply_mask, kept_index, load_small, materialize, trace_groups
from fedsprig.models import build

REPLAY = """
import json, sys
from pathlib import Path
from fedsprig.artifacts import state_digest
from fedsprig.graph import GroupPlan, materialize
from fedsprig.masks import Mask
from fedsprig.models import build
folder = Path(sys.argv[1])
plan = GroupPlan.from_bytes((folder / "plan").read_bytes())
mask = Mask.from_bytes((folder / "mask").read_bytes(), plan)
small = materialize(build(plan.model, num_classes=5), plan, mask)
print(json.dumps({
    "plan": plan.digest,
    "state": state_digest(small.state_dict()),
    "tracer": "torch_pruning" in sys.modules,
}))
"""


def test_a_plan_replayed_in_another_process_cuts_the_same_network(padded, make_mask, tmp_path):
    mask = make_mask(padded.plan, 6)
    (tmp_path / "plan").write_bytes(padded.plan.to_bytes())
    (tmp_path / "mask").write_bytes(mask.to_bytes())
    done = subprocess.run(
        [sys.executable, "-c", REPLAY, tmp_path], capture_output=True, text=True, check=True
    )
    here = materialize(build("cifar_resnet20", num_classes=5), padded.plan, mask)
    assert json.loads(done.stdout) == {
        "plan": padded.plan.digest,
        "state": state_digest(here.state_dict()),
        "tracer": False,
    }


def test_a_plan_traced_twice_is_the_same(padded):
    again = trace_groups(
        build("cifar_resnet20", num_classes=5), torch.ones(1, 3, 32, 32), name="cifar_resnet20"
    )
    assert again.digest == padded.plan.digest


def test_attributes_follow_the_tensors(padded, make_mask):
    mask = make_mask(padded.plan, 6)
    small = materialize(padded.model, padded.plan, mask)
    for name, module in small.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels), name
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean.shape == (module.num_features,), name
    kept = kept_index(padded.plan, mask)["layer2.0.bn2.weight"][0]
    shortcut = small.layer2[0].shortcut
    assert (shortcut.before, shortcut.after) == ((kept < 8).sum(), (kept >= 24).sum())


def test_heads_are_cut_from_timms_attention_too(make_mask):
    timm = pytest.importorskip("timm")
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=4, num_classes=3
    ).eval()
    plan = trace_groups(model, torch.zeros(1, 3, 16, 16))
    assert [g.kind for g in plan.groups] == ["inner", "inner", "heads", "heads"]
    mask = make_mask(plan, 3)
    small = materialize(model, plan, mask)
    assert small.blocks[0].attn.num_heads == mask.groups["blocks.0.attn"].sum()
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = apply_mask(model, plan, mask)(x)
        assert float((small(x) - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("name", ["padded", "sprig_vit"])
def test_masked_equals_cut_equals_merged_with_adapters(name, request, make_mask):
    found = request.getfixturevalue(name)
    adapted = attach(materialize(found.model, found.plan, _full(found.plan)), rank=2, seed=5)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for key, parameter in adapted.named_parameters():
            if key.endswith("adapter_b"):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        mask = make_mask(found.plan, 7)
        expected = apply_mask(adapted, found.plan, mask)(found.pictures)
        small = materialize(adapted, found.plan, mask)
        plain = materialize(found.model, found.plan, mask)(found.pictures)
        tolerance = 1e-5 * float(expected.abs().max())
        assert float((small(found.pictures) - expected).abs().max()) <= tolerance
        assert float((merge(small)(found.pictures) - expected).abs().max()) <= tolerance
        assert float((plain - expected).abs().max()) > 100 * tolerance  # the adapter is heard


def _full(plan):
    from fedsprig.masks import Mask

    return Mask.full(plan)


@pytest.fixture
def shell(padded, make_mask):
    """(cut network on the meta device, its state as half-precision arrays)."""
    mask = make_mask(padded.plan, 9)
    small = materialize(padded.model, padded.plan, mask)
    state = {
        name: value.numpy().astype(np.float16) if value.is_floating_point() else value.numpy()
        for name, value in small.state_dict().items()
    }
    meta = build("cifar_resnet20", num_classes=5, device="meta")
    return materialize(meta, padded.plan, mask), state


def test_loading_keeps_the_modules_dtypes_and_fills_counters(shell):
    module, state = shell
    few = {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")}
    loaded = load_small(module, few)
    assert loaded is module
    assert all(p.dtype == torch.float32 and p.requires_grad for p in loaded.parameters())
    assert not any(t.is_meta for t in loaded.state_dict().values())
    assert torch.isfinite(loaded(torch.zeros(1, 3, 32, 32))).all()


def test_a_state_that_does_not_fit_changes_nothing(shell):
    module, state = shell
    cases = {
        "lack conv1.weight": {n: v for n, v in state.items() if n != "conv1.weight"},
        "has no extra": state | {"extra": np.zeros(2)},
        "the mask leaves": state | {"conv1.weight": np.zeros((16, 3, 3, 3))},
    }
    for message, bad in cases.items():
        with pytest.raises(WeightsError, match=message):
            load_small(module, bad)
        assert all(p.is_meta for p in module.parameters())
