"""Checks of a user's choices: a name in a table, one of several values, a number in a range; errors that help."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

Value = TypeVar("Value")
LARGEST = 2**31 - 1  # of what is counted: images, steps


class UnknownName(ValueError):
    """A name that is not in the table; the message lists the names of the table and suggests the nearest."""


def nearest(name: str, names: Iterable[str]) -> str:
    """Return a clause like " (did you mean 'dgh'?)", or an empty string if no name is similar."""
    matches = get_close_matches(name.lower(), list(names), n=1, cutoff=0.5)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def look_up(table: Mapping[str, Value], name: str, kind: str) -> Value:
    """Return `table[name]`; `kind` describes the names for the error.

    Raises:
        UnknownName: `name` is not in the table; the message suggests the nearest and lists all.
    """
    if name not in table:
        raise UnknownName(f"unknown {kind} {name!r}{nearest(name, table)}; there are: {', '.join(table)}")
    return table[name]


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Raise ValueError unless `value`, of the setting `name`, is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_at_least(minimum: int, name: str, value: object) -> None:
    """Raise unless `value`, of the setting `name`, is a whole number of at least `minimum`, and of 31 bits at most.

    Raises:
        TypeError: `value` is not an int.
        ValueError: `value` is smaller, or larger than what torch counts by everywhere.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {value!r} of type {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    if value > LARGEST:
        raise ValueError(f"{name} must be at most {LARGEST}, got {value}")


def whole(kind: Any, tokens: Sequence[Any]) -> int:
    """Return the whole number that a word of the command line says: 1.9 is none.

    Raises:
        ValueError: it says something else.
    """
    text = tokens[0].value
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is no whole number") from None


def check_between(low: float, high: float, name: str, value: object) -> None:
    """Raise unless `value`, of the setting `name`, is a number from `low` to `high`, both included.

    Raises:
        TypeError: `value` is not a number.
        ValueError: `value` is outside.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low:g} to {high:g}, got {value}")


def check_types(config: Any) -> None:
    """Raise unless the settings of a dataclass have the types of their fields: "no" is no bool, and 1.9 is no int.

    Raises:
        TypeError: a setting has another type.
        ValueError: a setting is NaN, infinite, or not among the choices of a `Literal`.
    """
    hints = get_type_hints(type(config))
    for setting in (each for each in fields(config) if each.init):
        _check_type(setting.name, getattr(config, setting.name), hints[setting.name])


def _check_type(name: str, value: object, hint: Any) -> None:
    if get_origin(hint) is Literal:
        check_choice(name, value, get_args(hint))
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    wanted = next((kind for kind in (bool, int, float) if kind in kinds), None)
    if wanted is None or (value is None and NoneType in kinds) or (type(value) is str and str in kinds):
        return
    known: tuple[type, ...] = (int, float) if wanted is float else (wanted,)
    if type(value) not in known:
        what = {bool: "True or False", int: "a whole number", float: "a number"}[wanted]
        raise TypeError(f"{name} must be {what}, got {value!r} of type {type(value).__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
