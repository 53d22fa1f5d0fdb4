"""The csv beside a folder of arrays, and the exported header beside it: index.csv and
header.json.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mer.pipeline.errors import DataError
from mer.pipeline.interchange.columns import FIELDS
from mer.pipeline.interchange.copying import Copy
from mer.pipeline.interchange.source import exported_header, require_file
from mer.pipeline.runtime.cells import guarded, unguarded
from mer.pipeline.runtime.delimited import Dialect, dialect
from mer.pipeline.runtime.limits import (
    CELL_CHARACTERS,
    HEADER_BYTES,
    IMPORT_ROWS,
    TABLE_BYTES,
    TABLE_COLUMNS,
)
from mer.pipeline.runtime.terminal import plural, shown
from mer.pipeline.store import Header

INDEX = "index.csv"
HEADER = "header.json"
FILE = "file"  # the column that names an utterance's files, without their ending
# An id that can name a file, and be in a cell as it is; others get a number.
SAFE_NAME = r"[\w$][\w$+=@.-]{0,99}"
# What the exported header says of the cells: `guarded` against spreadsheets, or as they are.
CELLS, GUARDED, PLAIN = "cells", "guarded", "plain"


# --- reading


def find_index(folder: Path) -> Path:
    """FOLDER/index.csv, or the only csv there. Raises DataError."""
    if (folder / INDEX).is_file():
        return folder / INDEX
    tables = sorted(folder.glob("*.csv"))
    if len(tables) != 1:
        found = "several csv files" if tables else "no csv file"
        raise DataError(f"{folder}: {found}; expected {INDEX}")
    return tables[0]


@dataclass(frozen=True)
class Index:
    """What lies beside a folder of arrays: the columns of its csv, the header of `mer export` where
    there is one, and lines for the user.
    """

    columns: dict[str, list[str]]
    header: Header | None
    notes: list[str]


def read_index(path: Path) -> Index:
    """A csv, its cells as they were before they were guarded, and what is beside it. Raises
    DataError.
    """
    columns = read_csv(path)
    header = _read_header(path.parent / HEADER)
    if header is not None and header.provenance.get(CELLS) == GUARDED:
        columns = {name: list(map(unguarded, column)) for name, column in columns.items()}
    notes = [f"{path.name}: {line}" for line in _form(path).told()]
    return Index(columns, header, notes)


def _form(path: Path) -> Dialect:
    return dialect(path, known=FIELDS["id"])


def _read_header(path: Path) -> Header | None:
    if not path.exists():
        return None
    if require_file(path, "header of `mer export`") > HEADER_BYTES:
        raise DataError(f"{path}: more than {HEADER_BYTES:,} bytes; remove it")
    try:
        return exported_header(path.read_bytes())
    except ValueError as error:
        raise DataError(
            f"{path}: not a header of `mer export` ({shown(error)}); remove it"
        ) from None


def read_csv(path: Path) -> dict[str, list[str]]:
    """Columns of a csv file in UTF-8, each (N,) text.

    Raises DataError for a file that is none, is damaged, or beyond the bounds.
    """
    if path.is_file() and not path.stat().st_size:
        raise DataError(f"{path}: no rows")
    if require_file(path, "csv") > TABLE_BYTES:
        raise DataError(f"{path}: more than {TABLE_BYTES >> 20:,} MiB; import it in parts")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 (byte {error.object[error.start]:#04x} at {error.start}); save it "
            "as UTF-8"
        ) from None
    form = _form(path)
    names = form.header
    rows = list(_records(io.StringIO(text, newline=""), path, form))
    if not rows:
        raise DataError(f"{path}: no rows")
    if len(set(names)) != len(names):
        raise DataError(f"{path}: two columns of the same name")
    columns = map(list, zip(*rows, strict=True))
    return dict(zip(names, columns, strict=True))


def _records(file, path: Path, form: Dialect) -> Iterator[list[str]]:
    """The rows of a csv, blank lines left out."""
    names = form.header
    reader = form.reader(file, strict=True)
    csv.field_size_limit(CELL_CHARACTERS)
    try:
        next(filter(None, reader))
        if len(names) > TABLE_COLUMNS:
            raise DataError(
                f"{path}: {len(names):,} columns, more than {TABLE_COLUMNS:,}; features belong "
                "in .npy files"
            )
        count, begins = 0, reader.line_num + form.skipped + 1
        for row in reader:
            if row and len(row) != len(names):
                raise DataError(
                    f"{path}: line {begins} has {plural(len(row), 'cell')}, the header {len(names)}"
                )
            begins = reader.line_num + form.skipped + 1
            if not row:
                continue
            count += 1
            if count > IMPORT_ROWS:
                raise DataError(f"{path}: more than {IMPORT_ROWS:,} rows; import it in parts")
            yield row
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num + form.skipped}: {error}") from None


# --- writing


def write_index(copy: Copy, folder: Path) -> list[str]:
    """Write index.csv and header.json into a folder. Lists are JSON; null and "" are both empty.

    Returns:
        (n,) the name of each utterance's files, without their ending.
    """
    table = copy.table()
    names = _file_names(table["id"].to_pylist())
    with open(folder / INDEX, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([FILE, *table.column_names])
        for name, row in zip(names, table.to_pylist(), strict=True):
            writer.writerow([name, *(_cell(value, copy.plain_cells) for value in row.values())])
    header = copy.header()
    made = {
        **header.provenance,
        "exported_from": header.fingerprint,
        CELLS: PLAIN if copy.plain_cells else GUARDED,
    }
    text = replace(header, provenance=made).to_json()
    (folder / HEADER).write_text(text + "\n", encoding="utf-8")
    return names


def _file_names(ids: list[str]) -> list[str]:
    """The id where it can name a file, else the number of the row, in a form that is nobody's id. A
    file system may fold case: what differs in case only counts as the same name.
    """
    called = {row_id.lower() for row_id in ids}
    taken: set[str] = set()
    names = []
    for n, row_id in enumerate(ids):
        fits = re.fullmatch(SAFE_NAME, row_id, re.ASCII) and row_id.lower() not in taken
        name = row_id if fits else f"row.{n:07d}"
        while not fits and name in called:
            name += "_"
        names.append(name)
        taken.add(name.lower())
    return names


def _cell(value: object, plain: bool) -> object:
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, str):
        return value if plain else guarded(value)
    return "" if value is None else value
