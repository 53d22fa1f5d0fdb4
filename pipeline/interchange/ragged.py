"""Features that are no plain array: a list of arrays, an array of ragged arrays, lists of lists, a
dict by id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

NUMBERS = "fiub"  # kinds of element that are numbers
# (N, T, D) or (N, D); or for each utterance (T, D), (D,), or None where it has none.
Ragged: TypeAlias = np.ndarray | list[np.ndarray | None]


def described(value: object) -> str:
    """What a value is, for the user: shape and type, or type and length."""
    if isinstance(value, np.ndarray):
        return f"{value.shape} {value.dtype}"
    if not isinstance(value, list | tuple | dict):
        return f"({type(value).__name__})"
    items = value.values() if isinstance(value, dict) else value
    inner = next(iter(items), None)
    kind = "" if inner is None else f" {type(inner).__name__}"
    if isinstance(inner, np.ndarray):
        kind = f" array {inner.shape}"
    return f"({type(value).__name__} of {len(value)}{kind})"


def features_of(value: object, ids: Sequence[str]) -> Ragged | None:
    """The features of `ids` in whatever form they come.

    Args:
        value: (N, T, D) or (N, D) numbers, or objects that are numbers; a list, tuple or object
            array of N items, each (T, D), (D,), lists of the same, None or NaN; or a dict from id,
            or from 0 … N - 1, to such an item.
        ids: (N,) as the file has them.

    Returns:
        An array (N, T, D) or (N, D), or a list of (T, D), (D,) or None for each utterance; None
        when `value` is no features.
    """
    if isinstance(value, np.ndarray) and value.dtype.kind == "O" and value.ndim in (2, 3):
        value = _from_lists(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in NUMBERS:
        return value if value.ndim in (2, 3) else None
    items = _items(_by_utterance(value, ids) or ())
    if items is None:
        return None
    there = [item for item in items if item is not None]
    shapes = {item.shape for item in there}
    if not there or _are_uneven_vectors(shapes):
        return None
    return np.stack(there) if len(there) == len(items) and len(shapes) == 1 else items


def _items(given: Sequence) -> list[np.ndarray | None] | None:
    """The features of each utterance; None as soon as one has something that is no features."""
    items: list[np.ndarray | None] = []
    for value in given:
        item = _item(value)
        if item is None and value is not None and not _is_empty(value):
            return None
        items.append(item)
    return items


def _are_uneven_vectors(shapes: set[tuple[int, ...]]) -> bool:
    """Whether there is one vector per utterance, and they differ in length: text, not features."""
    return len(shapes) > 1 and all(len(shape) == 1 for shape in shapes)


def _by_utterance(value: object, ids: Sequence[str]) -> Sequence | None:
    """A value for each utterance; None when that is not its form."""
    if isinstance(value, Mapping):
        if value and value.keys() == set(range(len(ids))):
            return [value[i] for i in range(len(ids))]
        return [value[i] for i in ids] if value and value.keys() >= set(ids) else None
    if isinstance(value, np.ndarray):
        return list(value) if value.dtype.kind == "O" and value.ndim else None
    return value if isinstance(value, list | tuple) else None


def _item(item: object) -> np.ndarray | None:
    """(T, D) or (D,) numbers; None when it is anything else."""
    if isinstance(item, list | tuple) or (isinstance(item, np.ndarray) and item.dtype.kind == "O"):
        item = _from_lists(item)
    if not isinstance(item, np.ndarray) or item.dtype.kind not in NUMBERS:
        return None
    return item if item.ndim in (1, 2) and item.size else None


def _from_lists(item: list | tuple | np.ndarray) -> np.ndarray | None:
    """An array of lists of numbers, or of lists of steps; None when their lengths differ."""
    try:
        if isinstance(item, np.ndarray) and item.ndim > 1:
            return np.array(item.tolist())
        if all(isinstance(step, np.ndarray | list | tuple) for step in item):
            return np.array([np.asarray(step) for step in item])
        return np.array(list(item))
    except (ValueError, TypeError, OverflowError):
        return None


def _is_empty(item: object) -> bool:
    if isinstance(item, np.ndarray):
        return not item.size
    if isinstance(item, float | np.floating):
        return bool(np.isnan(item))
    return isinstance(item, list | tuple) and not item
