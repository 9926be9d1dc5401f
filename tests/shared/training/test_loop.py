import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedsprig.errors import DataError, LabelRangeError, NonFiniteLossError, TrainingError
from fedsprig.models.cifar_resnet import CifarResNet
from fedsprig.training import TrainConfig, fit, read, to_tensor
from fedsprig.training.draw import Drawer, endless_batches


def small_net(seed=0, classes=3):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(6, classes),
    )


def problem(n=30, classes=3, seed=0):
    """Pictures whose colour tells their class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    images = (
        torch.randn(n, 3, 8, 8, generator=generator) + 2 * F.one_hot(labels, 3)[:, :, None, None]
    )
    return images, labels


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("augment", ["none", "flip+shift"])
@pytest.mark.parametrize("bf16", [False, True])
def test_same_seed_same_bits(augment, bf16):
    images, labels = problem()
    config = TrainConfig(steps=6, batch_size=8, augment=augment, bf16=bf16)
    results = []
    for seed, noise in ((1, 0), (1, 99), (2, 0)):
        model = small_net()
        torch.manual_seed(noise)  # what ran before must not matter
        report = fit(model, images, labels, config, seed=seed)
        results.append((state(model), report.losses))
    assert equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
    assert not equal(results[0][0], results[2][0])
    assert all(map(math.isfinite, results[0][1]))


def test_same_seed_same_bits_on_real_pictures_in_the_shipped_architecture():
    image_set = read("embedded", "fashion").only(["Trouser", "Bag"]).subset(range(0, 1000, 40))
    torch.manual_seed(0)
    source = CifarResNet(8, num_classes=2, width=8, shortcut="conv")
    images = to_tensor(image_set.images, CIFAR)
    labels = torch.from_numpy(image_set.labels)
    config = TrainConfig(epochs=2, batch_size=8, augment="flip")
    runs = []
    for _ in range(2):
        model = copy.deepcopy(source)
        runs.append((fit(model, images, labels, config, seed=0), state(model)))
    assert runs[0][0].losses == runs[1][0].losses
    assert equal(runs[0][1], runs[1][1])
    assert runs[0][0].pictures == 50


class CIFAR:
    input_size, mean, std = 32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def test_equals_gradient_descent_written_out():
    """Momentum, decay of matrices alone, half a cosine, and the head's factor."""
    images, labels = problem(20)
    config = TrainConfig(
        steps=5,
        batch_size=8,
        learning_rate=0.1,
        momentum=0.8,
        weight_decay=0.01,
        label_smoothing=0.1,
        head_learning_rate_scale=3,
    )
    model = small_net()
    model[5] = nn.Identity()
    reference = copy.deepcopy(model).train()
    fit(model, images, labels, config, seed=4, head="6")

    generator = torch.Generator().manual_seed(4)
    order = endless_batches(20, 8, generator)
    velocity = {name: torch.zeros_like(p) for name, p in reference.named_parameters()}
    for step in range(5):
        index = next(order)
        loss = F.cross_entropy(reference(images[index]), labels[index], label_smoothing=0.1)
        named = dict(reference.named_parameters())
        gradients = torch.autograd.grad(loss, list(named.values()))
        rate = 0.1 * 0.5 * (1 + math.cos(math.pi * step / 5))
        with torch.no_grad():
            for (name, weight), gradient in zip(named.items(), gradients, strict=True):
                if weight.ndim > 1:
                    gradient = gradient + 0.01 * weight
                velocity[name] = 0.8 * velocity[name] + gradient
                weight -= rate * (3 if name.startswith("6.") else 1) * velocity[name]
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, atol=1e-6, rtol=1e-5)


def test_learns_and_reports():
    images, labels = problem(60)
    model, told = small_net(), []
    report = fit(
        model,
        images,
        labels,
        TrainConfig(epochs=10, batch_size=16),
        seed=0,
        progress=lambda *step: told.append(step),
    )
    assert report.steps == len(report.losses) == 40
    assert report.pictures == 600
    assert report.seconds > 0
    assert sum(report.losses[-4:]) < 0.5 * sum(report.losses[:4])
    assert told == [(i + 1, 40, loss) for i, loss in enumerate(report.losses)]


def test_trains_only_what_requires_a_gradient_and_leaves_none_behind():
    images, labels = problem()
    model = small_net()
    model[0].weight.requires_grad_(False)
    before = state(model)
    fit(model, images, labels, TrainConfig(steps=3, batch_size=8), seed=0)
    after = state(model)
    assert torch.equal(before["0.weight"], after["0.weight"])
    for name in ("1.weight", "1.bias", "1.running_mean", "6.weight", "6.bias"):
        assert not torch.equal(before[name], after[name])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_leaves_modes_inputs_and_the_global_generator_as_they_were():
    images, labels = problem()
    model = small_net().eval()
    model[5].train()
    modes = [module.training for module in model.modules()]
    pictures = images.clone()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(model, images, labels, TrainConfig(steps=2, augment="flip+shift"), seed=0)
    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(images, pictures)


@pytest.mark.parametrize(("pictures", "sizes"), [(2, [2]), (5, [5]), (9, [9]), (17, [8, 9])])
def test_uses_all_pictures_however_few(pictures, sizes):
    images, labels = problem(pictures)
    seen = []
    model = small_net()
    model[0].register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    report = fit(model, images, labels, TrainConfig(epochs=2, batch_size=8), seed=0)
    assert seen == sizes * 2
    assert report.pictures == 2 * pictures


def test_memory_format_does_not_matter():
    images, labels = problem()
    config = TrainConfig(steps=3, batch_size=8, augment="shift")
    states = []
    for memory in (torch.contiguous_format, torch.channels_last):
        model = small_net()
        fit(model, images.contiguous(memory_format=memory), labels, config, seed=0)
        states.append(state(model))
    assert equal(*states)


def test_no_steps_change_nothing():
    images, labels = problem()
    model = small_net()
    before = state(model)
    report = fit(model, images, labels, TrainConfig(steps=0), seed=0)
    assert (report.losses, report.steps, report.pictures) == ((), 0, 0)
    assert equal(state(model), before)


@pytest.mark.parametrize("count", [0, 1])
def test_refuses_fewer_than_two_pictures(count):
    images, labels = problem(3)
    with pytest.raises(TrainingError, match="give two at least"):
        fit(small_net(), images[:count], labels[:count], TrainConfig(steps=1), seed=0)


def test_refuses_pictures_and_labels_that_do_not_fit():
    images, labels = problem(4)
    for wrong_images, wrong_labels in (
        (images[:, 0], labels),
        (images.to(torch.uint8), labels),
        (images, labels[:3]),
        (images, labels.int()),
        (images, F.one_hot(labels)),
    ):
        with pytest.raises(DataError, match="pass"):
            fit(small_net(), wrong_images, wrong_labels, TrainConfig(steps=1), seed=0)


@pytest.mark.parametrize("label", [-1, 3])
def test_refuses_labels_beyond_the_head_before_it_changes_a_weight(label):
    images, labels = problem(40)
    labels[39] = label
    model = small_net().eval()
    weight = model[6].weight.clone()
    with pytest.raises(LabelRangeError, match="the model has 3 classes"):
        fit(model, images, labels, TrainConfig(steps=1, batch_size=4), seed=0)
    assert torch.equal(model[6].weight, weight)
    assert not any(module.training for module in model.modules())


def test_refuses_a_model_with_nothing_to_train_and_an_unknown_head():
    images, labels = problem()
    with pytest.raises(TrainingError, match="requires a gradient"):
        fit(small_net().requires_grad_(False), images, labels, TrainConfig(steps=1), seed=0)
    with pytest.raises(TrainingError, match="no module 'fc'"):
        fit(small_net(), images, labels, TrainConfig(steps=1), seed=0, head="fc")
    scaled = TrainConfig(steps=1, head_learning_rate_scale=2)
    with pytest.raises(TrainingError, match="pass its module path"):
        fit(small_net(), images, labels, scaled, seed=0)


def test_a_diverging_fit_says_what_to_lower():
    images, labels = problem()
    model = small_net()
    config = TrainConfig(steps=200, batch_size=8, learning_rate=1e30, schedule="constant")
    with pytest.raises(NonFiniteLossError, match=r"after \d+ of 200 steps: lower learning_rate"):
        fit(model, images, labels, config, seed=0)


def test_a_last_step_that_spoils_the_weights_is_caught_too():
    images, labels = problem()
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    config = TrainConfig(steps=1, learning_rate=3e38, weight_decay=1e10)
    with pytest.raises(NonFiniteLossError, match="not finite after 1 of 1 steps"):
        fit(model, images, labels, config, seed=0)


def test_non_finite_pictures_are_not_blamed_on_the_learning_rate():
    images, labels = problem()
    images[:] = math.nan
    with pytest.raises(NonFiniteLossError, match="before the first step: look for NaN"):
        fit(small_net(), images, labels, TrainConfig(steps=5), seed=0)


def test_drawn_batches_are_those_that_are_trained_on():
    """The order of the pictures is that of `endless_batches` with the fit's seed."""
    images, labels = problem(12)
    seen = []
    model = small_net()
    model[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    fit(model, images, labels, TrainConfig(steps=4, batch_size=5, augment="flip"), seed=7)
    generator = torch.Generator().manual_seed(7)
    drawer = Drawer(images, "flip")
    order = itertools.islice(endless_batches(12, 5, generator), 4)
    for batch, index in zip(seen, order, strict=True):
        assert torch.equal(batch, drawer.draw(index, generator))


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_a_training_in_parts_is_the_whole_one(optimiser):
    """A step sees all pictures, so that only what the optimiser remembers can make a difference."""
    images, labels = problem(12)
    config = TrainConfig(
        steps=6, batch_size=12, learning_rate=0.02, schedule="constant", optimiser=optimiser
    )
    part = replace(config, steps=2)
    networks = {}
    for way in ("whole", "parts", "forgetful"):
        model = small_net()
        model[5] = nn.Identity()
        momenta = {}
        if way == "whole":
            fit(model, images, labels, config, seed=1)
        for _ in range(0 if way == "whole" else 3):
            fit(model, images, labels, part, seed=1, momenta=momenta if way == "parts" else None)
        networks[way] = model.state_dict()
    for name, tensor in networks["whole"].items():
        torch.testing.assert_close(networks["parts"][name], tensor, atol=2e-6, rtol=1e-4)
    assert not torch.allclose(networks["forgetful"]["0.weight"], networks["whole"]["0.weight"])


def test_momenta_of_another_training_are_refused():
    images, labels = problem(12)
    momenta = {"momentum_buffer:7.weight": torch.zeros(3)}
    with pytest.raises(TrainingError, match=r"no 7\.weight to train"):
        fit(small_net(), images, labels, TrainConfig(steps=1), seed=1, momenta=momenta)
