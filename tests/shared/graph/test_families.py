"""On every supported family, at random masks, masked equals cut, and the plan tells the truth."""

import copy

import numpy as np
import pytest
import torch

from fedsprig.graph import GroupPlan, apply_mask, kept_index, load_small, materialize, restrict
from fedsprig.masks import Mask
from fedsprig.models import build

FAMILIES = [
    # name, picture size, prunable groups, fixed size
    ("cifar_resnet20", 32, 12, False),
    ("sprig20", 32, 12, False),
    ("efficientnet_lite0", 64, 24, False),
    ("sprig_vit", 32, 12, False),
    ("torchvision/resnet18", 64, 12, False),
    ("torchvision/resnet50", 64, 37, False),
    ("torchvision/mobilenet_v2", 64, 25, False),
    ("torchvision/mobilenet_v3_small", 64, 27, False),
    ("torchvision/efficientnet_b0", 64, 40, False),
    ("torchvision/densenet121", 64, 120, False),
    ("torchvision/convnext_tiny", 64, 18, False),
    ("torchvision/vit_b_16", 32, 24, True),
    ("torchvision/swin_t", 64, 24, False),
]
TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=FAMILIES, ids=[name for name, *_ in FAMILIES])
def family(request, make_traced):
    name, size, groups, fixed = request.param
    return make_traced(name, size, fixed_size=fixed), groups, size if fixed else None


@pytest.fixture(scope="module")
def cut(family, make_mask):
    """(mask, masked network, cut network) of one uneven mask."""
    found, _, _ = family
    mask = make_mask(found.plan, seed=1)
    return (
        mask,
        apply_mask(found.model, found.plan, mask),
        materialize(found.model, found.plan, mask),
    )


def test_nothing_is_frozen_but_classes_and_normalised_streams(family):
    found, groups, _ = family
    assert len(found.plan.groups) == groups
    assert set(found.plan.frozen.values()) <= {
        "outputs of the model (classes)",
        "stream through layer normalisation",
    }


def test_masked_equals_cut_in_outputs_and_at_every_tap(family, cut):
    found, _, _ = family
    mask, masked, small = cut
    with torch.no_grad():
        seen_masked, expected = observe(masked, found.plan, found.pictures)
        seen_small, outputs = observe(small, found.plan, found.pictures)
    assert_close(outputs, expected)
    kept_at = {}
    for group in found.plan.groups:
        for tap in group.taps:
            shape = seen_masked[tap.module, tap.where].shape
            flags = kept_at.setdefault(
                (tap.module, tap.where), (tap.axis, np.ones(shape[tap.axis], bool))
            )
            flags[1][tap.positions[~mask.groups[group.name]]] = False
    for place, (axis, flags) in kept_at.items():
        whole = seen_masked[place].movedim(axis, 0)
        assert not whole[torch.from_numpy(~flags)].any(), place
        assert_close(seen_small[place].movedim(axis, 0), whole[torch.from_numpy(flags)])


def test_masked_equals_cut_at_the_smallest_and_a_thin_mask(family):
    found, _, _ = family
    rng = np.random.default_rng(2)
    for mask in (Mask.random(found.plan, 0.0, rng), Mask.random(found.plan, 0.25, rng)):
        with torch.no_grad():
            expected = apply_mask(found.model, found.plan, mask)(found.pictures)
            assert_close(materialize(found.model, found.plan, mask)(found.pictures), expected)


def test_the_cut_network_holds_what_the_index_says_and_no_more(family, cut):
    found, _, _ = family
    mask, _, small = cut
    plan = found.plan
    index = kept_index(plan, mask)
    expected = 0
    for name, parameter in found.model.named_parameters():
        sizes = [
            len(index[name][axis]) if axis in index.get(name, {}) else size
            for axis, size in enumerate(parameter.shape)
        ]
        expected += int(np.prod(sizes))
    assert sum(p.numel() for p in small.parameters()) == expected
    assert expected < sum(p.numel() for p in found.model.parameters())
    held = small.state_dict()
    for name, value in restrict(found.model.state_dict(), index).items():
        assert torch.equal(held[name], value), name


def test_cut_on_the_meta_device_and_loaded_equals_cut_directly(family, cut):
    found, _, image_size = family
    mask, _, small = cut
    shapes = build(found.plan.model, num_classes=5, device="meta", image_size=image_size)
    loaded = load_small(materialize(shapes, found.plan, mask), small.state_dict())
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(found.pictures), small(found.pictures))
    assert sizes_spoken_of(loaded) == sizes_spoken_of(small)


def test_the_plan_survives_its_bytes(family, cut):
    found, _, _ = family
    mask, _, small = cut
    data = found.plan.to_bytes()
    again = GroupPlan.from_bytes(data)
    assert again.to_bytes() == data
    assert again.digest == found.plan.digest
    replayed = materialize(found.model, again, mask)
    for (name, ours), (_, theirs) in zip(
        small.state_dict().items(), replayed.state_dict().items(), strict=True
    ):
        assert torch.equal(ours, theirs), name


def test_cutting_leaves_the_base_as_it_was(family, cut):
    found, _, _ = family
    shapes = {name: tuple(value.shape) for name, value in found.model.state_dict().items()}
    assert shapes == dict(found.plan.shapes)
    fresh = copy.deepcopy(found.model)
    assert sizes_spoken_of(fresh) == sizes_spoken_of(found.model)


def observe(model, plan, pictures):
    """Activations at every tap, and the outputs; fails if a tap is seen other than once."""
    seen = {}
    handles = []

    def keep(place, tensor):
        assert place not in seen, place
        seen[place] = tensor.clone()

    for module, where in {(tap.module, tap.where) for g in plan.groups for tap in g.taps}:
        watched = model.get_submodule(module)
        place = (module, where)
        if where == "input":
            hook = watched.register_forward_pre_hook(
                lambda _, args, place=place: keep(place, args[0])
            )
        else:
            hook = watched.register_forward_hook(lambda _, __, out, place=place: keep(place, out))
        handles.append(hook)
    outputs = model(pictures)
    for handle in handles:
        handle.remove()
    assert all(g.taps for g in plan.groups)
    assert seen.keys() == {(tap.module, tap.where) for g in plan.groups for tap in g.taps}
    return seen, outputs


def assert_close(found, expected):
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())


def sizes_spoken_of(model):
    """What modules say of their sizes, beside their tensors."""
    words = ("in_channels", "out_channels", "groups", "in_features", "out_features")
    words += ("num_features", "num_heads", "before", "after")
    return {
        (path, word): getattr(module, word)
        for path, module in model.named_modules()
        for word in words
        if hasattr(module, word)
    }
