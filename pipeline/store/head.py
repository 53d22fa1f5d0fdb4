"""The head file: index columns, header, and a relative link with checksum to every shard, or, of a
joined store, to the head file of every member.

Written last: it says the store is complete.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mer.pipeline.errors import DataError, MerError
from mer.pipeline.runtime.files import TEMPORARY
from mer.pipeline.runtime.limits import HEADER_BYTES
from mer.pipeline.runtime.terms import SPLITS, STORE_FORMAT, check_folds, targets_of
from mer.pipeline.runtime.unimodal import check_unimodal
from mer.pipeline.store import arrays
from mer.pipeline.store.schema import (
    EVERY,
    FOLDS_VERSION,
    FORMAT_VERSION,
    LATER,
    UNIMODAL_VERSION,
    Header,
    blob,
    canonical,
    column_arrays,
    columns_of,
    decode_column,
    demand,
    encode_column,
    pack_strings,
    read_json,
    unpack_strings,
)
from mer.pipeline.store.shard import check_format

HEX = "S64"  # a sha256 in hexadecimal
SUFFIX, SHARDS = ".h5", ".shards"  # end the names of a head file and of the folder of its shards
# Where an utterance is, in a store that has shards: columns of the index, and their element types.
PLACES = {"shard": "<i4", "shard_row": "<i8"}
# The arrays about the shards, and their element types.
SHARD_ARRAYS = {
    "name/x": "u1",
    "name/offsets": "<i8",
    "bytes": "<i8",
    "sha256": HEX,
    "identity": HEX,
}
# The arrays about the members of a joined store, their element types and dimensions.
MEMBER_ARRAYS = {
    "name/x": ("u1", 1),
    "name/offsets": ("<i8", 1),
    "content": (HEX, 1),
    "modalities": ("u1", 1),
    "rows": ("<i8", 2),
}
MEMBERS = "members"  # the group of those arrays; a head that has it has no shards of its own
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


@dataclass(frozen=True)
class MemberRecord:
    """What the head of a joined store knows of a member: which store it is, and what it gives."""

    path: Path  # of its head file
    content: str  # `content_of` it when it was joined
    modalities: dict[str, str]  # name in the joined store -> name in the member
    rows: np.ndarray  # (N,) int64, the row of each utterance in the member; -1: it has none


@dataclass(frozen=True)
class Head:
    """What a head file says. Either `shards` or `members` is empty."""

    header: Header
    table: pa.Table
    shards: list[ShardRecord]
    members: list[MemberRecord]
    flags: np.ndarray  # (N,) uint32
    content: str = ""  # `content_of` the file, where that was asked for


def shards_of(head: Path) -> Path:
    """The folder in which the shards of a store lie, by the path of its head file."""
    return head.with_name(head.name.removesuffix(SUFFIX) + SHARDS)


def refuse_twin(head: Path) -> None:
    """Raise DataError where the folder of a store that is to be made is another one's: `feats` and
    `feats.h5` would both have `feats.shards`; and of a head file that was renamed the shards have
    stayed where they were.
    """
    stem = head.name.removesuffix(SUFFIX)
    twin = head.with_name(stem if stem != head.name else stem + SUFFIX)
    folder = shards_of(head)
    if folder.is_dir() and twin.is_file() and h5py.is_hdf5(twin):
        raise DataError(
            f"{head}: its shards would lie in {folder.name}, where those of {twin.name} are; name "
            "another --out"
        )
    if not folder.is_dir() or os.path.lexists(head):
        return
    # by name alone, for there may be a hundred thousand clips beside it
    for other in sorted(head.parent.iterdir()):
        if SUFFIX not in other.name or TEMPORARY in other.name:  # left behind by a kill
            continue
        if _keeps_shards_in(folder, other):
            raise DataError(
                f"{head}: its shards would lie in {folder.name}, where those of {other.name} are, "
                "which was renamed or copied; name another --out, or give it its old name again"
            )


def _keeps_shards_in(folder: Path, head: Path) -> bool:
    """Whether `head` is the head file of a store with a shard in a folder."""
    if not head.is_file() or not h5py.is_hdf5(head):
        return False
    try:
        with arrays.opened(head, "store") as file:
            check_format(file, head, STORE_FORMAT, "store")
            _, data = _read_arrays(file)
            records = [] if MEMBERS in file else _decode_records(head, data)
    except MerError:
        return False
    return any(record.path.parent == folder.resolve() for record in records)


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
        rows: Columns as of `schema.normalise`, N rows.
        columns: The store's own numbers, (N,) each: those that `counted` names.
        names: Paths of the shards relative to the head file; "" for one inside it.
        records: What tells each shard from another.

    Returns:
        The attributes and the arrays of the file.
    """
    data = _index(header, rows, columns)
    data["shard/name/x"], data["shard/name/offsets"] = pack_strings(names)
    data["shard/bytes"] = np.array([record.bytes for record in records], "<i8")
    data["shard/sha256"] = np.array([record.sha256 for record in records], HEX)
    data["shard/identity"] = np.array([record.identity for record in records], HEX)
    return _sealed(data, _version(rows))


def compose_join(
    header: Header,
    rows: pa.Table,
    columns: Mapping[str, np.ndarray],
    names: Sequence[str],
    members: Sequence[MemberRecord],
) -> tuple[dict[str, str | int], dict[str, np.ndarray]]:
    """What the head file of a joined store is made of.

    Args:
        header: What the store says of itself.
        rows: Columns as of `schema.normalise`, N rows.
        columns: duration, flags and n_<modality>, (N,) each.
        names: Paths of the members' head files relative to this one.
        members: What each of them gives.

    Returns:
        The attributes and the arrays of the file.
    """
    data = _index(header, rows, columns)
    data[f"{MEMBERS}/name/x"], data[f"{MEMBERS}/name/offsets"] = pack_strings(names)
    data[f"{MEMBERS}/content"] = np.array([member.content for member in members], HEX)
    data[f"{MEMBERS}/modalities"] = blob(canonical([member.modalities for member in members]))
    data[f"{MEMBERS}/rows"] = np.stack([member.rows for member in members]).astype("<i8")
    return _sealed(data, _version(rows))


def _version(rows: pa.Table) -> int:
    """The format version of a head with these columns: the first version that has all of them."""
    if "unimodal" in rows.column_names:
        return UNIMODAL_VERSION
    return FOLDS_VERSION if "folds" in rows.column_names else FORMAT_VERSION


def _index(
    header: Header, rows: pa.Table, columns: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The header and the index as arrays."""
    data = {"header": blob(replace(header, version=_version(rows)).to_json())}
    for name in columns_of(rows.column_names):
        for key, values in encode_column(name, rows[name].combine_chunks()).items():
            data[f"index/{key}"] = values
    for name, dtype in counted(header, joined=not PLACES.keys() <= columns.keys()).items():
        data[f"index/{name}"] = np.asarray(columns[name], dtype)
    return data


def _sealed(
    data: dict[str, np.ndarray], version: int
) -> tuple[dict[str, str | int], dict[str, np.ndarray]]:
    """Attributes that tell these arrays from others, and the arrays."""
    attrs: dict[str, str | int] = {"format": STORE_FORMAT, "version": version}
    return {**attrs, "identity": arrays.digest(attrs, data)}, data


def counted(header: Header, *, joined: bool) -> dict[str, str]:
    """The store's own columns and their element types."""
    return {
        **({} if joined else PLACES),
        "duration": "<f8",
        "flags": "<u4",
        **{f"n_{m}": "<i8" for m in header.modalities},
    }


def content_of(path: Path) -> str:
    """What a store holds, as a sha256 in hexadecimal: header, index, and what tells its shards from
    others. Not in it is what may differ from run to run, the provenance.

    Raises:
        DataError, StoreError, StoreVersionError: As `read_head`.
    """
    with arrays.opened(path, "store") as file:
        check_format(file, path, STORE_FORMAT, "store")
        header, data = _read_arrays(file)
        return content(header, data)


def content(header: Header, data: Mapping[str, np.ndarray]) -> str:
    """`content_of` a head file that is made of these arrays."""
    said = {"header": blob(replace(header, provenance={}).to_json())}
    return arrays.digest({}, {**data, **said})


def read_head(path: Path, *, with_content: bool = False) -> Head:
    """What a head file says, checked against its own checksum; no shard is touched.

    Args:
        path: The head file.
        with_content: Also `content_of` it, from the same reading.

    Raises:
        DataError: There is no such file, or the extraction that makes it is not finished.
        StoreError: It is damaged, or no head file.
        StoreVersionError: It is of a format version that this code does not read.
    """
    if (shards_of(path) / ".work").exists() and not path.exists():
        raise DataError(f"{path}: not finished; repeat the `mer extract` that makes it")
    with arrays.opened(path, "store") as file:
        check_format(file, path, STORE_FORMAT, "store")
        header, data = _read_arrays(file)
        table, flags = _decode_index(header, data)
        held = content(header, data) if with_content else ""
        header = _one_name_of_one_target(header, table)
        _check_table(header, table)
        if f"{MEMBERS}/rows" in data:
            members = _decode_members(path, data)
            _check_members(header, table, members)
            return Head(header, table, [], members, flags, held)
        records = _decode_records(path, data)
        _check_places(header, table, records, path)
        return Head(header, table, records, [], flags, held)


def _read_arrays(file: h5py.File) -> tuple[Header, dict[str, np.ndarray]]:
    """The header and every array of a head file, by its name. Raises ValueError when they are not
    those that its checksum was made over.
    """
    attrs = {name: arrays.attribute(file, name) for name in ("format", "version")}
    data = {"header": arrays.read(file, "header", "u1", limit=HEADER_BYTES)}
    header = Header.from_json(data["header"].tobytes().decode())
    dtypes: dict[str, str] = {}
    for name in columns_of(name for name in LATER.names if f"index/{name}" in file):
        for key, dtype in column_arrays(name).items():
            dtypes[f"index/{key}"] = dtype
    joined = MEMBERS in file
    for name, dtype in counted(header, joined=joined).items():
        dtypes[f"index/{name}"] = dtype
    if not joined:
        for name, dtype in SHARD_ARRAYS.items():
            dtypes[f"shard/{name}"] = dtype
    for name, dtype in dtypes.items():
        data[name] = arrays.read(file, name, dtype)
    if joined:
        for name, (dtype, ndim) in MEMBER_ARRAYS.items():
            place = f"{MEMBERS}/{name}"
            data[place] = arrays.read(file, place, dtype, ndim)
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
    there = columns_of(name.partition("/")[0] for name in index)
    columns = {name: decode_column(name, EVERY.field(name).type, index) for name in there}
    steps = [f"n_{modality}" for modality in header.modalities]
    for name in ("duration", *steps, *PLACES):
        if name in index:
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


def _decode_members(path: Path, data: Mapping[str, np.ndarray]) -> list[MemberRecord]:
    """What the head of a joined store, at `path`, says of each member."""
    folder = path.resolve().parent
    held = {name: data[f"{MEMBERS}/{name}"] for name in MEMBER_ARRAYS}
    names = unpack_strings(held["name/x"], held["name/offsets"]).to_pylist()
    given = read_json(held["modalities"].tobytes(), "what it says of its members")
    listed = isinstance(given, list) and all(isinstance(one, dict) for one in given)
    demand(listed and len(given) > 0, "what it says of its members is not a list of objects")
    whole = len(given) == len(held["content"]) == len(held["rows"]) == len(names)
    demand(whole, "what it says of its members is not of the same members")
    members = []
    for number, name in enumerate(names):
        made = held["content"][number].decode()
        members.append(MemberRecord(folder / name, made, given[number], held["rows"][number]))
    return members


def _check_members(header: Header, table: pa.Table, members: list[MemberRecord]) -> None:
    """Raise ValueError for members that no writer makes. Whether a member has the rows that the
    head names is checked when that member is opened.
    """
    here = [name for member in members for name in member.modalities]
    once = len(set(here)) == len(here) and set(here) == set(header.modalities)
    demand(once, "its members do not give each of its modalities once")
    for member in members:
        named = all(isinstance(name, str) for name in member.modalities.values())
        demand(named, "its members give modalities without a name")
        demand(len(member.rows) == len(table), "its members do not have a row for each utterance")
        inside = bool(((member.rows >= -1) & (member.rows < 1 << 31)).all())
        demand(inside, "its index points at a row that no member has")
        for name in member.modalities:
            steps = table[f"n_{name}"].to_numpy()
            there = (steps >= 0) & ((steps == 0) | (member.rows >= 0))
            demand(bool(there.all()), f"its index has steps of {name} that no member has")


def _one_name_of_one_target(header: Header, table: pa.Table) -> Header:
    """The header, of a regression with one number per row by the first of its names alone: several
    names of one target were taken before there were several targets.
    """
    if header.task != "regression" or len(header.labels) < 2:
        return header
    lengths = pc.unique(pc.drop_null(pc.list_value_length(table["targets"]))).to_pylist()
    return replace(header, labels=header.labels[:1]) if lengths == [1] else header


def _check_table(header: Header, table: pa.Table) -> None:
    """Raise ValueError for a table that no writer makes.

    Its checksum says only that it is as it was written.
    """
    if not len(table):
        return
    demand(len(pc.unique(table["id"])) == len(table), "its index has an id twice")
    demand(
        pc.all(pc.is_in(table["split"], pa.array(SPLITS))).as_py(), "its index has an unknown split"
    )
    if "folds" in table.column_names:
        for id, entries in zip(table["id"].to_pylist(), table["folds"].to_pylist(), strict=True):
            demand(entries is not None and _are_folds(id, entries), "its index has an unknown fold")
    if "unimodal" in table.column_names:
        for id, entries in zip(table["id"].to_pylist(), table["unimodal"].to_pylist(), strict=True):
            known = entries is not None and _are_unimodal(id, entries, header)
            demand(known, "its index has a unimodal label that is none")
    if header.task == "single":
        known = pc.is_in(table["label"], pa.array([*header.labels, None], pa.string()))
        demand(pc.all(known).as_py(), "its index has a label that its header does not name")
    else:
        wanted = targets_of(header.task, header.labels)
        lengths = pc.list_value_length(table["targets"])
        demand(
            pc.all(pc.fill_null(pc.equal(lengths, wanted), True)).as_py(),
            f"its index has targets that are not {wanted} numbers",
        )


def _are_folds(id: str, entries: list) -> bool:
    """Whether a row's folds are what a writer makes."""
    try:
        check_folds("", id, entries)
    except (DataError, AttributeError):  # a null has no name
        return False
    return True


def _are_unimodal(id: str, entries: list, header: Header) -> bool:
    """Whether a row's unimodal labels are what a writer makes."""
    try:
        check_unimodal("", id, entries, task=header.task, labels=header.labels)
    except (DataError, AttributeError):  # a null has no name
        return False
    return True


def _check_places(header: Header, table: pa.Table, records: list[ShardRecord], path: Path) -> None:
    """Raise ValueError for places in shards that no writer makes. They are held against each shard
    when that is opened.
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
