import pytest
import torch
from torch import nn

from fedsprig.training.modes import batches, device_of, keeping_modes, labelled_batches


def test_modes_come_back_after_an_error_too():
    model = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Dropout()))
    model[1].eval()
    modes = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError), keeping_modes(model):
        model.eval()[0](torch.zeros(1, 2))
    assert [module.training for module in model.modules()] == modes == [True, True, False, False]


def test_a_model_without_tensors_is_on_the_cpu():
    assert device_of(nn.ReLU()) == torch.device("cpu")
    assert device_of(nn.Linear(1, 1, device="meta")) == torch.device("meta")
    assert device_of(nn.BatchNorm1d(1, affine=False, device="meta")) == torch.device("meta")


def test_batches_cover_all_pictures_in_order():
    images, labels = torch.arange(7.0), torch.arange(7)
    assert [batch.tolist() for batch in batches(images, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    pairs = list(labelled_batches(images, labels, 3))
    assert [len(batch) for batch, _ in pairs] == [3, 3, 1]
    assert all(torch.equal(batch.long(), part) for batch, part in pairs)
