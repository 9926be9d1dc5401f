"""What to say about a name that nobody knows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LISTED = 20


def unknown(what: str, name: str, known: Iterable[str], *, place: str = "") -> str:
    """``unknown data 'fashon': did you mean 'fashion'?``, or some of the names where none is near.

    Args:
        what: What the name is of.
        name: The name.
        known: All names that there are.
        place: What is shown in the name's stead, such as a key with its section.
    """
    known = list(known)
    shown = place or repr(name)
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"unknown {what} {shown}: did you mean {near[0]!r}?"
    return f"unknown {what} {shown}: there is {', '.join(known[:_LISTED]) or 'none'}"
