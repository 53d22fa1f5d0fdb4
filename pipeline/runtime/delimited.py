"""How a text file separates its columns, whoever wrote it: commas, or what Excel writes where a
comma stands in numbers.

For tables of utterances, the corpora's own csv files, the csv beside arrays and tables of boxes.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TextIO

from mer.pipeline.errors import DataError
from mer.pipeline.runtime.cells import strip
from mer.pipeline.runtime.limits import TABLE_BYTES, TABLE_LINE_CHARACTERS
from mer.pipeline.runtime.terminal import shown

HEADER_CHARACTERS = 131_072  # of one column's name
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
EXPECTED = {".csv": ",", ".tsv": "\t"}


def not_utf8(path: Path, error: UnicodeDecodeError) -> DataError:
    return DataError(
        f"{path}: not UTF-8 (byte 0x{error.object[error.start]:02x}); save it as UTF-8"
    )


@dataclass(frozen=True)
class Dialect:
    """How a csv separates its columns, by its first lines.

    `spaced`: a blank follows each separator, and is none of the cell. `skipped`: lines before the
    header (`sep=;`). `header`: names without blanks at their ends.
    """

    delimiter: str
    header: tuple[str, ...]
    skipped: int = 0
    spaced: bool = False

    def told(self, expected: str = ",") -> list[str]:
        """Lines for the user where it is not what the file's name says."""
        lines = []
        if self.delimiter != expected or self.skipped:
            seen = "its first line names them" if self.skipped else "as the header shows"
            lines.append(f"columns are separated by {SEPARATORS[self.delimiter]}, {seen}")
        if self.spaced:
            lines.append(
                "a blank follows each separator of the header; blanks before cells are left out"
            )
        return lines

    def rows(self, lines: Iterable[str]) -> Iterator[list[str]]:
        """The records after the skipped lines, the header first; blank lines are none."""
        return filter(None, self.reader(lines))

    def reader(self, lines: Iterable[str], *, strict: bool = False):
        """The standard library's reader, behind the skipped lines.

        Args:
            lines: Those of the file.
            strict: Raise csv.Error for a quote that stands where none may.
        """
        csv.field_size_limit(TABLE_BYTES)  # Python's own bound, 131,072, is below a long cell
        return csv.reader(
            islice(lines, self.skipped, None),
            delimiter=self.delimiter,
            skipinitialspace=self.spaced,
            strict=strict,
        )


def dialect(path: Path, expected: str = ",", known: Collection[str] = ()) -> Dialect:
    """How a csv separates its columns.

    Args:
        path: The file.
        expected: The separator that it should have by its name; another one is taken only where
            this one finds a single column, or none of `known` where the other finds some.
        known: Names of columns that are looked for.

    Returns:
        Separator, header, and what else the first lines show.

    Raises:
        DataError: It is empty, not UTF-8, or its header is longer than the bounds.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _dialect(file, path, expected, known)
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from None
    except csv.Error as error:
        what = str(error)
        if "field limit" in what:
            what = f"a column name is longer than {HEADER_CHARACTERS:,} characters"
        raise DataError(f"{path}: {what}; mend its first line") from None


def _dialect(file: TextIO, path: Path, expected: str, known: Collection[str]) -> Dialect:
    named = _named_separator(file, path)
    if named is not None:
        separator, skipped = named
        return _by_header(_header(file, path, separator, skipped), separator, skipped)
    found = {expected: _header(file, path, expected, 0)}
    if len(found[expected]) > 1 and (not known or _names_any(found[expected], known)):
        return _by_header(found[expected], expected, 0)
    found |= {other: _header(file, path, other, 0) for other in SEPARATORS if other != expected}
    telling = [other for other, header in found.items() if _names_any(header, known)]
    if len(found[expected]) > 1 and not telling:
        return _by_header(found[expected], expected, 0)
    best = max(telling or found, key=lambda other: len(found[other]))
    return _by_header(found[best], best, 0)


def _names_any(header: list[str], known: Collection[str]) -> bool:
    return any(_column_name(cell) in known for cell in header)


def _by_header(header: list[str], delimiter: str, skipped: int) -> Dialect:
    spaced = len(header) > 1 and all(name.startswith(" ") for name in header[1:])
    return Dialect(delimiter, tuple(map(_column_name, header)), skipped, spaced)


def _column_name(cell: str) -> str:
    """A cell of the header without blanks, and without quotes that a blank kept from being such."""
    return strip(cell.strip().strip('"')) if cell.startswith(" ") else strip(cell)


def _named_separator(file: TextIO, path: Path) -> tuple[str, int] | None:
    """The separator that the first line names, as Excel writes it: `sep=;`; and that line's number.
    A program that took it for a row has filled it up with separators.
    """
    numbered = enumerate(bounded(file, path), start=1)
    number, first = next((pair for pair in numbered if pair[1].strip()), (0, ""))
    word, equals, named = strip(first).strip('"').lower().partition("=")
    named = strip(named).replace("\\t", "\t")
    if strip(word) != "sep" or not equals or len(set(named)) > 1:
        return None
    delimiter = named[:1] or "\t"  # a tab, which strip took
    if delimiter not in SEPARATORS:
        raise DataError(
            f"{path}: '{shown(delimiter)}' as separator, on line {number}; use a comma, semicolon "
            "or tab"
        )
    return delimiter, number


def _header(file: TextIO, path: Path, delimiter: str, skipped: int) -> list[str]:
    """The first record behind the skipped lines, as this separator has it."""
    file.seek(0)
    csv.field_size_limit(HEADER_CHARACTERS)
    lines = islice(bounded(file, path), skipped, None)
    header = next(filter(None, csv.reader(lines, delimiter=delimiter)), None)
    if not header:
        raise DataError(f"{path}: empty file")
    return header


def bounded(file, path: Path) -> Iterator[str]:
    """The lines of an open file, none longer than the bound."""
    number = 0
    while line := file.readline(TABLE_LINE_CHARACTERS + 1):
        number += 1
        if len(line) > TABLE_LINE_CHARACTERS:
            raise DataError(
                f"{path}: line {number} has more than {TABLE_LINE_CHARACTERS:,} characters"
            )
        yield line
