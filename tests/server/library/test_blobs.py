"""Blobs: what is stored is durable, checked, and never half there."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedsprig.artifacts import digest
from fedsprig.errors import DigestMismatchError, LibraryError
from fedsprig_server.library import BlobStore


def test_bytes_come_back_under_their_digest(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "deep" / "blobs")
    names = [store.put(data) for data in (b"", b"one", b"two" * 1000)]
    assert names == [digest(b""), digest(b"one"), digest(b"two" * 1000)]
    again = BlobStore(tmp_path / "deep" / "blobs")
    assert [again.get(name) for name in names] == [b"", b"one", b"two" * 1000]
    assert list(again) == sorted(names)


def test_what_a_crash_left_half_written_is_not_seen(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    name = store.put(b"whole")
    (tmp_path / name[:2] / f".{name}.0011223344556677").write_bytes(b"who")
    assert list(store) == [name]


def test_a_damaged_blob_is_named_and_mended_by_putting_it_again(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    name = store.put(b"sound")
    (tmp_path / name[:2] / name).write_bytes(b"soond")
    with pytest.raises(DigestMismatchError, match="damaged"):
        store.get(name)
    assert store.put(b"sound") == name
    assert store.get(name) == b"sound"


def test_an_intact_blob_is_not_written_again(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    path = tmp_path / store.put(b"same")[:2] / digest(b"same")
    before = path.stat().st_ino
    store.put(b"same")
    assert path.stat().st_ino == before


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 65, 7])
def test_a_name_that_is_no_digest_never_reaches_the_disk(tmp_path: Path, name: str) -> None:
    with pytest.raises(LibraryError, match="no digest"):
        BlobStore(tmp_path).get(name)


def test_an_absent_blob_is_a_named_error(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    assert not store.has("0" * 64)
    with pytest.raises(LibraryError, match="is not in"):
        store.get("0" * 64)


def test_a_folder_that_cannot_be_made_is_a_named_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LibraryError, match="cannot make"):
        BlobStore(tmp_path / "file" / "blobs")
