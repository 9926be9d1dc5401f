"""What to say about names: one that nobody knows, and many at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Final, TypeVar

from fedsprig.errors import FedsprigError, UnknownNameError

_LISTED: Final = 20
_LONGEST: Final = 80  # characters of a name that may come from a file or a message
# Enough for a name without its family ("resnet50" for "torchvision/resnet50").
_CUTOFF: Final = 0.5

_Value = TypeVar("_Value")


def unknown(what: str, name: str, known: Iterable[str], *, place: str = "", most: int = 1) -> str:
    """``unknown data 'fashon': did you mean 'fashion'?``, or some of the names where none is near.

    Args:
        what: What the name is of.
        name: The name.
        known: All names that there are.
        place: What is shown in the name's stead, such as a key with its section.
        most: How many near names are offered.
    """
    known = [item for item in known if item]
    shown = place or f"{name!r:.{_LONGEST}}"
    near = difflib.get_close_matches(name[:_LONGEST], known, n=most, cutoff=_CUTOFF)
    if near:
        return f"unknown {what} {shown}: did you mean {' or '.join(map(repr, near))}?"
    more = ", ..." if len(known) > _LISTED else ""
    return f"unknown {what} {shown}: there is {', '.join(known[:_LISTED]) or 'none'}{more}"


def some(names: Iterable[str]) -> str:
    """``a, b, c and 4 more`` in alphabetical order, or ``nothing``."""
    ordered = sorted(names)
    first = ", ".join(ordered[:3])
    return f"{first} and {len(ordered) - 3} more" if len(ordered) > 3 else first or "nothing"


def lookup(
    registry: Mapping[str, _Value],
    name: str,
    what: str,
    *,
    error: type[FedsprigError] = UnknownNameError,
) -> _Value:
    """What a registry has under a name.

    Args:
        registry: All that there is, by name.
        name: The name.
        what: What the registry's names are of, for the message.
        error: What is raised where there is none.

    Raises:
        UnknownNameError: The registry has no such name (or ``error``, where that is given).
    """
    if name not in registry:
        raise error(unknown(what, name, registry))
    return registry[name]
