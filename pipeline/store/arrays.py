"""One closed HDF5 file of contiguous arrays: it appears whole or not at all, and is read without
trusting a word of it.

HDF5 lays the file out (its metadata is a few kB and checksummed, libver v108); the arrays
themselves are written to their places with plain file writes. So a full disk is a plain ENOSPC,
bulk writing runs at disk speed, and the same arrays give the same bytes: no timestamps, no free
space, no chunk index.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import IO

import h5py
import numpy as np
from h5py import h5d, h5f, h5g, h5l, h5o, h5p, h5s, h5t

from mer.pipeline.errors import DataError, StoreError
from mer.pipeline.runtime.files import error_number, near, publishing, shortened
from mer.pipeline.runtime.limits import ATTRIBUTE_BYTES, ECHO_CHARACTERS, INDEX_BYTES

# What h5py, numpy and json raise on bytes that are not what they should be.
DAMAGE = (
    OSError,
    KeyError,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    OverflowError,
    IndexError,
    MemoryError,
)
PLAIN = (h5t.INTEGER, h5t.FLOAT, h5t.STRING)  # classes of the element types of the format
PAGE_BYTES = 4096  # arrays of a page or more start on a page, so that maps of them are aligned


@dataclass(frozen=True)
class Stream:
    """An array too large to hold: its parts, in order, each C-contiguous."""

    dtype: str
    shape: tuple[int, ...]
    parts: Iterable[np.ndarray]


def write(
    path: Path,
    *,
    attrs: Mapping[str, Mapping[str, str | int]],
    arrays: Mapping[str, np.ndarray | Stream],
    links: Mapping[str, str] | None = None,
) -> None:
    """Publish an HDF5 file whole or not at all.

    Args:
        path: Where it is to appear.
        attrs: The attributes of each group; "/" is the file itself.
        arrays: The arrays by their names; they are written in this order.
        links: Names of links, and the files that they lead to, relative to the folder of `path`.

    Raises:
        DataError: `path` is a device or a pipe.
        StoreError: A stream gives other bytes than it was laid out for.
        OSError: The disk is full, the folder cannot be written, …; it names `path`.
    """
    try:
        with publishing(path) as temporary:
            places = _lay_out(temporary, attrs, arrays, links or {})
            with open(temporary, "r+b") as file:
                for name, array in arrays.items():
                    _write_array(file, path, name, array, places[name])
    except RuntimeError as error:  # of HDF5, where it fails on closing
        number = error_number(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from None


def _write_array(
    file: IO[bytes], path: Path, name: str, array: np.ndarray | Stream, place: int
) -> None:
    """The bytes of one array to their place in the file. Raises StoreError when they are not those
    that were laid out.
    """
    parts = array.parts if isinstance(array, Stream) else (array,)
    expected, written = prod(array.shape) * np.dtype(array.dtype).itemsize, 0
    if expected:
        file.seek(place)
    for part in parts:
        if part.dtype != array.dtype:
            raise StoreError(f"{path}: {name} is {part.dtype}, laid out as {array.dtype}")
        if part.size:
            written += file.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
    if written != expected:
        raise StoreError(f"{path}: {name} has {written} bytes, laid out for {expected}")


PARQUET_MAGIC = b"PAR1"
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".txt", ".xlsx")  # of what people have before that
REMEDY = {
    "store": "make it again with --force, which keeps sound shards, or name another file",
    "shard": "run `mer verify --repair` on its store",
}


@contextmanager
def opened(path: Path, what: str, remedy: str = "") -> Iterator[h5py.File]:
    """A file to read, `what` naming it to the user, `remedy` what mends it; whatever its bytes
    provoke in the block becomes a StoreError.
    """
    try:
        # Reading a pipe would wait for a writer without end.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise DataError(f"{path}: not a {what}")
        # No lock is taken: there are readers on NFS and read-only mounts, and a published file is
        # never changed in place.
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except FileNotFoundError:
        guess = near(path) if what == "store" else ""  # of a shard it would be another one
        raise DataError(f"{path}: no such {what}{guess}") from None
    except PermissionError:
        raise
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno in (errno.EISDIR, errno.ENOTDIR):
            raise DataError(f"{path}: not a {what}") from None
        if what == "store" and (instead := _not_yet(path)):
            raise DataError(f"{path}: {instead}") from None
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        reason = shortened(first_line, ECHO_CHARACTERS // 2)
        raise StoreError(
            f"{path}: not a readable {what} ({reason}): damaged, or no {what} of mer; "
            f"{remedy or REMEDY[what]}"
        ) from None


def _not_yet(path: Path) -> str:
    """What a file is that a store has yet to be made from, and how; empty where it is none."""
    with open(path, "rb") as file:
        begin = file.read(len(PARQUET_MAGIC))
    if begin == PARQUET_MAGIC:
        return (
            "a Parquet file and no store; of a manifest `mer extract --manifest FILE` makes one, "
            "of a table `mer prepare table --from FILE` makes a manifest"
        )
    if path.suffix.lower() in TABLES:
        return (
            "a table and no store; `mer prepare table --from FILE` makes a manifest of it, and "
            "`mer extract --manifest` a store of that"
        )
    return ""


def attribute(file: h5py.Group, name: str) -> str | int:
    """A scalar attribute as str or int. Raises ValueError for anything else."""
    attr = file.attrs.get_id(name)
    kind = attr.get_type()
    if (
        kind.get_class() not in (h5t.INTEGER, h5t.STRING)
        or attr.shape != ()
        or attr.get_storage_size() > ATTRIBUTE_BYTES
    ):
        raise ValueError(f"attribute {name} is not a number or a short text")
    if kind.get_class() == h5t.STRING and kind.is_variable_str():
        raise ValueError(f"attribute {name} is a text of variable length")
    value = file.attrs[name]
    return value.decode() if isinstance(value, bytes) else int(value)


def dataset(group: h5py.Group, name: str) -> h5py.Dataset:
    """The array of that name, which lies in this file in one piece.

    Whatever would lead HDF5 elsewhere (links, virtual and external storage) or into code of others
    (filters, types by name) is refused before anything else is asked of it: a virtual array of
    itself ends the process.
    """
    here = group.id
    *folders, last = name.split("/")
    for folder in folders:
        _hard_link(here, folder, h5o.TYPE_GROUP, name)
        here = h5g.open(here, folder.encode())
    _hard_link(here, last, h5o.TYPE_DATASET, name)
    found = h5d.open(here, last.encode())
    layout = found.get_create_plist()
    if (
        layout.get_layout() != h5d.CONTIGUOUS
        or layout.get_external_count()
        or layout.get_nfilters()
    ):
        raise ValueError(
            f"{name} is not stored in one piece: virtual, external, chunked or compressed"
        )
    kind = found.get_type()
    if kind.committed() or kind.get_class() not in PLAIN:
        raise ValueError(f"{name} is of a type that is not of the format")
    return h5py.Dataset(found)


def group_of(file: h5py.File, name: str) -> h5py.Group:
    """The group of that name, which lies in this file; "/" is the file itself."""
    if name != "/":
        _hard_link(file.id, name, h5o.TYPE_GROUP, name)
    return file[name]


def _hard_link(here: h5g.GroupID, name: str, kind: int, said: str) -> None:
    """Raise ValueError unless `name` is an object of that kind that lies in the file itself; the
    message names it by `said`.
    """
    try:
        link = here.links.get_info(name.encode())
    except KeyError:
        raise ValueError(f"{said} is missing") from None
    if link.type != h5l.TYPE_HARD:
        raise ValueError(f"{said} is a link to elsewhere")
    if h5o.get_info(here, name.encode()).type != kind:
        raise ValueError(f"{said} is something else")


def read(
    file: h5py.Group, name: str, dtype: str, ndim: int = 1, *, limit: int = INDEX_BYTES
) -> np.ndarray:
    """A small array whole.

    Its claimed size is held against the file and `limit` (bytes) before anything is allocated.
    """
    found = dataset(file, name)
    shape = found.shape
    if found.dtype != np.dtype(dtype) or shape is None or len(shape) != ndim:
        raise ValueError(f"{name} is not a {ndim}-d array of {np.dtype(dtype)}")
    size = prod(shape) * np.dtype(dtype).itemsize
    if size > limit:
        raise ValueError(f"{name} has {size:,} bytes, more than the {limit:,} that are read")
    if size:
        place(found)
    return found[()]


def place(found: h5py.Dataset) -> int:
    """Byte offset of an array that is not empty, wholly present and little-endian."""
    dtype = found.dtype  # asked for once, since HDF5 makes it anew each time
    offset, size = found.id.get_offset(), prod(found.shape) * dtype.itemsize
    if offset is None or found.id.get_storage_size() != size:
        raise ValueError(f"{found.name} is not stored in one piece")
    if dtype.str.startswith(">"):
        raise ValueError(f"{found.name} is big-endian")
    if offset + size > os.stat(h5f.get_name(found.id)).st_size:
        raise ValueError(f"{found.name} ends beyond the end of the file; the file is truncated")
    return offset


def digest(attrs: Mapping[str, str | int], arrays: Mapping[str, np.ndarray]) -> str:
    """The sha256, in hexadecimal, over names, types, shapes and bytes of what a file says of
    itself, which leaves out its bulk.
    """
    digest = hashlib.sha256(repr(sorted(attrs.items())).encode())
    for name in sorted(arrays):
        digest.update(f"\n{name} {arrays[name].dtype.str} {arrays[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def _groups(names: Iterable[str]) -> list[str]:
    """The groups that arrays and links of these names lie in, outer ones first."""
    groups: dict[str, None] = {}
    for name in names:
        for parent in list(PurePosixPath(name).parents)[-2::-1]:
            groups[str(parent)] = None
    return list(groups)


def _lay_out(
    temporary: Path,
    attrs: Mapping[str, Mapping[str, str | int]],
    arrays: Mapping[str, np.ndarray | Stream],
    links: Mapping[str, str],
) -> dict[str, int]:
    """Create the file with every array allocated and none written; returns the byte offset of
    each.
    """
    timeless = h5p.create(h5p.GROUP_CREATE)
    timeless.set_obj_track_times(False)  # by default HDF5 writes the time of day into every group
    contiguous = h5p.create(h5p.DATASET_CREATE)
    contiguous.set_layout(h5d.CONTIGUOUS)
    contiguous.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    contiguous.set_fill_time(h5d.FILL_TIME_NEVER)
    contiguous.set_obj_track_times(False)
    places = {}
    with h5py.File(
        temporary,
        "w",
        libver=("v108", "v108"),
        locking=False,
        alignment_threshold=PAGE_BYTES,
        alignment_interval=PAGE_BYTES,
    ) as file:
        for group in _groups([*arrays, *links]):
            h5g.create(file.id, group.encode(), gcpl=timeless)
        for group, values in attrs.items():
            for name, value in values.items():
                if isinstance(value, str):
                    file[group].attrs[name] = np.bytes_(value.encode())
                else:
                    file[group].attrs[name] = np.int64(value)
        for name, array in arrays.items():
            kind = h5t.py_create(np.dtype(array.dtype))
            space = h5s.create_simple(array.shape)
            places[name] = h5d.create(file.id, name.encode(), kind, space, contiguous).get_offset()
        for name, target in links.items():
            file.id.links.create_external(name.encode(), target.encode(), b"/")
    return places
