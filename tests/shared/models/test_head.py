"""What belongs to a classifier is decided by whole parts of a path."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsprig.models.head import is_of_head

paths = st.lists(st.sampled_from(["a", "b", "ab", "0"]), max_size=4)


@given(name=paths.filter(bool), head=paths)
def test_a_name_is_of_the_head_if_it_begins_with_all_of_its_parts(name, head):
    expected = bool(head) and name[: len(head)] == head
    assert is_of_head(".".join(name), ".".join(head)) is expected


@pytest.mark.parametrize(
    ("name", "head", "expected"),
    [
        ("fc.weight", "fc", True),
        ("fc", "fc", True),
        ("fc.0.bias", "fc", True),
        ("fc2.weight", "fc", False),
        ("body.fc.weight", "fc", False),
        ("heads.head.weight", "heads.head", True),
        ("heads.weight", "heads.head", False),
        ("weight", "", False),
    ],
)
def test_names_of_every_shape(name, head, expected):
    assert is_of_head(name, head) is expected
