"""Options of the form NAME=VALUE."""

import pytest
import typer

from fedsprig_server.pairs import pairs


def test_values_go_by_name_and_may_hold_the_sign():
    assert pairs(["a=1", "b=x=y"], "--set") == {"a": "1", "b": "x=y"}
    assert pairs((), "--set") == {}
    assert pairs(["a="], "--set", empty=True) == {"a": ""}


@pytest.mark.parametrize("item", ["a", "=1", "a=", ""])
def test_another_form_is_refused(item):
    with pytest.raises(typer.BadParameter, match="is not of the form NAME=PATH") as caught:
        pairs([item], "--data", form="NAME=PATH")
    assert caught.value.param_hint == "--data"


def test_a_name_that_is_given_twice_is_refused():
    with pytest.raises(typer.BadParameter, match="'a' is given twice"):
        pairs(["a=1", "a=2"], "--set")
