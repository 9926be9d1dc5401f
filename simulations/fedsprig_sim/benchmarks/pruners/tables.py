"""Means over seeds and differences between arms, as the studies' tables show them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any


def percents(shares: Sequence[float], sign: str = "") -> str:
    """Mean and standard error in points; nothing where nothing was measured."""
    if not shares:
        return ""
    text = f"{100 * mean(shares):{sign}.2f}"
    if len(shares) < 2:
        return text
    return f"{text} ± {100 * stdev(shares) / math.sqrt(len(shares)):.2f}"


def paired(own: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> list[float]:
    """Differences in test accuracy between cases of the same seed."""
    rivals = {case["seed"]: case["test"] for case in other}
    return [case["test"] - rivals[case["seed"]] for case in own if case["seed"] in rivals]
