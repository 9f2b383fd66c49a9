"""The settings of methods: read from NAME=VALUE words, with the types of their fields, and listed."""

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from dghlib.choices import look_up
from dghlib.generators import GENERATORS
from dghlib.quantizers import QUANTIZERS, presets_of

METHODS = GENERATORS | QUANTIZERS


def show(method: Annotated[str, Parameter(help=f"one of: {', '.join(METHODS)}")], /) -> None:
    """Print the settings of a method with their defaults and meanings, and its presets."""
    module = look_up(METHODS, method, "method")
    print((module.__doc__ or "").partition("\n")[0])
    meanings = _meanings(module.Config)
    for field in _fields(module.Config):
        print(f"  {field.name} = {field.default}")
        if field.name in meanings:
            print(f"      {meanings[field.name]}")
    for name, config in (module.PRESETS if method in GENERATORS else presets_of(module)).items():
        changed = (field.name for field in _fields(config) if getattr(config, field.name) != field.default)
        others = ", ".join(f"{each} = {getattr(config, each)}" for each in changed)
        print(f"preset {name}: {others or 'the defaults'}")


def _fields(config: Any) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(config) if field.init]


def _meanings(config: type) -> dict[str, str]:
    """Return the descriptions of settings, base classes included, from "Args:" of docstrings or comments on fields."""
    found: dict[str, str] = {}
    for each in reversed(config.__mro__[:-1]):
        listed = inspect.cleandoc(each.__doc__ or "").partition("Args:\n")[2]
        for above, name, beside in re.findall(
            r"^(?:    # (.*)\n)?    (\w+): [^#\n]*(?:# (.*))?$", inspect.getsource(each), flags=re.MULTILINE
        ):
            found |= {name: beside or above} if beside or above else {}
        for names, meaning in re.findall(r"^    (\w[\w, ]*): (.*(?:\n      .*)*)", listed, flags=re.MULTILINE):
            found |= dict.fromkeys(names.split(", "), " ".join(meaning.split()))
    return found


def parse_settings(config: Any, assignments: Sequence[str]) -> dict[str, Any]:
    """Return `name=value` words as settings of a Config, each with the type of its field.

    A list of words is separated by commas, or is the name of a text file with one word per line.

    Raises:
        ValueError: there is no such setting (the message suggests the nearest), or its value has the wrong type.
    """
    types_of = typing.get_type_hints(type(config))
    hints = {field.name: types_of[field.name] for field in dataclasses.fields(config) if field.init}
    settings = {}
    for word in assignments:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"cannot read the setting {word!r}; write name=value")
        settings[name] = _parsed(name, value, look_up(hints, name, f"setting of {type(config).__module__}"))
    return settings


def _parsed(name: str, value: str, hint: Any) -> Any:
    """Return `value` as the first type of `hint` that can read it."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Literal:
        kinds: tuple[Any, ...] = typing.get_args(hint)
    else:
        kinds = (hint,)
    if type(None) in kinds and value.lower() == "none":
        return None
    for kind in kinds:
        if typing.get_origin(kind) is tuple:
            return tuple(Path(value).read_text().splitlines() if Path(value).is_file() else value.split(","))
        if kind is bool and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if kind in (int, float, str):
            try:
                return kind(value)
            except ValueError:
                continue
        if value == str(kind):  # a literal
            return kind
    raise ValueError(f"{name} cannot be {value!r}; it takes {' or '.join(_type_name(kind) for kind in kinds)}")


def _type_name(kind: Any) -> str:
    if kind is type(None):
        return "none"
    return kind.__name__ if isinstance(kind, type) else repr(kind)
