"""Units that still fit below a hard limit, after those that came first in one order of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from fedsprig.masks.bits import Bools


def filled(
    values: Mapping[str, NDArray[np.floating]],
    drop: Mapping[str, Bools],
    fits: Callable[[dict[str, Bools]], bool],
) -> dict[str, Bools]:
    """What goes once the units that still fit are taken back, one after the other.

    A mask that ends where the next unit is too large (one of a residual stream, say) leaves room
    for units of cheaper groups.

    Args:
        values: of every unit by group, comparable over all groups; the highest is taken back first,
            of equal ones the first.
        drop: True = goes; without these units the network fits.
        fits: whether it fits without some units; follows from how many of each group stay, and
            never from no to yes where one more does.
    """
    found = {name: units.copy() for name, units in drop.items()}
    gone = [
        (-float(values[name][unit]), order, int(unit), name)
        for order, (name, units) in enumerate(drop.items())
        for unit in np.flatnonzero(units)
    ]
    full: set[str] = set()
    for _, _, unit, name in sorted(gone):
        if name in full:
            continue
        found[name][unit] = False
        if not fits(found):
            found[name][unit] = True
            full.add(name)  # its other units are as large
    return found
