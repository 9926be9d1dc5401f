"""Options of the form ``NAME=VALUE``, repeated."""

from __future__ import annotations

from collections.abc import Sequence

import typer


def pairs(
    items: Sequence[str], option: str, *, form: str = "NAME=VALUE", empty: bool = False
) -> dict[str, str]:
    """Texts by name.

    Args:
        items: As they were given.
        option: What they were given to, for messages.
        form: What each looks like, for messages.
        empty: Whether a value may be empty.

    Raises:
        typer.BadParameter: One of another form, or a name that is given twice.
    """
    found: dict[str, str] = {}
    for item in items:
        name, sign, value = item.partition("=")
        if not (name and sign and (value or empty)):
            raise typer.BadParameter(f"{item!r} is not of the form {form}", param_hint=option)
        if name in found:
            raise typer.BadParameter(f"{name!r} is given twice", param_hint=option)
        found[name] = value
    return found
