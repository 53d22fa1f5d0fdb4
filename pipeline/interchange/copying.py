"""What an export takes of a store, and where it is prepared: at a new place, whole or not at all.

What is copied is held against its checksums on the way: a copy gets checksums of its own, so one
made of a damaged shard would be called sound for ever. What the header says of the machine stays at
home, unless asked for.
"""

from __future__ import annotations

import filecmp
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mer.pipeline.errors import DataError
from mer.pipeline.runtime import files
from mer.pipeline.runtime.progress import Advance
from mer.pipeline.store.head import PLACES
from mer.pipeline.store.reader import FeatureStore
from mer.pipeline.store.schema import Header

# The folders of a path inside a text: /home/me/ of "/home/me/a.wav: no such file".
FOLDERS = re.compile(r"(?<![\w:/\\.])(?:[A-Za-z]:\\|/)(?:[^\s'\",;:/\\]+[/\\])+")
# Entries of the provenance that say where a store was made.
MACHINE = ("host", "hostname", "user", "cwd")


@dataclass(frozen=True)
class Copy:
    """What is exported and how: the rows of a store, and two choices of the user."""

    store: FeatureStore
    rows: np.ndarray  # (n,) int64
    # index.csv with every cell as it is, also one that a spreadsheet takes for a formula.
    plain_cells: bool = False
    with_provenance: bool = False  # the header with host and absolute paths
    advance: Advance = lambda amount, fresh=True: None  # told of every array that is read

    def frames(self, modality: str, row: int, dtype: str | None = None) -> np.ndarray:
        """(T, D) of one utterance, as it was written or StoreError."""
        self.advance(1)
        return self.store.features(modality, row, dtype, check=True)

    def layer_means(self, modality: str, row: int) -> np.ndarray:
        """(L, width) float32 of one utterance, as they were written or StoreError."""
        return self.store.layer_means(modality, [row])[0]

    def table(self) -> pa.Table:
        """The rows of the index, without where they lie in shards."""
        table = self.store.table().take(self.rows)
        return table.drop_columns([name for name in PLACES if name in table.column_names])

    def header(self) -> Header:
        header = self.store.header
        if self.with_provenance:
            return header
        return replace(header, provenance=portable(header.provenance))


def portable(provenance: Any) -> Any:
    """`provenance` without what tells of the machine: host, user, absolute paths (None), folders of
    paths inside a text (`…/name`).
    """
    if isinstance(provenance, dict):
        return {key: portable(value) for key, value in provenance.items() if key not in MACHINE}
    if isinstance(provenance, list | tuple):
        return [portable(value) for value in provenance]
    if not isinstance(provenance, str):
        return provenance
    absolute = PurePosixPath(provenance).is_absolute() or PureWindowsPath(provenance).is_absolute()
    if absolute and ": " not in provenance:
        return None
    return FOLDERS.sub("…/", provenance)


def in_split(table: pa.Table, split: str) -> np.ndarray:
    """(n,) int64 rows of a store's table that are of a split."""
    return np.flatnonzero(pc.equal(table["split"], split).to_numpy(zero_copy_only=False))


@dataclass
class Place:
    """Where an export is prepared. `written` afterwards: False when the same bytes were at its
    destination already.
    """

    path: Path
    written: bool = True


@contextmanager
def new_file(out: Path) -> Iterator[Place]:
    """Prepare a file beside `out`; it goes there when the block ends well.

    Raises:
        DataError: Something else is at `out`.
        OSError: Names the file that could not be written.
    """
    with files.folders_for(out), files.naming(out):
        folder = files.temporary_for(out)
        folder.mkdir()
        place = Place(folder / out.name)
        try:
            yield place
            place.written = not _taken(out, lambda: _same_file(place.path, out))
            if place.written:
                files.sync_file(place.path)
                os.replace(place.path, out)
                files.sync_folder(out.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def new_folder(out: Path) -> Iterator[Place]:
    """Prepare a folder beside `out`, as `new_file` does a file."""
    with files.folders_for(out), files.naming(out):
        place = Place(files.temporary_for(out))
        place.path.mkdir()
        try:
            yield place
            place.written = not _taken(out, lambda: _same_folder(place.path, out))
            if place.written:
                place.path.rename(out)
        finally:
            shutil.rmtree(place.path, ignore_errors=True)


def _taken(out: Path, same: Callable[[], bool]) -> bool:
    """Whether `out` is there and the same; DataError when it is something else."""
    if not os.path.lexists(out):
        return False
    if not same():
        raise DataError(
            f"{out}: exists already, and is not this export of this store; remove it or name "
            "another place"
        )
    return True


def _same_file(new: Path, out: Path) -> bool:
    return out.is_file() and filecmp.cmp(new, out, shallow=False)


def _same_folder(new: Path, out: Path) -> bool:
    """Whether both hold the same files with the same bytes, and nothing else."""
    if not out.is_dir():
        return False
    names = sorted(path.relative_to(new) for path in new.rglob("*"))
    if names != sorted(path.relative_to(out) for path in out.rglob("*")):
        return False
    there = [name for name in names if (new / name).is_file()]
    return all(_same_file(new / name, out / name) for name in there)
