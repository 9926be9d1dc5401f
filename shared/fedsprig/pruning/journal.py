"""Checkpoints of a pruning run: after a kill it goes on from its last finished round, or epoch.

A folder holds ``state.json``, small and written last, and one safetensors file for each network
that it names. Files are written whole or not at all; a network that the state does not name is
left over from a kill and is written again. Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from fedsprig.artifacts.container import Array, pack, unpack
from fedsprig.artifacts.digest import digest
from fedsprig.artifacts.files import read_bytes, write_bytes
from fedsprig.errors import ArtifactError, DigestMismatchError, RunError

FORMAT: Final = "fedsprig-pruning/3"
_FILE: Final = "state.json"
_PART: Final = "part-"
_HALF: Final = re.compile(r"\.(state\.json|.+\.safetensors)\.[0-9a-f]{16}")
"""What :func:`fedsprig.artifacts.files.write_bytes` calls a file that is not whole yet."""
_MAX_STATE_BYTES: Final = 64 << 20
_MAX_NETWORK_BYTES: Final = 8 << 30


Save = Callable[[Mapping[str, Any], Mapping[str, Array]], None]
"""Takes plain JSON data, and arrays by name."""


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """Where something long stands that is not finished, a training say.

    Attributes:
        state: plain data of the last save before the run was killed; empty where there was none.
        arrays: its arrays by name.
        save: commits data and arrays in place of those before.
    """

    state: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Array] = field(default_factory=dict)
    save: Save = lambda state, arrays: None

    def beside(self, data: Callable[[], Mapping[str, Any]]) -> Checkpoint:
        """The same with more plain data in every save."""
        return replace(self, save=lambda state, arrays: self.save({**state, **data()}, arrays))

    def anew(self) -> Checkpoint:
        """The same as if nothing had been saved."""
        return replace(self, state={}, arrays={})


UNSAVED: Final = Checkpoint()
"""Of what is not saved."""


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
        self._parts: dict[str, dict[str, Any]] = {}
        self._given: set[str] = set()
        self.state: dict[str, Any] | None = None
        if folder is None:
            return
        if not (folder / _FILE).exists():
            _sweep(folder)
            return
        try:
            found = json.loads(read_bytes(folder / _FILE, max_bytes=_MAX_STATE_BYTES))
            kind, owner = found["format"], found["run"]
            if (kind, owner) == (FORMAT, run):
                if found.pop("digest") != _digest_of(found):
                    raise ValueError("the state is not what was written")
                self.state, self._networks = found["state"], found["networks"]
                self._parts = found["parts"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ArtifactError(
                f"{folder / _FILE} is no checkpoint: remove the folder to begin anew"
            ) from error
        if (kind, owner) != (FORMAT, run):
            raise RunError(
                f"{folder} holds the checkpoint of another run: remove it to begin anew, or give "
                "the network, pictures, target, seed and settings that it was begun with"
            )
        _sweep(folder)

    def write(
        self,
        state: Mapping[str, Any],
        *,
        add: Mapping[str, Mapping[str, Array]],
        keep: frozenset[str],
    ) -> None:
        """Commit a round, with which the checkpoints of its parts go.

        Args:
            state: plain JSON data.
            add: networks by name, their arrays by name.
            keep: names of the networks that stay, ``add``'s and earlier ones; others are removed.
        """
        for name, arrays in add.items():
            self._add(name, arrays)
        self.state = json.loads(json.dumps(state))
        self._parts = {}
        self._given = set()
        self._commit(keep)

    def checkpoint(self, name: str) -> Checkpoint:
        """Where a part of the round that is being made stands; it lasts until the next round.

        In memory nothing is saved: nobody would read it.

        Raises:
            RunError: the round has another part of that name.
        """
        if name in self._given:
            raise RunError(f"two parts of one round are called {name!r}: give each its own name")
        self._given.add(name)

        def save(state: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
            if self._folder is None:
                return
            # A new file each time: a kill before the state is written leaves the one before.
            numbers = [int(part["network"].removeprefix(_PART)) for part in self._parts.values()]
            network = f"{_PART}{max(numbers, default=0) + 1}"
            gone = {self._parts[name]["network"]} if name in self._parts else set()
            self._add(network, arrays)
            data = json.loads(json.dumps(state))
            self._parts = {**self._parts, name: {"network": network, "state": data}}
            self._commit(frozenset(self._networks.keys() - gone))

        if name not in self._parts:
            return Checkpoint(save=save)
        part = self._parts[name]
        return Checkpoint(part["state"], self.network(part["network"]), save)

    def _add(self, name: str, arrays: Mapping[str, Array]) -> None:
        data = pack(arrays)
        self._networks[name] = digest(data)
        if self._folder is None:
            self._memory[name] = data
        else:
            write_bytes(self._path(name), data)

    def _commit(self, keep: frozenset[str]) -> None:
        """Write the state, then remove the networks that it does not name."""
        dropped = self._networks.keys() - keep
        self._networks = {n: d for n, d in self._networks.items() if n in keep}
        if self._folder is not None:
            whole = {
                "format": FORMAT,
                "run": self._run,
                "networks": self._networks,
                "parts": self._parts,
                "state": self.state,
            }
            whole["digest"] = _digest_of(whole)
            write_bytes(self._folder / _FILE, (json.dumps(whole, indent=1) + "\n").encode())
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
        elif not self._path(name).is_file():
            raise ArtifactError(
                f"network {name} of the checkpoint is gone: remove {self._folder} to begin anew"
            )
        else:
            data = read_bytes(self._path(name), max_bytes=_MAX_NETWORK_BYTES)
        if digest(data) != self._networks[name]:
            raise DigestMismatchError(
                f"network {name} of the checkpoint is damaged: remove {self._folder} to begin anew"
            )
        return unpack(data)[0]

    def _path(self, name: str) -> Path:
        if self._folder is None:
            raise ArtifactError("the checkpoint has no folder")
        return self._folder / f"{name}.safetensors"


def _digest_of(whole: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of all that a state file says; a file that was changed says something else."""
    return digest(json.dumps(whole, sort_keys=True).encode())


def _sweep(folder: Path) -> None:
    """Remove what a kill left half written."""
    for path in folder.glob(".*"):
        if _HALF.fullmatch(path.name):
            with contextlib.suppress(OSError):
                path.unlink()
