"""Structured Pruning Adapters: what a task trains on a frozen, cut base model."""

from fedsprig.adapters.attaching import ADAPTERS, attach, attach_report, merge
from fedsprig.adapters.layer import AdapterKind, AdapterLayer, Site
from fedsprig.adapters.splora import SPLoRAConv2d, SPLoRALinear
from fedsprig.adapters.state import (
    adapter_state,
    is_statistic,
    load_adapter_state,
)

__all__ = [
    "ADAPTERS",
    "AdapterKind",
    "AdapterLayer",
    "SPLoRAConv2d",
    "SPLoRALinear",
    "Site",
    "adapter_state",
    "attach",
    "attach_report",
    "is_statistic",
    "load_adapter_state",
    "merge",
]
