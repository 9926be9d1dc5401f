"""Groups of coupled channels: traced once, then replayed as plain data to cut the network.

Plans and kept positions are pure numpy; what needs torch is imported when it is first used, so that
the wire, the aggregation and the web pages start without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fedsprig.graph.index import KeptIndex, index_within, kept_axes, kept_index, restrict
from fedsprig.graph.plan import AxisMap, Group, GroupPlan, Tap
from fedsprig.graph.shrink import shrink_plan

if TYPE_CHECKING:
    from fedsprig.graph.cutting import load_small, materialize
    from fedsprig.graph.reference import apply_mask
    from fedsprig.graph.trace import trace_groups

_LAZY = {
    "apply_mask": "fedsprig.graph.reference",
    "load_small": "fedsprig.graph.cutting",
    "materialize": "fedsprig.graph.cutting",
    "trace_groups": "fedsprig.graph.trace",
}

__all__ = [
    "AxisMap",
    "Group",
    "GroupPlan",
    "KeptIndex",
    "Tap",
    "apply_mask",
    "index_within",
    "kept_axes",
    "kept_index",
    "load_small",
    "materialize",
    "restrict",
    "shrink_plan",
    "trace_groups",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
