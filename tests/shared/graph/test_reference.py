"""Pruned units stay exactly zero through training, and the rest trains as the cut network does."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedsprig.adapters import attach
from fedsprig.errors import PlanError
from fedsprig.graph import apply_mask, kept_axes, kept_index, materialize, restrict
from fedsprig.graph.reference import effective_state


def train(model, steps=4, seed=0):
    """A few steps of SGD with momentum and weight decay, on pictures drawn from a seed."""
    generator = torch.Generator().manual_seed(seed)
    like = next(model.parameters())
    optimiser = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], 0.05, momentum=0.9, weight_decay=0.01
    )
    model.train()
    for _ in range(steps):
        x = torch.randn(4, 3, 32, 32, generator=generator).to(like.dtype)
        y = torch.randint(0, 5, (4,), generator=generator)
        loss = F.cross_entropy(model(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


@pytest.fixture(params=["padded", "sprig_vit"])
def found(request):
    return request.getfixturevalue(request.param)


def pruned(name, value, index):
    """The entries of a tensor that a mask drops."""
    dropped = torch.zeros(value.shape, dtype=torch.bool)
    for axis, kept in kept_axes(name, index).items():
        line = torch.ones(value.shape[axis], dtype=torch.bool)
        line[torch.from_numpy(kept)] = False
        shape = [1] * value.ndim
        shape[axis] = -1
        dropped |= line.view(shape)
    return value[dropped]


@pytest.mark.parametrize("adapted", [False, True], ids=["weights", "adapters"])
def test_masked_and_cut_train_alike_and_pruned_stays_zero(found, make_mask, adapted):
    base = copy.deepcopy(found.model).double()
    if adapted:
        attach(base, rank=3, seed=1)
    mask = make_mask(found.plan, 4)
    index = kept_index(found.plan, mask)
    masked = train(apply_mask(base, found.plan, mask))
    small = train(materialize(base, found.plan, mask))
    state = effective_state(masked)
    assert state.keys() == small.state_dict().keys()
    moved = 0
    for name, value in restrict(state, index).items():
        twin = small.state_dict()[name]
        torch.testing.assert_close(twin, value, rtol=0, atol=1e-9 * float(value.abs().max() + 1))
        moved += not torch.equal(value, restrict({name: base.state_dict()[name]}, index)[name])
    assert moved > 10
    parameters = {name for name, _ in small.named_parameters()}
    zeros = [pruned(name, value, index) for name, value in state.items() if name in parameters]
    assert sum(part.numel() for part in zeros) > 1000
    assert not any(part.any() for part in zeros)


def test_what_an_optimiser_holds_is_zero_too(padded, make_mask):
    """Weight decay alone would otherwise carry hidden values about, and state would show them."""
    mask = make_mask(padded.plan, 4)
    index = kept_index(padded.plan, mask)
    masked = train(apply_mask(padded.model, padded.plan, mask))
    raw = dict(masked.named_parameters())
    originals = {n: p for n, p in raw.items() if n.endswith(".parametrizations.weight.original")}
    assert len(originals) > 20
    for name, value in originals.items():
        plain = name.replace("parametrizations.weight.original", "weight")
        assert not pruned(plain, value.detach(), index).any(), name


def test_masking_leaves_the_model_as_it_was(padded, make_mask):
    before = {name: value.clone() for name, value in padded.model.state_dict().items()}
    train(apply_mask(padded.model, padded.plan, make_mask(padded.plan, 4)), steps=1)
    for name, value in padded.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_full_mask_changes_nothing(sprig20):
    from fedsprig.masks import Mask

    full = Mask.full(sprig20.plan)
    masked = apply_mask(sprig20.model, sprig20.plan, full)
    assert masked.state_dict().keys() == sprig20.model.state_dict().keys()
    assert torch.equal(masked(sprig20.pictures), sprig20.model(sprig20.pictures))


def test_frozen_parameters_stay_frozen(padded, make_mask):
    base = copy.deepcopy(padded.model)
    base.layer1[0].conv1.weight.requires_grad_(False)
    masked = apply_mask(base, padded.plan, make_mask(padded.plan, 4))
    names = [n for n, p in masked.named_parameters() if not p.requires_grad]
    assert names == ["layer1.0.conv1.parametrizations.weight.original"]


def test_what_is_dropped_really_changes_the_network(sprig20, make_mask):
    with torch.no_grad():
        whole = sprig20.model(sprig20.pictures)
        masked = apply_mask(sprig20.model, sprig20.plan, make_mask(sprig20.plan, 4))
        assert float((masked(sprig20.pictures) - whole).abs().max()) > 1e-2


@pytest.mark.parametrize("use", [apply_mask, materialize])
def test_another_model_is_refused(use, sprig20, padded, make_mask):
    mask = make_mask(padded.plan, 4)
    with pytest.raises(PlanError, match=r"conv1\.weight"):
        use(sprig20.model, padded.plan, mask)
    with pytest.raises(PlanError, match="absent"):
        use(nn.Linear(3, 2), padded.plan, mask)


def test_a_head_of_another_width_is_welcome(padded, make_mask):
    from fedsprig.models import replace_head

    mask = make_mask(padded.plan, 4)
    wider = replace_head(copy.deepcopy(padded.model), "cifar_resnet20", 9)
    with torch.no_grad():
        expected = apply_mask(wider, padded.plan, mask)(padded.pictures)
        found = materialize(wider, padded.plan, mask)(padded.pictures)
    assert expected.shape == (2, 9)
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_the_masked_state_is_the_cut_one_and_zeros(padded, make_mask):
    mask = make_mask(padded.plan, 5)
    index = kept_index(padded.plan, mask)
    small = {
        n: p.detach().numpy()
        for n, p in materialize(padded.model, padded.plan, mask).named_parameters()
    }
    masked = effective_state(apply_mask(padded.model, padded.plan, mask))
    for name, value in small.items():
        whole = masked[name].numpy()
        assert np.array_equal(restrict({name: whole}, index)[name], value), name
        for axis, kept in kept_axes(name, index).items():
            assert not np.delete(whole, kept, axis).any(), name
