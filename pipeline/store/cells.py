"""Cells of exported text tables that a spreadsheet would run as a formula, guarded and taken back.

A cell that begins with one of `TRIGGERS` (after any number of apostrophes) gets one apostrophe in
front. The way back takes one away from cells of that form only, so every text survives: `=1+1` <->
`'=1+1`, `'=1+1` <-> `''=1+1`, `'tis` <-> `'tis`.
"""

from __future__ import annotations

import re

# Also the wide forms, which spreadsheets of East Asian locales take.
TRIGGERS = "=+@\t\r\n\uff1d\uff0b\uff0d\uff20-"
GUARDED = re.compile(f"'*[{TRIGGERS}]")


def guarded(cell: str) -> str:
    """`cell`, which a spreadsheet takes for text now.

    >>> guarded("=1+1"), guarded("'tis"), guarded("a=b")
    ("'=1+1", "'tis", 'a=b')
    """
    return f"'{cell}" if GUARDED.match(cell) else cell


def unguarded(cell: str) -> str:
    """The text that `guarded` was given.

    >>> unguarded("'=1+1"), unguarded("'tis")
    ('=1+1', "'tis")
    """
    return cell[1:] if cell.startswith("'") and GUARDED.match(cell) else cell
