"""What a device owner writes: one TOML file per device.

name = "gate-3"
task = "parcels"

[data]                     # a reader of fedsprig.training.readers and its arguments
kind = "folder"
path = "pictures"

[evaluation]               # pictures that are never trained on; without it one fifth of the data is
held out kind = "folder" path = "check"

[budget]                   # hard limits; ratios are of the base model
macs_ratio = 0.25

store = "store"            # where sub-networks are kept; paths are relative to this file
threads = 1                # 0: as many as there are cores
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fedsprig.errors import DataError
from fedsprig.wire.budgets import to_wire


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """A device's settings; see the module's example."""

    name: str
    task: str
    data: Mapping[str, Any]
    store: Path
    evaluation: Mapping[str, Any] | None = None
    budget: Mapping[str, float] = field(default_factory=dict)
    threads: int = 0

    @classmethod
    def load(cls, path: Path) -> DeviceConfig:
        """Read a device's file; relative paths are taken from its folder.

        Raises:
            DataError: The file cannot be read, is no TOML, or has a missing, unknown or wrong key.
            BudgetError: A limit that does not exist or is no positive number.
        """
        try:
            raw = tomllib.loads(path.read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise DataError(f"{path}: no readable device file ({error}): write one") from error
        known = {item.name for item in fields(cls)}
        if unknown := sorted(set(raw) - known):
            raise DataError(f"{path}: unknown key {unknown[0]!r}: use {', '.join(sorted(known))}")
        for key in ("name", "task", "data"):
            if not raw.get(key):
                raise DataError(f"{path}: the key {key!r} is missing: add it")
        for key in ("data", "evaluation", "budget"):
            if key in raw and not isinstance(raw[key], dict):
                raise DataError(f"{path}: {key!r} must be a table, as [{key}]")
        base = path.parent
        for key in ("data", "evaluation"):
            if "path" in raw.get(key, {}):
                raw[key] = raw[key] | {"path": base / raw[key]["path"]}
        to_wire(raw.get("budget", {}))
        return cls(**{**raw, "store": base / raw.get("store", "store")})
