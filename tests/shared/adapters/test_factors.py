"""Which of an adapter's tensors stay as they are."""

import pytest

from fedsprig.adapters.factors import TRAINS, held, is_factor, partner

NAMES = ("x.adapter_a", "x.adapter_b", "adapter_a", "adapter_b", "y.adapter_b", "n.weight")


def test_in_layers_with_both_factors_the_other_one_is_held():
    assert held(NAMES, "b") == {"x.adapter_a", "adapter_a"}
    assert held(NAMES, "a") == {"x.adapter_b", "adapter_b"}
    assert held(NAMES, "both") == set()
    assert TRAINS == ("a", "b", "both")


def test_a_lone_factor_is_never_held():
    assert held(["y.adapter_b"], "a") == held(["y.adapter_a"], "b") == set()


def test_names():
    assert [name for name in NAMES if is_factor(name)] == list(NAMES[:5])
    assert not is_factor("adapter_a.weight")
    assert partner("x.y.adapter_a") == "x.y.adapter_b"
    assert partner("adapter_b") == "adapter_a"


def test_no_other_word_is_understood():
    with pytest.raises(KeyError):
        held(NAMES, "c")
