"""Frozen dataclasses from JSON and TOML by the types of their fields, and back again.

The types are those of records and configurations: dataclasses, lists, tuples, dictionaries,
unions, `Literal`, bool, int, float and str; `Any` takes everything. Written here, and not taken
from a library, for two things that validators do otherwise: a record may hold named fields and any
number of figures side by side (`rest`), and the text of a `--set` spells numbers and lists but
neither `yes` for true nor `2.0` for 2.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar

T = TypeVar("T")
INTEGER_BITS = 63  # of a whole number, its sign aside: torch and other readers of JSON know no more
ECHO_CHARACTERS = 40  # of a value that is not what it should be


class Misfit(ValueError):
    """A value that is not of its type.

    `where` is its path (`log[2].dev`; empty: the whole), `expected` the words for its type.
    """

    def __init__(self, where: str, value: Any, expected: str, message: str | None = None):
        self.where, self.value, self.expected = where, value, expected
        echo = json.dumps(value, default=str)[:ECHO_CHARACTERS]
        super().__init__(message or f"{where or 'it'} is {echo}, expected {expected}")


def rest() -> Any:
    """A field for all keys of the object that have no field of their own."""
    return field(default_factory=dict, metadata={"rest": True})


def optional() -> Any:
    """A field that is left out of the file where it is None."""
    return field(default=None, metadata={"optional": True})


def added(default: Any) -> Any:
    """A field of a later mer: left out of the file at its default, so that what was written before
    keeps its text and its hash.
    """
    metadata = {"added": default}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


def convert(kind: Any, value: Any, where: str = "", *, spelled: bool = False) -> Any:
    """`value` as `kind`.

    Args:
        kind: A type as it stands at a field.
        value: Of JSON or TOML.
        where: Its path, for the message.
        spelled: Text may spell a number, a list, true and false, or none, and a whole number
            becomes a float where one is wanted; otherwise each value stays as it is.

    Returns:
        The value. Keys that a dataclass has no field for are left out.

    Raises:
        Misfit: It is something else.

    >>> convert(tuple[int, ...], [1, 2]), convert(float | None, "0.5", spelled=True)
    ((1, 2), 0.5)
    >>> convert(dict[str, list[int]], {"a": [1, "x"]})
    Traceback (most recent call last):
    mer.fusion.runtime.typed.Misfit: a[1] is "x", expected a whole number
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and is_dataclass(kind):
        return _record(kind, value, where, spelled)
    if origin in (typing.Union, types.UnionType):
        return _one_of(args, value, where, spelled)
    if origin is Literal:
        return _literal(args, value, where, spelled)
    if origin in (tuple, list):
        return origin(_items(origin, args, value, where, spelled))
    if kind is dict or origin is dict:
        return _table(args, value, where, spelled)
    return SCALARS[kind](value, where, spelled) if kind in SCALARS else value


def tree(value: Any) -> Any:
    """The JSON values of a record: what `convert` makes a record of again."""
    if is_dataclass(value) and not isinstance(value, type):
        made: dict[str, Any] = {}
        for f in fields(value):
            inner = getattr(value, f.name)
            if f.metadata.get("rest"):
                made.update(tree(inner))
            elif "added" in f.metadata and inner == f.metadata["added"]:
                continue
            elif inner is not None or not f.metadata.get("optional"):
                made[f.name] = tree(inner)
        return made
    if isinstance(value, Mapping):
        return {key: tree(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [tree(inner) for inner in value]
    return value


@cache
def hints(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields."""
    return typing.get_type_hints(kind)


def below(where: str, key: str) -> str:
    """The path of `key` in the object at `where`."""
    return f"{where}.{key}" if where else key


def _record(kind: type, value: Any, where: str, spelled: bool) -> Any:
    if not isinstance(value, Mapping):
        raise Misfit(where, value, "an object")
    types_of, given = hints(kind), {}
    others = dict(value)
    for f in fields(kind):
        if f.name in value:
            inner = others.pop(f.name)
            given[f.name] = convert(types_of[f.name], inner, below(where, f.name), spelled=spelled)
        elif f.default is MISSING and f.default_factory is MISSING:
            raise Misfit(where, value, f.name, f"{where or 'it'} has no {f.name}")
    for f in fields(kind):
        if f.metadata.get("rest"):
            given[f.name] = convert(types_of[f.name], others, where, spelled=spelled)
    return kind(**given)


def _one_of(options: tuple, value: Any, where: str, spelled: bool) -> Any:
    none = type(None) in options
    if none and (value is None or (spelled and str(value).lower() == "none")):
        return None
    failed = None
    for option in options:
        if option is not type(None):
            try:
                return convert(option, value, where, spelled=spelled)
            except Misfit as error:
                failed = error
    assert failed is not None
    if none and failed.where == where:
        raise Misfit(where, value, f"{failed.expected}, or none")
    raise failed


def _literal(options: tuple, value: Any, where: str, spelled: bool) -> Any:
    for option in options:
        same = value == option and type(value) is type(option)
        if same or (spelled and value == str(option)):
            return option
    raise Misfit(where, value, f"one of {', '.join(map(str, options))}")


def _items(origin: type, args: tuple, value: Any, where: str, spelled: bool) -> list:
    items = value
    if spelled and isinstance(value, str):
        parts = (part.strip() for part in value.strip("[]() ").split(","))
        items = [part for part in parts if part]
    if not isinstance(items, list | tuple):
        raise Misfit(where, value, "a list")
    alike = origin is list or args[-1] is Ellipsis
    if not alike and len(args) != len(items):
        raise Misfit(where, value, f"{len(args)} values, got {len(items)}")
    kinds = [args[0]] * len(items) if alike else args
    path = "{}" if spelled else "{}[{}]"  # a list that was spelled is shown as a whole
    return [
        convert(kind, inner, path.format(where, place), spelled=spelled)
        for place, (inner, kind) in enumerate(zip(items, kinds, strict=True))
    ]


def _table(args: tuple, value: Any, where: str, spelled: bool) -> dict:
    if not isinstance(value, Mapping):
        raise Misfit(where, value, "a table" if spelled else "an object")
    kind = args[1] if args else Any
    return {
        key: convert(kind, inner, below(where, key), spelled=spelled)
        for key, inner in value.items()
    }


def _flag(value: Any, where: str, spelled: bool) -> bool:
    if isinstance(value, bool):
        return value
    if spelled and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise Misfit(where, value, "true or false")


def _number(kind: type, expected: str, value: Any, where: str, spelled: bool) -> int | float:
    found = value
    if spelled and isinstance(value, str):
        try:
            found = kind(value)
        except (ValueError, OverflowError):
            raise Misfit(where, value, expected) from None
    wanted = int if kind is int else (int, float)
    if isinstance(found, bool) or not isinstance(found, wanted):
        raise Misfit(where, value, expected)
    if isinstance(found, int) and abs(found) >> INTEGER_BITS:
        raise Misfit(where, value, f"{expected} of at most 64 bits")
    return kind(found) if spelled else found


def _whole(value: Any, where: str, spelled: bool) -> int | float:
    return _number(int, "a whole number", value, where, spelled)


def _real(value: Any, where: str, spelled: bool) -> int | float:
    return _number(float, "a number", value, where, spelled)


def _text(value: Any, where: str, spelled: bool) -> str:
    if not isinstance(value, str):
        raise Misfit(where, value, "text")
    if spelled and not value.isprintable():
        raise Misfit(where, value, "text without control characters")
    return value


SCALARS: dict[Any, Callable[[Any, str, bool], Any]] = {
    bool: _flag,
    int: _whole,
    float: _real,
    str: _text,
}
