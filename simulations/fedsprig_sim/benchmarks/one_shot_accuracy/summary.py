"""Means over pairs of task and seed, paired differences, and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_FLIPS: Final = 20_000
Cases = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Difference:
    """One arm minus another, over the pairs of task and seed that both have.

    Tasks of the same classes are near repetitions of one another (other cameras, other pictures),
    so that error and p are over sets of classes, each with the mean of its pairs.

    Attributes:
        mean: Over all pairs, in shares of 1.
        error: Standard error of the mean over sets of classes; ``None`` for a single set.
        pairs: Tasks and seeds.
        sets: Sets of classes.
        better: Share of the pairs in which the arm is ahead; ties count half.
        p: Two-sided, by flipping the signs of the sets at random.
    """

    mean: float
    error: float | None
    pairs: int
    sets: int
    better: float
    p: float | None


@dataclass(frozen=True, slots=True)
class Pair:
    """An arm's accuracy on a task of a seed.

    Attributes:
        accuracy: In shares of 1.
        classes: What names its set of classes.
    """

    accuracy: float
    classes: str


def accuracies(cases: Cases, arm: str, steps: int) -> dict[str, Pair]:
    """Task and seed -> what an arm reached after so many steps."""
    return {
        f"{case['task']}@{case['seed']}": Pair(
            case["accuracy"][str(steps)], " ".join([case["domain"], *case["classes"]])
        )
        for case in cases
        if case["arm"] == arm and str(steps) in case["accuracy"]
    }


def difference(own: Mapping[str, Pair], other: Mapping[str, Pair]) -> Difference | None:
    """Paired by task and seed; ``None`` where they share none."""
    shared = sorted(own.keys() & other.keys())
    if not shared:
        return None
    values = np.array([own[key].accuracy - other[key].accuracy for key in shared])
    sets: dict[str, list[float]] = {}
    for key, value in zip(shared, values.tolist(), strict=True):
        sets.setdefault(own[key].classes, []).append(value)
    means = np.array([mean(found) for found in sets.values()])
    better = float((values > 0).mean() + (values == 0).mean() / 2)
    error = stdev(means.tolist()) / math.sqrt(len(means)) if len(means) > 1 else None
    return Difference(
        float(values.mean()), error, len(values), len(means), better, _sign_flip_p(means)
    )


def _sign_flip_p(values: NDArray[np.float64]) -> float | None:
    """How often random signs give a mean as far from zero: no normal distribution is assumed."""
    if len(values) < 2:
        return None
    signs = np.random.default_rng(0).choice((-1.0, 1.0), (_FLIPS, len(values)))
    found = np.abs(signs @ values) >= abs(values.sum()) - 1e-12
    return float((found.sum() + 1) / (_FLIPS + 1))


def summarise(cases: Cases, looks: Sequence[int]) -> dict[str, Any]:
    """Arm -> figures: mean accuracy at every look, and differences from every other arm.

    Args:
        cases: What was measured.
        looks: Steps after which accuracy was.
    """
    arms = list(dict.fromkeys(case["arm"] for case in cases))
    found: dict[str, Any] = {}
    for arm in arms:
        own = {steps: accuracies(cases, arm, steps) for steps in looks}
        found[arm] = {
            "pairs": len(own[looks[-1]]),
            "accuracy": {
                str(steps): mean(pair.accuracy for pair in pairs.values())
                for steps, pairs in own.items()
                if pairs
            },
            "against": {
                other: {
                    str(steps): asdict(seen)
                    for steps in looks
                    if (seen := difference(own[steps], accuracies(cases, other, steps)))
                }
                for other in arms
                if other != arm
            },
            "macs": mean(case["macs"] for case in cases if case["arm"] == arm),
            "compute_before": mean(case["compute_before"] for case in cases if case["arm"] == arm),
        }
    return found


def table(summary: Mapping[str, Any], looks: Sequence[int], against: Sequence[str]) -> str:
    """Lines of text: mean accuracy in per cent, differences in points with standard errors.

    Args:
        summary: From :func:`summarise`.
        looks: Steps.
        against: Arms that the differences after the last look are from.
    """
    last = str(looks[-1])
    others = [other for other in against if other in summary]
    head = f"{'arm':<26} {'pairs':>5} " + " ".join(f"{f'{s} steps':>9}" for s in looks)
    lines = [head + "".join(f"  {'- ' + other:>22}" for other in others)]
    for arm, figures in summary.items():
        shown = [figures["accuracy"].get(str(steps)) for steps in looks]
        line = f"{arm:<26} {figures['pairs']:>5} " + " ".join(
            f"{'' if value is None else f'{100 * value:.1f}':>9}" for value in shown
        )
        for other in others:
            seen = figures["against"].get(other, {}).get(last)
            line += f"  {'' if seen is None else _points(seen):>22}"
        lines.append(line)
    return "\n".join(lines)


def _points(seen: Mapping[str, Any]) -> str:
    error = seen["error"]
    text = f"{100 * seen['mean']:+.1f}"
    if error is not None:
        text += f" ± {100 * error:.1f}"
    return f"{text} ({100 * seen['better']:.0f} %)"
