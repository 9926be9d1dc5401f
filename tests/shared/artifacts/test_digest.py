"""Digests name content, nothing else."""

import hashlib

import numpy as np
import pytest
import torch

from fedsprig.artifacts import digest, state_digest


def test_digest_is_sha256():
    assert digest(b"abc") == hashlib.sha256(b"abc").hexdigest()


def test_state_digest_ignores_order_layout_and_container():
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(2, np.float16)
    expected = state_digest({"a": a, "b": b})
    assert state_digest({"b": b, "a": a}) == expected
    assert state_digest({"a": np.asfortranarray(a), "b": b}) == expected
    assert state_digest({"a": a.astype(">f4"), "b": b}) == expected
    assert state_digest({"a": torch.from_numpy(a), "b": torch.from_numpy(b)}) == expected


@pytest.mark.parametrize(
    "other",
    [
        {"b": np.zeros(4, np.float32)},
        {"a": np.zeros((4, 1), np.float32)},
        {"a": np.zeros((2, 2), np.float32)},
        {"a": np.zeros(4, np.int32)},
        {"a": np.zeros(2, np.float64)},
        {"a": np.array([0, 0, 0, 1e-45], np.float32)},
        {"a": np.array([0, 0, 0, -0.0], np.float32)},
        {"a": np.zeros(4, np.float32), "b": np.zeros(0, np.float32)},
        {},
    ],
)
def test_state_digest_tells_states_apart(other):
    assert state_digest(other) != state_digest({"a": np.zeros(4, np.float32)})


def test_state_digest_is_stable():
    # A golden value: digests name what is stored on disk, so the encoding may never change.
    state = {"w": np.array([[1.0, -2.0]], np.float32), "n": np.array(3, np.int64)}
    fields = b"1 <i8 0 ()\nn" + (3).to_bytes(8, "little")
    fields += b"1 <f4 2 (1, 2)\nw" + np.array([1, -2], "<f4").tobytes()
    assert state_digest(state) == hashlib.sha256(fields).hexdigest()
