"""The methods that fill a library, and their settings, as an operator reads and writes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from types import UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from fedsprig.errors import BudgetError, UnknownNameError
from fedsprig.pruning import PRUNERS, OneShot, Pruner
from fedsprig.pruning.sized import SizedPruner
from fedsprig.scoring import SCORERS
from fedsprig.spelling import lookup, unknown

FIXED: Final = ("criterion", "options", "label")
"""What makes a method in one shot the one that it is called."""


def summaries() -> dict[str, str]:
    """Every method's name and what it does, in a line."""
    found = {}
    for name, pruner in PRUNERS.items():
        if isinstance(pruner, OneShot):
            options = "".join(f" ({key} = {value:g})" for key, value in pruner.options)
            found[name] = f"In one shot{options}. {_first_line(SCORERS[pruner.criterion])}"
        else:
            found[name] = _first_line(type(pruner))
    return found


def defaults(method: str) -> dict[str, str]:
    """A method's settings and their defaults, as ``--set`` takes them.

    Args:
        method: A name in ``PRUNERS``.

    Raises:
        UnknownNameError: No such method.
    """
    written = _written(lookup(PRUNERS, method, "method"))
    shared = {field.name for field in fields(SizedPruner)}
    # What is particular to the method comes first.
    return dict(sorted(written, key=lambda pair: pair[0].partition(".")[0] in shared))


def configured(method: str, options: Mapping[str, str]) -> Pruner:
    """A method with some settings changed, as an operator writes them.

    Args:
        method: A name in ``PRUNERS``.
        options: Texts by setting; ``training.epochs`` is the setting of a setting.

    Raises:
        UnknownNameError: No such method or setting.
        BudgetError: A text that the setting cannot be read from.
    """
    pruner: Pruner = changed(lookup(PRUNERS, method, "method"), options, method)
    return pruner


def _first_line(documented: Any) -> str:
    line: str = (documented.__doc__ or "").strip().splitlines()[0]
    return line.replace("``", "")


def _written(settings: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.name in FIXED:
            continue
        if is_dataclass(value):
            yield from _written(value, f"{prefix}{field.name}.")
        elif isinstance(value, tuple):
            yield prefix + field.name, ",".join(map(str, value))
        elif isinstance(value, bool) or value is None:
            yield prefix + field.name, str(value).lower()
        else:
            yield prefix + field.name, str(value)


def changed(settings: Any, options: Mapping[str, str], owner: str) -> Any:
    """Settings with all options at once, since one may be right only beside another.

    Args:
        settings: A frozen dataclass.
        options: As in :func:`configured`.
        owner: Whose settings they are, for messages.

    Raises:
        UnknownNameError: No such setting.
        BudgetError: A text that a setting cannot be read from.
    """
    names = [field.name for field in fields(settings)]
    kinds = get_type_hints(type(settings))
    changes: dict[str, Any] = {}
    inner: dict[str, dict[str, str]] = {}
    for key, text in options.items():
        name, _, rest = key.partition(".")
        if name not in names:
            raise UnknownNameError(unknown(f"setting of {owner}", name, names))
        before = getattr(settings, name)
        if is_dataclass(before) and rest:
            inner.setdefault(name, {})[rest] = text
            continue
        if rest or is_dataclass(before) or name in FIXED:
            names = [key for key, _ in _written(settings)]
            raise UnknownNameError(unknown(f"setting of {owner}", key, names))
        try:
            changes[name] = _read(kinds[name], text)
        except ValueError:
            raise BudgetError(
                f"the setting {key}={text!r:.40} cannot be read: write {_wanted(kinds[name])}"
            ) from None
    for name, some in inner.items():
        changes[name] = changed(getattr(settings, name), some, f"{owner}'s {name}")
    return replace(settings, **changes)


def _wanted(kind: Any) -> str:
    """What a setting of a type may be, in words."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    if kind is type(None):
        return "none"
    if get_origin(kind) is Literal:
        return ", ".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return f"{_wanted(get_args(kind)[0])}, or several with commas between"
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_wanted(part) for part in get_args(kind))
    return words.get(kind, str(kind))


def _read(kind: Any, text: str) -> Any:
    """A text as a value of a type: of a union the first that fits, ``none`` where it has None.

    Raises:
        ValueError: It is of none of them.
    """
    if kind is type(None):
        if text == "none":
            return None
        raise ValueError(text)
    if kind is bool:
        if text in ("true", "false"):
            return text == "true"
        raise ValueError(text)
    if kind in (int, float, str):
        return kind(text)
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        if text in parts:
            return text
        raise ValueError(text)
    if get_origin(kind) is tuple:
        return tuple(_read(parts[0], part) for part in text.split(",") if part)
    if get_origin(kind) in (Union, UnionType):
        # None first: everything is a text too.
        for part in sorted(parts, key=lambda part: part is not type(None)):
            with suppress(ValueError):
                return _read(part, text)
    raise ValueError(text)
