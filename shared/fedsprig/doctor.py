"""What `fedsprig doctor` looks at: the machine, installed packages, the files of fedsprig."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import platform
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata, resources
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

_GIB = 1 << 30
_NEEDED_MEMORY_BYTES = 2 * 10**9


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the diagnosis."""

    area: str
    name: str
    value: str
    mend: str = ""
    """What to do; empty where nothing is amiss."""


def diagnose() -> list[Finding]:
    """All findings, in the order in which they are shown."""
    checks: list[Callable[[], Iterator[Finding]]] = [_machine, _packages, _torch, _files]
    if find_spec("fedsprig_sim") and find_spec("pydantic"):
        checks.append(importlib.import_module("fedsprig_sim.checks").findings)
    return [finding for check in checks for finding in check()]


def _machine() -> Iterator[Finding]:
    area = "machine"
    yield Finding(area, "system", f"{platform.system()} {platform.machine()}")
    yield Finding(area, "python", platform.python_version())
    yield Finding(area, "cores", str(len(os.sched_getaffinity(0))))
    total, available = _memory_bytes()
    value = f"{available / _GIB:.1f} of {total / _GIB:.1f} GiB free"
    short = available < _NEEDED_MEMORY_BYTES
    yield Finding(area, "memory", value, "end other programs: a run needs 2 GB" if short else "")
    free = shutil.disk_usage(Path.cwd()).free
    mend = "free some space: a run writes up to 1 GB" if free < 10**9 else ""
    yield Finding(area, "disk here", f"{free / _GIB:.1f} GiB free", mend)


def _memory_bytes() -> tuple[int, int]:
    """Total and available memory; what a container may use where that is less."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    kib = {words[0].rstrip(":"): int(words[1]) for words in lines}
    total, available = kib["MemTotal"] * 1024, kib["MemAvailable"] * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (text := limit.read_text().strip()) != "max":
        total = min(total, int(text))
        available = min(available, int(text) - int(used.read_text()))
    return total, available


def _packages() -> Iterator[Finding]:
    """Every requirement with the version that is there, under the smallest extra that needs it."""
    yield Finding("packages", "fedsprig", metadata.version("fedsprig"))
    requirements = [Requirement(text) for text in metadata.requires("fedsprig") or ()]
    needs = {
        extra: [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": extra})]
        for extra in ("", *(metadata.metadata("fedsprig").get_all("Provides-Extra") or ()))
    }
    shown: set[str] = {"fedsprig"}
    for extra, wanted in sorted(needs.items(), key=lambda item: len(item[1])):
        area = f"packages of [{extra}]" if extra else "packages"
        for requirement in wanted:
            if requirement.name not in shown:
                shown.add(requirement.name)
                yield _package(area, requirement, extra)


def _package(area: str, wanted: Requirement, extra: str) -> Finding:
    try:
        version = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        if extra:
            return Finding(area, wanted.name, f"not installed (pip install 'fedsprig[{extra}]')")
        return Finding(area, wanted.name, "missing", f"pip install '{wanted.name}'")
    fits = wanted.specifier.contains(version, prereleases=True)
    mend = "" if fits else f"pip install '{wanted.name}{wanted.specifier}'"
    return Finding(area, wanted.name, version, mend)


def _torch() -> Iterator[Finding]:
    """A torch and a torchvision of different builds are found only by importing both."""
    try:
        torch = importlib.import_module("torch")
        importlib.import_module("torchvision")
    except Exception as error:  # whatever a broken installation raises
        mend = "reinstall both from one index: pip install -c constraints.txt torch torchvision"
        yield Finding("torch", "import", f"fails: {error}".splitlines()[0], mend)
        return
    yield Finding("torch", "threads", str(torch.get_num_threads()))
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    yield Finding("torch", "accelerator", accelerator)


def _files() -> Iterator[Finding]:
    """The shipped weights against their digest, the embedded pictures against their checksums."""
    area, mend = "files", "reinstall fedsprig"
    root = Path(str(resources.files("fedsprig")))
    for card in sorted((root / "models" / "shipped").glob("*.json")):
        weights = card.with_suffix(".safetensors")
        try:
            digest = json.loads(card.read_text())["sha256"]
            intact = hashlib.sha256(weights.read_bytes()).hexdigest() == digest
        except (OSError, ValueError, KeyError) as error:
            yield Finding(area, weights.name, f"unreadable: {error}", mend)
            continue
        yield Finding(area, weights.name, "intact" if intact else "damaged", "" if intact else mend)
    for archive in sorted((root / "training" / "embedded").glob("*.npz")):
        try:
            with zipfile.ZipFile(archive) as file:
                intact = file.testzip() is None
        except (OSError, zipfile.BadZipFile):
            intact = False
        yield Finding(area, archive.name, "intact" if intact else "damaged", "" if intact else mend)
