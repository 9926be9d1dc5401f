from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsprig.errors import RunError, UnknownNameError
from fedsprig.spelling import lookup, unknown

COLOURS = {"red": 1, "green": 2}


def test_looks_up_and_names_the_nearest() -> None:
    assert lookup(COLOURS, "red", "colour") == 1
    with pytest.raises(UnknownNameError) as caught:
        lookup(COLOURS, "gren", "colour")
    assert str(caught.value) == "unknown colour 'gren': did you mean 'green'?"
    with pytest.raises(RunError, match=r"^unknown colour 'x': there is red, green$"):
        lookup(COLOURS, "x", "colour", error=RunError)


def test_lists_some_of_many() -> None:
    names = [f"n{i}" for i in range(30)]
    assert unknown("name", "?", names).endswith(" n18, n19, ...")
    assert unknown("name", "?", names[:20]).endswith(" n18, n19")
    assert unknown("name", "?", []) == "unknown name '?': there is none"
    assert unknown("key", "nam", ["name"], place="a.nam").startswith("unknown key a.nam: did")


@given(st.text())
def test_says_one_short_line_whatever_the_name(name: str) -> None:
    text = unknown("colour", name * 50, COLOURS)
    assert len(text.splitlines()) == 1
    assert len(text) < 140
