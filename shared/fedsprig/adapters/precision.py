"""Autocast, by hand: what is multiplied is cast, merging weights keeps their own precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def autocasts(x: Tensor) -> bool:
    """Whether products of ``x`` are cast now; false on devices that know no autocast (meta)."""
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def cast(x: Tensor) -> Tensor:
    """``x`` in the type that autocast computes products in; float64 stays, as torch leaves it."""
    if x.dtype == torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


def exact(x: Tensor) -> AbstractContextManager[Any]:
    """Within it, nothing on the device of ``x`` is cast."""
    return torch.autocast(x.device.type, enabled=False) if autocasts(x) else nullcontext()
