"""What is evaluated: the entries of one base, and which of them are left out in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedsprig.errors import LibraryError
from fedsprig.graph.plan import GroupPlan
from fedsprig.masks import Budget, Mask, ScoreSet, solve
from fedsprig.masks.layout import Layout
from fedsprig.tasks import TaskSketch
from fedsprig_server.config import SelectionConfig
from fedsprig_server.library import Library
from fedsprig_server.one_shot import MAX_NEIGHBOURS

LEAST: Final = 3
"""Entries: one is left out, and of fewer than two others there is nothing to choose."""

Floats32 = NDArray[np.float32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Solver:
    """From scores to masks at one budget.

    Attributes:
        plan: Of the base.
        budget: What a network for so many classes may cost, from the plan with their head.
        selection: Shape rules.
    """

    plan: GroupPlan
    budget: Callable[[GroupPlan], Budget]
    selection: SelectionConfig
    _known: dict[int, tuple[GroupPlan, Budget]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def mask(self, scores: ScoreSet, classes: int) -> Mask:
        """The mask of a task with so many classes.

        Raises:
            InfeasibleBudgetError: No mask meets the budget.
        """
        if classes not in self._known:
            plan = self.plan.with_num_classes(classes)
            self._known[classes] = (plan, self.budget(plan))
        plan, budget = self._known[classes]
        rules = self.selection
        return solve(
            scores,
            plan,
            budget,
            floor=rules.floor,
            round_to=rules.round_to,
            protect=rules.protect,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """The entries of one base.

    Attributes:
        names: Of the entries.
        sketches: Theirs.
        values: Their scores, every group at root mean square 1: float32 ``[entries, units]``.
        layout: Of the units.
        rows: Positions of the entries that are left out in turn: int64 ``[left out]``, rising.
        solver: The budget.
        seed: Of the random masks.
    """

    names: tuple[str, ...]
    sketches: tuple[TaskSketch, ...]
    values: Floats32
    layout: Layout
    rows: NDArray[np.int64]
    solver: Solver
    seed: int

    @classmethod
    def read(
        cls,
        library: Library,
        base: str,
        solver: Solver,
        *,
        most: int,
        seed: int,
        visible: int | None = None,
        always: Sequence[str] = (),
    ) -> Subject:
        """Read the entries of a base.

        Of more entries than take part in a score mask, as many are drawn.

        Args:
            library: Where they are.
            base: Its digest.
            solver: The plan and the budget.
            most: How many are left out, drawn by the seed, at most.
            seed: Of all drawing.
            visible: How many entries there are, in the order in which they were added; all when not
                given.
            always: Names of entries that are left out whatever is drawn.

        Raises:
            LibraryError: Fewer than three entries, or no entry of a name.
            PlanError: Entries of another plan.
        """
        entries = library.entries(base)[:visible]
        if len(entries) < LEAST:
            raise LibraryError(
                f"the library has {len(entries)} tasks of this base: leaving one out needs at "
                f"least {LEAST}; add more"
            )
        names = [entry.name for entry in entries]
        for name in always:
            if name not in names:
                raise LibraryError(f"the library has no task {name!r:.80} of this base: list them")
        rng = np.random.default_rng(seed)
        # The named first, then the others by lot.
        drawn = rng.permutation(len(names)).tolist()
        drawn.sort(key=lambda at: names[at] not in always)
        kept = sorted(drawn[:MAX_NEIGHBOURS])
        left_out = set(drawn[: max(most, len(always))])
        layout = Layout.of_plan(solver.plan)
        values = np.empty((len(kept), layout.units), np.float32)
        for row, at in zip(values, kept, strict=True):
            row[:] = library.scores(entries[at], solver.plan).normalised().flat
        return cls(
            names=tuple(names[at] for at in kept),
            sketches=tuple(
                TaskSketch.from_bytes(library.blobs.get(entries[at].sketch)) for at in kept
            ),
            values=values,
            layout=layout,
            rows=np.array([row for row, at in enumerate(kept) if at in left_out], np.int64),
            solver=solver,
            seed=seed,
        )

    @property
    def has_fingerprints(self) -> bool:
        """Whether every task was described with one."""
        return all(sketch.fingerprint.size for sketch in self.sketches)

    def classes(self, entry: int) -> int:
        """Of the task at this position."""
        return len(self.sketches[entry].counts)

    def mask(self, scores: Floats32, entry: int) -> Mask:
        """The mask of these scores ``[units]`` for the task at this position."""
        return self.solver.mask(ScoreSet(self.layout.split(scores)), self.classes(entry))

    def others(self, entry: int) -> NDArray[np.int64]:
        """Positions of all entries but one."""
        return np.delete(np.arange(len(self.names)), entry)
