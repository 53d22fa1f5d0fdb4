"""What cells of a table say: numbers, the place of a turn in its dialogue, times."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from mer.pipeline.datasets.findings import Findings
from mer.pipeline.datasets.tablefile import DECIMAL_COMMA, TIMES, VIDEO_TIMES, Table
from mer.pipeline.errors import DataError
from mer.pipeline.runtime.cells import GAP_WORDS, strip
from mer.pipeline.runtime.terminal import plural, shown

POSITION = re.compile(r"\d{1,9}(?:\.0*)?", re.ASCII)  # a number of a turn; 3.0 as Excel has it
TIMES_AGREE_SECONDS = 0.05  # by so much a duration may differ from end - start: rounding
NUMBER_CHARACTERS = 400  # of a time or target; float()'s time grows with the square of them
# float() takes "1_0" and "infinity" as well.
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)

# Hyphens, dashes and minus signs that are not the one of a number.
MINUS_SIGNS = ("\u2010", "\u2011", "\u2012", "\u2013", "\u2014", "\u2212", "\ufe63", "\uff0d")
CLOCK = re.compile(r"\d+:\d\d(:\d\d)?([.,]\d+)?|[\d.]+ ?(s|sec|ms)", re.ASCII)


def number(table: Table, value: str | None, row: int, field: str) -> float | None:
    """The number in a cell, None where it is empty.

    Args:
        table: Of the cell.
        value: What the cell says.
        row: Its row, from 0.
        field: What messages call its column.

    Returns:
        The number, which is finite.

    Raises:
        DataError: The cell says something else; the line is named.
    """
    if value is None:
        return None
    text = strip(value)
    parsed = math.nan
    if NUMBER.fullmatch(text) and len(text) < NUMBER_CHARACTERS:
        parsed = float(text)
    if not math.isfinite(parsed):
        raise DataError(
            f"{table.at(row)} has {field} '{shown(text)}', expected a number{_hint(text)}"
        )
    return parsed


def _hint(text: str) -> str:
    """What may be meant by text that is no number."""
    if DECIMAL_COMMA.fullmatch(text):
        return "; a decimal comma? write a point"
    if text in GAP_WORDS:
        return "; where there is none, leave the cell empty"
    if text[:1] in MINUS_SIGNS:
        return f"; a minus sign of another kind (U+{ord(text[0]):04X})? write -"
    return "; write seconds" if CLOCK.fullmatch(text) else ""


def positions(table: Table) -> list[int | None]:
    """(N,) the place of each row in its dialogue; raises DataError for a cell that is no place."""
    return [_position(table, row, value) for row, value in enumerate(table.column("position"))]


def _position(table: Table, row: int, value: str | None) -> int | None:
    if value is None:
        return None
    text = strip(value)
    if not POSITION.fullmatch(text):
        raise DataError(
            f"{table.at(row)} has position '{shown(text)}', expected the number of a turn in its "
            "dialogue: 0, 1, 2, …"
        )
    return int(text.partition(".")[0])


def warn_of_gap(table: Table, field: str, findings: Findings) -> None:
    """Count the rows whose cell of a field is empty, where the table has the field."""
    gaps = [i for i, value in enumerate(table.data.get(field, ())) if value is None]
    if gaps:
        findings.warnings.append(
            f"{plural(len(gaps), 'row has', 'rows have')} no {field}, "
            f"the first on {table.place(gaps[0])}"
        )


# --- times, in seconds


def times(table: Table, findings: Findings) -> list[tuple[float | None, float | None]]:
    """(start, end) per row. Rows that are cut by `duration` alone are counted, for it may be the
    length of their file, rounded or in another unit; and rows whose times it contradicts.
    """
    if not set(TIMES) & set(table.data):
        return [(None, None)] * len(table)
    columns = [table.column(field) for field in TIMES]
    spans, alone, against = [], [], []
    for i, cells in enumerate(zip(*columns, strict=True)):
        values = [number(table, cell, i, field) for field, cell in zip(TIMES, cells, strict=True)]
        span = _span(table, i, values)
        spans.append(span)
        start, end, duration = values
        if duration is None:
            continue
        if start is None and end is None:
            alone.append(i)
        elif end is not None and abs((start or 0.0) + duration - end) > TIMES_AGREE_SECONDS:
            against.append(i)
    if alone:
        findings.warnings.append(
            f"{plural(len(alone), 'row is', 'rows are')} cut where duration alone says, the first, "
            f"on {table.place(alone[0])}, at {spans[alone[0]][1]:g} s: if that is only how long "
            "the file is, call the column otherwise"
        )
    if against:
        findings.warnings.append(
            f"{plural(len(against), 'row has', 'rows have')} a duration that is not end - start, "
            f"the first on {table.place(against[0])}: start and end are taken"
        )
    return spans


def _span(
    table: Table, row: int, values: Sequence[float | None]
) -> tuple[float | None, float | None]:
    start, end, duration = values
    if start is not None and start < 0:
        raise DataError(
            f"{table.at(row)} starts at {start:g} s, before its file; times count from 0"
        )
    begin = start or 0.0
    if end is None and duration is not None:
        end = begin + duration
    if end is not None and end <= begin:
        raise DataError(f"{table.at(row)} ends at {end:g} s, not after its start at {begin:g} s")
    return start, end


def video_times(table: Table) -> list[tuple[float | None, float | None]]:
    """(video_start, video_end) per row."""
    columns = [table.column(field) for field in VIDEO_TIMES]
    found = []
    for i, values in enumerate(zip(*columns, strict=True)):
        start, end = (
            number(table, value, i, field) for field, value in zip(VIDEO_TIMES, values, strict=True)
        )
        if (start is not None or end is not None) and table.column("video")[i] is None:
            raise DataError(
                f"{table.at(i)} has a {VIDEO_TIMES[0]} or {VIDEO_TIMES[1]}, and no video"
            )
        found.append((start, end))
    return found
