"""Text files of a corpus: what a file is instead, its rows as text, and where a row stands."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

from mer.pipeline.errors import DataError
from mer.pipeline.runtime import beginnings
from mer.pipeline.runtime.columnar import require_regular
from mer.pipeline.runtime.delimited import EXPECTED, Dialect, dialect
from mer.pipeline.runtime.limits import TABLE_BYTES
from mer.pipeline.runtime.terminal import did_you_mean, listed

NO_BREAK_SPACE = "\u00a0"
# What to do about a file that is no table.
REMEDIES = {
    beginnings.OLD_EXCEL: "save it as CSV UTF-8",
    beginnings.EXCEL: "save it as CSV UTF-8",
    beginnings.SQLITE: "export the table as CSV",
    beginnings.HDF5: "write the table as CSV or Parquet",
    beginnings.PDF: "write the table as CSV",
    beginnings.PARQUET: "give it a name that ends in .parquet",
}
UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def instead(path: Path) -> str | None:
    """What a file is instead of text with columns, and the remedy, by its first bytes; None when
    nothing speaks against it. Raises DataError when it is no regular file.
    """
    require_regular(path)
    try:
        with path.open("rb") as file:
            head = file.read(beginnings.LOOK_BYTES)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    found = beginnings.recognise(head) if head else None  # of an empty file the reader speaks
    if found is beginnings.ZIP:
        found = beginnings.recognise_zip(path)
    if found is not None:
        remedy = found.remedy_among(REMEDIES) or "name a table"
        return f"this is {found.name}; {remedy}"
    if head.startswith(UTF_16) or head[1:2] == b"\0" or head[:1] == b"\0":
        return "not UTF-8 but UTF-16 (Excel's “Unicode text”); save it as UTF-8"
    return None


def read_text(path: Path) -> str:
    """A UTF-8 file, with or without a byte order mark. Raises DataError."""
    if other := instead(path):
        raise DataError(f"{path}: {other}")
    try:
        if (size := path.stat().st_size) > TABLE_BYTES:
            raise DataError(f"{path}: {size:,} bytes, more than {TABLE_BYTES:,}")
        raw = path.read_bytes()
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = f"byte 0x{raw[error.start]:02x} at {error.start:,}"
        raise DataError(f"{path}: not UTF-8 ({where}); save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None


def without_header(path: Path, names: Sequence[str]) -> bool:
    """Whether a csv begins with its first row: it has as many columns as `names`, and its first
    line has none of these names.
    """
    if not names:
        return False
    first = dialect(path).header
    return len(first) == len(names) and not set(first) & set(names)


def read_csv(path: Path, columns: Sequence[str], names: Sequence[str] = ()) -> list[dict[str, str]]:
    """The rows of a corpus's own csv.

    Args:
        path: The file.
        columns: Those that must be there; others are read as well.
        names: All columns in order, of a file that may come without a line that names them.

    Returns:
        Column -> value per row, every value as text ("nan" and "NA" stay).

    Raises:
        DataError: A column is missing or there twice, or a row is cut off or damaged.
    """
    text = read_text(path)
    form = dialect(path, known=columns)
    headless = without_header(path, names)
    header = tuple(names) if headless else form.header
    if absent := [name for name in columns if name not in header]:
        guess = did_you_mean(absent[0], header)
        raise DataError(f"{path}: no column {', '.join(absent)}; found {listed(header)}{guess}")
    if double := [name for name in columns if header.count(name) > 1]:
        raise DataError(f"{path}: column '{double[0]}' is there twice")
    rows: list[dict[str, str]] = []
    # Not splitlines(): it breaks at U+0085, which MELD has in its text.
    reader = form.reader(io.StringIO(text, newline=""))
    try:
        records = filter(None, reader)
        if not headless:
            next(records)
        for record in records:
            row = dict(zip(header, record, strict=False))
            _check_row(row, len(rows) - headless, columns, path)
            rows.append(row)
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: {error}") from None
    return rows


def _check_row(row: dict[str, str], number: int, columns: Sequence[str], path: Path) -> None:
    for name in columns:
        if name not in row:
            raise DataError(
                f"{path}: {place(path, number)} has fewer columns than the header; the file may be "
                "truncated"
            )
    for name in columns:
        if "\0" in row[name]:
            raise DataError(
                f"{path}: {place(path, number)} has a zero byte in {name}; the file may be damaged"
            )


def place(table: Path, row: int) -> str:
    """Where data row `row` (from 0; -1 is the line above, the header) of a table begins, for a
    message: "line 7", as an editor counts it, blank lines and line breaks within quotes included.
    Parquet has no lines: "row 6", from 1. Reads the file again, which only a message costs.
    """
    suffix = table.suffix.lower()
    if suffix != ".parquet":
        with (
            suppress(csv.Error, DataError),
            table.open(encoding="utf-8-sig", errors="replace", newline="") as file,
        ):
            if suffix in EXPECTED:
                begins = _record_lines(file, dialect(table, EXPECTED[suffix]))
                record = row + 1  # behind the header
            else:
                begins, record = _filled_lines(file), row
            if (number := next(islice(begins, record, None), None)) is not None:
                return f"line {number}"
    return f"row {row + 1}"


def _filled_lines(file: Iterable[str]) -> Iterator[int]:
    """The numbers of the lines that are not blank."""
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield number


def _record_lines(file: Iterable[str], form: Dialect) -> Iterator[int]:
    """The line on which each record begins; a blank line is none."""
    reader, first = form.reader(file), 1 + form.skipped
    for record in reader:
        if record:
            yield first
        first = reader.line_num + 1 + form.skipped


def repair(text: str) -> str:
    """C1 control characters are cp1252 punctuation read as Latin-1 (’ became U+0092): map
    them back, and no-break spaces to spaces, so that the corpus's revisions agree. Five code points
    that cp1252 does not define stay as they are.
    """
    return "".join(map(_from_c1, text)).replace(NO_BREAK_SPACE, " ")


def _from_c1(character: str) -> str:
    if not "\x80" <= character <= "\x9f":
        return character
    try:
        return character.encode("latin-1").decode("cp1252")
    except UnicodeDecodeError:
        return character
