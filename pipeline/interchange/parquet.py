"""One Parquet file: a row an utterance, features in list columns: of D numbers, or of T lists of D
numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mer.pipeline.errors import DataError
from mer.pipeline.interchange.columns import account, find_columns, find_features, interpret
from mer.pipeline.interchange.source import exported_header, reading, require_file
from mer.pipeline.interchange.write import Foreign, Options
from mer.pipeline.runtime.files import sha256_file
from mer.pipeline.runtime.limits import (
    IMPORT_MEMBERS,
    IMPORT_ROWS,
    IMPORT_TABLE_BYTES,
    PARQUET_BATCH_BYTES,
    UNPACKED_FREE_BYTES,
    UNPACKED_RATIO,
)
from mer.pipeline.runtime.terminal import shown
from mer.pipeline.store import Header

BATCH = 256  # rows unpacked at a time, at most
NUMBER_BYTES = 8  # of a number unpacked, with what lists and nulls take beside it


def read(path: Path, options: Options) -> Foreign:
    size = require_file(path, "Parquet file", magic=b"PAR1")
    with reading(path, "Parquet file"):
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        _check_counts(path, file, schema)
        wide = [
            f.name
            for f in schema
            if _numeric_list(f.type) and f.name not in ("targets", *options.columns.values())
        ]
        names = find_columns(path, [f.name for f in schema if f.name not in wide], options)
        header = _header(schema)
        features = find_features(path, wide, options, header)
        twice = [
            name
            for name, count in Counter(schema.names).items()
            if count > 1 and name in {*names.values(), *features.values()}
        ]
        if twice:
            raise DataError(
                f"{path}: column '{shown(twice[0], 40)}' is there twice; name the columns "
                "differently"
            )
        batch = _batch_rows(path, file, features.values(), size)
        columns = _columns(path, file, names)
        dims = {m: _dim(path, file, name, batch) for m, name in features.items()}

    def frames() -> Iterator[dict[str, np.ndarray | None]]:
        with reading(path, "Parquet file"):
            for part in file.iter_batches(batch, columns=list(dict.fromkeys(features.values()))):
                taken = {m: part.column(name) for m, name in features.items()}
                for i in range(len(part)):
                    yield {m: _piece(path, m, column[i], dims[m]) for m, column in taken.items()}

    found = interpret(path, columns, options, header)
    there = {f.name: f"({f.type})" for f in schema}
    return Foreign(
        path=path,
        kind="parquet",
        dataset=options.dataset or (header.dataset if header else path.stem),
        task=found.task,
        labels=found.labels,
        language=options.language or (header.language if header else "en"),
        rows=found.rows,
        dims=dims,
        frames=frames,
        header=header,
        source={"sha256": sha256_file(path)},
        notes=[account(names, features, found.task, there), *found.notes],
    )


def _check_counts(path: Path, file: pq.ParquetFile, schema: pa.Schema) -> None:
    if not 0 <= file.metadata.num_rows <= IMPORT_ROWS:
        raise DataError(
            f"{path}: {file.metadata.num_rows:,} rows; import at most {IMPORT_ROWS:,} at a time"
        )
    if len(schema.names) > IMPORT_MEMBERS:
        raise DataError(
            f"{path}: {len(schema.names):,} columns, more than {IMPORT_MEMBERS:,}; features belong "
            "in list columns"
        )


def _batch_rows(path: Path, file: pq.ParquetFile, names: Iterable[str], size: int) -> int:
    """Rows to unpack at a time, by the numbers that the file says its features have; DataError
    where that many cannot be in it.

    Run-length coding has no bound of its own: a few bytes may say "the same number fifty million
    times".
    """
    metadata, wanted, numbers = file.metadata, set(names), 0
    for group in range(metadata.num_row_groups):
        here = metadata.row_group(group)
        for column in range(here.num_columns):
            chunk = here.column(column)
            if any(f"{chunk.path_in_schema}.".startswith(f"{name}.") for name in wanted):
                numbers += chunk.num_values
    unpacked = numbers * NUMBER_BYTES
    if unpacked > UNPACKED_FREE_BYTES and unpacked > UNPACKED_RATIO * size:
        raise DataError(
            f"{path}: {size:,} bytes that hold {numbers:,} numbers; more than {UNPACKED_RATIO} "
            "times the bytes are refused"
        )
    row = max(1, unpacked // max(1, metadata.num_rows))
    return int(min(BATCH, max(1, PARQUET_BATCH_BYTES // row)))


def _columns(path: Path, file: pq.ParquetFile, names: dict[str, str]) -> dict[str, list]:
    """The columns that are no features, as Python values, by field; in batches, for dictionaries
    unpack without a bound."""
    wanted = list(dict.fromkeys(names.values()))
    values: dict[str, list] = {name: [] for name in wanted}
    held = 0
    for part in file.iter_batches(BATCH, columns=wanted):
        part.validate(full=True)  # Parquet does not check that text is UTF-8
        held += part.nbytes
        if held > IMPORT_TABLE_BYTES:
            raise DataError(
                f"{path}: its columns unpack to more than {IMPORT_TABLE_BYTES:,} bytes; import it "
                "in parts"
            )
        for name in wanted:
            values[name] += part.column(name).to_pylist()
    return {field: values[name] for field, name in names.items()}


def _header(schema: pa.Schema) -> Header | None:
    """That of the store which was exported; None for any other file, also one with `mer` metadata
    of another kind (a manifest)."""
    raw = (schema.metadata or {}).get(b"mer")
    try:
        return exported_header(raw) if raw else None
    except ValueError:
        return None


def _list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _numeric_list(kind: pa.DataType) -> bool:
    inner = kind.value_type if _list(kind) else None
    inner = inner.value_type if inner is not None and _list(inner) else inner
    return inner is not None and (pa.types.is_floating(inner) or pa.types.is_integer(inner))


def _dim(path: Path, file: pq.ParquetFile, name: str, batch: int) -> int:
    """Width of the first features that are there."""
    for part in file.iter_batches(batch, columns=[name]):
        for value in part.column(name):
            x = value.values if value.is_valid else None
            if x is None or not len(x):
                continue
            if not _list(x.type):
                return len(x)
            step = next((s for s in x if s.is_valid and len(s.values)), None)
            if step is not None:
                return len(step.values)
    raise DataError(f"{path}: {name} is empty in every row")


def _piece(path: Path, modality: str, value: pa.ListScalar, dim: int) -> np.ndarray | None:
    """(T, D), (D,), or None for a null or empty list."""
    if not value.is_valid or not len(value.values):
        return None
    x = value.values
    if not _list(x.type):
        return x.to_numpy(zero_copy_only=False)
    widths = {len(step.values) if step.is_valid else 0 for step in x} if x.null_count else None
    flat = x.flatten().to_numpy(zero_copy_only=False)
    if widths not in (None, {dim}) or len(flat) != len(x) * dim:
        raise DataError(
            f"{path}: {modality} has steps of unequal width; expected {dim} numbers in each"
        )
    return flat.reshape(len(x), dim)
