"""What a device keeps: the newest packages, and a secret that is made once."""

import os
import threading

import pytest

from fedsprig.errors import ArtifactError, MessageError
from fedsprig_client.store import MAX_RUNS, DeviceStore


def test_only_the_newest_packages_stay(tmp_path):
    store = DeviceStore(tmp_path)
    for number in range(MAX_RUNS):
        store.keep_package(f"run {number}", b"%d" % number)
    for path in (tmp_path / "runs").iterdir():
        os.utime(path, (1, 1))  # long ago
    store.keep_package("run 5", b"again")
    for number in range(MAX_RUNS, 2 * MAX_RUNS - 1):
        store.keep_package(f"run {number}", b"%d" % number)
    assert store.package("run 5") == b"again"
    assert len(list((tmp_path / "runs").iterdir())) == MAX_RUNS
    assert store.package(f"run {MAX_RUNS}") == b"%d" % MAX_RUNS
    with pytest.raises(MessageError):
        store.package("run 6")


def test_the_package_that_was_just_kept_stays_when_the_clock_went_back(tmp_path):
    store = DeviceStore(tmp_path)
    for number in range(MAX_RUNS):
        store.keep_package(f"run {number}", b"old")
    for path in (tmp_path / "runs").iterdir():
        os.utime(path, (1 << 33, 1 << 33))
    store.keep_package("new", b"new")
    assert store.package("new") == b"new"
    assert len(list((tmp_path / "runs").iterdir())) == MAX_RUNS


def test_the_secret_is_made_once_whoever_asks_first(tmp_path):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(DeviceStore(tmp_path).secret()))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"plans", "runs", "secret"}
    assert DeviceStore(tmp_path / "other").secret() != found[0]


def test_a_damaged_secret_is_refused_not_replaced(tmp_path):
    store = DeviceStore(tmp_path)
    store.secret()
    (tmp_path / "secret").write_bytes(b"short")
    with pytest.raises(ArtifactError, match="remove it"):
        store.secret()


def test_what_runs_have_trained_is_found_by_the_runs_names(tmp_path):
    store = DeviceStore(tmp_path)
    assert store.adapters() == {}
    for run in ("parcels.one_shot", "../letters", "a" * 300):
        store.keep_package(run, b"package")
        store.keep_adapter(run, run.encode())
    store.keep_adapter("parcels.one_shot", b"later")
    found = DeviceStore(tmp_path).adapters()
    assert list(found) == sorted(found)
    assert found["parcels.one_shot"] == b"later"
    assert found["../letters"] == b"../letters"
    assert len(found) == 3


def test_an_adapter_goes_with_the_package_that_it_was_trained_with(tmp_path):
    store = DeviceStore(tmp_path)
    store.keep_package("run", b"one")
    store.keep_adapter("run", b"trained")
    store.keep_package("run", b"one")
    assert store.adapters() == {"run": b"trained"}
    store.keep_package("run", b"other")
    assert store.adapters() == {}
    store.keep_adapter("run", b"trained")
    for number in range(MAX_RUNS):
        store.keep_package(f"run {number}", b"x")
    assert store.adapters() == {}


def test_a_damaged_adapter_is_left_out(tmp_path, caplog):
    store = DeviceStore(tmp_path)
    for run in ("good", "bad"):
        store.keep_adapter(run, b"trained")
    whole = {path: path.read_bytes() for path in (tmp_path / "adapters").iterdir()}
    (bad,) = (path for path, data in whole.items() if b'"bad"' in data)
    bad.write_bytes(whole[bad][:-1])
    assert store.adapters() == {"good": b"trained"}
    assert "damaged" in caplog.text
