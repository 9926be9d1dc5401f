import copy

import pytest
import torch
from torch import nn

from fedsprig.errors import TrainingError
from fedsprig.training import recalibrate


def net(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.BatchNorm2d(3, momentum=0.3),
        nn.Conv2d(3, 4, 3),
        nn.Dropout(0.5),
        nn.BatchNorm2d(4, momentum=None),
        nn.ReLU(),
    )
    for layer in (model[0], model[3]):
        layer.running_mean.uniform_(-9, 9)
        layer.running_var.uniform_(5, 9)
    return model.eval()


def pictures(n=24):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 6, 6, generator=generator) * 2 + 5


def statistics(model):
    return {k: v.clone() for k, v in model.state_dict().items() if "running" in k}


def test_one_batch_gives_its_own_statistics():
    model, images = net(), pictures()
    recalibrate(model, images, batch_size=24)
    flat = images.transpose(0, 1).flatten(1)
    torch.testing.assert_close(model[0].running_mean, flat.mean(1))
    torch.testing.assert_close(model[0].running_var, flat.var(1))
    # The second layer sees the first as in training: standardised by the batch, no dropout.
    standard = (images - flat.mean(1).view(3, 1, 1)) / (
        flat.var(1, unbiased=False).view(3, 1, 1) + model[0].eps
    ).sqrt()
    second = model[1](standard).detach().transpose(0, 1).flatten(1)
    torch.testing.assert_close(model[3].running_mean, second.mean(1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model[3].running_var, second.var(1), atol=1e-5, rtol=1e-4)


def test_batches_of_one_size_average_to_the_mean_of_all():
    model, images = net(), pictures(24)
    recalibrate(model, images, batch_size=6)
    torch.testing.assert_close(model[0].running_mean, images.mean((0, 2, 3)))


def test_restores_modes_and_momenta_and_forgets_what_was_there():
    model = net()
    model[2].train()
    other = copy.deepcopy(model)
    other[0].running_mean.fill_(1e6)
    modes = [module.training for module in model.modules()]
    weights = {name: p.clone() for name, p in model.named_parameters()}
    for one in (model, other):
        recalibrate(one, pictures(), batch_size=8, passes=2)
        assert [module.training for module in one.modules()] == modes
        assert (one[0].momentum, one[3].momentum) == (0.3, None)
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    for name, value in statistics(model).items():
        assert torch.equal(value, statistics(other)[name])


def test_pictures_sorted_by_class_are_mixed():
    """A batch of one class would miss the variance between classes."""
    images = pictures(64)
    images[:32] -= 100
    model = net()
    recalibrate(model, images, batch_size=16)
    whole = images.transpose(0, 1).flatten(1).var(1)
    assert (model[0].running_var > 0.8 * whole).all()


def test_passes_see_the_pictures_in_other_batches():
    runs = []
    for passes in (1, 2):
        model = net()
        recalibrate(model, pictures(20), batch_size=5, passes=passes)
        runs.append(statistics(model)["3.running_var"])
    assert not torch.equal(*runs)


def test_an_error_puts_everything_back():
    model = net()
    before = statistics(model)
    model.append(nn.Conv2d(7, 1, 1))
    with pytest.raises(RuntimeError):
        recalibrate(model, pictures())
    assert all(torch.equal(value, before[name]) for name, value in statistics(model).items())
    assert not model.training
    assert model[0].momentum == 0.3
    assert int(model[0].num_batches_tracked) == 0


def test_refuses_too_few_pictures_and_bad_settings():
    for count in (0, 1):
        with pytest.raises(TrainingError, match="give two at least"):
            recalibrate(net(), pictures(count))
    for options in ({"batch_size": 1}, {"passes": 0}):
        with pytest.raises(TrainingError, match="choose 2 and 1 or more"):
            recalibrate(net(), pictures(), **options)


def test_never_leaves_a_picture_alone():
    """Five pictures in batches of two or more: 2 + 3; at 1x1 a batch of one would be refused."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))
    recalibrate(model, pictures(5), batch_size=2)
    assert int(model[1].num_batches_tracked) == 2


def test_a_model_without_batch_normalisation_is_not_run():
    recalibrate(nn.Sequential(nn.LayerNorm(1), nn.Linear(1, 1)), pictures(1))
