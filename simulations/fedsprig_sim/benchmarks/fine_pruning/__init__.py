"""Accuracy of adapters against fine-pruning: the two claims of Structured Pruning Adapters.

Hedegaard et al., arXiv 2211.10155, Table 1: at 10 % of the filters SPLoRA is at least as accurate
as fine-pruning with at most half of its trained parameters; at 30 % it is within 1.6 points with a
seventeenth of them. Here on any data and base model, with exact masks and with the leak of the
published code.
"""

from fedsprig_sim.benchmarks.fine_pruning.course import Course
from fedsprig_sim.benchmarks.fine_pruning.experiment import run
from fedsprig_sim.benchmarks.fine_pruning.methods import ARMS, METHODS, Arm, Method, read_rates
from fedsprig_sim.benchmarks.fine_pruning.summary import table

__all__ = ["ARMS", "METHODS", "Arm", "Course", "Method", "read_rates", "run", "table"]
