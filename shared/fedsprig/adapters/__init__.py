"""Structured Pruning Adapters: what a task trains on a frozen, cut base model."""

from fedsprig.adapters.attaching import ADAPTERS, Unadapted, attach, attach_report, merge
from fedsprig.adapters.block_linear import BlockLinear, use_blocks_
from fedsprig.adapters.layer import AdapterKind, AdapterLayer, Site
from fedsprig.adapters.ranks import RANK_RULES, with_ranks
from fedsprig.adapters.splopa import SPLoPA
from fedsprig.adapters.splora import SPLoRA
from fedsprig.adapters.sppara import SPPaRA
from fedsprig.adapters.state import (
    adapter_state,
    is_statistic,
    load_adapter_state,
)

__all__ = [
    "ADAPTERS",
    "RANK_RULES",
    "AdapterKind",
    "AdapterLayer",
    "BlockLinear",
    "SPLoPA",
    "SPLoRA",
    "SPPaRA",
    "Site",
    "Unadapted",
    "adapter_state",
    "attach",
    "attach_report",
    "is_statistic",
    "load_adapter_state",
    "merge",
    "use_blocks_",
    "with_ranks",
]
