"""A store as other tools' files, so that nobody is locked in. Each goes to a new place, and appears
whole or not at all.

What is copied is held against its checksums on the way: a copy gets checksums of its own, so one
made of a damaged shard would be called sound for ever. Cells that a spreadsheet would run are
guarded, and what the header says of the machine stays at home, unless asked for.
"""

from __future__ import annotations

import csv
import filecmp
import io
import json
import os
import pickle
import re
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mer.pipeline.errors import DataError
from mer.pipeline.runtime.limits import SUBSET_BYTES
from mer.pipeline.runtime.terminal import shown
from mer.pipeline.store import arrays, head, shard
from mer.pipeline.store.cells import guarded
from mer.pipeline.store.reader import FeatureStore
from mer.pipeline.store.schema import COLUMNS, SPLITS, Header

MMSA_SPLITS = {"train": "train", "dev": "valid", "test": "test"}
# bytes of padded arrays, held in memory; MELD at frame rate would be over 100 GB
MMSA_LIMIT = 16 << 30
# an id that can name a file, and be in a cell as it is; others get a number
SAFE_NAME = r"[\w$][\w$+=@.-]{0,99}"
# /home/me/ of "/home/me/a.wav: no such file"
FOLDERS = re.compile(r"(?<![\w:/\\.])(?:[A-Za-z]:\\|/)(?:[^\s'\",;:/\\]+[/\\])+")
# entries of the provenance that say where a store was made
MACHINE = ("host", "hostname", "user", "cwd")
GROUP_ROWS, GROUP_BYTES = 1024, 64 << 20  # one row group of the Parquet export


@dataclass(frozen=True)
class Copy:
    """What is exported and how: the rows of a store, and two choices of the user."""

    store: FeatureStore
    rows: np.ndarray
    # index.csv with every cell as it is, also one that a spreadsheet takes for a formula
    plain_cells: bool = False
    with_provenance: bool = False  # the header with host and absolute paths

    def frames(self, modality: str, row: int, dtype: str | None = None) -> np.ndarray:
        """(T, D) of one utterance, as it was written or StoreError."""
        return self.store.features(modality, row, dtype, check=True)

    def header(self) -> Header:
        header = self.store.header
        return (
            header
            if self.with_provenance
            else replace(header, provenance=portable(header.provenance))
        )


def export(
    store: FeatureStore,
    to: str,
    out: str | os.PathLike,
    *,
    subset: str | None = None,
    plain_cells: bool = False,
    with_provenance: bool = False,
) -> tuple[int, bool]:
    """Write the store, or its `subset`, as `to` at `out`.

    Args:
        subset: a split, or a file with one id a line.
        plain_cells, with_provenance: as in `Copy`.

    Returns:
        The number of utterances, and whether anything was written: False when `out` holds these
        very bytes already.

    Raises:
        StoreError: a shard is damaged; nothing is left at `out`.
        DataError: something else is at `out`, or the subset is none.
    """
    out = Path(out)
    rows = select(store, subset)
    written = EXPORTS[to](Copy(store, rows, plain_cells, with_provenance), out)
    return len(rows), written


def portable(provenance):
    """`provenance` without what tells of the machine: host, user, absolute paths (None), folders of
    paths inside a text (`…/name`)."""
    if isinstance(provenance, dict):
        return {key: portable(value) for key, value in provenance.items() if key not in MACHINE}
    if isinstance(provenance, list | tuple):
        return [portable(value) for value in provenance]
    if not isinstance(provenance, str):
        return provenance
    if ": " not in provenance and (
        PurePosixPath(provenance).is_absolute() or PureWindowsPath(provenance).is_absolute()
    ):
        return None
    return FOLDERS.sub("…/", provenance)


def select(store: FeatureStore, subset: str | None) -> np.ndarray:
    """(n,) int64 rows of a subset, in the store's order."""
    table = store.table()
    if subset is None:
        return np.arange(len(store))
    if subset in SPLITS[:3]:
        rows = in_split(table, subset)
        if not len(rows):
            raise DataError(f"{store.path}: no utterance has split '{subset}'")
        return rows
    if not Path(subset).is_file():
        raise DataError(
            f"--subset {shown(subset)}: neither a split (train, dev, test) nor a file with one id "
            "a line"
        )
    wanted = read_ids(Path(subset))
    rows = np.array([i for i, id in enumerate(table["id"].to_pylist()) if id in wanted], np.int64)
    if len(rows) < len(wanted):
        unknown = wanted.keys() - set(table["id"].to_pylist())
        raise DataError(
            f"{subset}: {len(unknown)} of {len(wanted)} ids are not in {store.path}, first "
            f"'{shown(min(unknown))}'; leave them out, or name another store"
        )
    return rows


def read_ids(path: Path) -> dict[str, None]:
    """The ids of a file with one in each line, in their order.

    Raises:
        DataError: It is not text, or larger than any list of ids.
    """
    if path.stat().st_size > SUBSET_BYTES:
        raise DataError(
            f"{path}: more than {SUBSET_BYTES:,} bytes; --subset takes a file with one id a line"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 (byte 0x{error.object[error.start]:02x}); --subset takes a text "
            "file with one id a line"
        ) from None
    return dict.fromkeys(filter(None, text.split("\n")))


def in_split(table: pa.Table, split: str) -> np.ndarray:
    return np.flatnonzero(pc.equal(table["split"], split).to_numpy(zero_copy_only=False))


def to_single(copy: Copy, out: Path) -> bool:
    """One file that is a store by itself: a head with its one shard inside. Streams, whatever the
    size."""
    store, rows, header = copy.store, copy.rows, copy.header()
    table = store.table().take(rows)
    modalities = header.modalities
    kinds = [
        {"name": m, "dim": info.dim, "dtype": info.dtype, "overflow": info.extra.get("overflow", 0)}
        for m, info in modalities.items()
    ]

    def frames(m: str) -> Iterator[np.ndarray]:
        return (
            copy.frames(m, row, "stored").astype(modalities[m].dtype, copy=False) for row in rows
        )

    duration, flags = table["duration"].to_numpy(), store.flags[rows]
    attrs, data = shard.compose(
        kinds,
        table["id"].to_pylist(),
        frames,
        duration=duration,
        flags=flags,
        meta={},
        key=header.fingerprint,
    )
    columns = {
        "shard": np.zeros(len(rows)),
        "shard_row": np.arange(len(rows)),
        "duration": duration,
        "flags": flags,
    }
    columns |= {f"n_{m}": table[f"n_{m}"].to_numpy() for m in modalities}
    record = head.ShardRecord(out, 0, "", attrs["identity"], head.EMBEDDED)
    head_attrs, head_data = head.compose(
        header, table.select(COLUMNS.names), columns, [""], [record]
    )
    everything = head_data | {f"{head.EMBEDDED}/{name}": array for name, array in data.items()}
    with _file(out) as place:
        arrays.write(
            place.path, attrs={"/": head_attrs, f"/{head.EMBEDDED}": attrs}, arrays=everything
        )
    return place.written


def to_npy(copy: Copy, out: Path) -> bool:
    """A folder: <modality>/<file>.npy (T, D), index.csv (a row an utterance) and header.json."""
    store = copy.store
    with _folder(out) as place:
        names = write_index(copy, place.path)
        for m in store.header.modalities:
            (place.path / m).mkdir()
            for row, name in zip(copy.rows, names, strict=True):
                if store.lengths(m)[row]:
                    packed = io.BytesIO()  # np.save to a file that cannot grow does not say why
                    np.save(packed, copy.frames(m, row, "stored"))
                    (place.path / m / f"{name}.npy").write_bytes(packed.getbuffer())
    return place.written


def to_parquet(copy: Copy, out: Path) -> bool:
    """One Parquet file: the table, and a column <modality>_features of T lists of D float32; the
    header is its metadata `mer`."""
    store, rows = copy.store, copy.rows
    modalities = store.header.modalities
    kinds = {m: pa.list_(pa.list_(pa.float32(), info.dim)) for m, info in modalities.items()}
    columns = [f for f in store.table().schema if f.name not in ("shard", "shard_row")]
    schema = pa.schema(
        [*columns, *(pa.field(f"{m}_features", kind) for m, kind in kinds.items())],
        {"mer": copy.header().to_json()},
    )
    steps = sum(store.lengths(m)[rows] * info.dim * 4 for m, info in modalities.items())
    with _file(out) as place, pq.ParquetWriter(place.path, schema, compression="zstd") as writer:
        for start, stop in _pieces(steps):
            part = rows[start:stop]
            taken = store.table().take(part)
            data = [taken[f.name].combine_chunks() for f in columns]
            for m, kind in kinds.items():
                packed, offsets = store.packed(m, part, dtype="float32", check=True)
                items = pa.FixedSizeListArray.from_arrays(
                    pa.array(packed.reshape(-1)), modalities[m].dim
                )
                data.append(
                    pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), items).cast(kind)
                )
            writer.write_table(
                pa.Table.from_arrays(data, schema=schema), row_group_size=max(1, len(part))
            )
    return place.written


def to_mmsa(copy: Copy, out: Path) -> bool:
    """A pickle as the MMSA tools read it: dict(train, valid, test), padded arrays, and true lengths
    for every modality."""
    store, rows = copy.store, copy.rows
    table, header = store.table(), copy.header()
    parts = {
        name: np.intersect1d(rows, in_split(table, split)) for split, name in MMSA_SPLITS.items()
    }
    without = len(rows) - sum(map(len, parts.values()))
    if without:
        raise DataError(
            f"{store.path}: {without} utterances have no split; an MMSA pickle has train, valid "
            "and test"
        )
    longest = {m: max(1, int(store.lengths(m)[rows].max(initial=0))) for m in header.modalities}
    size = sum(len(rows) * longest[m] * info.dim * 4 for m, info in header.modalities.items())
    if size > MMSA_LIMIT:
        raise DataError(
            f"{out}: padded to the longest utterance this is {size / 1e9:.0f} GB, too much for a "
            "pickle; use --subset or npy"
        )
    content: dict = {}
    for name, part in parts.items():
        taken = table.take(part)
        entry: dict = {
            "id": taken["id"].to_pylist(),
            "raw_text": np.array([t or "" for t in taken["text"].to_pylist()], dtype=object),
        }
        for m, info in header.modalities.items():
            entry[m] = np.zeros((len(part), longest[m], info.dim), np.float32)
            for x, row in zip(entry[m], part, strict=True):
                x[: store.lengths(m)[row]] = copy.frames(m, row)
            entry[f"{m}_lengths"] = store.lengths(m)[part].tolist()
        content[name] = entry | _mmsa_labels(taken, header.task, header.labels)
    content["mer"] = header.to_json()
    with _file(out) as place, open(place.path, "wb") as file:
        pickle.dump(content, file, protocol=4)
    return place.written


def _mmsa_labels(table: pa.Table, task: str, labels: Sequence[str]) -> dict:
    """annotations, classification_labels, regression_labels as MMSA names them."""
    n = len(table)
    if task == "regression":
        y = np.array(
            [np.nan if t is None else t[0] for t in table["targets"].to_pylist()], np.float32
        ).reshape(n)
        sign = np.where(np.isnan(y), -1, np.sign(np.nan_to_num(y)) + 1).astype(np.int64)
        names = ["Negative", "Neutral", "Positive", ""]
        return {
            "regression_labels": y,
            "classification_labels": sign,
            "annotations": [names[s] for s in sign.tolist()],
        }
    if task == "multi":
        nothing = [np.nan] * len(labels)
        y = np.array(
            [nothing if t is None else t for t in table["targets"].to_pylist()], np.float32
        ).reshape(n, len(labels))
        return {
            "classification_labels": y,
            "annotations": [
                ";".join(c for c, v in zip(labels, t, strict=True) if v > 0.5) for t in y
            ],
        }
    given = table["label"].to_pylist()
    number = {name: i for i, name in enumerate(labels)} | {None: -1}
    return {
        "classification_labels": np.array([number[g] for g in given], np.int64),
        "annotations": [g or "" for g in given],
    }


def to_kaldi(copy: Copy, out: Path) -> bool:
    """A folder: <modality>.ark (binary float matrices) and <modality>.scp, index.csv and
    header.json."""
    store, rows = copy.store, copy.rows
    ids = store.table()["id"].take(rows).to_pylist()
    bad = [id for id in ids if re.search(r"[\s\0]", id)]
    if bad:
        raise DataError(
            f"{store.path}: {len(bad)} ids have white space, first {bad[0]!r}; Kaldi cannot name "
            "them, use --to npy or parquet"
        )
    with _folder(out) as place:
        write_index(copy, place.path)
        for m in store.header.modalities:
            with (
                open(place.path / f"{m}.ark", "wb") as ark,
                open(place.path / f"{m}.scp", "w", encoding="utf-8") as scp,
            ):
                for row, id in zip(rows, ids, strict=True):
                    x = copy.frames(m, row)
                    if not len(x):
                        continue
                    ark.write(id.encode() + b" ")
                    scp.write(f"{id} {out / f'{m}.ark'}:{ark.tell()}\n")
                    # "\0B" binary, "FM " float matrix, then each dimension as (size of its integer,
                    # int32).
                    ark.write(b"\0BFM " + struct.pack("<bibi", 4, x.shape[0], 4, x.shape[1]))
                    ark.write(x.astype("<f4", copy=False).tobytes())
    return place.written


EXPORTS: dict[str, Callable[[Copy, Path], bool]] = {
    "single": to_single, "npy": to_npy, "parquet": to_parquet, "mmsa": to_mmsa, "kaldi": to_kaldi,
}  # fmt: skip


def write_index(copy: Copy, folder: Path) -> list[str]:
    """index.csv and header.json; returns the name of each utterance's files. Lists are JSON; null
    and "" are both empty."""
    table = copy.store.table().take(copy.rows).drop_columns(["shard", "shard_row"])
    taken: set[str] = set()
    names = []
    for n, id in enumerate(table["id"].to_pylist()):
        # A file system may fold case: what differs in case only counts as the same name.
        names.append(
            id
            if re.fullmatch(SAFE_NAME, id, re.ASCII) and id.lower() not in taken
            else f"row.{n:07d}"
        )
        taken.add(names[-1].lower())

    def cell(value) -> str | int | float:
        if isinstance(value, list):
            return json.dumps(value, ensure_ascii=False)
        if isinstance(value, str):
            return value if copy.plain_cells else guarded(value)
        return "" if value is None else value

    with open(folder / "index.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", *table.column_names])
        for name, row in zip(names, table.to_pylist(), strict=True):
            writer.writerow([name, *map(cell, row.values())])
    header = copy.header()
    made = {
        **header.provenance,
        "exported_from": header.fingerprint,
        "cells": "plain" if copy.plain_cells else "guarded",
    }
    (folder / "header.json").write_text(
        replace(header, provenance=made).to_json() + "\n", encoding="utf-8"
    )
    return names


def _pieces(sizes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Cut rows of these sizes, in bytes, into runs of bounded bytes and count."""
    start, total = 0, 0
    for i, size in enumerate(np.atleast_1d(sizes).tolist()):
        if i > start and (i - start >= GROUP_ROWS or total + size > GROUP_BYTES):
            yield start, i
            start, total = i, 0
        total += size
    yield start, len(np.atleast_1d(sizes))


@dataclass
class Place:
    """Where an export is prepared. `written` afterwards: False when the same bytes were at its
    destination already."""

    path: Path
    written: bool = True


@contextmanager
def _file(out: Path) -> Iterator[Place]:
    with arrays.folders_for(out), arrays.naming(out):
        folder = arrays.temporary_for(out)
        folder.mkdir()
        place = Place(folder / out.name)
        try:
            yield place
            place.written = not _taken(
                out, lambda: out.is_file() and filecmp.cmp(place.path, out, shallow=False)
            )
            if place.written:
                with open(place.path, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(place.path, out)
                arrays.sync_folder(out.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _folder(out: Path) -> Iterator[Place]:
    with arrays.folders_for(out), arrays.naming(out):
        place = Place(arrays.temporary_for(out))
        place.path.mkdir()
        try:
            yield place
            place.written = not _taken(out, lambda: out.is_dir() and _same_folder(place.path, out))
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


def _same_folder(a: Path, b: Path) -> bool:
    """Both hold the same files with the same bytes, and nothing else."""
    names = sorted(path.relative_to(a) for path in a.rglob("*"))
    if names != sorted(path.relative_to(b) for path in b.rglob("*")):
        return False
    files = [name for name in names if (a / name).is_file()]
    return all(
        (b / name).is_file() and filecmp.cmp(a / name, b / name, shallow=False) for name in files
    )
