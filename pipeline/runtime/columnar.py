"""Parquet files of utterances, read with bounds: what is no regular file, too large, or of a type
that is no text is refused before it is unpacked.
"""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mer.pipeline.errors import DataError
from mer.pipeline.runtime.files import near
from mer.pipeline.runtime.limits import (
    CELL_CHARACTERS,
    TABLE_BYTES,
    TABLE_COLUMNS,
    TABLE_ROWS,
    TABLE_VALUES,
)
from mer.pipeline.runtime.terminal import first_line, shown

FAILURES = (
    pa.ArrowException,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    OverflowError,
    RecursionError,
    MemoryError,
)
LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
TEXTS = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
)
NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean)


def require_regular(path: Path, what: str = "file") -> None:
    """Raises DataError when `path` is absent, a folder, or a pipe or device, which may
    never end.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise DataError(f"{path}: no such {what}{near(path)}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "a path cannot hold a zero byte"
        raise DataError(f"{shown(path, 200)}: {reason}; name a {what}") from None
    if stat.S_ISDIR(mode):
        raise DataError(f"{path}: a folder; name a {what}")
    if not stat.S_ISREG(mode):
        raise DataError(
            f"{path}: a pipe, socket or device, not a {what}; save its content in a file and name "
            "that"
        )


def reason(error: Exception) -> str:
    """The first line of a library's message, for a line of ours; json's and Python's in words that
    help a user.
    """
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, ValueError) and "set_int_max_str_digits" in str(error):
        return "a number of more than 4,300 digits"
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    return first_line(error, 120)


def holds(kind: pa.DataType, *tests) -> bool:
    """Whether the type passes one of the tests, looked at through dictionaries."""
    while pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any(test(kind) for test in tests)


def open_parquet(file, path: Path) -> pq.ParquetFile:
    """Raises what pyarrow raises on damage, and DataError beyond the bounds."""
    parquet = pq.ParquetFile(file, pre_buffer=False)  # see `read_small`
    found = parquet.metadata
    if found.num_columns > TABLE_COLUMNS:
        raise DataError(
            f"{path}: {found.num_columns:,} columns, more than {TABLE_COLUMNS:,}; keep those that "
            "are needed"
        )
    if found.num_rows > TABLE_ROWS:
        raise DataError(
            f"{path}: {found.num_rows:,} rows, more than {TABLE_ROWS:,}; split it into several "
            "corpora"
        )
    return parquet


def read_small(file: BinaryIO, **form) -> pa.Table:
    """A Parquet file that mer itself has written, whole, read by the calling thread alone.

    `pyarrow.parquet.read_table` reads ahead in threads of Arrow's, which call back into Python
    for a Python file. One that does so while the interpreter ends takes the process with it
    ("terminate called without an active exception"), after everything was done.

    Args:
        file: Open to read in binary.
        form: What `pyarrow.parquet.ParquetFile` takes besides.

    Returns:
        The table, as stored.

    Raises:
        ArrowException, OSError, ValueError: The file is damaged.
    """
    return pq.ParquetFile(file, pre_buffer=False, **form).read(use_threads=False)


def read_columns(parquet: pq.ParquetFile, path: Path, wanted: Iterable[str]) -> pa.Table:
    """The columns of those names that are there, as stored (text by dictionaries, so that repeats
    take no memory), and checked. Raises DataError when a name is there twice, or a column unpacks
    to more than the bounds.
    """
    names = parquet.schema_arrow.names
    there = [name for name in dict.fromkeys(wanted) if name in names]
    times = Counter(names)
    for name in there:
        if times[name] > 1:
            raise DataError(
                f"{path}: column '{shown(name)}' is there {times[name]} times; rename or drop the "
                "others"
            )
    _check_sizes(parquet, path, there)
    table = parquet.read(columns=there, use_threads=False)
    table.validate(full=True)  # Parquet does not check that text is UTF-8
    _check_lengths(table, path)
    return table


def _check_sizes(parquet: pq.ParquetFile, path: Path, wanted: Sequence[str]) -> None:
    """Raises DataError when the columns of those names unpack to more than the bounds."""
    schema = parquet.schema
    leaves: dict[str, str] = {}
    for number in range(len(schema)):
        leaf = schema.column(number).path
        columns = (name for name in wanted if f"{leaf}.".startswith(f"{name}."))
        column = next(columns, None)
        if column is not None:
            leaves[leaf] = column
    if leaves and parquet.metadata.num_rows:
        # Pages go by one at a time. pyarrow ends the process when Python asks for the metadata of a
        # column whose footer is damaged; here the damage becomes an exception first.
        parquet.scan_contents(list(leaves))
    size: Counter[str] = Counter()
    values: Counter[str] = Counter()
    for group in range(parquet.metadata.num_row_groups):
        row_group = parquet.metadata.row_group(group)
        for number in range(len(schema)):
            name = leaves.get(schema.column(number).path)
            if name is not None:
                chunk = row_group.column(number)
                size[name] += chunk.total_uncompressed_size
                values[name] += chunk.num_values
    if size.total() > TABLE_BYTES:
        raise DataError(
            f"{path}: its columns unpack to {size.total():,} bytes, more than {TABLE_BYTES:,}"
        )
    if values and max(values.values()) > TABLE_VALUES:
        name, count = values.most_common(1)[0]
        raise DataError(
            f"{path}: column '{shown(name)}' holds {count:,} values, more than {TABLE_VALUES:,}"
        )


def _check_lengths(table: pa.Table, path: Path) -> None:
    """Raises DataError for cells, or columns of them, that are longer than the bounds; a dictionary
    hides how long.
    """
    total = 0
    for name in table.column_names:
        for chunk in table.column(name).chunks:
            texts = chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk
            if not any(test(texts.type) for test in TEXTS[:5]):
                continue
            lengths = pc.binary_length(texts)
            # UTF-8 has up to four bytes each
            if (longest := pc.max(lengths).as_py() or 0) > 4 * CELL_CHARACTERS:
                raise DataError(
                    f"{path}: column '{shown(name)}' has a cell of {longest:,} bytes, too long "
                    "for a text"
                )
            if pa.types.is_dictionary(chunk.type):
                lengths = lengths.take(chunk.indices)
            total += pc.sum(pc.cast(lengths, pa.int64())).as_py() or 0
    if total > TABLE_BYTES:
        raise DataError(
            f"{path}: its text has {total:,} bytes, repeats counted, more than {TABLE_BYTES:,}"
        )


def open_by_dictionary(file, path: Path) -> pq.ParquetFile:
    """The file opened so that every column of text is read as a dictionary and its indices."""
    parquet = open_parquet(file, path)
    texts = [field.name for field in parquet.schema_arrow if holds(field.type, *TEXTS)]
    return pq.ParquetFile(file, read_dictionary=texts, pre_buffer=False)


def to_list(column: pa.ChunkedArray) -> list:
    """A column as Python values; equal text of a dictionary is one object."""
    if isinstance(column.type, pa.ExtensionType):
        column = column.cast(column.type.storage_type)
    if not pa.types.is_dictionary(column.type):
        return column.to_pylist()
    out: list = []
    for chunk in column.chunks:
        known = chunk.dictionary.to_pylist()
        out += [None if i is None else known[i] for i in chunk.indices.to_pylist()]
    return out
