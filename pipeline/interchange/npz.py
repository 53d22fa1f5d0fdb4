"""One .npz of parallel arrays: ids, labels, splits, and features (N, D), padded (N, T, D), or end
to end (sum T, D).
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np

from mer.pipeline.errors import DataError
from mer.pipeline.interchange.columns import account, find_columns, find_features, interpret
from mer.pipeline.interchange.write import Foreign, Options, sha256

BOMB_BYTES, BOMB_RATIO = 1 << 30, 200  # real features deflate by less than 50, padding included


def read(path: Path, options: Options) -> Foreign:
    """A modality's true lengths are in NAME_lengths or NAME_offsets; without them every step
    counts.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            shapes = {
                i.filename.removesuffix(".npy"): _shape(path, archive, i)
                for i in archive.infolist()
                if i.filename.endswith(".npy")
            }
        with np.load(path, allow_pickle=False) as file:
            return _read(path, options, file, shapes)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        ValueError,
        EOFError,
        OSError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        if isinstance(error, PermissionError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DataError(f"{path}: not a readable npz ({reason})") from None


def _shape(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[int, ...]:
    """Shape of a member from its header, held against its size before anything is unpacked."""
    if info.file_size > BOMB_BYTES and info.file_size > BOMB_RATIO * max(1, info.compress_size):
        raise DataError(
            f"{path}: {info.filename} unpacks {info.compress_size:,} bytes to {info.file_size:,}; "
            "refused"
        )
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        reader = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = reader(member)
        if dtype.hasobject:
            raise DataError(
                f"{path}: {info.filename} holds Python objects (a pickle); save it as text or "
                "numbers"
            )
        if prod(shape) * dtype.itemsize != info.file_size - member.tell():
            raise DataError(
                f"{path}: {info.filename} claims shape {shape} of {dtype} but holds "
                f"{info.file_size - member.tell():,} bytes"
            )
    return shape


def _read(path: Path, options: Options, file, shapes: dict[str, tuple[int, ...]]) -> Foreign:
    names = find_columns(
        path, [k for k in shapes if len(shapes[k]) == 1 or k in options.columns.values()], options
    )
    n = shapes[names["id"]][0]
    wide = [k for k in shapes if len(shapes[k]) in (2, 3) and k not in options.columns.values()]
    features = find_features(path, wide, options)
    spans_of = {f"{name}_{what}" for name in wide for what in ("lengths", "offsets")}
    data, spans = {}, {}
    for m, name in features.items():
        data[m] = x = file[name]
        if x.dtype.kind not in "fiub":
            raise DataError(f"{path}: {name} holds {x.dtype}, not numbers")
        lengths = file[f"{name}_lengths"] if f"{name}_lengths" in shapes else None
        offsets = file[f"{name}_offsets"] if f"{name}_offsets" in shapes else None
        # end to end
        if x.ndim == 2 and (offsets is not None or (lengths is not None and len(x) != n)):
            offsets = np.concatenate([[0], np.cumsum(lengths)]) if offsets is None else offsets
            good = (
                offsets.shape == (n + 1,)
                and offsets[0] == 0
                and offsets[-1] == len(x)
                and (np.diff(offsets) >= 0).all()
            )
            spans[m] = offsets.astype(np.int64) if good else None
        else:
            good = len(x) == n and (
                lengths is None
                or (
                    lengths.shape == (n,) and (lengths >= 0).all() and (lengths <= x.shape[1]).all()
                )
            )
            spans[m] = (
                np.full(n, x.shape[1])
                if lengths is None or x.ndim == 2
                else lengths.astype(np.int64)
            )
        if not good:
            raise DataError(f"{path}: {name} {x.shape} and its lengths do not fit {n} utterances")

    def frames() -> Iterator[dict[str, np.ndarray]]:
        for i in range(n):
            yield {m: _piece(x, spans[m], i, n) for m, x in data.items()}

    columns = {field: file[name].tolist() for field, name in names.items()}
    task, labels, rows = interpret(path, columns, options)
    return Foreign(
        path=path,
        kind="npz",
        dataset=options.dataset or path.stem,
        task=task,
        labels=labels,
        language=options.language or "en",
        rows=rows,
        dims={m: x.shape[-1] for m, x in data.items()},
        frames=frames,
        source={"sha256": sha256(path)},
        notes=[account(names, features, task, [k for k in shapes if k not in spans_of])],
    )


def _piece(x: np.ndarray, span: np.ndarray, i: int, n: int) -> np.ndarray:
    if len(span) == n + 1:
        return x[span[i] : span[i + 1]]
    return x[i] if x.ndim == 2 else x[i, : span[i]]
