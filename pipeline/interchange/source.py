"""The file that an import is given: that it is a file at all, what it is when it is not what was
expected, and what every reader does with its bytes.
"""

from __future__ import annotations

import json
import lzma
import os
import stat
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa

from mer.pipeline.errors import DataError, MerError
from mer.pipeline.runtime import beginnings
from mer.pipeline.runtime.files import near
from mer.pipeline.runtime.limits import HEADER_BYTES
from mer.pipeline.runtime.terminal import shown
from mer.pipeline.runtime.terms import TASKS
from mer.pipeline.store.schema import Header, ModalityInfo

# What Python, NumPy, zipfile and pyarrow raise on bytes that are not what they should be.
DAMAGE = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    ArithmeticError,
    SyntaxError,
    tokenize.TokenError,
    MemoryError,
    RecursionError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    AssertionError,
    OSError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    pa.ArrowException,
)

# What to do about a file that holds no features, or not of the kind that was named.
REMEDIES = {
    beginnings.PARQUET: "import it with `mer import parquet`",
    beginnings.NPZ: "import it with `mer import npz`",
    beginnings.NPY: "save all arrays with numpy.savez, or make a folder for npy-dir",
    beginnings.HDF5: "a store of mer needs no import; save other arrays with numpy.savez",
    beginnings.TORCH: "load it with torch.load and save its arrays with numpy.savez",
    beginnings.PDF: beginnings.AGAIN,
}


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Whatever the bytes of `path` provoke in the block becomes one DataError; warnings of the
    libraries stay inside.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (MerError, PermissionError):
        raise
    except DAMAGE as error:
        first = next(iter(str(error).splitlines()), "")
        reason = ": ".join(filter(None, (type(error).__name__, first)))
        raise DataError(f"{path}: not a readable {what} ({shown(reason, 160)})") from None


def require_file(path: Path, what: str, *, magic: bytes = b"") -> int:
    """Check that a path is a regular file, and not plainly something else than was expected.

    Args:
        path: What the user named.
        what: What it should be, for messages ("npz").
        magic: The bytes that such a file begins with; it is not looked at any further then.

    Returns:
        Its size in bytes.

    Raises:
        DataError: It is absent, a folder, a pipe, or another kind of file, which is named.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file{near(path)}") from None
    except (ValueError, NotADirectoryError):
        raise DataError(f"{shown(path, 200)}: no such file") from None
    if stat.S_ISDIR(found.st_mode):
        raise DataError(f"{path}: a folder, not a {what}; name a file")
    if not stat.S_ISREG(found.st_mode):
        raise DataError(
            f"{path}: a pipe, socket or device, not a file; save its content in a file first"
        )
    with open(path, "rb") as file:
        head = file.read(beginnings.LOOK_BYTES)
    if magic and head.startswith(magic):
        return found.st_size
    other = beginnings.recognise(head)
    if other is beginnings.ZIP:
        other = beginnings.recognise_zip(path)
    if other is not None:
        remedy = other.remedy_among(REMEDIES) or f"name a {what}"
        raise DataError(f"{path}: {other.name}, not a {what}; {remedy}")
    return found.st_size


def array_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """(shape, type) of the .npy at the beginning of `file`, which is left behind its header;
    ValueError when it is none.

    NumPy takes negative sizes at their word, and divides by the size of an element that has none.
    """
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_2_0
    if version == (1, 0):
        read_header = np.lib.format.read_array_header_1_0
    shape, _, dtype = read_header(file)
    if any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"shape {shown(shape)}")
    return shape, dtype


def exported_header(text: str | bytes) -> Header:
    """The header that `mer export` left in a file, its types checked; ValueError for any other."""
    if len(text) > HEADER_BYTES:
        raise ValueError(f"a header of {len(text):,} bytes, more than {HEADER_BYTES:,}")
    try:
        raw = json.loads(text)
        header = Header.from_json(json.dumps(raw))
    except (TypeError, KeyError, AttributeError, RecursionError, UnicodeError) as error:
        raise ValueError(f"no header of mer ({type(error).__name__})") from None
    words = [header.dataset, header.language, header.fingerprint]
    words += [*header.labels, *header.modalities]
    if not isinstance(raw["labels"], list) or header.task not in TASKS or not _are_text(words):
        raise ValueError("no header of mer (dataset, task, labels or language)")
    if not isinstance(header.provenance, dict) or not isinstance(header.recipe, dict):
        raise ValueError("no header of mer (provenance or recipe)")
    for name, info in header.modalities.items():
        if not _is_proper(info):
            raise ValueError(f"no header of mer (modality {shown(name, 40)})")
    return header


def header_among(text: object) -> Header | None:
    """`exported_header` of what a file has under `mer`; None for any other file, also one with
    metadata of that name and another kind (a manifest).
    """
    if not text or not isinstance(text, str | bytes):
        return None
    try:
        return exported_header(text)
    except ValueError:
        return None


def _are_text(words: Iterable[object]) -> bool:
    return all(isinstance(word, str) for word in words)


def _is_proper(info: ModalityInfo) -> bool:
    rate = info.frame_rate
    return (
        type(info.dim) is int
        and (rate is None or (type(rate) in (int, float) and 0 < rate < float("inf")))
        and _are_text((info.encoder, info.revision, info.layer, info.dtype))
        and type(info.trained) is bool
        and isinstance(info.extra, dict)
    )
