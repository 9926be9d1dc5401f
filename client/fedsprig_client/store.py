"""What a device keeps between messages: plans, packages, adapters, features and its secret.

Every file is written beside its place, synced and renamed, so that a device that loses power finds
the old file or the new one. Names from outside never become paths: runs are stored under the digest
of their name.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from pathlib import Path

import numpy as np

from fedsprig.artifacts import pack, unpack
from fedsprig.artifacts.digest import digest
from fedsprig.artifacts.files import read_bytes, write_bytes
from fedsprig.errors import ArtifactError, DigestMismatchError, MissingNetworkError
from fedsprig.tasks import Features

log = logging.getLogger(__name__)
MAX_BYTES = 1 << 30
MAX_RUNS = 64
SECRET_BYTES = 32


class DeviceStore:
    """A folder of plans, packages, adapters, features and the secret."""

    def __init__(self, folder: Path) -> None:
        self._secret = folder / "secret"
        self._features = folder / "features"
        self._plans = folder / "plans"
        self._runs = folder / "runs"
        self._adapters = folder / "adapters"
        for part in (self._plans, self._runs):
            part.mkdir(parents=True, exist_ok=True)

    def plans(self) -> list[str]:
        """Digests of the plans that are here."""
        return sorted(path.name for path in self._plans.iterdir() if len(path.name) == 64)

    def plan(self, plan_digest: str) -> bytes | None:
        """The bytes of a plan, or ``None``; a damaged file counts as absent and is removed."""
        if plan_digest not in self.plans():
            return None
        path = self._plans / plan_digest
        data = read_bytes(path, max_bytes=MAX_BYTES)
        if digest(data) != plan_digest:
            path.unlink()
            return None
        return data

    def keep_plan(self, data: bytes) -> None:
        """Keep a plan under its digest; one that is here already is not written again."""
        if self.plan(digest(data)) is None:
            write_bytes(self._plans / digest(data), data)

    def keep_package(self, run: str, data: bytes) -> None:
        """Keep the package of a run; a second one takes the first one's place.

        Of all packages the ``MAX_RUNS`` that were kept last stay, with their adapters. What was
        trained with another package of the run goes.
        """
        kept, written = self._run(run), digest(data).encode() + data
        if kept.exists() and read_bytes(kept, max_bytes=MAX_BYTES) != written:
            (self._adapters / kept.name).unlink(missing_ok=True)
        write_bytes(kept, written)
        others = [path for path in self._runs.iterdir() if len(path.name) == 64 and path != kept]
        others.sort(key=lambda path: (path.stat().st_mtime_ns, path.name))
        for path in others[: max(0, len(others) + 1 - MAX_RUNS)]:
            (self._adapters / path.name).unlink(missing_ok=True)
            path.unlink(missing_ok=True)

    def keep_adapter(self, run: str, state: bytes) -> None:
        """Keep what a run has trained, to be used when the run is over; a later one replaces it."""
        data = pack({"state": np.frombuffer(state, np.uint8)}, {"run": run})
        write_bytes(self._adapters / self._run(run).name, digest(data).encode() + data)

    def adapters(self) -> dict[str, bytes]:
        """What runs have trained, by run, in the order of the names; damaged files are left out."""
        found = {}
        for path in self._adapters.glob("?" * 64):
            data = read_bytes(path, max_bytes=MAX_BYTES)
            if digest(data[64:]).encode() != data[:64]:
                log.warning("%s: damaged on disk, left out", path)
                continue
            arrays, metadata = unpack(data[64:])
            found[metadata["run"]] = arrays["state"].tobytes()
        return dict(sorted(found.items()))

    def keep_features(self, probe: str, features: Features) -> None:
        """Keep what a probe makes of the pictures; what was kept of another one goes."""
        data = pack({"array": features.array, "labels": features.labels}, {"probe": probe})
        write_bytes(self._features, digest(data).encode() + data)

    def features(self, probe: str) -> Features | None:
        """What was kept of a probe, or ``None``; a damaged file counts as absent."""
        if not self._features.exists():
            return None
        data = read_bytes(self._features, max_bytes=MAX_BYTES)
        if digest(data[64:]).encode() != data[:64]:
            return None
        arrays, metadata = unpack(data[64:])
        if metadata["probe"] != probe:
            return None
        return Features(arrays["array"], arrays["labels"])

    def secret(self) -> bytes:
        """Random bytes that are made once and never leave the device, readable by its owner alone.

        Raises:
            ArtifactError: They cannot be kept, or were damaged on disk.
        """
        if not self._secret.exists():
            self._make_secret()
        data = read_bytes(self._secret, max_bytes=MAX_BYTES)
        if len(data) != SECRET_BYTES:
            raise ArtifactError(f"{self._secret}: damaged on disk: remove it, to have one made")
        return data

    def _make_secret(self) -> None:
        """Write it beside its place and link it there, so that of two processes the first wins."""
        temporary = self._secret.with_name(f".secret.{secrets.token_hex(8)}")
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(handle, "wb") as file:
                file.write(secrets.token_bytes(SECRET_BYTES))
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(temporary, self._secret)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ArtifactError(
                f"cannot write {self._secret}: {reason}; check the folder"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()

    def package(self, run: str) -> bytes:
        """The package of a run.

        Raises:
            MissingNetworkError: There is none.
            DigestMismatchError: It was damaged on disk.
        """
        path = self._run(run)
        if not path.exists():
            raise MissingNetworkError(
                f"no sub-network of run {run!r} is here: the server must send it"
            )
        data = read_bytes(path, max_bytes=MAX_BYTES)
        if digest(data[64:]).encode() != data[:64]:
            raise DigestMismatchError(f"{path}: damaged on disk: the server must send it again")
        return data[64:]

    def _run(self, run: str) -> Path:
        return self._runs / digest(run.encode())
