"""Figures that are on disk are not measured again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedsprig.artifacts import write_bytes
from fedsprig.errors import ArtifactError


def once(path: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is on disk, or else what is measured, which then is on disk too.

    Raises:
        ArtifactError: The file is damaged.
    """
    if path.exists():
        try:
            found = json.loads(path.read_text())
        except ValueError:
            found = None
        if not isinstance(found, dict) or not found:
            raise ArtifactError(f"{path} is damaged: remove it, and it is measured again")
        return found
    figures = measure()
    write_bytes(path, (json.dumps(figures, indent=1) + "\n").encode())
    return figures
