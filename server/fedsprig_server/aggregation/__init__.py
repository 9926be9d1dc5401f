"""Joining what the devices of a cohort trained into one adapter, exactly.

Devices may have different masks. All arithmetic happens in the base model's coordinates: a device
contributes to the coordinates that its mask keeps, and what nobody has stays as it was.
"""

from fedsprig_server.aggregation.aggregate import AggregationReport, aggregate
from fedsprig_server.aggregation.contribution import Contribution
from fedsprig_server.aggregation.modes import AGGREGATIONS, Mode

__all__ = ["AGGREGATIONS", "AggregationReport", "Contribution", "Mode", "aggregate"]
