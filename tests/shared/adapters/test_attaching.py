"""What trains after attaching, what is frozen, what is refused, and that models share nothing."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from fedsprig.adapters import (
    ADAPTERS,
    adapter_state,
    attach,
    attach_report,
    load_adapter_state,
    merge,
)
from fedsprig.adapters.splora import SPLoRAConv2d, SPLoRALinear
from fedsprig.errors import AdapterError, UnknownNameError
from fedsprig.graph import apply_mask

ADAPTED = {"conv1", "depthwise", "conv2", "fc"}
OTHERS = {
    "bn1.weight",
    "bn1.bias",
    "depthwise.bias",
    "conv2.bias",
    "bn2.weight",
    "bn2.bias",
    "fc.bias",
    "head.weight",
    "head.bias",
}


def trains(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("train_a", [False, True])
def test_what_trains(net, train_a):
    net.requires_grad_(False)  # as a frozen base may come
    assert attach(net, rank=2, train_a=train_a, head="head") is net
    expected = OTHERS | {f"{name}.adapter_b" for name in ADAPTED}
    if train_a:
        expected |= {f"{name}.adapter_a" for name in ADAPTED}
    assert trains(net) == expected
    assert attach_report(net) == ()
    assert type(net.head) is nn.Linear


def test_base_names_stay(net):
    before = set(net.state_dict())
    attach(net, head="head")
    added = {f"{name}.adapter_{x}" for name in ADAPTED for x in "ab"}
    assert set(net.state_dict()) == before | added


def test_the_last_linear_layer_is_the_head_unless_told(net):
    assert type(attach(copy.deepcopy(net)).head) is nn.Linear
    assert type(attach(copy.deepcopy(net), head="").head) is SPLoRALinear
    other = attach(copy.deepcopy(net), head="fc")
    assert (type(other.fc), type(other.head)) == (nn.Linear, SPLoRALinear)
    whole = attach(copy.deepcopy(nn.Sequential(nn.Conv2d(1, 1, 1), net)), head="1")
    assert type(whole[0]) is SPLoRAConv2d
    assert trains(whole[1]) == {name for name, _ in net.named_parameters()}


def test_a_head_that_the_body_uses_under_another_name_stays_whole(net):
    model = nn.Sequential()
    model.also = net.head  # comes first, so that it is the name of its parameters
    model.net = net
    attach(model, head="net.head")
    assert type(model.also) is nn.Linear
    assert {"also.weight", "also.bias"} < trains(model)


def tied():
    """A body of an embedding and a linear layer, and a head that has the weight of both."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 6), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    model[0].weight = model[1].weight = model[3].weight
    return model


@pytest.mark.parametrize("kind", ["splora", "sppara", "splopa"])
def test_a_head_trains_whole_where_the_body_has_its_weight_too(kind):
    model, plain = tied(), tied()
    attach(model, kind=kind, head="3")  # the embedding is not refused: it trains
    assert model[3].weight is model[1].weight is model[0].weight
    assert {"0.weight", "1.bias", "3.bias"} < trains(model)  # one weight, under its first name
    assert "1.weight" not in attach_report(model)
    words = torch.arange(6)
    for network in (model, plain):
        network(words).square().sum().backward()
    torch.testing.assert_close(model[3].weight.grad, plain[3].weight.grad)
    steps = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    steps.step()
    assert model[3].weight is model[1].weight is model[0].weight


@pytest.mark.parametrize("train_a", [False, True])
def test_gradients_flow_to_the_adapter_alone(net, pictures, train_a):
    attach(net, rank=2, train_a=train_a, head="head")
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("adapter_b"):
                parameter.add_(0.1)  # or A's gradient is zero
    net.train()
    net(pictures).square().sum().backward()
    grads = {name: p.grad for name, p in net.named_parameters()}
    assert {name for name, grad in grads.items() if grad is not None} == trains(net)
    for name, grad in grads.items():
        # The biases in front of the normalisation have no influence.
        if grad is not None and name != "conv2.bias":
            assert grad.abs().max() > 1e-8, name


def test_training_moves_what_trains_and_nothing_else(net, pictures):
    attach(net, rank=2, head="head")
    before = copy.deepcopy(net.state_dict())
    steps(net, pictures)
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


def steps(model, pictures, count=3):
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(count):
        optimiser.zero_grad()
        model(pictures).square().sum().backward()
        optimiser.step()
    return model.eval()


def test_two_models_share_nothing(net, pictures):
    left, right = attach(copy.deepcopy(net), head="head"), attach(net, head="head")
    for name, tensor in left.state_dict().items():
        assert tensor.data_ptr() != right.state_dict()[name].data_ptr()
    expected = right(pictures)
    steps(left, pictures)
    assert torch.equal(right(pictures), expected)
    assert not torch.equal(left(pictures), expected)


@pytest.mark.parametrize("kind", ["splora", "sppara", "splopa"])
def test_an_adapted_model_can_be_pickled(net, pictures, kind):
    steps(attach(net, kind=kind, rank=2, head="head", train_a=True, unadapted="freeze"), pictures)
    again = pickle.loads(pickle.dumps(net))
    assert [type(module) for module in again.modules()] == [type(m) for m in net.modules()]
    assert trains(again) == trains(net)
    assert torch.equal(again(pictures), net(pictures))
    assert torch.equal(steps(again, pictures)(pictures), steps(net, pictures)(pictures))


def test_merged_model_is_plain_equal_and_independent(net, pictures):
    steps(attach(net, rank=2, head="head"), pictures)
    merged = merge(net)
    assert {type(module) for module in merged.modules()} == {
        type(net),
        nn.Conv2d,
        nn.BatchNorm2d,
        nn.Linear,
    }
    assert trains(merged) == set(dict(merged.named_parameters()))
    torch.testing.assert_close(merged(pictures), net(pictures), rtol=0, atol=1e-5)
    expected = net(pictures)
    steps(merged, pictures)
    assert torch.equal(net(pictures), expected)
    again = attach(merge(net), head="head")  # a merged model is a base like any other
    assert isinstance(again.conv1, SPLoRAConv2d)


def test_attaching_twice_is_refused_and_loses_nothing(net, pictures):
    steps(attach(net, rank=2, head="head"), pictures)
    expected = net(pictures)
    for model in (net, copy.deepcopy(net), nn.Sequential(net)):
        for kind in ADAPTERS:
            with pytest.raises(AdapterError, match="merge"):
                attach(model, kind=kind)
    assert torch.equal(net(pictures), expected)


def test_full_trains_everything_and_adds_nothing(net, pictures):
    before = set(net.state_dict())
    net.requires_grad_(False)
    attach(net, kind="full")
    assert set(net.state_dict()) == before
    assert trains(net) == set(dict(net.named_parameters()))
    assert attach_report(net) == ()
    assert {type(module) for module in merge(net).modules()} == {type(m) for m in net.modules()}
    with pytest.raises(AdapterError, match="already"):
        attach(net, kind="splora")


def odd_model():
    model = nn.ModuleDict(
        {
            "attention": nn.MultiheadAttention(4, 2),
            "back": nn.ConvTranspose2d(2, 2, 2),
            "words": nn.Embedding(3, 4),
            "memory": nn.LSTM(4, 2),
            "slope": nn.PReLU(4),
            "norm": nn.LayerNorm([2, 4]),
            "head": nn.Linear(4, 2),
        }
    )
    model.token = nn.Parameter(torch.zeros(1, 3, 4))
    model.scale = nn.Parameter(torch.zeros(4, 1, 1))
    return model


def test_what_cannot_be_adapted_is_refused_by_name_and_nothing_changes():
    model = odd_model()
    before = trains(model)
    with pytest.raises(AdapterError, match=r"attention.in_proj_weight, .* and 3 more: pass unadap"):
        attach(model, head="head")
    assert trains(model) == before
    with pytest.raises(AdapterError, match="unadapted is 'train'"):
        attach(model, head="head", unadapted="train")


def test_what_cannot_be_adapted_stays_frozen_and_is_listed_if_so_chosen():
    model = odd_model()
    attach(model, head="head", unadapted="freeze")
    assert attach_report(model) == (
        "token",
        "scale",
        "attention.in_proj_weight",
        "attention.in_proj_bias",
        "attention.out_proj.weight",
        "back.weight",
        "words.weight",
        "memory.weight_ih_l0",
        "memory.weight_hh_l0",
        "memory.bias_ih_l0",
        "memory.bias_hh_l0",
        "slope.weight",
    )
    assert trains(model) == {
        "attention.out_proj.bias",
        "back.bias",
        "norm.weight",
        "norm.bias",
        "head.weight",
        "head.bias",
    }


@pytest.mark.parametrize("rank", [0, -1, 0.5, True, "8", None])
def test_a_rank_that_is_none_is_refused(net, rank):
    with pytest.raises(AdapterError, match="rank"):
        attach(net, rank=rank)


def test_unknown_kind_and_head_name_the_nearest(net):
    with pytest.raises(UnknownNameError, match="did you mean 'splora'"):
        attach(net, kind="lora")
    with pytest.raises(AdapterError, match="did you mean 'head'"):
        attach(net, head="heads")


def test_a_masked_model_is_refused(net, plan, mask):
    with pytest.raises(AdapterError, match="before apply_mask"):
        attach(apply_mask(net, plan, mask))


@pytest.mark.parametrize(
    "wrong",
    [
        {"kept": {"conv1.weight": {0: np.array([0, 1])}}},  # the net is not cut
        {"shapes": {"conv1.weight": (6, 3, 3, 3)}},  # another model's plan
    ],
)
def test_a_mask_that_is_not_the_models_is_refused_and_nothing_changes(net, plan, wrong):
    before = set(net.state_dict())
    with pytest.raises(AdapterError, match=r"shape"):
        attach(net, head="head", **({"shapes": plan.shapes} | wrong))
    assert set(net.state_dict()) == before
    assert type(net.conv1) is nn.Conv2d
    assert trains(net) == set(dict(net.named_parameters()))


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        (np.array([0, 1]), "not by axis"),
        ({2: np.array([0])}, None),  # a 1x1 convolution: nothing is cut
        ({4: np.array([0])}, "no axis 4"),
        ({-1: np.array([0])}, "no axis -1"),
        ({"1": np.array([0])}, "no axis '1'"),
        ({True: np.array([0])}, "no axis True"),
        ({1: [0, 1, 2, 3, 4, 5]}, "no array of integers"),
        ({1: None}, "no array of integers"),
        ({1: np.ones(6, bool)}, "no array of integers"),
        ({1: np.arange(6.0)}, "no array of integers"),
        ({1: np.array(["0"] * 6)}, "no array of integers"),
        ({1: np.array([0, 1, 2, 3, 4, None])}, "no array of integers"),
        ({1: np.arange(6)[None]}, r"have shape \[1, 6\]"),
        ({1: np.array(6)}, r"have shape \[\]"),
        ({1: np.arange(0)}, r"have shape \[0\]"),
        ({1: np.array([0, 1, 2, 3, 3, 5])}, "do not rise"),
        ({1: np.array([0, 1, 2, 4, 3, 5])}, "do not rise"),
        ({1: np.array([1, 0, 2, 3, 4, 5], np.uint8)}, "do not rise"),
        ({1: np.array([-1, 0, 1, 2, 3, 4])}, "go from -1 to 4, the axis"),
        ({1: np.array([0, 1, 2, 3, 4, 9])}, "go from 0 to 9, the axis"),
        ({1: np.array([0, 1, 2, 3, 4, 5], np.int32)}, None),
    ],
    ids=str,
)
def test_malformed_kept_positions_are_refused_by_name_and_nothing_changes(net, plan, kept, words):
    whole = {"head": "head", "shapes": plan.shapes}
    if words is None:
        attach(net, kept={"conv2.weight": kept}, **whole)
        return
    before = set(net.state_dict())
    with pytest.raises(AdapterError, match=words) as caught:
        attach(net, kept={"conv2.weight": kept}, **whole)
    assert "conv2.weight" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert set(net.state_dict()) == before
    assert trains(net) == set(dict(net.named_parameters()))


def test_kept_positions_need_shapes(net):
    with pytest.raises(AdapterError, match="shapes"):
        attach(net, kept={"conv1.weight": {0: np.array([0])}})


def test_without_an_adapter_nothing_is_merged_read_or_loaded(net):
    for function in (merge, attach_report, adapter_state):
        with pytest.raises(AdapterError, match="attach"):
            function(net)
    with pytest.raises(AdapterError, match="attach"):
        load_adapter_state(net, {})


def with_integer():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model.counter = nn.Parameter(torch.arange(3), requires_grad=False)
    return model


def made_in_inference_mode():
    with torch.inference_mode():
        return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))


ODD = {
    "complex": (lambda: nn.Sequential(nn.Linear(4, 4, dtype=torch.complex64)), "complex64"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2)), "run the model once"),
    "empty": (lambda: nn.Sequential(nn.Linear(0, 4), nn.Linear(4, 2)), "empty layer"),
    "weight norm": (
        lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2)),
        "remove weight_norm",
    ),
    "inference": (made_in_inference_mode, "inference mode"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("kind", ["splora", "sppara", "splopa"])
def test_what_cannot_be_trained_beside_is_refused_and_nothing_changes(name, kind):
    make, words = ODD[name]
    model = make()
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(AdapterError, match=words):
        attach(model, kind=kind, head="")
    assert [type(module) for module in model.modules()] == kinds
    with pytest.raises(AdapterError, match="no adapter is attached"):
        attach_report(model)


def test_parameters_that_are_no_floats_stay_as_they_are():
    model = attach(with_integer())
    assert not model.counter.requires_grad
    assert merge(model).counter.tolist() == [0, 1, 2]


def test_values_that_become_infinite_in_the_models_type_are_refused():
    model = attach(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
    state = adapter_state(model)
    huge = torch.full_like(state["0.adapter_b"], 1e300, dtype=torch.float64)
    with pytest.raises(AdapterError, match="finite"):
        load_adapter_state(model, {**state, "0.adapter_b": huge})
