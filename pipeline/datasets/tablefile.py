"""A table that somebody made, read field by field: CSV, TSV, JSON Lines or Parquet.

Every value is read as text: "nan" and "NA" are words, not gaps; an empty cell is one, and so are
null and the number NaN. What is no text (a date, a list, a struct) is an error.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from mer.pipeline.datasets.findings import Findings
from mer.pipeline.datasets.textfiles import instead, place
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import NAMES
from mer.pipeline.runtime.cells import strip, text_cell, without_zero_bytes
from mer.pipeline.runtime.columnar import (
    FAILURES,
    LISTS,
    NUMBERS,
    TEXTS,
    holds,
    open_by_dictionary,
    read_columns,
    reason,
    require_regular,
    to_list,
)
from mer.pipeline.runtime.delimited import (
    EXPECTED,
    SEPARATORS,
    Dialect,
    bounded,
    dialect,
    not_utf8,
)
from mer.pipeline.runtime.files import near
from mer.pipeline.runtime.limits import TABLE_BYTES, TABLE_COLUMNS, TABLE_ROWS
from mer.pipeline.runtime.terminal import did_you_mean, listed, plural, shown

FIELDS = (
    "id",
    "audio",
    "text",
    "label",
    "split",
    "speaker",
    "dialogue",
    "session",
    "position",
    "start",
    "end",
    "duration",
    "video",
    "video_start",
    "video_end",
    "fold",
)
FOLD = "fold"  # several columns may be this field: `Table.folds`
# Read only where the user names its column: tables use this word for much else.
NAMED_ONLY = frozenset({"position"})
TIMES = ("start", "end", "duration")  # seconds
VIDEO_TIMES = ("video_start", "video_end")  # likewise, in `video`
PARQUET = ".parquet"
SUFFIXES = (*EXPECTED, ".jsonl", ".ndjson", PARQUET)
BLOCK_BYTES = 1 << 24  # of a csv, read at a time; a record must fit
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)
HEADER_LINES = 20  # among which the names of the columns are looked for, under a title
BLANK_QUOTE = re.compile(r'\s+".*"\s*$', re.DOTALL)
ESCAPED_QUOTE = re.compile(r'\\"')
LABELS_HINT = "; several labels? then --task multi"
MEND_HINT = "; mend that cell"

# Column (or field) -> a value per row: text or None; a list of text where a label is several.
Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class Table:
    """A table that has been read, by field.

    `names` are all its columns. `mapped` holds the columns that the user named: field -> column.
    """

    source: Path
    names: Sequence[str]
    mapped: Mapping[str, str]
    data: Columns

    def __len__(self) -> int:
        return len(next(iter(self.data.values()), ()))

    def place(self, row: int) -> str:
        """Where a row (from 0) stands in the file: "line 7"."""
        return place(self.source, row)

    def at(self, row: int) -> str:
        """The file and where a row (from 0) stands in it, to begin a message with."""
        return f"{self.source}: {self.place(row)}"

    def column(self, field: str) -> list[Any]:
        """(N,) values of a field, None where it has no column."""
        return self.data.get(field) or [None] * len(self)

    @property
    def folds(self) -> Columns:
        """Column -> cells, of the columns that name folds."""
        prefix = fold_field("")
        fields = [field for field in self.data if field.startswith(prefix)]
        return {field.removeprefix(prefix): self.data[field] for field in fields}

    def row_name(self, row: int) -> str:
        """A row's id, or its number where it has none."""
        given = self.data["id"][row] if "id" in self.data else None
        return shown(strip(given)) if given else f"row{row + 1}"


def other_case(field: str, names: Sequence[str]) -> str | None:
    """A column whose name differs from the field's in case and blanks alone."""
    return next((name for name in names if name != field and strip(name).casefold() == field), None)


def fold_field(column: str) -> str:
    """The field that a column of folds is read as: there may be several."""
    return f"{FOLD} {column}"


@dataclass(frozen=True)
class _Wanted:
    """What is read of a file: field -> column. `several`: a label may be a list; `number`: it is
    one.
    """

    column_of: Mapping[str, str]
    several: bool
    number: bool

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(self.column_of.values()))

    @property
    def field_of(self) -> dict[str, str]:
        """Column -> the field it is read for, for messages."""
        return {column: field for field, column in self.column_of.items()}


def read(
    source: Path,
    columns: Mapping[str, str],
    findings: Findings,
    *,
    several: bool = False,
    number: bool = False,
    folds: Sequence[str] = (),
) -> Table:
    """Read the fields that a table has.

    Args:
        source: The file; the end of its name says what it is.
        columns: Field -> column, where that is not called like the field, and for what is read
            besides FIELDS; `a.b` reaches into JSON objects.
        findings: Blanks that were cut off, and what is odd, are added to these.
        several: A label may be a list.
        number: A label is a number.
        folds: The columns that name folds; none: `fold`, if there is one.

    Returns:
        The table.

    Raises:
        DataError: It is no such file, a column that was named is absent (those that are there are
            listed), or a cell is no text (its line is named).
    """
    suffix = source.suffix.lower()
    _check_file(source, suffix)
    columns = {**columns, **{fold_field(name): name for name in folds}}
    read_here = [field for field in FIELDS if field not in (*NAMED_ONLY, FOLD)]
    column_of = {field: field for field in read_here} | dict(columns)
    if not folds:
        column_of[fold_field(FOLD)] = FOLD
    wanted = _Wanted(column_of, several, number)
    if suffix in EXPECTED:
        names, raw = _read_delimited(source, EXPECTED[suffix], wanted, findings)
    elif suffix == PARQUET:
        names, raw = _read_parquet(source, wanted)
    else:
        names, raw = _read_jsonl(source, wanted)
    for field, column in columns.items():
        if column not in raw:
            raise DataError(
                f"{source}: no column '{shown(column)}' (for {field.split()[0]})"
                f"{did_you_mean(column, names)}; found {listed(names)}"
            )
    data = {field: raw[column] for field, column in wanted.column_of.items() if column in raw}
    return _without_blanks(Table(source, names, columns, data), findings)


def _check_file(source: Path, suffix: str) -> None:
    """Raises DataError for what is no file of a kind that can be read, or too large."""
    try:
        str(source.absolute()).encode()
    except UnicodeEncodeError:  # Arrow opens no such path
        raise DataError(
            f"{shown(source, 200)}: its path is not UTF-8; rename that file or folder"
        ) from None
    if not source.exists() and suffix in SUFFIXES:
        raise DataError(f"{shown(source, 200)}: no such file{near(source)}")
    other = instead(source) if source.exists() else None
    if other and not (suffix == PARQUET and "this is Parquet" in other):
        raise DataError(f"{source}: {other}")
    if suffix not in SUFFIXES:
        raise DataError(
            f"{source}: not a table that can be read; its name must end in {', '.join(SUFFIXES)}"
        )
    if suffix != PARQUET and (size := source.stat().st_size) > TABLE_BYTES:
        raise DataError(
            f"{source}: {size:,} bytes, more than {TABLE_BYTES:,}; write it as Parquet, or split it"
        )


def _without_blanks(table: Table, findings: Findings) -> Table:
    """Names without blanks at their ends. What is cut is counted, by the row's id."""
    data = dict(table.data)
    others = [field for field in data if field not in FIELDS]
    for field in (*NAMES, "split", *TIMES, *VIDEO_TIMES, *others):
        if field not in data:
            continue
        given = data[field]
        data[field] = [strip(value) if isinstance(value, str) else value for value in given]
        pairs = enumerate(zip(given, data[field], strict=True))
        cut = [table.row_name(row) for row, (before, after) in pairs if before != after]
        if cut:
            findings.repairs[f"blanks at an end of {field}, cut off"] += cut
    return Table(table.source, table.names, table.mapped, data)


# --- CSV and TSV


def _read_delimited(
    source: Path, delimiter: str, wanted: _Wanted, findings: Findings
) -> tuple[Sequence[str], Columns]:
    form = dialect(source, delimiter, known=wanted.columns)
    _check_header(source, form, wanted)
    findings.warnings += form.told(delimiter)
    keep = [name for name in wanted.columns if name in form.header]
    if form.spaced:
        raw = _read_spaced(source, form, keep)
    else:
        raw = _read_by_arrow(source, form, keep)
    _warn_of_line_breaks(source, raw, findings)
    _warn_of_quotes(source, raw, findings)
    fields = wanted.field_of
    cells = {}
    for name, values in raw.items():
        cells[name] = [_cell(value, i, fields[name], source) for i, value in enumerate(values)]
    if form.delimiter == ";":
        _decimal_points(cells, wanted, findings)
    return form.header, cells


def _check_header(source: Path, form: Dialect, wanted: _Wanted) -> None:
    header = form.header
    if header[0].startswith('{"'):
        raise DataError(f"{source}: this is JSON Lines; give it a name that ends in .jsonl")
    if len(header) > TABLE_COLUMNS:
        raise DataError(
            f"{source}: {len(header):,} columns, more than {TABLE_COLUMNS:,}; keep those that are "
            "needed"
        )
    if not _names_any(header, wanted) and (number := _header_line(source, form, wanted)):
        raise DataError(
            f"{source}: its first line names no column, line {number:,} does; leave out what is "
            "above that"
        )
    times = Counter(header)
    for name in header:
        if times[name] > 1 and name in wanted.columns:
            raise DataError(f"{source}: column '{shown(name)}' is there twice")


def _names_any(cells: Sequence[str], wanted: _Wanted) -> bool:
    return any(strip(cell) in wanted.columns for cell in cells)


def _header_line(source: Path, form: Dialect, wanted: _Wanted) -> int | None:
    """The number of the line that names columns, where titles or comments stand above it."""
    with source.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        lines = enumerate(islice(bounded(file, source), HEADER_LINES), start=1)
        for number, line in lines:
            for separator in SEPARATORS:
                cells = line.rstrip("\r\n").replace('"', "").split(separator)
                if len(cells) > 1 and _names_any(cells, wanted) and number > form.skipped + 1:
                    return number
    return None


def _read_by_arrow(source: Path, form: Dialect, keep: list[str]) -> Columns:
    """The columns of those names as text, block by block."""
    from pyarrow import csv as arrow

    cells: Columns = {name: [] for name in keep}
    rows = -1  # the header
    try:
        reader = arrow.open_csv(
            source,
            read_options=arrow.ReadOptions(
                column_names=form.header,
                skip_rows=form.skipped,
                block_size=BLOCK_BYTES,
                use_threads=False,
            ),
            parse_options=arrow.ParseOptions(delimiter=form.delimiter, newlines_in_values=True),
            convert_options=arrow.ConvertOptions(
                column_types=dict.fromkeys(keep, pa.string()),
                include_columns=keep,
                strings_can_be_null=False,
                check_utf8=True,
            ),
        )
        for batch in reader:
            rows += batch.num_rows
            if rows > TABLE_ROWS:
                raise DataError(
                    f"{source}: more than {TABLE_ROWS:,} rows; split it into several corpora"
                )
            for name, column in cells.items():
                column += batch.column(name).to_pylist()
    except pa.ArrowInvalid as error:
        raise DataError(f"{source}: {_arrows_words(error, source, form)}") from None
    return {name: column[1:] for name, column in cells.items()}


def _arrows_words(error: Exception, source: Path, form: Dialect) -> str:
    """Arrow's words with the line as an editor counts it, and the remedy; Arrow counts the header
    as row 1.
    """
    words = str(error).splitlines()[0].removeprefix("CSV parse error: ")
    if "straddling" in words:
        return f"a record of more than {BLOCK_BYTES:,} bytes (a quote that is not closed?)"
    row = re.search(r"Row #(\d+)", words)
    remedy = "mend that line"
    if row is not None:
        number = int(row[1]) - 2 - form.skipped
        words = words.replace(row[0], place(source, number))
        if number == 0:  # all the others may be like it
            remedy = "mend that line, or the header where all lines have as many"
    words = re.sub(r"\b1 columns\b", "1 column", words)
    return f"{shown(words, 160)}; {remedy}"


def _read_spaced(source: Path, form: Dialect, keep: list[str]) -> Columns:
    """A csv with a blank behind each separator, which Arrow takes for a part of the cell."""
    at = {name: form.header.index(name) for name in keep}
    cells: Columns = {name: [] for name in keep}
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            rows = form.rows(bounded(file, source))
            next(rows)
            for i, row in enumerate(rows):
                if len(row) != len(form.header):
                    raise DataError(
                        f"{source}: {place(source, i)}: Expected "
                        f"{plural(len(form.header), 'column')}, got "
                        f"{len(row)}; mend that line"
                    )
                for name, column in cells.items():
                    column.append(row[at[name]])
    except UnicodeDecodeError as error:
        raise not_utf8(source, error) from None
    except csv.Error as error:
        raise DataError(f"{source}: {error}") from None
    return cells


def _warn_of_line_breaks(source: Path, cells: Columns, findings: Findings) -> None:
    for name, values in cells.items():
        breaks = [i for i, value in enumerate(values) if "\n" in value]
        if breaks:
            what = f"{plural(len(breaks), 'cell')} of {shown(name)} with a line break"
            findings.warnings.append(
                f"{what}, the first on {place(source, breaks[0])}: if that is not meant, a quote "
                "is not closed"
            )


def _warn_of_quotes(source: Path, cells: Columns, findings: Findings) -> None:
    """Quotes that other programs mean and this form does not know: behind a blank, where they stay
    part of the cell, and behind a backslash (Spark, MySQL), where they end it.
    """
    for name, values in cells.items():
        behind_blank = [i for i, value in enumerate(values) if BLANK_QUOTE.match(value)]
        escaped = [i for i, value in enumerate(values) if ESCAPED_QUOTE.search(value)]
        for rows, what in (
            (behind_blank, "that begin with a blank and a quote: leave the blanks out"),
            (escaped, 'with a backslash before a quote: write a quote within quotes twice ("")'),
        ):
            if rows:
                count = plural(len(rows), "cell")
                first = place(source, rows[0])
                findings.warnings.append(f"{count} of {shown(name)} {what}; the first on {first}")


def _decimal_points(cells: Columns, wanted: _Wanted, findings: Findings) -> None:
    """In a table with semicolons, where Excel writes a comma for the point: numbers of times with
    points.
    """
    numbers = [field for field in wanted.column_of if field not in FIELDS]
    labels = ["label"] if wanted.number else []
    for field in (*TIMES, *VIDEO_TIMES, *labels, *numbers):
        column = cells.get(wanted.column_of[field], [])
        given = [value for value in column if value]
        commas = sum(DECIMAL_COMMA.fullmatch(strip(value)) is not None for value in given)
        if not commas or any("." in value for value in given):
            continue
        for i, value in enumerate(column):
            if value and DECIMAL_COMMA.fullmatch(strip(value)):
                column[i] = value.replace(",", ".")
        findings.warnings.append(
            f"{plural(commas, 'cell')} of {field} with a decimal comma, read as a point"
        )


# --- Parquet


def _read_parquet(source: Path, wanted: _Wanted) -> tuple[Sequence[str], Columns]:
    require_regular(source)
    fields = wanted.field_of
    try:
        with source.open("rb") as file:
            parquet = open_by_dictionary(file, source)
            found = parquet.schema_arrow.names
            table = read_columns(parquet, source, wanted.columns)
        for name in table.column_names:
            kind = table.schema.field(name).type
            _check_type(kind, name, fields[name], source, wanted.several)
        lists = {name: to_list(table.column(name)) for name in table.column_names}
    except FAILURES as error:
        if _is_text(source):
            remedy = "give it a name that ends in .csv, .tsv or .jsonl"
            raise DataError(
                f"{source}: this is text, not a readable Parquet file; {remedy}"
            ) from None
        raise DataError(
            f"{source}: not a readable Parquet file ({reason(error)}); write it again"
        ) from None
    cells = {}
    for name, values in lists.items():
        cells[name] = [
            _cell(value, i, fields[name], source, wanted.several) for i, value in enumerate(values)
        ]
    return found, cells


def _is_text(source: Path) -> bool:
    with source.open("rb") as file:
        head = file.read(64)
    if not head or head.startswith(b"PAR1"):
        return False
    return all(byte >= 32 or byte in b"\t\r\n" for byte in head)


def _check_type(kind: pa.DataType, name: str, field: str, source: Path, several: bool) -> None:
    """Raises DataError for a column whose values are no text, before it is unpacked."""
    if isinstance(kind, pa.ExtensionType):
        kind = kind.storage_type
    listed_label = field == "label" and holds(kind, *LISTS)
    cells = kind.value_type if several and listed_label else kind
    if holds(cells, *TEXTS, *NUMBERS, pa.types.is_null):
        return
    hint = LABELS_HINT if listed_label else "; write it as text"
    raise DataError(
        f"{source}: column '{shown(name)}' (for {field}) holds {shown(kind, 60)}, expected text or "
        f"numbers{hint}"
    )


# --- JSON Lines


def _read_jsonl(source: Path, wanted: _Wanted) -> tuple[Sequence[str], Columns]:
    found: dict[str, None] = {}
    fields = wanted.field_of
    values: Columns = {name: [] for name in wanted.columns}
    present: set[str] = set()
    number = rows = 0
    try:
        with source.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(bounded(file, source), start=1):
                if not line.strip():
                    continue
                row = _object(line, number, source)
                found.update(dict.fromkeys(row))
                rows += 1
                _check_size(source, number, len(found), rows)
                for name, column in values.items():
                    value = _reach(row, name)
                    if value is not None:
                        present.add(name)
                    column.append(_cell(value, rows - 1, fields[name], source, wanted.several))
    except UnicodeDecodeError as error:
        raise not_utf8(source, error) from None
    # json's own error is a ValueError, and so is a number of 5,000 digits.
    except (ValueError, RecursionError) as error:
        remedy = _json_remedy(source, number)
        raise DataError(
            f"{source}: line {number} is not JSON ({reason(error)}); {remedy}"
        ) from None
    present |= found.keys()
    return list(found), {name: column for name, column in values.items() if name in present}


def _json_remedy(source: Path, number: int) -> str:
    """What to do about a line that is no JSON: whole files of JSON begin with a part of it."""
    with source.open(encoding="utf-8-sig", errors="replace") as file:
        first = file.read(64).lstrip()[:1]
    if number == 1 and first == "[":
        return "a JSON array? write one object a line"
    if number == 1 and first == "{":
        return "write each object whole, on a line of its own"
    return "mend that line"


def _object(line: str, number: int, source: Path) -> dict:
    row = json.loads(line, object_pairs_hook=_without_doubles)
    if not isinstance(row, dict):
        hint = "; a JSON array? write one object a line" if isinstance(row, list) else ""
        raise DataError(f"{source}: line {number} is not a JSON object{hint}")
    return row


def _without_doubles(pairs: list[tuple[str, object]]) -> dict:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = Counter(name for name, _ in pairs)
        double = names.most_common(1)[0][0]
        raise ValueError(f"'{shown(double, 40)}' is there twice in one object")
    return row


def _check_size(source: Path, number: int, columns: int, rows: int) -> None:
    if columns > TABLE_COLUMNS:
        what = f"{TABLE_COLUMNS:,} columns"
    elif rows > TABLE_ROWS:
        what = f"{TABLE_ROWS:,} rows"
    else:
        return
    raise DataError(f"{source}: more than {what}, at line {number}; keep those that are needed")


def _reach(row: dict, name: str) -> object:
    """The value of a name, or of `a.b` in objects within objects; None where there is none."""
    if name in row:
        return row[name]
    inner: object = row
    for part in name.split("."):
        if not isinstance(inner, dict) or part not in inner:
            return None
        inner = inner[part]
    return inner


# --- one cell


def _cell(value: object, row: int, field: str, source: Path, several: bool = False) -> Any:
    """A cell as text or None, for the label of a multi task as a list where it is one; DataError
    names the line.
    """
    if several and field == "label" and isinstance(value, list | tuple):
        return [_cell(part, row, field, source) for part in value] or None
    try:
        return without_zero_bytes(text_cell(value))
    except DataError as error:
        hint = _hint(value, field)
        raise DataError(f"{source}: {place(source, row)}: {field} {error}{hint}") from None


def _hint(value: object, field: str) -> str:
    if type(value) is dict:
        return f"; name a part of it: --column {field}=NAME.PART"
    return LABELS_HINT if field == "label" and type(value) is list else MEND_HINT
