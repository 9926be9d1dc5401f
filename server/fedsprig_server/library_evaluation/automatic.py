"""``score_mask = "auto"``: the server evaluates its library and takes what works there."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from dataclasses import replace
from typing import Final
from weakref import WeakKeyDictionary

from fedsprig.graph.plan import GroupPlan
from fedsprig.masks import Budget
from fedsprig_server.base import Base
from fedsprig_server.config import AUTO, SelectionConfig
from fedsprig_server.library import Library
from fedsprig_server.library_evaluation.choice import choose
from fedsprig_server.library_evaluation.evaluation import evaluate
from fedsprig_server.library_evaluation.subject import LEAST, Solver, Subject

MOST: Final = 200
"""Tasks that are left out."""
MACS: Final = 0.25
"""Of the base: the budget at which masks are compared."""

_known: WeakKeyDictionary[Library, dict[Hashable, SelectionConfig]] = WeakKeyDictionary()
_lock = threading.Lock()


def settled(
    selection: SelectionConfig, library: Library, base: Base, *, visible: int | None = None
) -> SelectionConfig:
    """The settings with a way in the place of ``"auto"``; others as they are.

    Up to 200 of the entries that take part are left out in turn, and the way is taken whose masks
    at 25 % of the MACs come nearest to the tasks' own: the plain mean where choosing gains no more
    than one standard error, or where the library has fewer than three entries. The same entries
    give the same way. It is found once for a number of entries and kept in memory.

    Args:
        selection: The settings.
        library: Where entries are.
        base: Whose.
        visible: How many entries take part, in the order in which they were added; all when not
            given.
    """
    if selection.score_mask != AUTO:
        return selection
    count = len(library.index(base.digest))
    if visible is not None:
        count = min(count, visible)
    if count < LEAST:
        return replace(selection, score_mask="mean")
    key = (base.digest, count, selection)
    with _lock:
        known = _known.setdefault(library, {})
        if key not in known:
            solver = Solver(base.plan, _quarter, selection)
            subject = Subject.read(library, base.digest, solver, most=MOST, seed=0, visible=count)
            way = choose(evaluate(subject)).way
            known[key] = replace(
                selection,
                score_mask=way.score_mask,
                similarity=way.similarity or selection.similarity,
                temperature=way.temperature or selection.temperature,
            )
        return known[key]


def _quarter(plan: GroupPlan) -> Budget:
    return Budget.fraction(plan, macs=MACS)
