"""AAP: prune what responds weakly, retrain, judge, and roll back where it was too much.

Zhao, Jain and Zhao 2022, arXiv 2201.10520 (AISTATS 2023, arXiv 2303.08595).
"""

from fedsprig.pruning.aap.method import AAP

__all__ = ["AAP"]
