"""Keeping the memory of a long in-process run flat."""

from __future__ import annotations

import ctypes
import os

# glibc's malloc.h
M_ARENA_MAX = -8
ARENAS = 2
KERNELS = "64"


def bound_allocators() -> None:
    """Bound what glibc and oneDNN keep for later; call it before torch is imported.

    Every thread gets a heap of its own from glibc, and oneDNN keeps compiled kernels with their
    buffers for 1,024 layer shapes. A run cuts a new shape for every mask, and its devices are
    threads: without bounds the demo's peak was 2.5 GB, with them 1.9 GB. What the user has set in
    the environment stands. Does nothing where the C library has no ``mallopt``.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", KERNELS)
    if "MALLOC_ARENA_MAX" not in os.environ:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(M_ARENA_MAX, ARENAS)
