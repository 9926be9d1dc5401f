"""What a benchmark's figures were measured on."""

from __future__ import annotations

import platform
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """The record of this machine that stands beside figures, as plain data."""
    return {
        "processor": platform.machine(),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
