"""The state of an adapter: complete, exact, and checked before it is loaded."""

import copy

import numpy as np
import pytest
import torch

from fedsprig.adapters import adapter_state, attach, is_statistic, load_adapter_state
from fedsprig.artifacts import pack, unpack
from fedsprig.errors import AdapterError
from fedsprig.graph import apply_mask
from fedsprig.updates import decode_update, encode_update

STATISTICS = {f"{norm}.running_{what}" for norm in ("bn1", "bn2") for what in ("mean", "var")}


@pytest.fixture
def adapted(net, net_of):
    model = attach(net, rank=2, head="head")
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(generator=generator)
        model.bn1.running_var.mul_(3)
    return model


@pytest.fixture
def net_of(net):
    """Make nets with the same base and a fresh adapter."""
    base = copy.deepcopy(net)
    return lambda: attach(copy.deepcopy(base), rank=2, head="head")


def test_state_is_what_trains_and_the_statistics(adapted):
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    state = adapter_state(adapted)
    assert set(state) == trained | STATISTICS
    assert not any(name.endswith(("adapter_a", "num_batches_tracked")) for name in state)
    assert {name for name in state if is_statistic(name)} == STATISTICS


def test_a_is_part_of_it_where_it_trains(net):
    state = adapter_state(attach(net, rank=2, train_a=True, head="head"))
    assert state["conv1.adapter_a"].shape == (2, 3)


def test_state_is_a_copy(adapted, pictures):
    expected = adapted(pictures)
    for tensor in adapter_state(adapted).values():
        assert not tensor.requires_grad
        tensor.zero_()
    assert torch.equal(adapted(pictures), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_round_trip_is_exact(adapted, net_of, pictures, dtype):
    adapted.to(dtype)
    state = adapter_state(adapted)
    arrays, _ = unpack(pack({name: tensor.numpy() for name, tensor in state.items()}))
    other = net_of().to(dtype)
    load_adapter_state(other, arrays)
    again = adapter_state(other)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
    if dtype is not torch.float16:
        assert torch.equal(other(pictures.to(dtype)), adapted(pictures.to(dtype)))


def test_update_of_a_state_arrives_within_a_thousandth(adapted, net_of):
    old, new = adapter_state(net_of()), adapter_state(adapted)
    delta = {name: (new[name] - old[name]).numpy() for name in new}
    shapes = {name: tuple(tensor.shape) for name, tensor in old.items()}
    data = encode_update(delta, base_digest="0", codec="float16")
    for name, change in decode_update(data, shapes=shapes, base_digest="0").items():
        peak = max(float(np.abs(delta[name]).max()), 1e-9)
        np.testing.assert_allclose(old[name].numpy() + change, new[name], atol=peak / 1000)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda s: s.pop("fc.bias"), "lacks fc.bias"),
        (lambda s: s.update({"conv1.weight": torch.zeros(6, 3, 3, 3)}), "conv1.weight too many"),
        (lambda s: s.update({"fc.bias": torch.zeros(4)}), r"fc.bias has shape \[4\]"),
        (lambda s: s.update({"fc.bias": torch.full((5,), torch.nan)}), "fc.bias is not all finite"),
        (lambda s: s.update({"head.bias": torch.tensor([0, 1, torch.inf])}), "head.bias"),
        (lambda s: s.update({"fc.bias": torch.zeros(5, dtype=torch.int64)}), "floating"),
        (lambda s: [s.pop(name) for name in list(s)], "and 14 more"),
    ],
    ids=["missing", "unknown", "shape", "nan", "inf", "integers", "empty"],
)
def test_a_bad_state_is_refused_and_nothing_is_written(adapted, pictures, change, word):
    state = {name: tensor * 2 for name, tensor in adapter_state(adapted).items()}
    change(state)
    expected = copy.deepcopy(adapted.state_dict())
    with pytest.raises(AdapterError, match=word) as caught:
        load_adapter_state(adapted, state)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, expected[n]) for n, tensor in adapted.state_dict().items())


class Liar:
    """Looks like a tensor from afar."""

    shape = (5,)

    def is_floating_point(self):
        return True


ODD = {
    "nothing": (lambda: None, "NoneType"),
    "a number": (lambda: 1.0, "float"),
    "a list": (lambda: [0.0] * 5, "list"),
    "a text": (lambda: "0.0", "str"),
    "a scalar of numpy": (lambda: np.float32(0), "float32"),
    "an object with a shape": (Liar, "Liar"),
    "objects": (lambda: np.array([0.0, None, 0, 0, 0]), "array of |O"),
    "texts": (lambda: np.array(["0.0"] * 5), "array of <U3"),
    "records": (lambda: np.zeros(5, [("a", "f4")]), "array of"),
    "another order of bytes": (lambda: np.zeros(5, ">f4"), "array of >f4"),
    "dates": (lambda: np.zeros(5, "M8[s]"), "array of <M8"),
    "bools": (lambda: np.zeros(5, bool), "floating point"),
    "integers": (lambda: np.zeros(5, np.int64), "floating point"),
    "complex numbers": (lambda: torch.zeros(5, dtype=torch.complex64), "floating point"),
    "sparse": (lambda: torch.zeros(5).to_sparse(), "no dense tensor"),
    "sparse rows": (lambda: torch.zeros(5, 5).to_sparse_csr(), "no dense tensor"),
    "nested": (
        lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
        "no dense tensor",
    ),
    "without values": (lambda: torch.zeros(5, device="meta"), "meta device"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ODD)
def test_an_odd_value_is_refused_by_name_and_nothing_is_written(adapted, name):
    make, words = ODD[name]
    state = {key: tensor * 2 for key, tensor in adapter_state(adapted).items()}
    expected = copy.deepcopy(adapted.state_dict())
    with pytest.raises(AdapterError, match=r"fc\.bias") as caught:
        load_adapter_state(adapted, state | {"fc.bias": make()})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, expected[n]) for n, tensor in adapted.state_dict().items())


@pytest.mark.parametrize("state", [None, [1], "state"])
def test_a_state_that_is_no_mapping_is_refused(adapted, state):
    with pytest.raises(AdapterError, match="a mapping by name"):
        load_adapter_state(adapted, state)


def test_names_that_are_no_texts_are_refused(adapted):
    with pytest.raises(AdapterError, match="has 3, None"):
        load_adapter_state(adapted, adapter_state(adapted) | {3: 0, None: 0})


def test_an_array_may_lie_in_any_order(adapted):
    state = adapter_state(adapted)
    expected = copy.deepcopy(adapted.state_dict())
    turned = {
        name: np.ascontiguousarray(np.flip(value.numpy()))[(slice(None, None, -1),) * value.ndim]
        for name, value in state.items()
    }
    assert any(min(array.strides) < 0 for array in turned.values())
    adapted.load_state_dict(expected | {n: torch.zeros_like(v) for n, v in state.items()})
    load_adapter_state(adapted, turned)
    assert all(torch.equal(tensor, expected[n]) for n, tensor in adapted.state_dict().items())


def test_a_variance_that_rounding_made_negative_becomes_zero(adapted, pictures):
    state = adapter_state(adapted)
    state["bn1.running_var"][2] = -1e-4
    load_adapter_state(adapted, state)
    assert adapted.bn1.running_var[2] == 0
    assert adapted(pictures).isfinite().all()
    assert state["bn1.running_var"][2] < 0  # the caller's is untouched


def test_the_masked_reference_has_no_state(adapted, plan, mask):
    with pytest.raises(AdapterError, match="materialize"):
        adapter_state(apply_mask(adapted, plan, mask))


def test_full_state_is_the_model(net):
    attach(net, kind="full")
    counted = {name for name in net.state_dict() if not name.endswith("num_batches_tracked")}
    assert set(adapter_state(net)) == counted
