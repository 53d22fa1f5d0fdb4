"""Kaldi archives: written, beside the same index.csv as a folder of arrays has."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np

from mer.pipeline.errors import DataError
from mer.pipeline.interchange.copying import Copy, new_folder
from mer.pipeline.interchange.indexcsv import write_index
from mer.pipeline.runtime.terminal import plural

INT32_BYTES = 4  # written before each dimension of a matrix


def write(copy: Copy, out: Path) -> bool:
    """Write a folder: <modality>.ark (binary float matrices) and <modality>.scp, index.csv and
    header.json.

    Args:
        copy: The rows of a store.
        out: The folder.

    Returns:
        Whether anything was written.

    Raises:
        DataError: An id has white space, which Kaldi cannot have in a key, or something else is at
            `out`.
        StoreError: A shard is damaged.
    """
    ids = copy.store.table()["id"].take(copy.rows).to_pylist()
    bad = [row_id for row_id in ids if re.search(r"[\s\0]", row_id)]
    if bad:
        raise DataError(
            f"{copy.store.path}: {plural(len(bad), 'id has', 'ids have')} white space, first "
            f"{bad[0]!r}; Kaldi cannot "
            "name them, use --to npy or parquet"
        )
    with new_folder(out) as place:
        write_index(copy, place.path)
        for modality in copy.store.header.modalities:
            _write_archive(copy, modality, ids, place.path, out)
    return place.written


def _write_archive(copy: Copy, modality: str, ids: list[str], folder: Path, out: Path) -> None:
    """The matrices of a modality one after the other, and where each of them begins once the folder
    is at `out`.
    """
    archive = f"{modality}.ark"
    with (
        open(folder / archive, "wb") as ark,
        open(folder / f"{modality}.scp", "w", encoding="utf-8") as scp,
    ):
        for row, row_id in zip(copy.rows, ids, strict=True):
            x = copy.frames(modality, row)
            if not len(x):
                continue
            ark.write(row_id.encode() + b" ")
            scp.write(f"{row_id} {out / archive}:{ark.tell()}\n")
            ark.write(_matrix(x))


def _matrix(x: np.ndarray) -> bytes:
    """A binary float matrix (T, D): "\\0B" for binary, "FM " for the kind, then each dimension as
    the size of its integer and an int32.
    """
    steps, dim = x.shape
    head = b"\0BFM " + struct.pack("<bibi", INT32_BYTES, steps, INT32_BYTES, dim)
    return head + x.astype("<f4", copy=False).tobytes()
