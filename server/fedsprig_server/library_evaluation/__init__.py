"""Does it pay to choose similar tasks? A library's own tasks tell, each left out in turn.

A task's scores are predicted from all the others, by every way there is; the masks that come of
them are compared with the mask that the task's own scores give at the same budget.
"""

from fedsprig_server.library_evaluation.automatic import settled
from fedsprig_server.library_evaluation.choice import Choice, Estimate, choose
from fedsprig_server.library_evaluation.evaluation import Evaluation, evaluate
from fedsprig_server.library_evaluation.losses import TaskLoss, losses
from fedsprig_server.library_evaluation.subject import LEAST, Solver, Subject
from fedsprig_server.library_evaluation.ways import Way

__all__ = [
    "LEAST",
    "Choice",
    "Estimate",
    "Evaluation",
    "Solver",
    "Subject",
    "TaskLoss",
    "Way",
    "choose",
    "evaluate",
    "losses",
    "settled",
]
