"""What a file is, by its first bytes, for a message that it is not what it should be.

Tables, features and media are looked at by the same list. What to do about it depends on what was
wanted, so whoever asks may bring remedies of its own.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

LOOK_BYTES = 4_096  # of the beginning of a file, to tell what it is
UNPACK = "unpack it first"
AGAIN = "download it again"


@dataclass(frozen=True)
class Content:
    """What a file is (`name`, with its article), and what to do about it where that does not depend
    on what was wanted.
    """

    name: str
    remedy: str = ""

    def remedy_among(self, own: Mapping[Content, str]) -> str:
        """The remedy: the asker's own where it has one, else the common one, else ""."""
        return own.get(self, self.remedy)


LFS = Content("a Git LFS pointer, not the file itself", "run `git lfs pull` where it came from")
ANNEX = Content("a git-annex pointer, not the file itself", "run `git annex get` where it is")
EMPTY = Content("an empty file", AGAIN)
ZEROS = Content("a file that begins with nothing but zero bytes", AGAIN)
PAGE = Content("a web page (an HTML page, perhaps of a login or a warning)", AGAIN)
XML = Content("an XML file", AGAIN)
OLD_EXCEL = Content("a workbook of old Excel")
EXCEL = Content("an Excel workbook")
SQLITE = Content("an SQLite database")
HDF5 = Content("an HDF5 file")
ARROW = Content("an Arrow or Feather file", "write it as Parquet")
PARQUET = Content("Parquet")
NPY = Content("a single .npy array")
NPZ = Content("an npz")
TORCH = Content("a PyTorch checkpoint")
PDF = Content("a PDF")
PNG, JPEG, GIF = (Content(f"an image ({name})") for name in ("PNG", "JPEG", "GIF"))
PROGRAM = Content("a program")
ZIP = Content("a zip archive", UNPACK)
EMPTY_ZIP = Content("an empty zip archive", AGAIN)
BROKEN_ZIP = Content("a zip archive that cannot be read", AGAIN)
TAR = Content("a tar archive", UNPACK)

SIGNATURES = (
    (b"version https://git-lfs", LFS),
    (b"\x1f\x8b", Content("a gzip archive", UNPACK)),
    (b"BZh", Content("a bzip2 archive", UNPACK)),
    (b"\xfd7zXZ\x00", Content("an xz archive", UNPACK)),
    (b"\x28\xb5\x2f\xfd", Content("a zstd archive", UNPACK)),
    (b"7z\xbc\xaf", Content("a 7-Zip archive", UNPACK)),
    (b"Rar!", Content("a RAR archive", UNPACK)),
    (b"PK\x03\x04", ZIP),
    (b"PK\x05\x06", EMPTY_ZIP),
    (b"\xd0\xcf\x11\xe0", OLD_EXCEL),
    (b"SQLite format 3", SQLITE),
    (b"\x89HDF", HDF5),
    (b"\x93NUMPY", NPY),
    (b"PAR1", PARQUET),
    (b"ARROW1", ARROW),
    (b"FEA1", ARROW),
    (b"Obj\x01", Content("an Avro file", "write it as Parquet")),
    (b"ORC", Content("an ORC file", "write it as Parquet")),
    (b"\x04\x22\x4d\x18", Content("an lz4 archive", UNPACK)),
    (b"\x1f\x9d", Content("a compress archive (.Z)", UNPACK)),
    (b"/annex/objects/", ANNEX),
    (b"HTTP/1.", Content("an answer of a web server, headers and all", AGAIN)),
    (b"<<<<<<< ", Content("a file with a merge conflict of git", "resolve it")),
    (b"{\\rtf", Content("a document (RTF)")),
    (b"MATLAB 5.0", Content("a MATLAB file", "save its arrays with scipy.io and numpy.savez")),
    (b"%PDF", PDF),
    (b"\x89PNG", PNG),
    (b"\xff\xd8\xff", JPEG),
    (b"GIF8", GIF),
    (b"\x7fELF", PROGRAM),
)
PAGES = (b"<!doctype html", b"<html", b"<head", b"<!--", b"<body", b"<script", b"<table", b"<meta")
BLANKS = b"\xef\xbb\xbf \t\r\n"  # that may stand before the first tag of a page
TAR_MAGIC = slice(257, 262)  # where a tar has b"ustar"


def recognise(head: bytes) -> Content | None:
    """What a file is by its first bytes.

    Args:
        head: The first bytes, `LOOK_BYTES` where the file has as many.

    Returns:
        What it is; None when they tell nothing.
    """
    if not head:
        return EMPTY
    for signature, content in SIGNATURES:
        if head.startswith(signature):
            return content
    if not head.strip(b"\0"):
        return ZEROS
    text = head.lstrip(BLANKS).lower()
    if text.startswith(PAGES):
        return PAGE
    if text.startswith(b"<?xml"):
        return PAGE if b"<html" in text else XML
    return TAR if head[TAR_MAGIC] == b"ustar" else None


def recognise_zip(path: Path) -> Content:
    """Which kind of zip a file is that begins like one, by the names of its members."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, zlib.error):
        return BROKEN_ZIP
    if "xl/workbook.xml" in names:
        return EXCEL
    if any(name.endswith("/data.pkl") for name in names):
        return TORCH
    if names and all(name.endswith(".npy") for name in names):
        return NPZ
    return ZIP
