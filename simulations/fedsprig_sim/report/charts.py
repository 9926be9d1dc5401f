"""The drawings of the report, as inline SVG whose colours come from the page's style sheet.

Every function returns markup in which all text is escaped. Sizes are in CSS pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from fedsprig_sim.report.wording import ARM_TITLES, human_bytes, percent
from fedsprig_sim.result import ARMS, ArmName, GroupKept, Result, TaskRecord


def dots(result: Result) -> Markup:
    """Every task as a row on one scale of accuracy, with a dot for each arm after fine-tuning."""
    left, right, row, top = 190, 18, 30, 8
    width, height = 1000, top + row * len(result.tasks) + 34
    values = [v for task in result.tasks for v in task.accuracy.values() if v is not None]
    low, high, ticks = _scale(values)

    def x(value: float) -> float:
        return left + (width - left - right) * (value - low) / (high - low)

    parts = [
        f'<line class="grid" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{top}" y2="{height - 28}"/>'
        f'<text class="tick" x="{x(t):.1f}" y="{height - 10}" text-anchor="middle">'
        f"{percent(t, 0)} %</text>"
        for t in ticks
    ]
    for number, task in enumerate(result.tasks):
        y = top + row * (number + 0.5)
        shown = {arm: v for arm, v in task.accuracy.items() if v is not None}
        ends = min(shown.values()), max(shown.values())
        parts.append(
            f'<text class="label" x="{left - 14}" y="{y + 4.5:.1f}" text-anchor="end">'
            f"{escape(_short(task.name, 24))}</text>"
            f'<line class="rail" x1="{x(ends[0]):.1f}" x2="{x(ends[1]):.1f}" y1="{y}" y2="{y}"/>'
        )
        # The one-shot dot is drawn last and lies on top.
        for arm in reversed(ARMS):
            if arm in shown:
                parts.append(_mark(arm, x(shown[arm]), y))
    return _svg(width, height, parts, "Accuracy of every task after fine-tuning, by arm")


def curves(task: TaskRecord) -> Markup:
    """Accuracy after the cut and after every round, a line for each arm."""
    width, height, left, right, top, bottom = 560, 300, 46, 126, 12, 36
    steps = max(len(arm.curve) for arm in task.arms.values())
    low, high, ticks = _scale([v for arm in task.arms.values() for v in arm.curve])

    def x(step: int) -> float:
        return left + (width - left - right) * step / max(1, steps - 1)

    def y(value: float) -> float:
        return top + (height - top - bottom) * (high - value) / (high - low)

    parts = [
        f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text class="tick" x="{left - 8}" y="{y(t) + 4:.1f}" text-anchor="end">'
        f"{percent(t, 0)} %</text>"
        for t in ticks
    ]
    every = max(1, math.ceil((steps - 1) / 8))
    for step in range(steps):
        if step % every and step != steps - 1:
            continue
        name = "after cut" if step == 0 else f"round {step}" if step == 1 else str(step)
        anchor = "start" if step == 0 else "middle"
        parts.append(
            f'<text class="tick" x="{x(step) - 12 * (step == 0):.1f}" y="{height - 12}" '
            f'text-anchor="{anchor}">{name}</text>'
        )
    shown = [arm for arm in reversed(ARMS) if arm in task.arms]
    for arm in shown:
        curve = task.arms[arm].curve
        points = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in enumerate(curve))
        parts.append(f'<polyline class="line {arm}" points="{points}"/>')
        parts += [_mark(arm, x(i), y(v)) for i, v in enumerate(curve)]
    ends = {arm: task.arms[arm].curve[-1] for arm in shown}
    places = _spread({arm: y(value) for arm, value in ends.items()}, gap=17, low=top, high=height)
    for arm, place in places.items():
        end = len(task.arms[arm].curve) - 1
        parts.append(
            f'<text class="end {arm}" x="{x(end) + 11:.1f}" y="{place + 4:.1f}">'
            f"{percent(ends[arm])} {ARM_TITLES[arm]}</text>"
        )
    return _svg(width, height, parts, f"Accuracy of task {task.name} over the rounds")


def byte_bars(task: TaskRecord) -> Markup:
    """What crosses the network for one device, beside the whole base model."""
    rows = [
        ("whole base model", task.base_bytes, "base"),
        ("down: probe", task.download.probe, "down"),
        ("down: sub-network", task.download.sub_network, "down"),
        ("down: adapters, in all", task.download.rounds, "down"),
        ("up: one update", task.update_bytes, "up"),
    ]
    if task.download.pruning:
        rows.insert(-1, ("down: for pruning", task.download.pruning, "down"))
    width, left, row, bar = 560, 186, 32, 14
    room = width - left - 148
    longest = max(count for _, count, _ in rows) or 1
    parts = []
    for number, (name, count, kind) in enumerate(rows):
        y = row * number + (row - bar) / 2
        length = max(1.5, room * count / longest) if count else 0
        share = "" if kind == "base" else _share(count, task.base_bytes)
        parts.append(
            f'<text class="label" x="{left - 12}" y="{y + 11.5}" text-anchor="end">{name}</text>'
            f'<rect class="bar {kind}" x="{left}" y="{y}" width="{length:.1f}" height="{bar}"/>'
            f'<text class="value" x="{left + length + 8:.1f}" y="{y + 11.5}">{human_bytes(count)}'
            f'<tspan class="muted" dx="6">{share}</tspan></text>'
        )
    return _svg(width, row * len(rows), parts, f"Bytes for one device of task {task.name}")


def strip(group: GroupKept) -> Markup:
    """The units of a group from first to last: filled where kept."""
    kept = group.unpack()
    # Up to 160 cells keep a gap between them; beyond that they would be finer than a pixel.
    gap = 0.18 if group.units <= 160 else 0.0
    path = "".join(
        f"M{start + gap / 2:g} 0h{length - gap:g}v1h-{length - gap:g}z"
        for start, length in (_cells(kept) if gap else _runs(kept))
    )
    return Markup(  # noqa: S704
        f'<svg class="strip" viewBox="0 0 {group.units} 1" preserveAspectRatio="none" '
        f'role="img" aria-label="{sum(kept)} of {group.units} units kept">'
        f'<path class="kept" d="{path}"/></svg>'
    )


def _cells(kept: Sequence[bool]) -> list[tuple[int, int]]:
    return [(unit, 1) for unit, keep in enumerate(kept) if keep]


def _runs(kept: Sequence[bool]) -> list[tuple[int, int]]:
    """Start and length of every run of kept units."""
    runs: list[tuple[int, int]] = []
    for unit, _ in _cells(kept):
        if runs and sum(runs[-1]) == unit:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((unit, 1))
    return runs


def _mark(arm: ArmName, x: float, y: float) -> str:
    """A mark whose form says the arm as well as its colour does."""
    if arm == "one_shot":
        return f'<circle class="mark {arm}" cx="{x:.1f}" cy="{y:.1f}" r="5.2"/>'
    if arm == "magnitude":
        return f'<rect class="mark {arm}" x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"/>'
    if arm == "random":
        points = f"{x - 5:.1f},{y + 4:.1f} {x + 5:.1f},{y + 4:.1f} {x:.1f},{y - 5:.1f}"
        return f'<polygon class="mark {arm}" points="{points}"/>'
    return f'<circle class="mark {arm}" cx="{x:.1f}" cy="{y:.1f}" r="4.2"/>'


def legend(arms: Sequence[ArmName]) -> Markup:
    """The marks and names of the arms."""
    items = "".join(
        f'<li><svg width="14" height="14" viewBox="0 0 14 14" aria-hidden="true">{_mark(arm, 7, 7)}'
        f"</svg>{ARM_TITLES[arm]}</li>"
        for arm in arms
    )
    return Markup(f'<ul class="legend">{items}</ul>')  # noqa: S704


def _svg(width: float, height: float, parts: Sequence[str], title: str) -> Markup:
    return Markup(  # noqa: S704
        f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )


def _scale(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Ends and ticks of an axis of accuracies: round numbers, at most seven, around all values.

    It spans ten points at least, so that no small difference looks like a large one.
    """
    low, high = min(values), max(values)
    span = max(0.1, high - low)
    low = min(max(0.0, (low + high - span) / 2), 1 - span)
    high = low + span
    for step in (0.02, 0.05, 0.1, 0.2):
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first <= 6:
            break
    last = max(last, first + 1)
    return first * step, last * step, [i * step for i in range(first, last + 1)]


def _spread(
    places: dict[ArmName, float], *, gap: float, low: float, high: float
) -> dict[ArmName, float]:
    """Move labels apart until they do not touch, in their order, as little as it takes."""
    order = sorted(places, key=lambda arm: places[arm])
    moved = [places[arm] for arm in order]
    for _ in range(50):
        for i in range(len(moved) - 1):
            overlap = gap - (moved[i + 1] - moved[i])
            if overlap > 1e-6:
                moved[i] -= overlap / 2
                moved[i + 1] += overlap / 2
        moved[0] = max(moved[0], low)
        moved[-1] = min(moved[-1], high)
    return dict(zip(order, moved, strict=True))


def _share(count: int, whole: int) -> str:
    """``1/214`` for small parts, ``31 %`` for large ones."""
    if not count or not whole:
        return ""
    return f"1/{whole / count:,.0f}" if count * 10 < whole else f"{100 * count / whole:.0f} %"


def _short(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
