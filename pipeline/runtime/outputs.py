"""What lies where a user has named an output. It is replaced where it is what the command writes
there, and only there: a mistyped name must not cost a store, a clip or the only table of labels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from mer.pipeline.errors import DataError
from mer.pipeline.runtime.beginnings import LOOK_BYTES, recognise
from mer.pipeline.runtime.terminal import shown
from mer.pipeline.runtime.terms import MANIFEST_FORMAT, STORE_FORMAT

PARQUET = b"PAR1"
STORE_BYTES = 64 << 10  # of the beginning of a store, in which its format stands
MANIFEST_KEY = b"mer"  # of the schema's metadata
TITLE = b"<title>mer "  # of a page
# the first columns of `mer predict --out`, and columns of `mer evaluate --predictions`
PREDICTED = ("id", "file", "pred")
LINE_BYTES = 1 << 20  # looked at of JSON lines
SCORED = ("id", "label", "pred", "tags")


@dataclass(frozen=True)
class Output:
    """A kind of file that a command writes: its name, and what tells such a file by its path and
    its first bytes.
    """

    name: str
    is_one: Callable[[Path, bytes], bool]


def check_replaceable(
    path: Path, output: Output, *, option: str = "--out", sources: Iterable[Path] = ()
) -> None:
    """Raise DataError where writing `path` would destroy something else.

    Args:
        path: Where the output is to appear. Nothing there, an empty file, or an earlier output of
            the same kind may be replaced.
        output: What the command writes.
        option: That names `path`.
        sources: What the command reads; none of it is replaced, of whatever kind it is.
    """
    if path.is_symlink() or not path.is_file():
        return  # a link is replaced, not what it leads to; others are refused when written
    there = shown(path, 160)
    for source in sources:
        if source.exists() and path.samefile(source):
            raise DataError(f"{option} {there}: this is what is read; name another file")
    with path.open("rb") as file:
        head = file.read(LOOK_BYTES)
    if not head or output.is_one(path, head):
        return
    content = recognise(head)
    known = f" ({content.name})" if content is not None else ""
    raise DataError(
        f"{option} {there}: a file is there that is no {output.name}{known}; name another, or "
        "remove it"
    )


def _is_store(path: Path, head: bytes) -> bool:
    """Whether it is a store, or was one before it was damaged: other HDF5 files are somebody's."""
    if not head.strip(b"\0"):  # what a crash may leave of a file
        return True
    with path.open("rb") as file:
        if STORE_FORMAT.encode() in file.read(STORE_BYTES):
            return True
    named_so = path.suffix.lower() in (".h5", ".hdf5")
    return named_so and recognise(head) is None  # bytes that were one, perhaps


def _is_page(path: Path, head: bytes) -> bool:
    return head.lstrip().lower().startswith(b"<!doctype html") and TITLE in head


def _is_picture(path: Path, head: bytes) -> bool:
    kinds = {".png": (b"\x89PNG",), ".svg": (b"<?xml", b"<svg")}
    kind = path.suffix.lower()
    return _is_page(path, head) if kind == ".html" else head.startswith(kinds.get(kind, ()))


def _is_manifest(path: Path, head: bytes) -> bool:
    metadata = (_schema(path).metadata or {}) if head.startswith(PARQUET) else {}
    try:
        found = json.loads(metadata.get(MANIFEST_KEY, b"null"))
    except ValueError:
        return False
    return isinstance(found, dict) and found.get("format") == MANIFEST_FORMAT


def _is_scored(path: Path, head: bytes) -> bool:
    """Whether it is a table of predictions that is no part of a run, whose files are sealed."""
    if not head.startswith(PARQUET) or (path.parent / "run.json").exists():
        return False
    return set(SCORED) <= set(_schema(path).names)


def _schema(path: Path):
    """The schema of a Parquet file; an empty one where it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError, ValueError):
        return pa.schema([])


def _is_predicted(path: Path, head: bytes) -> bool:
    if head.startswith(",".join(PREDICTED).encode()):
        return True
    with path.open("rb") as file:
        line = file.readline(LINE_BYTES)
    try:
        first = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and set(PREDICTED) <= first.keys()


STORE = Output("store", _is_store)
REPORT = Output("report", _is_page)
CURVES = Output("picture of that kind", _is_picture)
MANIFEST = Output("manifest of mer", _is_manifest)
PREDICTIONS = Output("list of mer's predictions", _is_predicted)
SCORES = Output("table of mer's predictions", _is_scored)
