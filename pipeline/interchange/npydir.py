"""A folder of .npy files, one per utterance and modality, beside a csv (as MERBench and EmoBox keep
them): read as `mer import npy-dir`, written as `mer export --to npy`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path

import numpy as np

from mer.pipeline.errors import DataError
from mer.pipeline.interchange.columns import account, find_columns, find_features, find_layers
from mer.pipeline.interchange.copying import Copy, new_folder
from mer.pipeline.interchange.foreign import Features, Foreign, ImportOptions, layers_of
from mer.pipeline.interchange.indexcsv import FILE, find_index, read_index, write_index
from mer.pipeline.interchange.ragged import NUMBERS
from mer.pipeline.interchange.rows import interpret
from mer.pipeline.interchange.source import array_header, reading, require_file
from mer.pipeline.runtime.cells import strip
from mer.pipeline.runtime.files import near, sha256_file
from mer.pipeline.runtime.terminal import listed, plural, shown

NPY = ".npy"


# --- reading


def read(path: Path, options: ImportOptions) -> Foreign:
    """Read a folder: index.csv (or the only csv there) and <name>/<file>.npy of (T, D) or (D,);
    `file` is that column, else the id.

    Args:
        path: The folder.
        options: What the user says of it.

    Returns:
        Its table, and its features as they are read file by file.

    Raises:
        DataError: It is no such folder, its csv is damaged, or no file belongs to a row.
    """
    if not path.is_dir():
        what = "not a folder" if path.exists() else f"no such folder{near(path, 'folder')}"
        raise DataError(f"{path}: {what}")
    table = find_index(path)
    index = read_index(table)
    cells, header = index.columns, index.header
    named = [name for name in cells if name != FILE or "id" not in cells]
    names = find_columns(path, named, options)
    folders = sorted(folder.name for folder in path.iterdir() if folder.is_dir())
    features = find_features(path, folders, options, header)
    columns = {field: cells[name] for field, name in names.items()}
    there = dict.fromkeys(cells, "")
    there.pop(FILE, None)
    # a blank at an end is a slip, as in an id
    files = [strip(name).removesuffix(NPY) for name in cells.get(FILE, columns["id"])]
    found = interpret(path, columns, options, header)
    dims = {
        modality: _shape(path, path / name, files, modality)[-1]
        for modality, name in features.items()
    }
    means = find_layers(folders, features)
    layers = {
        modality: _shape(path, path / name, files, layers_of(modality))[0]
        for modality, name in means.items()
    }
    arrays = features | {layers_of(modality): name for modality, name in means.items()}

    def frames() -> Iterator[Features]:
        for file in files:
            yield {modality: _array(path / name, file) for modality, name in arrays.items()}

    return Foreign(
        path=path,
        kind="npy-dir",
        dataset=options.dataset or (header.dataset if header else path.name),
        task=found.task,
        labels=found.labels,
        language=options.language or (header.language if header else "en"),
        rows=found.rows,
        dims=dims,
        layers=layers,
        frames=frames,
        header=header,
        source={"sha256_of_csv": sha256_file(table)},
        notes=[
            *index.notes,
            account(names, arrays, found.task, there, folders),
            *_without_rows(path, arrays, files),
            *found.notes,
        ],
    )


def _without_rows(path: Path, arrays: Mapping[str, str], files: list[str]) -> Iterator[str]:
    """A line for each kind of arrays of which some belong to no row of the csv."""
    named = {f"{file}{NPY}" for file in files}
    for name in dict.fromkeys(arrays.values()):
        there = sorted(entry for entry in os.listdir(path / name) if entry.endswith(NPY))
        others = [entry for entry in there if entry not in named]
        if others:
            belong = plural(len(others), "array belongs", "arrays belong")
            yield f"{name}: {belong} to no row of the csv, left out: {listed(others, 2)}"


def _array(folder: Path, file: str) -> np.ndarray | None:
    """The array of one utterance, mapped; None when there is no such file. Never leaves the folder,
    never unpickles.
    """
    path = folder / f"{file}{NPY}"
    if not _is_inside(path, folder):
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
        return np.lib.format.open_memmap(path, mode="r") if prod(shape) else None


def _is_inside(path: Path, folder: Path) -> bool:
    try:
        return "\0" not in str(path) and path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # links in a circle
        return False


def _shape(path: Path, folder: Path, files: list[str], modality: str) -> tuple[int, ...]:
    """The shape of the first array that is there."""
    for file in files:
        x = _array(folder, file)
        if x is not None and x.ndim in (1, 2) and x.shape[-1]:
            return x.shape
    first = shown(files[0] if files else "", 40)
    raise DataError(
        f"{path}: no file of {folder.name} for {modality} belongs to a row of the csv (its first "
        f"asks for {first}{NPY}); call the files so, or add a column {FILE} with their names"
    )


# --- writing


def write(copy: Copy, out: Path) -> bool:
    """Write a folder: <modality>/<file>.npy (T, D), <modality>.layers/<file>.npy (L, width) where
    there are layer means, index.csv (a row per utterance) and header.json.

    Args:
        copy: The rows of a store.
        out: The folder.

    Returns:
        Whether anything was written.

    Raises:
        DataError: Something else is at `out`.
        StoreError: A shard is damaged.
    """
    with new_folder(out) as place:
        names = write_index(copy, place.path)
        for modality, info in copy.store.header.modalities.items():
            folder, means = place.path / modality, place.path / layers_of(modality)
            folder.mkdir()
            if info.layers:
                means.mkdir()
            lengths = copy.store.lengths(modality)
            for row, name in zip(copy.rows, names, strict=True):
                if not lengths[row]:
                    continue
                _save(folder / f"{name}{NPY}", copy.frames(modality, row, "stored"))
                if info.layers:
                    kept = copy.layer_means(modality, row).astype(info.layer_dtype)
                    _save(means / f"{name}{NPY}", kept)
    return place.written


def _save(path: Path, x: np.ndarray) -> None:
    packed = io.BytesIO()  # np.save to a file that cannot grow does not say why
    np.save(packed, x)
    path.write_bytes(packed.getbuffer())
