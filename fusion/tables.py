"""A table, its numbers, and how both are printed: free of torch, so that `mer runs` is quick."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from mer.pipeline.runtime.terminal import escape

# printed as they are; everything else as a percentage
PLAIN = frozenset({"mae", "pearson", "ece", "loss"})


@dataclass(frozen=True)
class Table:
    """A title, the heads of the columns, and rows of as many cells."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def number(name: str, value: float | None, *, signed: bool = False) -> str:
    """As it is printed: percentages with one decimal, MAE, Pearson, ECE and losses with three; an
    undefined figure is a dash.
    """
    if value is None or not math.isfinite(value):
        return "–"
    sign = "+" if signed else ""
    return f"{value:{sign}.3f}" if name in PLAIN else f"{100 * value:{sign}.1f}"


def plain(table: Table, *, left: Collection[str] = ()) -> str:
    """Aligned text: the first column and those named in `left` to the left, others to the right."""
    cells = [tuple(map(escape, row)) for row in (table.columns, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    to_left = [place == 0 or name in left for place, name in enumerate(table.columns)]
    lines = [escape(table.title)]
    for row in cells:
        aligned = []
        for cell, width, first in zip(row, widths, to_left, strict=True):
            aligned.append(cell.ljust(width) if first else cell.rjust(width))
        lines.append("  ".join(aligned).rstrip())
    return "\n".join(lines)
