"""The head file: index columns, header, and a relative link with checksum to every shard.

Written last: it says the store is complete.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mer.pipeline.errors import DataError
from mer.pipeline.runtime.limits import HEADER_BYTES
from mer.pipeline.store import arrays
from mer.pipeline.store.schema import (
    COLUMNS,
    FORMAT_VERSION,
    HEAD_FORMAT,
    SPLITS,
    TASKS,
    Header,
    ModalityInfo,
    blob,
    column_arrays,
    decode_column,
    demand,
    encode_column,
    normalise,
    pack_strings,
    unpack_strings,
)
from mer.pipeline.store.shard import Shard, check_format

HEX = "S64"  # sha256 in hexadecimal
# group of the one shard that a store of a single file holds; its name in the head is empty
EMBEDDED = "data"


@dataclass(frozen=True)
class ShardRecord:
    """What the head knows of a shard: where it is, and how to tell it from another."""

    path: Path
    bytes: int
    sha256: str
    identity: str  # the shard's checksum over its own index (ids, offsets, crc32, key, meta)
    group: str = "/"


def build_index(
    head_path: str | os.PathLike,
    shards: Sequence[str | os.PathLike],
    table: pa.Table | Sequence[Mapping],
    *,
    dataset: str,
    task: str,
    labels: Sequence[str],
    modalities: Mapping[str, ModalityInfo | dict] | None = None,
    language: str = "en",
    fingerprint: str = "",
    recipe: dict | None = None,
    provenance: dict | None = None,
):
    """Write the head file over closed `shards` and open the store.

    `table` has a column id (each id in one of the shards) and, optionally, those of schema.COLUMNS.
    Its order is the store's order; utterances of the shards that it leaves out cannot be reached.
    `modalities` adds what the shards do not know (encoder, revision, layer, frame rate).
    """
    from mer.pipeline.store.reader import FeatureStore

    head_path = Path(head_path)
    rows = normalise(table)
    _check_rows(head_path, rows, task, tuple(labels))
    opened = [Shard(path) for path in shards]
    shard_of, row_of = _locate(head_path, rows["id"].to_pylist(), opened)
    header = Header(
        dataset=dataset,
        task=task,
        labels=tuple(labels),
        language=language,
        modalities=_modalities(head_path, opened, modalities or {}),
        fingerprint=fingerprint,
        recipe=recipe or {},
        provenance=provenance or {},
    )
    columns = {
        "shard": shard_of,
        "shard_row": row_of,
        "duration": _gather([s.duration for s in opened], shard_of, row_of, "<f8"),
        "flags": _gather([s.flags for s in opened], shard_of, row_of, "<u4"),
        **{
            f"n_{m}": _gather([np.diff(s.offsets[m]) for s in opened], shard_of, row_of, "<i8")
            for m in header.modalities
        },
    }
    folder = head_path.resolve().parent
    names = [Path(os.path.relpath(s.path.resolve(), folder)).as_posix() for s in opened]
    records = [ShardRecord(s.path, s.bytes, sha256(s.path), s.identity) for s in opened]
    attrs, data = compose(header, rows, columns, names, records)
    # The links are for other tools (h5py and h5dump then see one tree); the reader goes by the
    # names.
    arrays.write(
        head_path,
        attrs={"/": attrs},
        arrays=data,
        links={f"shards/{i:05d}": name for i, name in enumerate(names)},
    )
    return FeatureStore(head_path)


def compose(
    header: Header,
    rows: pa.Table,
    columns: Mapping[str, np.ndarray],
    names: Sequence[str],
    records: Sequence[ShardRecord],
) -> tuple[dict[str, str | int], dict[str, np.ndarray]]:
    """Attributes and arrays of a head file.

    `rows` are those of schema.COLUMNS, `columns` the store's own numbers.
    """
    data = {"header": blob(header.to_json())}
    for name in COLUMNS.names:
        column = rows[name].combine_chunks()
        data |= {f"index/{key}": value for key, value in encode_column(name, column).items()}
    data |= {
        f"index/{name}": np.asarray(columns[name], dtype) for name, dtype in counted(header).items()
    }
    data["shard/name/x"], data["shard/name/offsets"] = pack_strings(names)
    data["shard/bytes"] = np.array([r.bytes for r in records], "<i8")
    data["shard/sha256"] = np.array([r.sha256 for r in records], HEX)
    data["shard/identity"] = np.array([r.identity for r in records], HEX)
    attrs = {"format": HEAD_FORMAT, "version": FORMAT_VERSION}
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
    """Header, table, shard records and flags (N,) uint32 of a head file, checked against its own
    checksum; touches no shard.
    """
    if (
        path.with_name(path.name.removesuffix(".h5") + ".shards") / ".work"
    ).exists() and not path.exists():
        raise DataError(f"{path}: not finished; repeat the `mer extract` that makes it")
    with arrays.opened(path, "store") as file:
        check_format(file, path, HEAD_FORMAT, "store")
        attrs = {name: arrays.attribute(file, name) for name in ("format", "version")}
        data = {"header": arrays.read(file, "header", "u1", limit=HEADER_BYTES)}
        header = Header.from_json(data["header"].tobytes().decode())
        for name in COLUMNS.names:
            for key, dtype in column_arrays(name).items():
                data[f"index/{key}"] = arrays.read(file, f"index/{key}", dtype)
        for name, dtype in counted(header).items():
            data[f"index/{name}"] = arrays.read(file, f"index/{name}", dtype)
        for name, dtype in (
            ("name/x", "u1"),
            ("name/offsets", "<i8"),
            ("bytes", "<i8"),
            ("sha256", HEX),
            ("identity", HEX),
        ):
            data[f"shard/{name}"] = arrays.read(file, f"shard/{name}", dtype)
        if arrays.attribute(file, "identity") != arrays.digest(attrs, data):
            raise ValueError("its index does not match its own checksum")
        folder = path.resolve().parent
        names = unpack_strings(data["shard/name/x"], data["shard/name/offsets"]).to_pylist()
        index = {
            key.removeprefix("index/"): value
            for key, value in data.items()
            if key.startswith("index/")
        }
        columns = {
            name: decode_column(name, COLUMNS.field(name).type, index) for name in COLUMNS.names
        }
        for name in ("duration", *(f"n_{m}" for m in header.modalities), "shard", "shard_row"):
            columns[name] = pa.array(index[name])
        table = pa.table(columns)
        records = [
            ShardRecord(
                folder / name if name else path,
                int(size),
                sha.decode(),
                identity.decode(),
                "/" if name else EMBEDDED,
            )
            for name, size, sha, identity in zip(
                names,
                data["shard/bytes"],
                data["shard/sha256"],
                data["shard/identity"],
                strict=True,
            )
        ]
        _check_table(header, table, records, path)
        return header, table, records, index["flags"]


def _check_table(header: Header, table: pa.Table, records: list[ShardRecord], path: Path) -> None:
    """Raise ValueError for a table that no writer makes: its checksum says only that it is as it
    was written. What it says of rows in shards is held against each shard when that is opened.
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
    held = sum(record.bytes for record in records if record.group == "/") + path.stat().st_size
    for name, info in header.modalities.items():
        steps = table[f"n_{name}"].to_numpy()
        demand(steps.min() >= 0, f"its index has a negative number of steps of {name}")
        most = held // (2 * info.dim)  # a value has two bytes at least
        # not of integers, which may overflow
        enough = steps.max() <= most and float(steps.sum(dtype=np.float64)) <= most
        demand(enough, f"its index has more steps of {name} than its shards can hold")


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_rows(head: Path, rows: pa.Table, task: str, labels: tuple[str, ...]) -> None:
    if task not in TASKS:
        raise DataError(f"{head}: task '{task}' is not one of {', '.join(TASKS)}")
    known, wanted = set(labels), len(labels) if task == "multi" else 1
    for id, split, label, targets in zip(
        *(rows[c].to_pylist() for c in ("id", "split", "label", "targets")), strict=True
    ):
        if split not in SPLITS:
            raise DataError(f"{head}: {id} has split '{split}'; expected train, dev or test")
        if task == "single" and label is not None and label not in known:
            raise DataError(f"{head}: {id} has unknown label '{label}'; known: {', '.join(labels)}")
        if task != "single" and targets is not None and len(targets) != wanted:
            raise DataError(f"{head}: {id} has {len(targets)} targets, expected {wanted}")


def _locate(head: Path, ids: list[str], shards: list[Shard]) -> tuple[np.ndarray, np.ndarray]:
    """For every id of the table: number of its shard (N,) int32, its row there (N,) int64."""
    where: dict[str, tuple[int, int]] = {}
    for number, shard in enumerate(shards):
        for row, id in enumerate(shard.ids):
            if id in where:
                raise DataError(
                    f"{head}: id '{id}' is in two shards, {shards[where[id][0]].path.name} and "
                    f"{shard.path.name}"
                )
            where[id] = number, row
    if len(set(ids)) != len(ids):
        seen: set[str] = set()
        raise DataError(
            f"{head}: id '{next(i for i in ids if i in seen or seen.add(i))}' twice in the table; "
            "ids must be unique"
        )
    missing = [id for id in ids if id not in where]
    if missing:
        raise DataError(
            f"{head}: {len(missing)} of {len(ids)} utterances are in no shard, first '{missing[0]}'"
        )
    places = np.array([where[id] for id in ids], "<i8").reshape(-1, 2)
    return places[:, 0].astype("<i4"), np.ascontiguousarray(places[:, 1])


def _modalities(
    head: Path, shards: list[Shard], given: Mapping[str, ModalityInfo | dict]
) -> dict[str, ModalityInfo]:
    """One entry a modality of the shards, in their order, completed by what the caller knows."""
    if not shards:
        raise DataError(f"{head}: a store needs at least one shard")
    first = {name: kind["dim"] for name, kind in shards[0].modalities.items()}
    for shard in shards:
        if {name: kind["dim"] for name, kind in shard.modalities.items()} != first:
            raise DataError(
                f"{head}: {shard.path.name} holds other modalities than {shards[0].path.name}"
            )
    if given.keys() - first.keys():
        raise DataError(
            f"{head}: modality '{sorted(given.keys() - first.keys())[0]}' is in no shard; they "
            f"hold {', '.join(first)}"
        )
    out = {}
    for name, dim in first.items():
        info = given.get(name, {})
        info = info if isinstance(info, ModalityInfo) else ModalityInfo(**{"dim": dim, **info})
        if info.dim != dim:
            raise DataError(
                f"{head}: modality {name} is said to have dim {info.dim}, its shards have {dim}"
            )
        dtype = (
            "float32"
            if any(s.modalities[name]["dtype"] == "float32" for s in shards)
            else "float16"
        )
        overflow = sum(s.modalities[name]["overflow"] for s in shards)
        extra = {**info.extra, "overflow": overflow} if overflow else info.extra
        out[name] = replace(info, dtype=dtype, extra=extra)
    return out


def _gather(
    columns: list[np.ndarray], shard_of: np.ndarray, row_of: np.ndarray, dtype: str
) -> np.ndarray:
    out = np.empty(len(shard_of), dtype)
    for number, column in enumerate(columns):
        here = shard_of == number
        out[here] = column[row_of[here]]
    return out
