"""JSON that is not as it was written, by hand or by another program."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

WRONG = (None, -1, "x", [], {})


def wrong_values(value: Any, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """Every (path, copy of `value` with a wrong value there, or without it)."""
    for key in (
        list(value)
        if isinstance(value, dict)
        else range(min(len(value), 2))
        if isinstance(value, list)
        else ()
    ):
        for wrong in WRONG:
            yield (
                (*path, key),
                {**value, key: wrong}
                if isinstance(value, dict)
                else [*value[:key], wrong, *value[key + 1 :]],
            )
        if isinstance(value, dict):
            yield (*path, key), {k: v for k, v in value.items() if k != key}
        for where, inner in wrong_values(value[key], (*path, key)):
            yield (
                where,
                {**value, key: inner}
                if isinstance(value, dict)
                else [*value[:key], inner, *value[key + 1 :]],
            )
