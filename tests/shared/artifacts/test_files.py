"""Files are written whole or not at all."""

import os

import pytest

from fedsprig.artifacts import read_bytes, require_writable, write_bytes
from fedsprig.errors import ArtifactError, LimitError


def test_round_trip_and_replacement(tmp_path):
    path = tmp_path / "x"
    write_bytes(path, b"old")
    write_bytes(path, b"new")
    assert read_bytes(path, max_bytes=3) == b"new"
    assert os.listdir(tmp_path) == ["x"]


def test_a_failed_write_leaves_the_old_bytes_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_bytes(path, b"old")

    def full_disk(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(ArtifactError, match="No space left"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ArtifactError, match="cannot write"):
        write_bytes(tmp_path / "file" / "x", b"")


def test_whether_a_path_can_be_written_is_known_before_and_nothing_is_touched(tmp_path):
    path = tmp_path / "folder" / "x"
    require_writable(path)
    assert os.listdir(path.parent) == []
    path.write_bytes(b"old")
    require_writable(path)
    assert os.listdir(path.parent) == ["x"]
    assert path.read_bytes() == b"old"
    for wrong in (path / "y", path.parent, "", path.with_name("n" * 300)):
        with pytest.raises(ArtifactError, match="cannot write"):
            require_writable(wrong)
    assert os.listdir(path.parent) == ["x"]


def test_reading_refuses_what_is_too_large_absent_or_no_file(tmp_path):
    write_bytes(tmp_path / "x", b"1234")
    with pytest.raises(LimitError, match="4 bytes, 3 are allowed"):
        read_bytes(tmp_path / "x", max_bytes=3)
    with pytest.raises(ArtifactError, match="No such file"):
        read_bytes(tmp_path / "y", max_bytes=3)
    with pytest.raises(ArtifactError, match=r"directory|regular"):
        read_bytes(tmp_path, max_bytes=3)


def test_a_pipe_is_refused_without_being_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match="regular"):
        read_bytes(tmp_path / "pipe", max_bytes=3)
