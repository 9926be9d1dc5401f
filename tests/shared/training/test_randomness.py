"""Random modules draw from the given generator alone, as their own code would draw."""

import copy
import threading

import pytest
import torch
from torch import nn
from torchvision.ops import StochasticDepth

from fedsprig.training import TrainConfig, fit
from fedsprig.training.randomness import drawing_from

SHAPES = [
    (nn.Dropout(0.3), (64, 10, 6, 6)),
    (nn.Dropout1d(0.3), (64, 40, 6)),
    (nn.Dropout2d(0.3), (64, 40, 6, 6)),
    (nn.Dropout3d(0.3), (64, 40, 3, 3, 3)),
    (nn.AlphaDropout(0.3), (64, 10, 6, 6)),
    (nn.FeatureAlphaDropout(0.3), (64, 40, 6, 6)),
    (StochasticDepth(0.3, "row"), (2000, 4, 2)),
]


def drawn(module, values, seed):
    with drawing_from(module, torch.Generator().manual_seed(seed)):
        return module(values)


@pytest.mark.parametrize(("module", "shape"), SHAPES, ids=lambda item: type(item).__name__)
def test_it_drops_as_the_module_itself_does(module, shape):
    """The same two values per input, the same share of them, the same extent of one draw."""
    module.train()
    ones = torch.ones(shape)
    torch.manual_seed(0)
    own = module(ones)
    ours = drawn(module, ones, seed=0)
    torch.testing.assert_close(ours.unique(), own.unique(), rtol=1e-5, atol=1e-5)
    assert len(ours.unique()) == 2
    share = [(out == out.min()).double().mean().item() for out in (ours, own)]
    assert share[0] == pytest.approx(share[1], abs=0.06)
    for axis in range(len(shape)):
        # one draw covers an axis, or does not
        assert (ours == ours.narrow(axis, 0, 1)).all() == (own == own.narrow(axis, 0, 1)).all()


def test_batch_mode_drops_all_or_nothing():
    module = StochasticDepth(0.5, "batch").train()
    seen = {tuple(drawn(module, torch.ones(3, 2), seed).unique().tolist()) for seed in range(20)}
    assert seen == {(0.0,), (2.0,)}


def test_drop_path_of_timm():
    layers = pytest.importorskip("timm.layers")
    module = layers.DropPath(0.5).train()
    out = drawn(module, torch.ones(200, 3), seed=0)
    assert out.unique().tolist() == [0.0, 2.0]
    assert (out == out[:, :1]).all()
    module = layers.DropPath(0.5, scale_by_keep=False).train()
    assert drawn(module, torch.ones(200, 3), seed=0).unique().tolist() == [0.0, 1.0]


@pytest.mark.parametrize("p", [0.0, 1.0])
@pytest.mark.parametrize("kind", [nn.Dropout, nn.Dropout2d, nn.AlphaDropout])
def test_all_and_nothing(kind, p):
    module = kind(p).train()
    values = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn(module, values, seed=0), module(values))


def test_the_seed_alone_decides_and_the_global_generator_is_left_alone():
    module = nn.Sequential(nn.Dropout(0.5), StochasticDepth(0.5, "row")).train()
    values = torch.ones(16, 16)
    before = torch.get_rng_state()
    first = drawn(module, values, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert torch.equal(drawn(module, values, seed=1), first)
    assert not torch.equal(drawn(module, values, seed=2), first)


def test_nothing_is_dropped_in_evaluation_mode():
    values = torch.randn(4, 4, 4, 4)
    for module, _ in SHAPES:
        assert torch.equal(drawn(copy.deepcopy(module).eval(), values, seed=0), values)


def test_the_modules_are_their_own_again_after_an_error_too():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2))
    before = [dict(vars(module)) for module in model.modules()]
    with pytest.raises(RuntimeError), drawing_from(model, torch.Generator()):
        model.train()(torch.ones(2, 3))  # three features instead of two
    assert [dict(vars(module)) for module in model.modules()] == before


def test_equal_fits_in_threads_give_equal_networks():
    """Each thread would take the other's numbers from a generator that both share."""
    source = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        StochasticDepth(0.3, "row"),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(8, 3),
    )
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(24, 3, 8, 8, generator=generator)
    labels = torch.arange(24) % 3
    models = [copy.deepcopy(source) for _ in range(3)]
    together = threading.Barrier(2)

    def train(model, wait=lambda *_: None):
        config = TrainConfig(steps=12, batch_size=8)
        fit(model, images, labels, config, seed=7, progress=wait)

    def in_step(*_):
        together.wait(timeout=60)  # so that the steps of the two surely interleave

    threads = [threading.Thread(target=train, args=(model, in_step)) for model in models[:2]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    train(models[2])
    for name, value in models[2].state_dict().items():
        assert torch.equal(models[0].state_dict()[name], value), name
        assert torch.equal(models[1].state_dict()[name], value), name
