"""Checkpoints of a pruning run: after a kill it goes on from its last finished round.

A folder holds ``state.json``, small and written last, and one safetensors file for each network
that it names. Files are written whole or not at all; a network that the state does not name is
left over from a kill and is written again. Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fedsprig.artifacts.container import Array, pack, unpack
from fedsprig.artifacts.digest import digest
from fedsprig.artifacts.files import read_bytes, write_bytes
from fedsprig.errors import ArtifactError, DigestMismatchError, RunError

FORMAT: Final = "fedsprig-pruning/1"
_STATE: Final = "state.json"
_MAX_STATE_BYTES: Final = 64 << 20
_MAX_NETWORK_BYTES: Final = 8 << 30


class Journal:
    """State and networks of one run, in a folder or, without one, in memory."""

    def __init__(self, folder: Path | None, run: str) -> None:
        """Open; the folder is made at the first write.

        Args:
            folder: where to write, ``None`` to keep everything in memory.
            run: digest of the job and its settings.

        Raises:
            RunError: the folder holds another run.
            ArtifactError: the state is damaged.
        """
        self._folder = folder
        self._run = run
        self._networks: dict[str, str] = {}
        self._memory: dict[str, bytes] = {}
        self.state: dict[str, Any] | None = None
        if folder is None or not (folder / _STATE).exists():
            return
        try:
            found = json.loads(read_bytes(folder / _STATE, max_bytes=_MAX_STATE_BYTES))
            kind, owner = found["format"], found["run"]
            self.state, self._networks = found["state"], found["networks"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ArtifactError(
                f"{folder / _STATE} is no checkpoint: remove the folder to begin anew"
            ) from error
        if (kind, owner) != (FORMAT, run):
            raise RunError(
                f"{folder} holds the checkpoint of another run: give another folder, or the "
                "network, pictures, target, seed and settings that it was begun with"
            )

    def write(
        self,
        state: Mapping[str, Any],
        *,
        add: Mapping[str, Mapping[str, Array]],
        keep: frozenset[str],
    ) -> None:
        """Commit a round.

        Args:
            state: plain JSON data.
            add: networks by name, their arrays by name.
            keep: names of the networks that stay, ``add``'s and earlier ones; others are removed.
        """
        for name, arrays in add.items():
            data = pack(arrays)
            self._networks[name] = digest(data)
            if self._folder is None:
                self._memory[name] = data
            else:
                write_bytes(self._path(name), data)
        dropped = self._networks.keys() - keep
        self._networks = {n: d for n, d in self._networks.items() if n in keep}
        self.state = json.loads(json.dumps(state))
        if self._folder is not None:
            whole = {
                "format": FORMAT,
                "run": self._run,
                "networks": self._networks,
                "state": self.state,
            }
            write_bytes(self._folder / _STATE, (json.dumps(whole, indent=1) + "\n").encode())
        for name in dropped:
            self._memory.pop(name, None)
            if self._folder is not None:
                with contextlib.suppress(OSError):
                    self._path(name).unlink()

    def network(self, name: str) -> dict[str, Array]:
        """The arrays of a network that was added.

        Raises:
            ArtifactError: it is gone or damaged.
        """
        if name not in self._networks:
            raise ArtifactError(f"the checkpoint names no network {name}: begin anew")
        if self._folder is None:
            data = self._memory[name]
        else:
            data = read_bytes(self._path(name), max_bytes=_MAX_NETWORK_BYTES)
        if digest(data) != self._networks[name]:
            raise DigestMismatchError(
                f"network {name} of the checkpoint is damaged: remove the folder to begin anew"
            )
        return unpack(data)[0]

    def _path(self, name: str) -> Path:
        if self._folder is None:
            raise ArtifactError("the checkpoint has no folder")
        return self._folder / f"{name}.safetensors"
