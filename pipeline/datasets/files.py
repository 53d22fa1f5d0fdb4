"""What every corpus needs of a disk: rows of a table as text, media files by folder, a first look at each file."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

from manifests import CorpusInfo
from pipeline.containers import other_content
from pipeline.datasets.report import Report
from pipeline.errors import DataError
from pipeline.manifest import Utterance

MEDIA = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aac", ".mp4", ".mkv", ".webm", ".avi", ".mov", ".aiff", ".aif", ".au")
NO_BREAK_SPACE = "\u00a0"


def read_text(path: Path) -> str:
    """A UTF-8 file, with or without a byte order mark. Raises DataError."""
    try:
        raw = path.read_bytes()
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte 0x{raw[error.start]:02x} at {error.start:,}); save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None


def read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a corpus's own csv, every value as text ("nan" and "NA" stay). Raises DataError when a column is missing."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))  # not splitlines(): it breaks at U+0085, which MELD has in its text
    try:
        rows = list(reader)
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: {error}") from None
    if absent := [c for c in columns if c not in (reader.fieldnames or ())]:
        raise DataError(f"{path}: no column {', '.join(absent)}; found {', '.join(reader.fieldnames or ['nothing'])}")
    for i, row in enumerate(rows):
        if any(row[c] is None for c in columns):
            raise DataError(f"{path}: {place(path, i)} has fewer columns than the header; the file may be truncated")
    return rows


def place(table: Path, row: int) -> str:
    """Where data row `row` (from 0) of a table begins, for a message: "line 7", as an editor counts it, blank lines and line breaks within
    quotes included. Parquet has no lines: "row 6", from 1. Reads the file again, which only a message costs."""
    if table.suffix.lower() != ".parquet":
        with suppress(csv.Error), table.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            if table.suffix.lower() in (".csv", ".tsv"):
                begins = _records(file, "\t" if table.suffix.lower() == ".tsv" else ",")
                next(begins, None)  # the header
            else:
                begins = (number for number, line in enumerate(file, start=1) if line.strip())
            if (number := next(islice(begins, row, None), None)) is not None:
                return f"line {number}"
    return f"row {row + 1}"


def _records(file: Iterable[str], delimiter: str) -> Iterator[int]:
    """The line on which each record begins; a blank line is none."""
    reader, first = csv.reader(file, delimiter=delimiter), 1
    for record in reader:
        if record:
            yield first
        first = reader.line_num + 1


def repair(text: str) -> str:
    """C1 control characters are cp1252 punctuation that was read as Latin-1 (’ became U+0092): map them back, and no-break spaces to
    spaces, so that the corpus's revisions agree. Five code points that cp1252 does not define stay as they are."""
    return "".join(_from_c1(c) if "\x80" <= c <= "\x9f" else c for c in text).replace(NO_BREAK_SPACE, " ")


def _from_c1(character: str) -> str:
    try:
        return character.encode("latin-1").decode("cp1252")
    except UnicodeDecodeError:
        return character


def hidden(name: str) -> bool:
    """Dot files, among them the `._` twins that macOS leaves beside every file of an archive."""
    return name.startswith(".")


def media_files(folder: Path, suffixes: Sequence[str] = MEDIA) -> tuple[dict[str, Path], int]:
    """stem -> file of the media directly in `folder`, and how many hidden ones were ignored. Raises DataError."""
    found: dict[str, Path] = {}
    ignored = 0
    try:
        entries = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}") from None
    for name in entries:
        path = folder / name
        if path.suffix.lower() in suffixes:
            if hidden(name):
                ignored += 1
            elif path.stem in found:
                raise DataError(f"{folder}: both {found[path.stem].name} and {name} for one clip; keep one of them")
            else:
                found[path.stem] = path
    return found, ignored


def folders(root: Path, depth: int) -> Iterator[Path]:
    """`root` and the folders below it, shallow ones first, hidden ones left out."""
    level = [root]
    for _ in range(depth + 1):
        yield from level
        try:
            level = [Path(e.path) for f in level for e in sorted(os.scandir(f), key=lambda e: e.name) if e.is_dir() and not hidden(e.name)]
        except OSError as error:
            raise DataError(f"{error.filename}: {error.strerror}") from None


def require_root(root: Path, info: CorpusInfo) -> None:
    if not root.is_dir():
        raise DataError(f"{info.name}: no folder {root.absolute()} (--root or MER_DATA names another); to get it: {info.obtain}")


def look(rows: Iterable[Utterance], root: Path, info: CorpusInfo, report: Report) -> list[Utterance]:
    """Mark the known-bad rows, and report files that are absent or that cannot be media. Nothing is decoded."""
    seen: dict[str, str | None] = {}  # several rows may cut pieces from one file
    base = os.fspath(root)
    out = []
    for u in rows:
        if u.audio is not None and u.audio not in seen:
            seen[u.audio] = unreadable(f"{base}/{u.audio}")
        fault = seen.get(u.audio) if u.audio is not None else None
        why = info.known_bad.get(u.id)
        if why is not None:
            report.known_bad[u.id] = why
            u = replace(u, known_bad=why)
        elif fault == "missing":
            report.missing.append(u.id)
        elif fault is not None:
            report.unreadable[u.id] = fault
        out.append(u)
    return out


def unreadable(path: str) -> str | None:
    """Why a file cannot be media, from its size and first bytes: "missing", "empty", "a text file"…; None: it may be."""
    try:
        with open(path, "rb", buffering=0) as file:
            head = file.read(512)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return (error.strerror or "cannot be read").lower()
    if not head:
        return "empty"
    return other_content(head)


def find_repeats(keys: Iterable[tuple], labels: Iterable[str]) -> tuple[list[int], int]:
    """(rows that repeat an earlier row's key, how many of them with another label)."""
    first: dict[tuple, str] = {}
    repeats, other = [], 0
    for i, (key, label) in enumerate(zip(keys, labels, strict=True)):
        if key in first:
            repeats.append(i)
            other += first[key] != label
        first.setdefault(key, label)
    return repeats, other
