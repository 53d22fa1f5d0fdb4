"""A folder of .npy files, one an utterance and modality, beside a csv (as MERBench and EmoBox keep
them, and `mer export --to npy`)."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np

from mer.pipeline.errors import DataError
from mer.pipeline.interchange.arrays import NUMBERS
from mer.pipeline.interchange.columns import account, find_columns, find_features, interpret
from mer.pipeline.interchange.source import array_header, exported_header, reading, require_file
from mer.pipeline.interchange.write import Foreign, Options
from mer.pipeline.runtime.files import sha256_file
from mer.pipeline.runtime.limits import (
    CELL_CHARACTERS,
    HEADER_BYTES,
    IMPORT_ROWS,
    TABLE_BYTES,
    TABLE_COLUMNS,
)
from mer.pipeline.runtime.terminal import shown
from mer.pipeline.store.cells import unguarded


def read(path: Path, options: Options) -> Foreign:
    """FOLDER/index.csv (or the only csv there) and FOLDER/<name>/<file>.npy of (T, D) or (D,);
    `file` is that column, else the id."""
    if not path.is_dir():
        raise DataError(f"{path}: not a folder")
    tables = [path / "index.csv"] if (path / "index.csv").is_file() else sorted(path.glob("*.csv"))
    if len(tables) != 1:
        raise DataError(
            f"{path}: {'several csv files' if tables else 'no csv file'}; expected index.csv"
        )
    cells = read_csv(tables[0])
    header = None
    if (path / "header.json").exists():
        where = path / "header.json"
        if require_file(where, "header of `mer export`") > HEADER_BYTES:
            raise DataError(f"{where}: more than {HEADER_BYTES:,} bytes; remove it")
        try:
            header = exported_header(where.read_bytes())
        except ValueError as error:
            raise DataError(
                f"{where}: not a header of `mer export` ({shown(error)}); remove it"
            ) from None
    if header and header.provenance.get("cells") == "guarded":
        cells = {name: [unguarded(cell) for cell in column] for name, column in cells.items()}
    names = find_columns(
        path, [name for name in cells if name != "file" or "id" not in cells], options
    )
    folders = sorted(p.name for p in path.iterdir() if p.is_dir())
    features = find_features(path, folders, options, header)
    columns = {field: cells[name] for field, name in names.items()}
    files = [value.removesuffix(".npy") for value in cells.get("file", columns["id"])]
    found = interpret(path, columns, options, header)
    dims = {m: _dim(path, path / name, files, m) for m, name in features.items()}
    there = dict.fromkeys((n for n in cells if n != "file"), "") | dict.fromkeys(
        folders, "(folder)"
    )

    def frames() -> Iterator[dict[str, np.ndarray | None]]:
        for file in files:
            yield {m: _array(path / name, file) for m, name in features.items()}

    return Foreign(
        path=path,
        kind="npy-dir",
        dataset=options.dataset or (header.dataset if header else path.name),
        task=found.task,
        labels=found.labels,
        language=options.language or (header.language if header else "en"),
        rows=found.rows,
        dims=dims,
        frames=frames,
        header=header,
        source={"sha256_of_csv": sha256_file(tables[0])},
        notes=[account(names, features, found.task, there), *found.notes],
    )


def read_csv(path: Path) -> dict[str, list[str]]:
    """Columns of a csv file in UTF-8."""
    if path.is_file() and not path.stat().st_size:
        raise DataError(f"{path}: no rows")
    if require_file(path, "csv") > TABLE_BYTES:
        raise DataError(f"{path}: more than {TABLE_BYTES >> 20:,} MiB; import it in parts")
    csv.field_size_limit(CELL_CHARACTERS)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            names = next(reader, [])
            if len(names) > TABLE_COLUMNS:
                raise DataError(
                    f"{path}: {len(names):,} columns, more than {TABLE_COLUMNS:,}; features belong "
                    "in .npy files"
                )
            rows, begins = [], reader.line_num + 1
            for row in reader:
                if len(row) != len(names) and row:
                    raise DataError(
                        f"{path}: line {begins} has {len(row)} cells, the header {len(names)}"
                    )
                rows += [row] if row else []
                begins = reader.line_num + 1
                if len(rows) > IMPORT_ROWS:
                    raise DataError(f"{path}: more than {IMPORT_ROWS:,} rows; import it in parts")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 (byte {error.object[error.start]:#04x} at {error.start}); save it "
            "as UTF-8"
        ) from None
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: {error}") from None
    if not names or not rows:
        raise DataError(f"{path}: no rows")
    if len(set(names)) != len(names):
        raise DataError(f"{path}: two columns of the same name")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def _array(folder: Path, file: str) -> np.ndarray | None:
    """The array of one utterance, mapped; None when there is no such file. Never leaves the folder,
    never unpickles."""
    path = folder / f"{file}.npy"
    try:
        inside = "\0" not in file and path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # links in a circle
        inside = False
    if not inside:
        raise DataError(f"{folder}: '{shown(file)}' leads out of the folder; refused")
    try:
        there = path.exists()
    except OSError:
        raise DataError(f"{folder}: '{shown(file)}' is no name of a file") from None
    if not there:
        return None
    size = require_file(path, "npy array", magic=b"\x93NUMPY")
    with reading(path, "array"):
        with open(path, "rb") as head:
            shape, dtype = array_header(head)
            left = size - head.tell()
        if dtype.kind not in NUMBERS:
            raise DataError(f"{path}: holds {shown(dtype, 40)}, not numbers")
        if prod(shape) * dtype.itemsize > left:
            raise DataError(
                f"{path}: claims shape {shown(shape)} of {dtype} but holds {left:,} bytes"
            )
        if not prod(shape):
            return None
        return np.lib.format.open_memmap(path, mode="r")


def _dim(path: Path, folder: Path, files: list[str], modality: str) -> int:
    for file in files:
        x = _array(folder, file)
        if x is not None and x.ndim in (1, 2) and x.shape[-1]:
            return x.shape[-1]
    raise DataError(f"{path}: no file of {folder.name} for {modality} belongs to a row of the csv")
