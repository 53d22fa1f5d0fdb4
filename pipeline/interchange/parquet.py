"""One Parquet file: a row per utterance, features in list columns: of D numbers, or of T lists of D
numbers. Read and written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mer.pipeline.errors import DataError
from mer.pipeline.interchange.columns import account, find_columns, find_features, find_layers
from mer.pipeline.interchange.copying import Copy, new_file
from mer.pipeline.interchange.foreign import Features, Foreign, ImportOptions, layers_of
from mer.pipeline.interchange.rows import interpret
from mer.pipeline.interchange.source import header_among, reading, require_file
from mer.pipeline.runtime.columnar import LISTS
from mer.pipeline.runtime.files import sha256_file
from mer.pipeline.runtime.limits import (
    IMPORT_MEMBERS,
    IMPORT_ROWS,
    IMPORT_TABLE_BYTES,
    PARQUET_BATCH_BYTES,
    UNPACKED_FREE_BYTES,
    UNPACKED_RATIO,
)
from mer.pipeline.runtime.terminal import plural, shown

HEADER_KEY = b"mer"  # of the metadata, where an export of ours has its header
BATCH_ROWS = 256  # unpacked at a time, at most
NUMBER_BYTES = 8  # of a number unpacked, with what lists and nulls take beside it


# --- reading


def read(path: Path, options: ImportOptions) -> Foreign:
    """Read a Parquet file.

    Args:
        path: The file.
        options: What the user says of it.

    Returns:
        Its table, and its features as they are unpacked in batches.

    Raises:
        DataError: It is no such file, is damaged or hostile, or its table or features do not fit.
    """
    size = require_file(path, "Parquet file", magic=b"PAR1")
    with reading(path, "Parquet file"):
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        _check_counts(path, file, schema)
        wide = _wide_columns(schema, options)
        names = find_columns(path, [name for name in schema.names if name not in wide], options)
        header = header_among((schema.metadata or {}).get(HEADER_KEY))
        features = find_features(path, wide, options, header)
        means = find_layers(wide, features)
        arrays = features | {layers_of(modality): name for modality, name in means.items()}
        for name in (*names.values(), *arrays.values()):
            if schema.names.count(name) > 1:
                raise DataError(
                    f"{path}: column '{shown(name, 40)}' is there twice; name the columns "
                    "differently"
                )
        batch = _batch_rows(path, file, arrays.values(), size)
        columns = _columns(path, file, names)
        dims = {what: _dim(path, file, name, batch) for what, name in arrays.items()}
        layers = {modality: _count(path, file, name, batch) for modality, name in means.items()}

    def frames() -> Iterator[Features]:
        with reading(path, "Parquet file"):
            yield from _frames(path, file, arrays, dims, batch)

    found = interpret(path, columns, options, header)
    there = {column.name: f"({column.type})" for column in schema}
    return Foreign(
        path=path,
        kind="parquet",
        dataset=options.dataset or (header.dataset if header else path.stem),
        task=found.task,
        labels=found.labels,
        language=options.language or (header.language if header else "en"),
        rows=found.rows,
        dims={modality: dims[modality] for modality in features},
        layers=layers,
        frames=frames,
        header=header,
        source={"sha256": sha256_file(path)},
        notes=[account(names, arrays, found.task, there), *found.notes],
    )


def _wide_columns(schema: pa.Schema, options: ImportOptions) -> list[str]:
    """The columns that may be features: lists of numbers that nobody has named as a field."""
    tabular = {"targets", *options.columns.values()}
    numeric = [column.name for column in schema if _is_numeric_list(column.type)]
    return [name for name in numeric if name not in tabular]


def _check_counts(path: Path, file: pq.ParquetFile, schema: pa.Schema) -> None:
    if not 0 <= file.metadata.num_rows <= IMPORT_ROWS:
        raise DataError(
            f"{path}: {plural(file.metadata.num_rows, 'row')}; import at most {IMPORT_ROWS:,} at "
            "a time"
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
    beginnings = tuple(f"{name}." for name in set(names))
    numbers = 0
    for group in range(file.metadata.num_row_groups):
        here = file.metadata.row_group(group)
        for column in range(here.num_columns):
            chunk = here.column(column)
            if f"{chunk.path_in_schema}.".startswith(beginnings):
                numbers += chunk.num_values
    unpacked = numbers * NUMBER_BYTES
    if unpacked > UNPACKED_FREE_BYTES and unpacked > UNPACKED_RATIO * size:
        raise DataError(
            f"{path}: {size:,} bytes that hold {numbers:,} numbers; more than {UNPACKED_RATIO} "
            "times the bytes are refused"
        )
    row = max(1, unpacked // max(1, file.metadata.num_rows))
    return int(min(BATCH_ROWS, max(1, PARQUET_BATCH_BYTES // row)))


def _columns(path: Path, file: pq.ParquetFile, names: Mapping[str, str]) -> dict[str, list]:
    """The columns that are no features, as Python values, by field; in batches, for dictionaries
    unpack without a bound.
    """
    wanted = list(dict.fromkeys(names.values()))
    values: dict[str, list] = {name: [] for name in wanted}
    held = 0
    for part in file.iter_batches(BATCH_ROWS, columns=wanted):
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


def _is_list(kind: pa.DataType) -> bool:
    return any(test(kind) for test in LISTS)


def _is_numeric_list(kind: pa.DataType) -> bool:
    """Whether a type is a list of numbers, or a list of lists of numbers."""
    if not _is_list(kind):
        return False
    inner = kind.value_type
    if _is_list(inner):
        inner = inner.value_type
    return pa.types.is_floating(inner) or pa.types.is_integer(inner)


def _dim(path: Path, file: pq.ParquetFile, name: str, batch: int) -> int:
    """Numbers per step, by the first features that are there."""
    for part in file.iter_batches(batch, columns=[name]):
        for value in part.column(name):
            width = _first_width(value)
            if width:
                return width
    raise DataError(f"{path}: {name} is empty in every row")


def _count(path: Path, file: pq.ParquetFile, name: str, batch: int) -> int:
    """Layers of an utterance, by the first layer means that are there."""
    for part in file.iter_batches(batch, columns=[name]):
        for value in part.column(name):
            if _first_width(value):
                return len(value.values) if _is_list(value.values.type) else 1
    raise DataError(f"{path}: {name} is empty in every row")


def _first_width(value: pa.ListScalar) -> int:
    """Numbers in the first step of an utterance that has any; 0 where none has."""
    steps = value.values if value.is_valid else None
    if steps is None or not len(steps):
        return 0
    if not _is_list(steps.type):
        return len(steps)
    return next((len(step.values) for step in steps if step.is_valid and len(step.values)), 0)


def _frames(
    path: Path,
    file: pq.ParquetFile,
    features: Mapping[str, str],
    dims: Mapping[str, int],
    batch: int,
) -> Iterator[Features]:
    names = list(dict.fromkeys(features.values()))
    for part in file.iter_batches(batch, columns=names):
        taken = {modality: part.column(name) for modality, name in features.items()}
        for i in range(len(part)):
            yield {
                modality: _piece(path, modality, column[i], dims[modality])
                for modality, column in taken.items()
            }


def _piece(path: Path, modality: str, value: pa.ListScalar, dim: int) -> np.ndarray | None:
    """(T, D), (D,), or None for a null or empty list."""
    if not value.is_valid or not len(value.values):
        return None
    steps = value.values
    if not _is_list(steps.type):
        return steps.to_numpy(zero_copy_only=False)
    uneven = False
    if steps.null_count:
        uneven = {len(step.values) if step.is_valid else 0 for step in steps} != {dim}
    flat = steps.flatten().to_numpy(zero_copy_only=False)
    if uneven or len(flat) != len(steps) * dim:
        raise DataError(
            f"{path}: {modality} has steps of unequal width; expected {dim} numbers in each"
        )
    return flat.reshape(len(steps), dim)


# --- writing

# One row group, which is held in memory.
GROUP_ROWS = 1024
GROUP_BYTES = 64 << 20


def write(copy: Copy, out: Path) -> bool:
    """Write one Parquet file: the table, and a column <modality>_features of T lists of D float32;
    the header is its metadata `mer`.

    Args:
        copy: The rows of a store.
        out: The file.

    Returns:
        Whether anything was written.

    Raises:
        DataError: Something else is at `out`.
        StoreError: A shard is damaged.
    """
    store, header = copy.store, copy.header()
    table = copy.table()
    columns = table.schema
    fields = list(columns)
    sizes = np.zeros(len(copy.rows), np.int64)
    for modality, info in header.modalities.items():
        kind = pa.list_(pa.list_(pa.float32(), info.dim))
        fields.append(pa.field(f"{modality}_features", kind))
        sizes += store.lengths(modality)[copy.rows] * info.dim * np.dtype(np.float32).itemsize
        if info.layers:
            kind = pa.list_(pa.list_(pa.float32(), info.width))
            fields.append(pa.field(layers_of(modality), kind))
            sizes += info.layers * info.width * np.dtype(np.float32).itemsize
    schema = pa.schema(fields, {HEADER_KEY.decode(): header.to_json()})
    with new_file(out) as place, pq.ParquetWriter(place.path, schema, compression="zstd") as writer:
        for start, stop in _groups(sizes):
            part = copy.rows[start:stop]
            taken = table.slice(start, stop - start)
            data = [taken[column.name].combine_chunks() for column in columns]
            for modality, info in header.modalities.items():
                data.append(_lists(copy, modality, part))
                if info.layers:
                    data.append(_layer_lists(copy, modality, part))
            group = pa.Table.from_arrays(data, schema=schema)
            writer.write_table(group, row_group_size=max(1, len(part)))
    return place.written


def _lists(copy: Copy, modality: str, rows: np.ndarray) -> pa.Array:
    """The features of some rows as (n,) lists of T lists of D float32."""
    dim = copy.store.header.modalities[modality].dim
    packed, offsets = copy.store.packed(modality, rows.tolist(), dtype="float32", check=True)
    copy.advance(len(rows))
    steps = pa.FixedSizeListArray.from_arrays(pa.array(packed.reshape(-1)), dim)
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), steps)
    return lists.cast(pa.list_(pa.list_(pa.float32(), dim)))


def _layer_lists(copy: Copy, modality: str, rows: np.ndarray) -> pa.Array:
    """The layer means of some rows as (n,) lists of L lists of W float32, empty where the modality
    is absent.
    """
    info = copy.store.header.modalities[modality]
    there = copy.store.lengths(modality)[rows] > 0
    means = copy.store.layer_means(modality, rows[there]).reshape(-1)
    offsets = np.concatenate([[0], np.cumsum(there * info.layers)])
    steps = pa.FixedSizeListArray.from_arrays(pa.array(means), info.width)
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), steps)
    return lists.cast(pa.list_(pa.list_(pa.float32(), info.width)))


def _groups(sizes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Cut rows of these sizes, in bytes, into runs of bounded bytes and count."""
    start, total = 0, 0
    for i, size in enumerate(sizes.tolist()):
        if i > start and (i - start >= GROUP_ROWS or total + size > GROUP_BYTES):
            yield start, i
            start, total = i, 0
        total += size
    yield start, len(sizes)
