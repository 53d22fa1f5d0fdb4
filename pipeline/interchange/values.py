"""One value of a foreign table: text, a number, or several values in one cell, with the place in
each complaint.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from mer.pipeline.errors import DataError
from mer.pipeline.runtime.cells import strip, text_cell
from mer.pipeline.runtime.terminal import shown

Number = TypeVar("Number", int, float)
WHOLE_LIMIT = 2**31  # of a whole number's size: the store has 32 bits for it


def cell(
    path: Path, where: str, name: str, value: object, kind: Callable[[object], str | None]
) -> str | None:
    """A cell as text.

    Args:
        path: The file, for messages.
        where: The row in it, by id or number.
        name: The field.
        value: What the reader found.
        kind: `text_cell` for transcripts, `name_cell` for what names something.

    Returns:
        The text; None for a gap.

    Raises:
        DataError: The cell is no text.
    """
    try:
        return kind(value)
    except DataError as error:
        raise DataError(f"{path}: {shown(where, 40)}: {name} {error}") from None


def spelled_number(value: object) -> str | None:
    """The text of a cell that should be a number; None for a gap. What is no cell at all is named
    by its type, for `number` to refuse.
    """
    try:
        return text_cell(value)
    except DataError:
        return type(value).__name__


def listed_values(path: Path, value: object) -> list:
    """The values of a cell that may hold several: a sequence as it is, a JSON list, or one value.

    Raises DataError for text that begins like a JSON list and is none.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if value is None or (isinstance(value, str) and not strip(value)):
        return []
    if isinstance(value, str) and strip(value)[0] == "[":
        try:
            return list(json.loads(value))
        except (ValueError, RecursionError):
            raise DataError(f"{path}: '{shown(value, 40)}' is not a JSON list") from None
    if isinstance(value, np.ndarray) and value.ndim > 0:
        return list(value)
    return list(value) if isinstance(value, list | tuple) else [value]


def number(path: Path, row_id: str, name: str, value: object, kind: type[Number]) -> Number:
    """A cell as a finite number.

    Args:
        path: The file, for messages.
        row_id: The utterance.
        name: The field.
        value: What the reader found.
        kind: `int` or `float`.

    Returns:
        The number; NaN for a gap where a float is wanted.

    Raises:
        DataError: The cell is no number, infinite, or not whole where that is wanted.
    """
    spelled = spelled_number(value)
    if spelled is None and kind is float:
        return kind(math.nan)
    try:
        return kind(_finite(value, spelled, whole=kind is int))
    except (TypeError, ValueError, OverflowError):
        what = "a whole number" if kind is int else "a number"
        raise DataError(
            f"{path}: {shown(row_id, 40)}: {name} is '{shown(spelled, 40)}', not {what}"
        ) from None


def _finite(value: object, spelled: str | None, *, whole: bool) -> float:
    """The number that a cell spells; ValueError when it spells none that is wanted."""
    if spelled is None or "_" in spelled:  # Python reads 1_000 as a number
        raise ValueError
    if whole and isinstance(value, bool | np.bool_):
        raise ValueError
    found = float(spelled)
    if math.isinf(found):
        raise ValueError
    if whole and (found != int(found) or abs(found) >= WHOLE_LIMIT):
        raise ValueError
    return found
