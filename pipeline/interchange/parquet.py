"""One Parquet file: a row an utterance, features in list columns: of D numbers, or of T lists of D
numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mer.pipeline.errors import DataError
from mer.pipeline.interchange.columns import account, find_columns, find_features, interpret
from mer.pipeline.interchange.write import Foreign, Options, sha256
from mer.pipeline.store import Header

BATCH = 256  # rows unpacked at a time


def read(path: Path, options: Options) -> Foreign:
    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        wide = [
            f.name
            for f in schema
            if _numeric_list(f.type) and f.name not in ("targets", *options.columns.values())
        ]
        names = find_columns(path, [f.name for f in schema if f.name not in wide], options)
        header = _header(schema)
        features = find_features(path, wide, options, header)
        table = file.read(list(dict.fromkeys(names.values())))
        table.validate(full=True)  # Parquet does not check that text is UTF-8
        dims = {m: _dim(path, file, name) for m, name in features.items()}
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, PermissionError):
            raise
        raise _unreadable(path, error) from None

    def frames() -> Iterator[dict[str, np.ndarray | None]]:
        batches = file.iter_batches(BATCH, columns=list(dict.fromkeys(features.values())))
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowException, OSError) as error:
                raise _unreadable(path, error) from None
            if batch is None:
                return
            columns = {m: batch.column(name) for m, name in features.items()}
            for i in range(len(batch)):
                yield {m: _piece(path, m, column[i], dims[m]) for m, column in columns.items()}

    columns = {field: table[name].to_pylist() for field, name in names.items()}
    task, labels, rows = interpret(path, columns, options, header)
    return Foreign(
        path=path,
        kind="parquet",
        dataset=options.dataset or (header.dataset if header else path.stem),
        task=task,
        labels=labels,
        language=options.language or (header.language if header else "en"),
        rows=rows,
        dims=dims,
        frames=frames,
        header=header,
        source={"sha256": sha256(path)},
        notes=[account(names, features, task, schema.names)],
    )


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0][:200]})")


def _header(schema: pa.Schema) -> Header | None:
    """That of the store which was exported; None for any other file, also one with `mer` metadata
    of another kind (a manifest).
    """
    raw = (schema.metadata or {}).get(b"mer")
    try:
        return Header.from_json(raw.decode()) if raw else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _numeric_list(kind: pa.DataType) -> bool:
    inner = kind.value_type if _list(kind) else None
    inner = inner.value_type if inner is not None and _list(inner) else inner
    return inner is not None and (pa.types.is_floating(inner) or pa.types.is_integer(inner))


def _dim(path: Path, file: pq.ParquetFile, name: str) -> int:
    """Width of the first features that are there."""
    for batch in file.iter_batches(BATCH, columns=[name]):
        for value in batch.column(name):
            x = value.values if value.is_valid else None
            if x is not None and len(x):
                return len(x[0].values) if _list(x.type) else len(x)
    raise DataError(f"{path}: {name} is empty in every row")


def _piece(path: Path, modality: str, value: pa.ListScalar, dim: int) -> np.ndarray | None:
    """(T, D), (D,), or None for a null or empty list."""
    if not value.is_valid or not len(value.values):
        return None
    x = value.values
    if not _list(x.type):
        return x.to_numpy(zero_copy_only=False)
    flat = x.flatten().to_numpy(zero_copy_only=False)
    if len(flat) != len(x) * dim:
        raise DataError(
            f"{path}: {modality} has steps of unequal width; expected {dim} numbers in each"
        )
    return flat.reshape(len(x), dim)
