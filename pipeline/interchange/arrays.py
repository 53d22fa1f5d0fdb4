"""Features that are no plain array: a list of arrays, an array of ragged arrays, lists of lists, a
dict by id."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NUMBERS = "fiub"  # kinds of element that are numbers


def said(value) -> str:
    """What a value is, for the user: shape and type, or type and length."""
    if isinstance(value, np.ndarray):
        return f"{value.shape} {value.dtype}"
    if isinstance(value, list | tuple | dict):
        inner = next(iter(value.values() if isinstance(value, dict) else value), None)
        kind = (
            f" array {inner.shape}"
            if isinstance(inner, np.ndarray)
            else ""
            if inner is None
            else f" {type(inner).__name__}"
        )
        return f"({type(value).__name__} of {len(value)}{kind})"
    return f"({type(value).__name__})"


def features_of(value, ids: Sequence[str]) -> np.ndarray | list[np.ndarray | None] | None:
    """The features of `ids` in whatever form they come.

    Args:
        value: (N, T, D) or (N, D) numbers; a list, tuple or object array of N items, each (T, D),
            (D,), lists of the same, or None; or a dict from id to such an item.
        ids: (N,) as the file has them.

    Returns:
        An array (N, T, D) or (N, D), or a list of (T, D), (D,) or None for each utterance; None
        when `value` is no features.
    """
    if isinstance(value, np.ndarray) and value.dtype.kind in NUMBERS:
        return value if value.ndim in (2, 3) else None
    if isinstance(value, dict):
        value = [value.get(id) for id in ids] if value and all(id in value for id in ids) else None
    if isinstance(value, np.ndarray):
        value = list(value) if value.dtype.kind == "O" and value.ndim else None
    if not isinstance(value, list | tuple) or not len(value):
        return None
    items = []
    for item in value:
        array = _item(item)
        if array is None and item is not None and not _empty(item):
            return None
        items.append(array)
    there = [x for x in items if x is not None]
    if not there or (all(x.ndim == 1 for x in there) and not _alike(there)):
        return None
    return np.stack(items) if len(there) == len(items) and _alike(there) else items


def _item(item) -> np.ndarray | None:
    """(T, D) or (D,) numbers; None when it is anything else."""
    if isinstance(item, list | tuple) or (isinstance(item, np.ndarray) and item.dtype.kind == "O"):
        try:
            item = np.array([np.asarray(step) for step in item] if _steps(item) else list(item))
        except (ValueError, TypeError, OverflowError):
            return None
    if (
        not isinstance(item, np.ndarray)
        or item.dtype.kind not in NUMBERS
        or item.ndim not in (1, 2)
        or not item.size
    ):
        return None
    return item


def _steps(item) -> bool:
    return all(isinstance(step, np.ndarray | list | tuple) for step in item)


def _empty(item) -> bool:
    return (
        not item.size
        if isinstance(item, np.ndarray)
        else isinstance(item, list | tuple) and not item
    )


def _alike(there: list[np.ndarray]) -> bool:
    return len({x.shape for x in there}) == 1
