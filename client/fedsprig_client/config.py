"""What a device owner writes: one TOML file per device; relative paths are from its folder.

An example::

    name = "gate-3"
    task = "parcels"
    # Where sub-networks are kept.
    store = "store"
    # 0: as many as there are cores.
    threads = 1

    # Arguments of fedsprig.training.read.
    [data]
    kind = "folder"
    path = "pictures"

    # Pictures that are never trained on; without this table a fifth of the data is held out.
    [evaluation]
    kind = "folder"
    path = "check"

    # Hard limits; ratios are of the base model.
    [budget]
    macs_ratio = 0.25

    # The base model, where it is kept here: then sub-networks are cut from it, not downloaded.
    [base]
    model = "torchvision/resnet18"
    weights = "resnet18.safetensors"
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from fedsprig.errors import DataError
from fedsprig.wire.budgets import to_wire

SOURCE_KEYS: Final[Mapping[str, type]] = {
    "kind": str,
    "path": str,
    "split": str,
    "size": int,
    "name": str,
    "max_bytes": int,
}
"""Keys of the tables ``data`` and ``evaluation``."""


BASE_KEYS: Final[Mapping[str, type]] = {"model": str, "weights": str, "image_size": int}
"""Keys of the table ``base``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """A device's settings; see the module's example.

    Attributes:
        name: Unique among the devices of its task.
        task: Name of the task that it takes part in.
        data: Arguments of :func:`fedsprig.training.read`.
        store: Folder of what the device keeps between messages.
        evaluation: The same for pictures that are never trained on; ``None``: a fifth of ``data``.
        budget: Hard limits by name.
        base: Arguments of :meth:`fedsprig.bases.BaseWeights.load`, where the device keeps the base
            model: it must be the server's own, to the bit.
        threads: Of computation; 0: as many as there are cores.
        secret: 64 hexadecimal digits that the noise on sketches is drawn from. Only for
            simulations, which must give the same result every time: without it the device makes a
            secret of its own and tells nobody.
    """

    name: str
    task: str
    data: Mapping[str, Any]
    store: Path
    evaluation: Mapping[str, Any] | None = None
    budget: Mapping[str, float] = field(default_factory=dict)
    base: Mapping[str, Any] | None = None
    threads: int = 0
    secret: str | None = field(default=None, repr=False)

    @classmethod
    def load(cls, path: Path) -> DeviceConfig:
        """Read a device's file; relative paths are taken from its folder.

        Raises:
            DataError: The file cannot be read, is no TOML, or has a missing, unknown or wrong key.
            BudgetError: A limit that does not exist or is no positive number.
        """
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise DataError(f"{path}: no readable device file ({error}): write one") from error
        try:
            _check(raw, {item.name for item in fields(cls)})
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        to_wire(raw.get("budget", {}))
        folder = path.parent
        for key in ("data", "evaluation"):
            if "path" in raw.get(key, {}):
                raw[key] = raw[key] | {"path": folder / raw[key]["path"]}
        if raw.get("base", {}).get("weights", "").endswith(".safetensors"):
            raw["base"] = raw["base"] | {"weights": folder / raw["base"]["weights"]}
        return cls(**{**raw, "store": folder / raw.get("store", "store")})


def _check(raw: Mapping[str, Any], known: set[str]) -> None:
    """Every key is known, and what it must be."""
    _require_known(raw, known, "key")
    for key in ("name", "task", "data"):
        if not raw.get(key):
            raise DataError(f"the key {key!r} is missing: add it")
    for key in ("name", "task", "store", "secret"):
        _require_type(raw, key, str, key)
    for key in ("data", "evaluation", "budget", "base"):
        if key in raw and not isinstance(raw[key], dict):
            raise DataError(f"{key!r} must be a table: write [{key}]")
    for table in ("data", "evaluation"):
        source = raw.get(table)
        if source is None:
            continue
        _require_known(source, set(SOURCE_KEYS), f"key of [{table}]")
        if "kind" not in source:
            raise DataError(f"[{table}] has no key 'kind': add it")
        for key, kind in SOURCE_KEYS.items():
            _require_type(source, key, kind, f"{table}.{key}")
    if "base" in raw:
        _require_known(raw["base"], set(BASE_KEYS), "key of [base]")
        for key, kind in BASE_KEYS.items():
            if key not in raw["base"] and key != "image_size":
                raise DataError(f"[base] has no key {key!r}: add it")
            _require_type(raw["base"], key, kind, f"base.{key}")
    _require_type(raw, "threads", int, "threads")
    if raw.get("threads", 0) < 0:
        raise DataError(f"threads is {raw['threads']}: use 0 for all cores, or a number above")
    if "secret" in raw and not re.fullmatch("[0-9a-f]{64}", raw["secret"]):
        raise DataError("secret must be 64 hexadecimal digits: leave it out to have one made")


def _require_known(table: Mapping[str, Any], known: set[str], what: str) -> None:
    if unknown := sorted(set(table) - known):
        raise DataError(f"unknown {what} {unknown[0]!r}: use {', '.join(sorted(known))}")


def _require_type(table: Mapping[str, Any], key: str, kind: type, what: str) -> None:
    # A TOML boolean is an integer to Python.
    if key in table and (not isinstance(table[key], kind) or isinstance(table[key], bool)):
        wanted = "a string" if kind is str else "a whole number"
        raise DataError(f"{what} is {table[key]!r}: give {wanted}")
