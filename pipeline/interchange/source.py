"""The file that an import is given: that it is a file at all, and what it is when it is not what
was expected."""

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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from mer.pipeline.errors import DataError, MerError
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

LOOK_BYTES = 4096  # of the beginning, to tell what a file is
UNPACK = "unpack it first"
AGAIN = "download it again"
# (first bytes, what that is, what to do)
BEGINNINGS = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the file itself",
        "run `git lfs pull` where it came from",
    ),
    (b"\x1f\x8b", "a gzip archive", UNPACK),
    (b"BZh", "a bzip2 archive", UNPACK),
    (b"\xfd7zXZ\x00", "an xz archive", UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", UNPACK),
    (
        b"\x89HDF\r\n\x1a\n",
        "an HDF5 file",
        "a store of mer needs no import; save other arrays with numpy.savez",
    ),
    (
        b"\x93NUMPY",
        "a single .npy array",
        "save all arrays with numpy.savez, or make a folder for npy-dir",
    ),
    (b"PAR1", "a Parquet file", "import it with `mer import parquet`"),
    (b"ARROW1", "an Arrow or Feather file", "save it as Parquet"),
    (b"%PDF", "a PDF", AGAIN),
)
HTML = (b"<!doctype html", b"<html", b"<head", b"<?xml")


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Whatever the bytes of `path` provoke in the block becomes one DataError; warnings of the
    libraries stay inside."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (MerError, PermissionError):
        raise
    except DAMAGE as error:
        lines = str(error).splitlines() or [""]
        reason = shown(
            f"{type(error).__name__}: {lines[0]}" if lines[0] else type(error).__name__, 160
        )
        raise DataError(f"{path}: not a readable {what} ({reason})") from None


def require_file(path: Path, what: str, *, magic: bytes = b"") -> int:
    """Size of `path` in bytes; DataError when it is no regular file, or plainly something else than
    `what` (which begins with `magic`)."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (ValueError, NotADirectoryError):
        raise DataError(f"{shown(path, 200)}: no such file") from None
    if stat.S_ISDIR(found.st_mode):
        raise DataError(f"{path}: a folder, not a {what}; name a file")
    if not stat.S_ISREG(found.st_mode):
        raise DataError(
            f"{path}: a pipe, socket or device, not a file; save its content in a file first"
        )
    with open(path, "rb") as file:
        head = file.read(LOOK_BYTES)
    other = None if magic and head.startswith(magic) else recognise(path, head)
    if other is not None:
        raise DataError(f"{path}: {other[0]}, not a {what}; {other[1]}")
    return found.st_size


def recognise(path: Path, head: bytes) -> tuple[str, str] | None:
    """(what it is, what to do), by the first bytes of a file; None when they tell nothing."""
    if not head:
        return "an empty file", AGAIN
    if not head.strip(b"\0"):
        return "a file that begins with nothing but zero bytes (a download that broke off?)", AGAIN
    for beginning, name, remedy in BEGINNINGS:
        if head.startswith(beginning):
            return name, remedy
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(HTML):
        return "a web page (a login or virus-scan page was saved?)", "download the file itself"
    if head.startswith(b"PK\x03\x04"):
        return _zip(path)
    if head[257:262] == b"ustar":
        return "a tar archive", UNPACK
    return None


def _zip(path: Path) -> tuple[str, str]:
    """A zip by its members: several kinds of file are zips."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except DAMAGE:
        return "a zip archive that cannot be read", AGAIN
    if any(name.endswith("/data.pkl") for name in names):
        return (
            "a PyTorch checkpoint",
            "load it with torch.load and save its arrays with numpy.savez",
        )
    if names and all(name.endswith(".npy") for name in names):
        return "an npz", "import it with `mer import npz`"
    return "a zip archive", UNPACK


def array_header(file) -> tuple[tuple[int, ...], np.dtype]:
    """(shape, type) of the .npy at the beginning of `file`, which is left behind its header;
    ValueError when it is none.

    NumPy takes negative sizes at their word, and divides by the size of an element that has none.
    """
    version = np.lib.format.read_magic(file)
    reader = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = reader(file)
    if any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"shape {shown(shape)}")
    return shape, dtype


def exported_header(text: str | bytes) -> Header:
    """The header that `mer export` left in a file, its types checked; ValueError when it is
    none."""
    if len(text) > HEADER_BYTES:
        raise ValueError(f"a header of {len(text):,} bytes, more than {HEADER_BYTES:,}")
    try:
        raw = json.loads(text)
        header = Header.from_json(json.dumps(raw))
    except (TypeError, KeyError, AttributeError, RecursionError, UnicodeError) as error:
        raise ValueError(f"no header of mer ({type(error).__name__})") from None
    words = [
        header.dataset,
        header.language,
        header.fingerprint,
        *header.labels,
        *header.modalities,
    ]
    if (
        not isinstance(raw["labels"], list)
        or not all(isinstance(word, str) for word in words)
        or header.task not in TASKS
    ):
        raise ValueError("no header of mer (dataset, task, labels or language)")
    if not isinstance(header.provenance, dict) or not isinstance(header.recipe, dict):
        raise ValueError("no header of mer (provenance or recipe)")
    for name, info in header.modalities.items():
        if not _proper(info):
            raise ValueError(f"no header of mer (modality {shown(name, 40)})")
    return header


def _proper(info: ModalityInfo) -> bool:
    texts = (info.encoder, info.revision, info.layer, info.dtype)
    rate = info.frame_rate
    return (
        type(info.dim) is int
        and (rate is None or (type(rate) in (int, float) and 0 < rate < float("inf")))
        and all(isinstance(text, str) for text in texts)
        and type(info.trained) is bool
        and isinstance(info.extra, dict)
    )
