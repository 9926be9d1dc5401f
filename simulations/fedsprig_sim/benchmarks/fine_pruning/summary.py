"""Means, standard errors and the two claims, as plain data and as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

RIVAL = "fine-pruning"
COUNTS = ("trained", "parameters", "macs", "filters")

Measured = Mapping[str, Sequence[Mapping[float, Mapping[str, Any]]]]
"""Arm -> one for every seed: density -> figures."""


def spread(values: Sequence[float]) -> dict[str, Any]:
    """The values, their mean and its standard error, which a single value does not have."""
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"values": list(values), "mean": mean(values), "standard_error": error}


def summarise(measured: Measured) -> dict[str, dict[str, Any]]:
    """Arm -> density -> figures over the seeds.

    Beside an exact ``fine-pruning``, every arm at every density also has its difference in accuracy
    (the same seed subtracted from the same seed: both saw the same pictures in the same order) and
    its share of the parameters that train.
    """
    arms = {}
    for name, runs in measured.items():
        arms[name] = {
            f"{density:g}": _figures([run[density] for run in runs]) for density in runs[0]
        }
    for name, densities in arms.items():
        for density, figures in densities.items():
            rival = arms.get(RIVAL, {}).get(density)
            if rival is None or name == RIVAL:
                continue
            pairs = zip(figures["accuracy"]["values"], rival["accuracy"]["values"], strict=True)
            figures["difference"] = spread([own - other for own, other in pairs])
            figures["trained_ratio"] = figures["trained"] / rival["trained"]
    return arms


def _figures(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    figures: dict[str, Any] = {"accuracy": spread([run["accuracy"] for run in runs])}
    figures |= {count: mean(run[count] for run in runs) for count in COUNTS}
    if all("leak" in run for run in runs):
        figures["leak"] = {
            what: spread([run["leak"][what] for run in runs]) for what in runs[0]["leak"]
        }
    return figures


def table(arms: Mapping[str, Mapping[str, Any]]) -> str:
    """Lines of text: what :func:`summarise` found, the whole network first."""
    lines = [
        f"{'filters':>8} {'arm':<22} {'accuracy':>14} {'trained':>10} {'of fine-p.':>10} "
        f"{'difference':>14} {'once cut':>14}"
    ]
    for density in next(iter(arms.values())):
        for name, densities in arms.items():
            figures = densities[density]
            ratio = figures.get("trained_ratio")
            lines.append(
                f"{100 * float(density):>6.0f} % {name:<22} {_percent(figures['accuracy']):>14} "
                f"{figures['trained']:>10,.0f} {f'1/{1 / ratio:.1f}' if ratio else '':>10} "
                f"{_percent(figures.get('difference'), '+'):>14} "
                f"{_percent(figures.get('leak', {}).get('accuracy_once_cut')):>14}"
            )
    return "\n".join(lines)


def _percent(values: Mapping[str, Any] | None, sign: str = "") -> str:
    if values is None:
        return ""
    text = f"{100 * values['mean']:{sign}.1f}"
    error = values["standard_error"]
    return text if error is None else f"{text} ± {100 * error:.1f}"
