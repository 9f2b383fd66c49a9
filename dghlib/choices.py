"""Look a name up in a table, with an error that helps when it is not there."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

Value = TypeVar("Value")


class UnknownName(ValueError):
    """A name that is in no table: the message lists the names that are, nearest first."""


def nearest(name: str, names: Iterable[str]) -> str:
    """Return a clause like " (did you mean 'dgh'?)", or an empty string when nothing is near."""
    matches = get_close_matches(name.lower(), list(names), n=1, cutoff=0.5)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def look_up(table: Mapping[str, Value], name: str, kind: str) -> Value:
    """Return `table[name]`; `kind` says what the names are, for the error.

    Raises:
        UnknownName: `name` is not in the table; the message suggests the nearest and lists all.
    """
    if name not in table:
        raise UnknownName(f"unknown {kind} {name!r}{nearest(name, table)}; there are: {', '.join(table)}")
    return table[name]
