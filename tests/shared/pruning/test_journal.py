"""Checkpoints: what is kept, what is refused."""

import json

import numpy as np
import pytest

from fedsprig.errors import ArtifactError, DigestMismatchError, RunError
from fedsprig.pruning import journal as journal_module
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


def test_parts_of_a_round_are_kept_until_it_is_done(tmp_path):
    def begun():
        return Journal(tmp_path, "one")

    first = begun().checkpoint("search")
    assert (first.state, first.arrays) == ({}, {})
    for number in range(3):
        first.beside(lambda: {"more": [1]}).save({"n": number}, {"a": np.full(2, number)})
    journal = begun()
    assert journal.state is None
    journal.checkpoint("fine-tuning").save({"n": 7}, ONE)
    with pytest.raises(RunError, match="two parts of one round are called 'fine-tuning'"):
        journal.checkpoint("fine-tuning")
    search, fine = begun().checkpoint("search"), begun().checkpoint("fine-tuning")
    assert (search.state, fine.state) == ({"n": 2, "more": [1]}, {"n": 7})
    np.testing.assert_array_equal(search.arrays["a"], [2, 2])
    np.testing.assert_array_equal(fine.arrays["weight:a"], ONE["weight:a"])
    assert len(list(tmp_path.iterdir())) == 3
    last = begun()
    last.write({"done": True}, add={"b": ONE}, keep=frozenset({"b"}))
    assert last.checkpoint("search").state == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.safetensors", "state.json"]


@pytest.mark.parametrize("written", [0, 1])
def test_a_kill_while_a_part_is_written_leaves_the_one_before(tmp_path, monkeypatch, written):
    checkpoint = Journal(tmp_path, "one").checkpoint("search")
    checkpoint.save({"n": 1}, ONE)
    real, count = journal_module.write_bytes, 0

    def killed(path, data):
        nonlocal count
        if count == written:
            raise KeyboardInterrupt
        count += 1
        real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save({"n": 2}, {"weight:a": np.zeros(3)})
    again = Journal(tmp_path, "one").checkpoint("search")
    assert again.state == {"n": 1}
    np.testing.assert_array_equal(again.arrays["weight:a"], ONE["weight:a"])
    again.save({"n": 3}, ONE)
    assert Journal(tmp_path, "one").checkpoint("search").state == {"n": 3}
    assert len(list(tmp_path.iterdir())) == 2


def test_what_a_kill_left_half_written_is_removed(tmp_path):
    half = [f".part-1.safetensors.{'0a' * 8}", f".state.json.{'b1' * 8}"]
    kept = [".hidden", ".notes.safetensors", "product"]
    for _ in range(2):  # before there is a state, and after
        for name in (*half, *kept):
            (tmp_path / name).write_bytes(b"")
        journal = Journal(tmp_path, "one")
        assert {path.name for path in tmp_path.iterdir()} - {"state.json"} == set(kept)
        journal.write({}, add={}, keep=frozenset())


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


def test_a_state_that_somebody_changed_is_refused(tmp_path):
    """A limit that was crossed, a network outside the folder: what was not written is not read."""
    victim = tmp_path / "victim.safetensors"
    victim.write_bytes(b"mine")
    folder = tmp_path / "run"
    journal = Journal(folder, "r")
    journal.write({"ended": ""}, add={"a": {"x": np.zeros(2)}}, keep=frozenset({"a"}))
    whole = json.loads((folder / "state.json").read_text())
    for key, value in (
        ("state", {"ended": -1}),
        ("state", None),
        ("networks", {**whole["networks"], "../victim": "0" * 64}),
        ("networks", None),
        ("parts", []),
        ("digest", ""),
    ):
        (folder / "state.json").write_text(json.dumps({**whole, key: value}))
        with pytest.raises(ArtifactError, match="remove the folder to begin anew"):
            Journal(folder, "r")
    (folder / "state.json").write_text(json.dumps(whole))
    again = Journal(folder, "r")
    (folder / "a.safetensors").unlink()
    with pytest.raises(ArtifactError, match="is gone: remove"):
        again.network("a")
    assert victim.read_bytes() == b"mine"
