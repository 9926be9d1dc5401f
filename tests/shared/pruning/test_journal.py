"""Checkpoints: what is kept, what is refused."""

import json

import numpy as np
import pytest

from fedsprig.errors import ArtifactError, DigestMismatchError, RunError
from fedsprig.pruning.journal import Journal

ONE = {"weight:a": np.arange(3, dtype=np.float32)}


@pytest.mark.parametrize("in_folder", [True, False])
def test_networks_that_are_not_kept_go(tmp_path, in_folder):
    folder = tmp_path / "run" if in_folder else None
    journal = Journal(folder, "one")
    assert journal.state is None
    journal.write({"n": 1}, add={"a": ONE, "b": ONE}, keep=frozenset({"a", "b"}))
    journal.write({"n": 2}, add={}, keep=frozenset({"b"}))
    assert journal.state == {"n": 2}
    np.testing.assert_array_equal(journal.network("b")["weight:a"], ONE["weight:a"])
    with pytest.raises(ArtifactError, match="names no network a"):
        journal.network("a")
    if folder is not None:
        assert sorted(p.name for p in folder.iterdir()) == ["b.safetensors", "state.json"]
        again = Journal(folder, "one")
        assert again.state == {"n": 2}
        assert set(again.network("b")) == {"weight:a"}


def test_what_does_not_belong_is_refused(tmp_path):
    Journal(tmp_path, "one").write({"n": 1}, add={"a": ONE}, keep=frozenset({"a"}))
    with pytest.raises(RunError, match="another run"):
        Journal(tmp_path, "two")
    path = tmp_path / "a.safetensors"
    Journal(tmp_path, "one").network("a")
    path.write_bytes(path.read_bytes()[:-1] + b"\x41")
    with pytest.raises(DigestMismatchError, match="network a"):
        Journal(tmp_path, "one").network("a")
    for text in ("", "[]", "{}", json.dumps({"format": 1}), "[" * 10_000):
        (tmp_path / "state.json").write_text(text)
        with pytest.raises(ArtifactError, match="no checkpoint"):
            Journal(tmp_path, "one")
