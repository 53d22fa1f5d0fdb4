"""One .npz of parallel arrays: ids, labels, splits, and features (N, D), padded (N, T, D), or end
to end (sum of T, D). It is read; nothing is exported as one, for Parquet and npy say more.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from mer.pipeline.errors import DataError
from mer.pipeline.interchange.columns import (
    FIELDS,
    account,
    find_columns,
    find_features,
    find_layers,
)
from mer.pipeline.interchange.foreign import Features, Foreign, ImportOptions, layers_of
from mer.pipeline.interchange.padding import Spans, spans
from mer.pipeline.interchange.ragged import NUMBERS
from mer.pipeline.interchange.rows import interpret
from mer.pipeline.interchange.source import array_header, reading, require_file
from mer.pipeline.runtime.files import sha256_file
from mer.pipeline.runtime.limits import (
    IMPORT_MEMBERS,
    IMPORT_ROWS,
    IMPORT_TABLE_BYTES,
    UNPACKED_FREE_BYTES,
    UNPACKED_RATIO,
)
from mer.pipeline.runtime.terminal import plural, shown

TABLE_KINDS = f"{NUMBERS}USO"  # kinds of element that a column of the table may have
NPY = ".npy"
# Usual names of columns that may come as (N, 1); not those of features.
COLUMNS_OF_ONE = {name for field in ("id", "split", "label", "speaker") for name in FIELDS[field]}


@dataclass(frozen=True)
class Member:
    """What the header of an array in the archive says of it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    unpacked: int  # bytes
    packed: int  # bytes

    def __str__(self) -> str:
        return f"{self.shape} {shown(self.dtype, 40)}"


def read(path: Path, options: ImportOptions) -> Foreign:
    """Read an npz.

    A modality's true lengths are in NAME_lengths or NAME_offsets; without them every step counts.
    MODALITY.layers (N, L, width) are its layer means.

    Args:
        path: The file.
        options: What the user says of it.

    Returns:
        Its table and features, held in memory.

    Raises:
        DataError: It is no npz, is damaged or hostile, or its table or features do not fit.
    """
    size = require_file(path, "npz", magic=b"PK\x03\x04")
    with reading(path, "npz"):
        with zipfile.ZipFile(path) as archive:
            members = _members(path, archive, size)
        with np.load(path, allow_pickle=False) as arrays:
            return _read(path, options, arrays, members)


# --- the archive


def _members(path: Path, archive: zipfile.ZipFile, size: int) -> dict[str, Member]:
    """Every array by its header; DataError where the archive's parts lie over each other or are too
    many.
    """
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
    members: dict[str, Member] = {}
    for info in infos:
        name = info.filename.removesuffix(NPY)
        if name == info.filename:
            continue
        if name in members:
            raise DataError(f"{path}: two arrays of the same name; the file is damaged or hostile")
        members[name] = _member(path, archive, info)
    return members


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


def _check_unpacked(
    path: Path, members: Mapping[str, Member], columns: Iterable[str], used: Iterable[str]
) -> None:
    """DataError for what would unpack to far more than the file holds."""
    table = sum(members[name].unpacked for name in columns)
    if table > IMPORT_TABLE_BYTES:
        raise DataError(
            f"{path}: its columns unpack to {table:,} bytes, more than {IMPORT_TABLE_BYTES:,}"
        )
    found = [members[name] for name in used]
    unpacked = sum(member.unpacked for member in found)
    packed = sum(member.packed for member in found)
    if unpacked > UNPACKED_FREE_BYTES and unpacked > UNPACKED_RATIO * max(1, packed):
        raise DataError(
            f"{path}: unpacks {packed:,} bytes to {unpacked:,}; more than {UNPACKED_RATIO} times "
            "as many are refused"
        )


# --- the content


def _read(
    path: Path,
    options: ImportOptions,
    arrays: Mapping[str, np.ndarray],
    members: Mapping[str, Member],
) -> Foreign:
    names, features, there = _find(path, options, members)
    layers = find_layers(members, features)
    used = [*names.values(), *features.values(), *layers.values()]
    for name in features.values():
        used += _spans_among(members, name)
    _check_unpacked(path, members, names.values(), used)
    columns = {}
    for field, name in names.items():
        x = arrays[name]
        flat = x.ndim == 2 and x.shape[1] == 1 and field in ("id", "split", "label", "speaker")
        columns[field] = (x.reshape(-1) if flat else x).tolist()
    found = interpret(path, columns, options)
    ids = [row["id"] for row in found.rows]
    named = {layers_of(modality): name for modality, name in layers.items()}
    notes = [account(names, features | named, found.task, there)]
    data: dict[str, np.ndarray] = {}
    where: dict[str, Spans] = {}
    for modality, name in features.items():
        data[modality] = arrays[name]
        given = {span: arrays[span] for span in _spans_among(members, name)}
        where[modality] = _spans(path, name, data[modality], ids, given)
        notes += where[modality].notes

    means = {modality: arrays[name] for modality, name in layers.items()}
    for modality, x in means.items():
        if x.ndim != 3 or len(x) != len(ids) or x.dtype.kind not in NUMBERS:
            raise DataError(
                f"{path}: {layers_of(modality)} is {x.shape} {shown(x.dtype, 40)}, not numbers "
                f"({len(ids)}, layers, width)"
            )

    def frames() -> Iterator[Features]:
        for i in range(len(ids)):
            pieces = {modality: _piece(x, where[modality], i) for modality, x in data.items()}
            yield pieces | {layers_of(modality): x[i] for modality, x in means.items()}

    return Foreign(
        path=path,
        kind="npz",
        dataset=options.dataset or path.stem,
        task=found.task,
        labels=found.labels,
        language=options.language or "en",
        rows=found.rows,
        dims={modality: x.shape[-1] for modality, x in data.items()},
        layers={modality: x.shape[1] for modality, x in means.items()},
        frames=frames,
        source={"sha256": sha256_file(path)},
        padded=frozenset(features),
        notes=notes + found.notes,
    )


def _find(
    path: Path, options: ImportOptions, members: Mapping[str, Member]
) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """(field -> array, modality -> array, every array but lengths and offsets -> what it is)."""
    names = _find_table(path, options, members)
    named = {*options.columns.values(), names.get("targets")}
    arrays = [name for name, member in members.items() if len(member.shape) in (2, 3)]
    wide = [name for name in arrays if name not in named]
    features = find_features(path, wide, options)
    aside: set[str] = set()
    for name in wide:
        aside.update(_spans_among(members, name))
    there = {name: str(member) for name, member in members.items() if name not in aside}
    return names, features, there


def _find_table(
    path: Path, options: ImportOptions, members: Mapping[str, Member]
) -> dict[str, str]:
    """Field -> array of the table, each of a value per utterance."""
    named = set(options.columns.values())
    # of a row as long as there are targets, which features are not called
    usual = set(FIELDS["targets"]) - set(options.features.values())
    flat = [
        name
        for name, member in members.items()
        if len(member.shape) == 1
        or name in named
        or (len(member.shape) == 2 and name in usual)
        or (member.shape[1:] == (1,) and name in COLUMNS_OF_ONE)
    ]
    names = find_columns(path, flat, options)
    if options.task in (None, "single") and not {"label", "targets"} & set(names):
        _check_labels(path, members)
    for field, name in names.items():
        member = members[name]
        if not member.shape or member.dtype.kind not in TABLE_KINDS:
            raise DataError(
                f"{path}: {field} = {name} is {member}, not text or numbers with a value per "
                "utterance"
            )
    count = members[names["id"]].shape[0]
    if count > IMPORT_ROWS:
        raise DataError(
            f"{path}: {count:,} utterances, more than {IMPORT_ROWS:,}; import it in parts"
        )
    return names


def _check_labels(path: Path, members: Mapping[str, Member]) -> None:
    """DataError for labels of several values each, of which no class can be told: they would be
    left aside, and every utterance unlabelled.
    """
    for name in FIELDS["label"]:
        if name in members and len(members[name].shape) == 2:
            raise DataError(
                f"{path}: {name} is {members[name]}: several values for each utterance; save one "
                f"(argmax, of one-hot rows), or say --task multi --column targets={name}"
            )


# --- where an utterance lies in its array


def _lengths_name(name: str) -> str:
    return f"{name}_lengths"


def _offsets_name(name: str) -> str:
    return f"{name}_offsets"


def _spans_among(members: Mapping[str, Member], name: str) -> list[str]:
    """The lengths and offsets of an array that are there."""
    return [span for span in (_lengths_name(name), _offsets_name(name)) if span in members]


def _spans(
    path: Path, name: str, x: np.ndarray, ids: list[str], given: Mapping[str, np.ndarray]
) -> Spans:
    """The steps of each utterance in the array of a modality, by the lengths or offsets given."""
    if x.dtype.kind not in NUMBERS:
        raise DataError(f"{path}: {name} holds {shown(x.dtype, 40)}, not numbers")
    for span, values in given.items():
        if not _are_whole(values):
            raise DataError(
                f"{path}: {span} holds {shown(values.dtype, 40)} that are not whole numbers"
            )
    lengths, offsets = given.get(_lengths_name(name)), given.get(_offsets_name(name))
    count = len(ids)
    if x.ndim == 2:
        found = _end_to_end(len(x), count, lengths, offsets)
        if found is None and offsets is None and len(x) == count:
            found = _vectors(count, lengths)
        if found is None:
            raise _misfit(path, name, x, count)
        return found
    if offsets is not None:
        raise DataError(
            f"{path}: {_offsets_name(name)} says where utterances lie end to end, and {name} is "
            f"{x.shape}, padded; give it {_lengths_name(name)} instead, or leave the offsets out"
        )
    if len(x) != count or (lengths is not None and not _fit(lengths, count, x.shape[1])):
        raise _misfit(path, name, x, count)
    whole = None if lengths is None else lengths.astype(np.int64)
    return spans(path, name, x, ids, whole, strip=False)


def _misfit(path: Path, name: str, x: np.ndarray, count: int) -> DataError:
    return DataError(
        f"{path}: {name} {x.shape} and its lengths do not fit {plural(count, 'utterance')}"
    )


def _are_whole(values: np.ndarray) -> bool:
    if values.dtype.kind == "f":
        return bool(np.isfinite(values).all() and (values == np.floor(values)).all())
    return values.dtype.kind in "iu"


def _fit(values: np.ndarray, count: int, most: int) -> bool:
    """Whether there are so many numbers, each from 0 to `most`."""
    return values.shape == (count,) and not ((values < 0).any() or (values > most).any())


def _vectors(count: int, lengths: np.ndarray | None) -> Spans | None:
    """Where utterances lie of which each has a row of an array, or none where its length is 0; None
    when the lengths say something else.
    """
    if lengths is None:
        lengths = np.ones(count, np.int64)
    if not _fit(lengths, count, 1):
        return None
    return Spans(np.arange(count), np.arange(count) + lengths.astype(np.int64))


def _end_to_end(
    steps: int, count: int, lengths: np.ndarray | None, offsets: np.ndarray | None
) -> Spans | None:
    """Where utterances lie that follow one another in an array of so many steps; None when the
    numbers do not cover it.
    """
    if offsets is None:
        if lengths is None or not _fit(lengths, count, steps):
            return None
        offsets = np.concatenate([[0], np.cumsum(lengths.astype(np.int64))])
    if not _fit(offsets, count + 1, steps):
        return None
    offsets = offsets.astype(np.int64)
    if offsets[0] != 0 or offsets[-1] != steps or (np.diff(offsets) < 0).any():
        return None
    return Spans(offsets[:-1], offsets[1:])


def _piece(x: np.ndarray, where: Spans, i: int) -> np.ndarray:
    steps = slice(where.start[i], where.stop[i])
    return x[i, steps] if x.ndim == 3 else x[steps]
