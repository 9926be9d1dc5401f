"""The start of an arm: every device's mask, durable before anything is sent."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from fedsprig.errors import BudgetError, RunError
from fedsprig.masks import Mask, ScoreSet
from fedsprig.subnetwork import AdapterConfig
from fedsprig_server.arms import Arm
from fedsprig_server.attendance import Attendance
from fedsprig_server.base import Base
from fedsprig_server.cohort import Cut
from fedsprig_server.config import SelectionConfig
from fedsprig_server.ledger import Ledger
from fedsprig_server.library import Library, Run
from fedsprig_server.one_shot import cut
from fedsprig_server.pruning import Sizes


def begin_arm(
    arm: Arm,
    described: Run,
    here: Attendance,
    base: Base,
    library: Library,
    selection: SelectionConfig,
    sizes: Sizes | None = None,
) -> Run:
    """Solve for every device, and write the masks down.

    A device whose budget cannot be met is left out; devices with equal budgets share a mask. Where
    networks go on shrinking (``sizes``), these masks are the first and widest ones.

    Raises:
        BudgetError: No device has a budget that can be met; of the first one.
        RunError: The task was described without this arm.
    """
    started = time.perf_counter()
    scores = None
    if arm.scores is not None:
        if arm.name not in described.state["scores"]:
            raise RunError(
                f"task {here.task!r} was described without arm {arm.name!r}: leave it away"
            )
        stored = library.blobs.get(described.state["scores"][arm.name])
        scores = ScoreSet.from_bytes(stored, base.plan)
    solved: dict[str, str | BudgetError] = {}
    masks: dict[str, str] = {}
    for device, member in list(here.members.items()):
        key = repr(member.budget)
        if key not in solved:
            try:
                budget = sizes.limits(member.budget, 0) if sizes else member.budget
                mask = cut(scores, base, budget, selection, num_classes=len(here.classes))
                if sizes:
                    sizes.check(member.budget)
                solved[key] = library.blobs.put(mask.to_bytes())
            except BudgetError as error:
                solved[key] = error
        found = solved[key]
        if isinstance(found, BudgetError):
            here.leave_out(device, found)
        else:
            masks[device] = found
    if not masks:
        raise next(iter(here.left_out.values()))
    name = arm_name(here.task, arm.name)
    limits = {device: dict(here.members[device].limits) for device in masks}
    spec = {"arm": arm.name, "task": here.task, "limits": limits}
    before = library.run(name)
    if before is not None and before.spec == spec and before.state["masks"] == masks:
        return before
    seconds = time.perf_counter() - started
    state = {"masks": masks, "ledger": Ledger().to_json(), "server_seconds": seconds}
    row = Run(name, "training", 0, spec, state)
    library.save_run(row)
    return row


def cuts_of(
    row: Run, here: Attendance, base: Base, library: Library, adapter: AdapterConfig
) -> dict[str, Cut]:
    """The masks of the devices that are here, as they were first made."""
    plan, made = base.plan, {}
    for key in sorted({row.state["masks"].get(device) for device in here.members} - {None}):
        mask = Mask.from_bytes(library.blobs.get(key), plan)
        made[key] = Cut(mask, adapter.index(plan, mask))
    masks = row.state["masks"]
    return {device: made[masks[device]] for device in here.members if device in masks}


def limits_of(task: str, arms: Iterable[str], library: Library) -> dict[str, Mapping[str, float]]:
    """What the devices said of themselves whose masks are in use; empty before any training."""
    limits: dict[str, Mapping[str, float]] = {}
    for name in (arm_name(task, arm) for arm in arms):
        row = library.run(name)
        if row is not None and library.latest_round(name) is not None:
            limits = dict(row.spec["limits"]) | limits
    return limits


def arm_name(task: str, arm: str) -> str:
    """The run of an arm in the library."""
    return f"{task}.{arm}"
