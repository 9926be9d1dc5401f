"""Models by name: cards, determinism, heads, weights from files, and what is refused."""

import hashlib
import json
from importlib.resources import files

import numpy as np
import pytest
import torch
from torch import nn

from fedsprig.artifacts import pack, write_bytes
from fedsprig.errors import ArtifactError, UnknownModelError, WeightsError
from fedsprig.models import ModelCard, build, describe, names, replace_head

PARAMETERS = {
    # Known counts: He et al. 2016, table 6 (0.27 M, 0.85 M); the rest by layer.
    ("cifar_resnet20", 10): 269_722,
    ("cifar_resnet56", 10): 853_018,
    ("efficientnet_lite0", 1000): 4_652_008,
    ("torchvision/resnet50", 1000): 25_557_032,
    ("torchvision/swin_t", 1000): 28_288_354,
}


def arrays(model):
    return {name: value.numpy() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", [*names(), "torchvision/mobilenet_v3_small"])
def test_a_model_runs_on_what_its_card_says(name):
    card = describe(name)
    model = build(name, num_classes=7)
    assert card.name == name
    assert not model.training
    assert isinstance(model.get_submodule(card.head), nn.Linear)
    size = 64 if card.input_size == 224 else card.input_size
    with torch.no_grad():
        assert model(torch.zeros(2, 3, size, size)).shape == (2, 7)


@pytest.mark.parametrize(("name", "classes"), PARAMETERS)
def test_parameter_counts_are_the_known_ones(name, classes):
    model = build(name, num_classes=classes, device="meta")
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name, classes]
    assert all(p.is_meta for p in model.parameters())


def test_our_own_names():
    assert names() == (
        "cifar_resnet20",
        "cifar_resnet56",
        "efficientnet_lite0",
        "sprig20",
        "sprig_vit",
    )
    assert describe("sprig20").weights == ("shipped",)
    assert describe("efficientnet_lite0").weights == ("imagenet",)


def test_lite0_takes_pixels_minus_127_over_128():
    card = describe("efficientnet_lite0")
    for pixel in (0, 127, 255):
        assert (pixel / 255 - card.mean[0]) / card.std[0] == pytest.approx((pixel - 127) / 128)


def test_cards_of_other_builders():
    assert describe("torchvision/resnet18") == ModelCard(
        "torchvision/resnet18",
        224,
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
        "fc",
        ("imagenet",),
    )
    assert describe("torchvision/vit_b_16").head == "heads.head"
    assert describe("torchvision/squeezenet1_0").head == "classifier.1"


def test_timm_by_name():
    pytest.importorskip("timm")
    card = describe("timm/vit_tiny_patch16_224")
    assert (card.input_size, card.head, card.mean) == (224, "head", (0.5, 0.5, 0.5))
    model = build("timm/vit_tiny_patch16_224", num_classes=3, image_size=32)
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def test_a_model_without_weights_is_always_the_same_one():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = build("sprig_vit", num_classes=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    second = build("sprig_vit", num_classes=3)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_builders_that_compute_with_tensors_have_shapes_too():
    model = build("torchvision/regnet_x_400mf", num_classes=3, device="meta")
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("sprig2", "sprig20"),
        ("torchvision/resnet5", "torchvision/resnet50"),
        ("timm/vit_tiny_patch16_223", "timm/vit_tiny_patch16_224"),
        ("resnet50", "torchvision/resnet50"),
        ("torchvision/", "torchvision/"),
        ("torchvision/fasterrcnn_resnet50_fpn", "did you mean"),
        ("", "there is cifar_resnet20, "),
    ],
)
def test_an_unknown_model_names_the_nearest(name, near):
    with pytest.raises(UnknownModelError, match=near) as caught:
        build(name, num_classes=3)
    assert "\n" not in str(caught.value)
    with pytest.raises(UnknownModelError):
        describe(name)


def test_the_shipped_base_is_what_its_description_says():
    folder = files("fedsprig.models") / "shipped"
    said = json.loads((folder / "sprig20.json").read_text())
    assert (
        hashlib.sha256((folder / "sprig20.safetensors").read_bytes()).hexdigest()
        == (said["sha256"])
    )
    card = describe("sprig20")
    assert (list(card.mean), list(card.std)) == (said["mean"], said["std"])
    assert card.input_size == said["input_size"]
    whole = build("sprig20", num_classes=60, weights="shipped")
    other = build("sprig20", num_classes=4, weights="shipped")
    assert torch.equal(whole.conv1.weight, other.conv1.weight)
    assert not torch.equal(whole.conv1.weight, build("sprig20", num_classes=4).conv1.weight)
    assert whole.linear.bias.any()  # the trained head, not a fresh one
    assert not other.linear.bias.any()


def test_weights_from_a_file(tmp_path):
    path = tmp_path / "net.safetensors"
    source = build("cifar_resnet20", num_classes=4)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.5)
    write_bytes(path, pack(arrays(source)))
    loaded = build("cifar_resnet20", num_classes=4, weights=path)
    for name, value in source.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


def test_weights_with_another_head_get_a_fresh_one(tmp_path):
    path = tmp_path / "net.safetensors"
    source = build("cifar_resnet20", num_classes=4)
    write_bytes(path, pack(arrays(source)))
    first = build("cifar_resnet20", num_classes=6, weights=str(path))
    second = build("cifar_resnet20", num_classes=6, weights=str(path))
    assert first.linear.weight.shape == (6, 64)
    assert first.linear.out_features == 6
    assert torch.equal(first.linear.weight, second.linear.weight)
    assert torch.equal(first.conv1.weight, source.conv1.weight)


def test_counters_may_be_absent_but_nothing_else(tmp_path):
    state = arrays(build("cifar_resnet20", num_classes=4))
    path = tmp_path / "net.safetensors"
    few = {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")}
    write_bytes(path, pack(few))
    build("cifar_resnet20", num_classes=4, weights=path)
    cases = {
        "lack bn1.bias": {n: v for n, v in few.items() if n != "bn1.bias"},
        "have unknown extra": few | {"extra": np.zeros(1, np.float32)},
        "another shape of bn1.bias": few | {"bn1.bias": np.zeros(3, np.float32)},
        "have no head": {n: v for n, v in few.items() if n != "linear.weight"},
    }
    for message, bad in cases.items():
        write_bytes(path, pack(bad))
        with pytest.raises(WeightsError, match=message):
            build("cifar_resnet20", num_classes=4, weights=path)


def test_weights_that_are_not_there(tmp_path):
    with pytest.raises(WeightsError, match=r"choose shipped, a path"):
        build("sprig20", num_classes=3, weights="imagenet")
    with pytest.raises(WeightsError, match="choose a path"):
        build("cifar_resnet20", num_classes=3, weights=tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match="no file"):
        build("cifar_resnet20", num_classes=3, weights=tmp_path / "weights.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"\x80\x04no pickle is read")
    with pytest.raises(ArtifactError):
        build("cifar_resnet20", num_classes=3, weights=tmp_path / "bad.safetensors")
    with pytest.raises(WeightsError, match="at least 1 class"):
        build("cifar_resnet20", num_classes=0)


def test_a_replaced_head_depends_on_its_seed_alone():
    model = build("sprig20", num_classes=3)
    kept = model.conv1.weight.clone()
    torch.manual_seed(5)
    first = replace_head(model, "sprig20", 4, seed=1).linear.weight.clone()
    assert replace_head(model, describe("sprig20"), 4, seed=1) is model
    assert torch.equal(model.linear.weight, first)
    assert not torch.equal(replace_head(model, "sprig20", 4, seed=2).linear.weight, first)
    assert float(first.detach().abs().max()) <= 128**-0.5
    assert not model.linear.bias.any()
    assert torch.equal(model.conv1.weight, kept)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 4)


def test_a_convolutional_head_is_replaced_too():
    model = build("torchvision/squeezenet1_0", num_classes=5)
    replace_head(model, "torchvision/squeezenet1_0", 3)
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_a_head_that_is_not_there():
    with pytest.raises(WeightsError, match="linear"):
        replace_head(nn.Identity(), "sprig20", 3)
    with pytest.raises(WeightsError, match="at least 1"):
        replace_head(build("sprig20", num_classes=3), "sprig20", 0)
