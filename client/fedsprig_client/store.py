"""What a device keeps between messages: group plans by digest and one package per run.

Every file is written beside its place, synced and renamed, so that a device that loses power finds
the old file or the new one. Names from outside never become paths: runs are stored under the digest
of their name.
"""

from __future__ import annotations

from pathlib import Path

from fedsprig.artifacts.digest import digest
from fedsprig.artifacts.files import read_bytes, write_bytes
from fedsprig.errors import DigestMismatchError, MessageError

MAX_BYTES = 1 << 30


class DeviceStore:
    """A folder of plans and packages."""

    def __init__(self, folder: Path) -> None:
        self._plans = folder / "plans"
        self._runs = folder / "runs"
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
        """Keep a plan under its digest."""
        write_bytes(self._plans / digest(data), data)

    def keep_package(self, run: str, data: bytes) -> None:
        """Keep the package of a run; a second one takes the first one's place."""
        write_bytes(self._run(run), digest(data).encode() + data)

    def package(self, run: str) -> bytes:
        """The package of a run.

        Raises:
            MessageError: There is none.
            DigestMismatchError: It was damaged on disk.
        """
        path = self._run(run)
        if not path.exists():
            raise MessageError(f"no sub-network of run {run!r} is here: the server must send it")
        data = read_bytes(path, max_bytes=MAX_BYTES)
        if digest(data[64:]).encode() != data[:64]:
            raise DigestMismatchError(f"{path}: damaged on disk: the server must send it again")
        return data[64:]

    def _run(self, run: str) -> Path:
        return self._runs / digest(run.encode())
