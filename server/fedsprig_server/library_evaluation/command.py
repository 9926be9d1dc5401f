"""What stands behind ``fedsprig library evaluate``: the library read, figures shown."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from rich.console import Console
from rich.progress import Progress as Bars

from fedsprig.errors import BudgetError, LibraryError
from fedsprig.graph.plan import GroupPlan
from fedsprig.masks import Budget
from fedsprig.pruning import Policy, Target
from fedsprig_server.base import Base
from fedsprig_server.build_command import pictures_of
from fedsprig_server.config import SelectionConfig
from fedsprig_server.library import Library
from fedsprig_server.library_build import LibraryTask
from fedsprig_server.library_evaluation.choice import choose
from fedsprig_server.library_evaluation.evaluation import evaluate
from fedsprig_server.library_evaluation.findings import plain, show
from fedsprig_server.library_evaluation.losses import losses
from fedsprig_server.library_evaluation.subject import LEAST, Solver, Subject
from fedsprig_server.library_evaluation.ways import Progress


def evaluate_library(
    library: Library,
    sources: Mapping[str, str],
    *,
    macs: str | None,
    weight_bytes: str | None,
    entries: int,
    model: str,
    weights: str | None,
    image_size: int | None,
    held_out: float,
    seed: int,
) -> list[dict[str, Any]]:
    """Evaluate every base of a library and print what came out.

    Args:
        library: Where the entries are.
        sources: Where pictures of tasks lie, by the name of their entry; without any, no network
            is needed.
        macs: Limit as an operator writes it, or ``None``.
        weight_bytes: The same of the weights; at least one of the two.
        entries: How many are left out at most.
        model: A builder's name, for the pictures.
        weights: As :func:`fedsprig.models.build` takes them.
        image_size: Side of the pictures, where it is not the model's own.
        held_out: Share of each class to measure accuracy on.
        seed: Of all drawing.

    Returns:
        What was found, one for each base with enough entries, as plain JSON data.

    Raises:
        LibraryError: No base with three entries, or pictures of no entry.
        BudgetError: A limit that cannot be read.
        InfeasibleBudgetError: A limit that no mask meets.
    """
    if entries < 1:
        raise LibraryError(f"entries {entries}: leave out at least 1 task")
    records = [item for item in library.bases() if len(library.entries(item.digest)) >= LEAST]
    if not records:
        counts = [len(library.entries(item.digest)) for item in library.bases()]
        raise LibraryError(
            f"the library has at most {max(counts, default=0)} tasks of one base: leaving one out "
            f"needs at least {LEAST}; add more"
        )

    def budget(plan: GroupPlan) -> Budget:
        return _budget(macs, weight_bytes, plan)

    base = (
        Base.load(model, weights, image_size=image_size, stored_plan=library.stored_plan)
        if sources
        else None
    )
    tasks = [
        LibraryTask(name, pictures_of(source, model, image_size))
        for name, source in sources.items()
    ]
    if base is not None and base.digest not in [item.digest for item in records]:
        raise LibraryError(
            f"no {LEAST} tasks of the library are of this {model}: check its weights"
        )
    found = []
    for record in records:
        own = base if base is not None and base.digest == record.digest else None
        plan = GroupPlan.from_bytes(library.blobs.get(record.plan))
        with _Watched() as progress:
            subject = Subject.read(
                library,
                record.digest,
                Solver(plan, budget, SelectionConfig()),
                most=entries,
                seed=seed,
                always=[task.name for task in tasks] if own else (),
            )
            evaluation = evaluate(subject, progress)
            choice = choose(evaluation)
            measured = (
                losses(
                    evaluation, choice, own, tasks, held_out=held_out, seed=seed, progress=progress
                )
                if own
                else []
            )
        show(record, evaluation, choice, measured)
        found.append(plain(record, evaluation, choice, measured))
    return found


class _Watched(AbstractContextManager[Progress]):
    """A bar on stderr that follows the stages."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        # Where nobody watches, not even the empty line that a bar leaves.
        self._bars = Bars(console=console, transient=True, disable=not console.is_terminal)
        self._bar = self._bars.add_task("reading the library")

    def __enter__(self) -> Progress:
        self._bars.start()
        return self._told

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def _told(self, stage: str, done: int, steps: int) -> None:
        self._bars.update(self._bar, description=stage, completed=done, total=steps)


def _budget(macs: str | None, weight_bytes: str | None, plan: GroupPlan) -> Budget:
    limits = {}
    if macs is not None:
        budget = _target("latency", "--macs", macs, plan, "25% or 12M").budget
        if budget is None or budget.macs is None:
            raise BudgetError(
                f"the limit {macs!r:.40} is a time, which nobody measures here: "
                "write multiply-accumulates, 25% or 12M"
            )
        limits["macs"] = budget.macs
    if weight_bytes is not None:
        budget = _target("memory", "--bytes", weight_bytes, plan, "25% or 120kB").budget
        if budget is not None and budget.weight_bytes is not None:
            limits["weight_bytes"] = budget.weight_bytes
    return Budget(**limits)


def _target(policy: Policy, option: str, text: str, plan: GroupPlan, forms: str) -> Target:
    try:
        return Target.parse(policy, text, plan)
    except BudgetError:
        raise BudgetError(f"{option} {text!r:.40} is no limit: write {forms}") from None
