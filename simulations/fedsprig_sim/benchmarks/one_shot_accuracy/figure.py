"""The study as a drawing: every arm on one scale of accuracy, from the cut to the last step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from markupsafe import escape

_STYLE: Final = (
    "text{font:13px system-ui,sans-serif;fill:#24292f}"
    ".tick{fill:#57606a;font-size:12px}"
    ".grid{stroke:#d0d7de}.rail{stroke:#afb8c1;stroke-width:2}"
    ".first{fill:#fff;stroke:#1f6f54;stroke-width:2}"
    ".last{fill:#1f6f54}"
)
_LEFT, _RIGHT, _ROW, _TOP, _WIDTH = 210, 24, 28, 40, 900


def figure(figures: Mapping[str, Any]) -> str:
    """A stand-alone SVG of the means of :func:`run`'s figures.

    Each arm is a row: an open mark right after the cut, a full one after fine-tuning.

    Args:
        figures: Of :func:`fedsprig_sim.benchmarks.one_shot_accuracy.run`.
    """
    looks = [str(steps) for steps in figures["looks"]]
    rows = {arm: found["accuracy"] for arm, found in figures["summary"].items()}
    values = [value for accuracy in rows.values() for value in accuracy.values()]
    low, high = math.floor(10 * min(values)) / 10, math.ceil(10 * max(values)) / 10
    high = max(high, low + 0.1)
    height = _TOP + _ROW * len(rows) + 34

    def x(value: float) -> float:
        return float(_LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - low) / (high - low))

    parts = []
    for tenth in range(round(10 * low), round(10 * high) + 1):
        at = x(tenth / 10)
        parts.append(
            f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP - 6}" y2="{height - 30}"/>'
            f'<text class="tick" x="{at:.1f}" y="{height - 12}" text-anchor="middle">'
            f"{10 * tenth} %</text>"
        )
    kinds = ("first", "last")[-len(looks) :]
    for number, (arm, accuracy) in enumerate(rows.items()):
        y = _TOP + _ROW * (number + 0.5)
        seen = [x(value) for value in accuracy.values()]
        parts.append(
            f'<text x="{_LEFT - 14}" y="{y + 4.5:.1f}" text-anchor="end">{escape(arm)}</text>'
            f'<line class="rail" x1="{min(seen):.1f}" x2="{max(seen):.1f}" y1="{y}" y2="{y}"/>'
        )
        parts += [
            f'<circle class="{kind}" cx="{x(accuracy[look]):.1f}" cy="{y}" r="5"/>'
            for look, kind in zip(looks, kinds, strict=True)
            if look in accuracy
        ]
    for place, (look, kind) in enumerate(zip(looks, kinds, strict=True)):
        at = _LEFT + 150 * place
        words = "right after the cut" if look == "0" else f"after {look} steps"
        parts.append(
            f'<circle class="{kind}" cx="{at}" cy="16" r="5"/><text x="{at + 12}" y="20">'
            f"{words}</text>"
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="Mean accuracy of every arm"><style>{_STYLE}</style>'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )
