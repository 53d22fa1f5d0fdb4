"""The head file: index columns, header, and a relative link with checksum to every shard.

Written last: it says the store is complete.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mer.pipeline.errors import DataError
from mer.pipeline.runtime.limits import HEADER_BYTES
from mer.pipeline.runtime.terms import SPLITS
from mer.pipeline.store import arrays
from mer.pipeline.store.schema import (
    COLUMNS,
    FORMAT_VERSION,
    HEAD_FORMAT,
    Header,
    blob,
    column_arrays,
    decode_column,
    demand,
    encode_column,
    pack_strings,
    unpack_strings,
)
from mer.pipeline.store.shard import check_format

HEX = "S64"  # a sha256 in hexadecimal
# The arrays about the shards, and their element types.
SHARD_ARRAYS = {
    "name/x": "u1",
    "name/offsets": "<i8",
    "bytes": "<i8",
    "sha256": HEX,
    "identity": HEX,
}
# The group of the one shard that a store of a single file holds; its name in the head is empty.
EMBEDDED = "data"


@dataclass(frozen=True)
class ShardRecord:
    """What the head knows of a shard: where it is, and how to tell it from another."""

    path: Path
    bytes: int
    sha256: str
    identity: str  # the shard's checksum over its own index (ids, offsets, crc32, key, meta)
    group: str = "/"


def compose(
    header: Header,
    rows: pa.Table,
    columns: Mapping[str, np.ndarray],
    names: Sequence[str],
    records: Sequence[ShardRecord],
) -> tuple[dict[str, str | int], dict[str, np.ndarray]]:
    """What a head file is made of.

    Args:
        header: What the store says of itself.
        rows: The columns of schema.COLUMNS, N rows.
        columns: The store's own numbers, (N,) each: those that `counted` names.
        names: Paths of the shards relative to the head file; "" for one inside it.
        records: What tells each shard from another.

    Returns:
        The attributes and the arrays of the file.
    """
    data = {"header": blob(replace(header, version=FORMAT_VERSION).to_json())}
    for name in COLUMNS.names:
        for key, values in encode_column(name, rows[name].combine_chunks()).items():
            data[f"index/{key}"] = values
    for name, dtype in counted(header).items():
        data[f"index/{name}"] = np.asarray(columns[name], dtype)
    data["shard/name/x"], data["shard/name/offsets"] = pack_strings(names)
    data["shard/bytes"] = np.array([record.bytes for record in records], "<i8")
    data["shard/sha256"] = np.array([record.sha256 for record in records], HEX)
    data["shard/identity"] = np.array([record.identity for record in records], HEX)
    attrs: dict[str, str | int] = {"format": HEAD_FORMAT, "version": FORMAT_VERSION}
    return {**attrs, "identity": arrays.digest(attrs, data)}, data


def counted(header: Header) -> dict[str, str]:
    """The store's own columns and their element types."""
    return {
        "shard": "<i4",
        "shard_row": "<i8",
        "duration": "<f8",
        "flags": "<u4",
        **{f"n_{m}": "<i8" for m in header.modalities},
    }


def read_head(path: Path) -> tuple[Header, pa.Table, list[ShardRecord], np.ndarray]:
    """What a head file says, checked against its own checksum; no shard is touched.

    Args:
        path: The head file.

    Returns:
        Header, table, shard records and flags (N,) uint32.

    Raises:
        DataError: There is no such file, or the extraction that makes it is not finished.
        StoreError: It is damaged, or no head file.
        StoreVersionError: It is of a format version that this code does not read.
    """
    shards = path.with_name(path.name.removesuffix(".h5") + ".shards")
    if (shards / ".work").exists() and not path.exists():
        raise DataError(f"{path}: not finished; repeat the `mer extract` that makes it")
    with arrays.opened(path, "store") as file:
        check_format(file, path, HEAD_FORMAT, "store")
        header, data = _read_arrays(file)
        table, flags = _decode_index(header, data)
        records = _decode_records(path, data)
        _check_table(header, table, records, path)
        return header, table, records, flags


def _read_arrays(file: h5py.File) -> tuple[Header, dict[str, np.ndarray]]:
    """The header and every array of a head file, by its name. Raises ValueError when they are not
    those that its checksum was made over.
    """
    attrs = {name: arrays.attribute(file, name) for name in ("format", "version")}
    data = {"header": arrays.read(file, "header", "u1", limit=HEADER_BYTES)}
    header = Header.from_json(data["header"].tobytes().decode())
    dtypes: dict[str, str] = {}
    for name in COLUMNS.names:
        for key, dtype in column_arrays(name).items():
            dtypes[f"index/{key}"] = dtype
    for name, dtype in counted(header).items():
        dtypes[f"index/{name}"] = dtype
    for name, dtype in SHARD_ARRAYS.items():
        dtypes[f"shard/{name}"] = dtype
    for name, dtype in dtypes.items():
        data[name] = arrays.read(file, name, dtype)
    if arrays.attribute(file, "identity") != arrays.digest(attrs, data):
        raise ValueError("its index does not match its own checksum")
    return header, data


def _decode_index(header: Header, data: Mapping[str, np.ndarray]) -> tuple[pa.Table, np.ndarray]:
    """The table and the flags (N,) uint32 from the arrays of the index."""
    index = {
        name.removeprefix("index/"): values
        for name, values in data.items()
        if name.startswith("index/")
    }
    columns = {name: decode_column(name, COLUMNS.field(name).type, index) for name in COLUMNS.names}
    steps = [f"n_{modality}" for modality in header.modalities]
    for name in ("duration", *steps, "shard", "shard_row"):
        columns[name] = pa.array(index[name])
    return pa.table(columns), index["flags"]


def _decode_records(path: Path, data: Mapping[str, np.ndarray]) -> list[ShardRecord]:
    """What the head file at `path` says of each shard; one without a name lies in that file."""
    folder = path.resolve().parent
    names = unpack_strings(data["shard/name/x"], data["shard/name/offsets"]).to_pylist()
    columns = (data[f"shard/{name}"] for name in ("bytes", "sha256", "identity"))
    records = []
    for name, size, sha, identity in zip(names, *columns, strict=True):
        place, group = (folder / name, "/") if name else (path, EMBEDDED)
        records.append(ShardRecord(place, int(size), sha.decode(), identity.decode(), group))
    return records


def _check_table(header: Header, table: pa.Table, records: list[ShardRecord], path: Path) -> None:
    """Raise ValueError for a table that no writer makes.

    Its checksum says only that it is as it was written. What it says of rows in shards is held
    against each shard when that is opened.
    """
    if not len(table):
        return
    shard, at = table["shard"].to_numpy(), table["shard_row"].to_numpy()
    demand(
        0 <= shard.min() <= shard.max() < len(records),
        "its index points at a shard it does not name",
    )
    demand(0 <= at.min() and at.max() < 1 << 31, "its index points at a row that no shard has")
    places = shard.astype(np.int64) << 31 | at
    demand(len(np.unique(places)) == len(places), "its index has two utterances at one place")
    demand(len(pc.unique(table["id"])) == len(table), "its index has an id twice")
    demand(
        pc.all(pc.is_in(table["split"], pa.array(SPLITS))).as_py(), "its index has an unknown split"
    )
    if header.task == "single":
        known = pc.is_in(table["label"], pa.array([*header.labels, None], pa.string()))
        demand(pc.all(known).as_py(), "its index has a label that its header does not name")
    else:
        wanted = len(header.labels) if header.task == "multi" else 1
        lengths = pc.list_value_length(table["targets"])
        demand(
            pc.all(pc.fill_null(pc.equal(lengths, wanted), True)).as_py(),
            f"its index has targets that are not {wanted} numbers",
        )
    outside = [record.bytes for record in records if record.group == "/"]
    held = sum(outside) + path.stat().st_size
    for name, info in header.modalities.items():
        steps = table[f"n_{name}"].to_numpy()
        demand(steps.min() >= 0, f"its index has a negative number of steps of {name}")
        most = held // (2 * info.dim)  # a value has two bytes at least
        # The sum is one of floats, since one of integers may overflow.
        enough = steps.max() <= most and float(steps.sum(dtype=np.float64)) <= most
        demand(enough, f"its index has more steps of {name} than its shards can hold")
        means = int((steps > 0).sum()) * info.layers * info.width
        demand(2 * means <= held, f"its header has more layers of {name} than its shards can hold")
