"""One .npz of parallel arrays: ids, labels, splits, and features (N, D), padded (N, T, D), or end
to end (sum T, D)."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from mer.pipeline.errors import DataError
from mer.pipeline.interchange.columns import account, find_columns, find_features, interpret
from mer.pipeline.interchange.padding import spans
from mer.pipeline.interchange.source import array_header, reading, require_file
from mer.pipeline.interchange.write import Foreign, Options
from mer.pipeline.runtime.files import sha256_file
from mer.pipeline.runtime.limits import (
    IMPORT_MEMBERS,
    IMPORT_ROWS,
    IMPORT_TABLE_BYTES,
    UNPACKED_FREE_BYTES,
    UNPACKED_RATIO,
)
from mer.pipeline.runtime.terminal import shown


@dataclass(frozen=True)
class Member:
    """What the header of an array in the archive says of it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    unpacked: int  # bytes
    packed: int


def read(path: Path, options: Options) -> Foreign:
    """A modality's true lengths are in NAME_lengths or NAME_offsets; without them every step
    counts."""
    size = require_file(path, "npz", magic=b"PK\x03\x04")
    with reading(path, "npz"):
        with zipfile.ZipFile(path) as archive:
            members = _members(path, archive, size)
        with np.load(path, allow_pickle=False) as file:
            return _read(path, options, file, members)


def _members(path: Path, archive: zipfile.ZipFile, size: int) -> dict[str, Member]:
    """Every array by its header; DataError where the archive's parts lie over each other or are too
    many."""
    infos = archive.infolist()
    if len(infos) > IMPORT_MEMBERS:
        raise DataError(f"{path}: {len(infos):,} arrays, more than {IMPORT_MEMBERS:,}")
    end = 0
    for info in sorted(infos, key=lambda i: i.header_offset):
        if info.header_offset < end or info.header_offset + info.compress_size > size:
            raise DataError(
                f"{path}: {shown(info.filename, 40)} lies over another array or beyond the end; "
                "the file is damaged or hostile"
            )
        end = info.header_offset + info.compress_size
    names = [info.filename.removesuffix(".npy") for info in infos if info.filename.endswith(".npy")]
    if len(set(names)) != len(names):
        raise DataError(f"{path}: two arrays of the same name; the file is damaged or hostile")
    return {
        i.filename.removesuffix(".npy"): _member(path, archive, i)
        for i in infos
        if i.filename.endswith(".npy")
    }


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    """An array by its header, which is held against its size before anything is unpacked."""
    name = shown(info.filename, 40)
    with archive.open(info) as member:
        shape, dtype = array_header(member)
        if dtype.hasobject:
            raise DataError(
                f"{path}: {name} holds Python objects (a pickle); save it as text or numbers"
            )
        left = info.file_size - member.tell()
        if prod(shape) * dtype.itemsize != left:
            raise DataError(
                f"{path}: {name} claims shape {shown(shape)} of {shown(dtype, 40)} but holds "
                f"{left:,} bytes"
            )
    return Member(shape, dtype, info.file_size, info.compress_size)


def _read(path: Path, options: Options, file, members: dict[str, Member]) -> Foreign:
    named = set(options.columns.values())
    names = find_columns(
        path, [k for k, m in members.items() if len(m.shape) == 1 or k in named], options
    )
    for field, name in names.items():
        if not members[name].shape or members[name].dtype.kind not in "fiubUSO":
            raise DataError(
                f"{path}: {field} = {name} is {_said(members[name])}, not text or numbers with a "
                "value per utterance"
            )
    n = members[names["id"]].shape[0]
    if n > IMPORT_ROWS:
        raise DataError(f"{path}: {n:,} utterances, more than {IMPORT_ROWS:,}; import it in parts")
    wide = [k for k, m in members.items() if len(m.shape) in (2, 3) and k not in named]
    features = find_features(path, wide, options)
    spans_of = {f"{name}_{what}" for name in wide for what in ("lengths", "offsets")}
    used = [
        *names.values(),
        *features.values(),
        *(s for s in spans_of if s in members and s.rpartition("_")[0] in features.values()),
    ]
    _check_unpacked(path, members, names.values(), used)
    columns = {field: file[name].tolist() for field, name in names.items()}
    found = interpret(path, columns, options)
    ids = [row["id"] for row in found.rows]
    notes = [
        account(
            names,
            features,
            found.task,
            {k: _said(m) for k, m in members.items() if k not in spans_of},
        )
    ]
    data, starts, stops = {}, {}, {}
    for m, name in features.items():
        data[m] = file[name]
        starts[m], stops[m], said = _spans(path, name, data[m], ids, file, members)
        notes += said

    def frames() -> Iterator[dict[str, np.ndarray]]:
        for i in range(n):
            yield {m: _piece(x, starts[m], stops[m], i) for m, x in data.items()}

    return Foreign(
        path=path,
        kind="npz",
        dataset=options.dataset or path.stem,
        task=found.task,
        labels=found.labels,
        language=options.language or "en",
        rows=found.rows,
        dims={m: x.shape[-1] for m, x in data.items()},
        frames=frames,
        source={"sha256": sha256_file(path)},
        notes=notes + found.notes,
    )


def _said(member: Member) -> str:
    return f"{member.shape} {shown(member.dtype, 40)}"


def _check_unpacked(path: Path, members: dict[str, Member], columns, used) -> None:
    """DataError for what would unpack to far more than the file holds."""
    table = sum(members[k].unpacked for k in columns)
    if table > IMPORT_TABLE_BYTES:
        raise DataError(
            f"{path}: its columns unpack to {table:,} bytes, more than {IMPORT_TABLE_BYTES:,}"
        )
    unpacked, packed = sum(members[k].unpacked for k in used), sum(members[k].packed for k in used)
    if unpacked > UNPACKED_FREE_BYTES and unpacked > UNPACKED_RATIO * max(1, packed):
        raise DataError(
            f"{path}: unpacks {packed:,} bytes to {unpacked:,}; more than {UNPACKED_RATIO} times "
            "as many are refused"
        )


def _spans(
    path: Path, name: str, x: np.ndarray, ids: list[str], file, members: dict[str, Member]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """((N,) first step, (N,) one past the last, notes) of each utterance in the array of a
    modality."""
    n = len(ids)
    if x.dtype.kind not in "fiub":
        raise DataError(f"{path}: {name} holds {shown(x.dtype, 40)}, not numbers")
    given = {
        what: file[f"{name}_{what}"]
        for what in ("lengths", "offsets")
        if f"{name}_{what}" in members
    }
    for what, values in given.items():
        if values.dtype.kind not in "iuf" or (
            values.dtype.kind == "f"
            and not (np.isfinite(values).all() and (values == np.floor(values)).all())
        ):
            raise DataError(
                f"{path}: {name}_{what} holds {shown(values.dtype, 40)} that are not whole numbers"
            )
    wrong = DataError(f"{path}: {name} {x.shape} and its lengths do not fit {n} utterances")
    lengths, offsets = given.get("lengths"), given.get("offsets")
    if x.ndim == 2 and (offsets is not None or (lengths is not None and len(x) != n)):  # end to end
        if offsets is None:
            if lengths.shape != (n,) or (lengths < 0).any() or (lengths > len(x)).any():
                raise wrong
            offsets = np.concatenate([[0], np.cumsum(lengths.astype(np.int64))])
        if offsets.shape != (n + 1,) or (offsets < 0).any() or (offsets > len(x)).any():
            raise wrong
        offsets = offsets.astype(np.int64)
        if offsets[0] != 0 or offsets[-1] != len(x) or (np.diff(offsets) < 0).any():
            raise wrong
        return offsets[:-1], offsets[1:], []
    if len(x) != n or (
        lengths is not None
        and (lengths.shape != (n,) or (lengths < 0).any() or (lengths > x.shape[1]).any())
    ):
        raise wrong
    if x.ndim == 2:
        return np.arange(n), np.arange(n) + 1, []
    found = spans(
        path, name, x, ids, None if lengths is None else lengths.astype(np.int64), strip=False
    )
    return found.start, found.stop, found.notes


def _piece(x: np.ndarray, start: np.ndarray, stop: np.ndarray, i: int) -> np.ndarray:
    return x[i, start[i] : stop[i]] if x.ndim == 3 else x[start[i] : stop[i]]
