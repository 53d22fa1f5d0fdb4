"""What every corpus needs of a disk: rows of a table as text, media files by folder, a first look
at each file.
"""

from __future__ import annotations

import csv
import io
import os
import stat
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from unicodedata import normalize

from mer.pipeline.datasets.corpora import CorpusInfo
from mer.pipeline.datasets.findings import Report
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import NAMES, Utterance
from mer.pipeline.media.containers import other_content
from mer.pipeline.runtime.cells import strip
from mer.pipeline.runtime.columnar import require_regular
from mer.pipeline.runtime.limits import TABLE_BYTES, TABLE_LINE_CHARACTERS
from mer.pipeline.runtime.terminal import listed, shown

MEDIA = (
    ".wav",
    ".flac",
    ".ogg",
    ".opus",
    ".mp3",
    ".m4a",
    ".aac",
    ".mp4",
    ".mkv",
    ".webm",
    ".avi",
    ".mov",
    ".aiff",
    ".aif",
    ".au",
)
NO_BREAK_SPACE = "\u00a0"


HEADER_CHARACTERS = 131_072  # of one column's name
LOOK_BYTES = 4_096  # of the beginning of a file, to tell what it is
AGAIN = "download it again"
UNPACK = "unpack it first"
BEGINNINGS = (  # first bytes, what that is, what to do
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the file itself",
        "run `git lfs pull` where it came from",
    ),
    (b"\x1f\x8b", "gzip", UNPACK),
    (b"BZh", "bzip2", UNPACK),
    (b"\xfd7zXZ\x00", "xz", UNPACK),
    (b"\x28\xb5\x2f\xfd", "zstd", UNPACK),
    (b"7z\xbc\xaf", "a 7-Zip archive", UNPACK),
    (b"Rar!", "a RAR archive", UNPACK),
    (b"\xd0\xcf\x11\xe0", "a workbook of old Excel", "save it as CSV UTF-8"),
    (b"SQLite format 3", "an SQLite database", "export the table as CSV"),
    (b"\x89HDF", "HDF5", "write the table as CSV or Parquet"),
    (b"ARROW1", "an Arrow or Feather file", "write it as Parquet"),
    (b"%PDF", "a PDF", "write the table as CSV"),
    (b"PAR1", "Parquet", "give it a name that ends in .parquet"),
)
PAGES = (b"<!doctype html", b"<html", b"<head", b"<?xml")
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
EXPECTED = {".csv": ",", ".tsv": "\t"}


def instead(path: Path) -> str | None:
    """What a file is instead of text with columns, and the remedy, by its first bytes; None when
    nothing speaks against it. Raises DataError when it is no regular file.
    """
    require_regular(path)
    try:
        with path.open("rb") as file:
            head = file.read(LOOK_BYTES)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    for beginning, what, remedy in BEGINNINGS:
        if head.startswith(beginning):
            return f"this is {what}; {remedy}"
    if head and not head.strip(b"\0"):
        return f"it begins with nothing but zero bytes; {AGAIN}"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(PAGES):
        return f"this is a web page (a login or a warning, saved instead of the file?); {AGAIN}"
    if head.startswith(b"PK\x03\x04"):
        return _zip(path)
    if head.startswith(UTF_16) or head[1:2] == b"\0" or head[:1] == b"\0":
        return "not UTF-8 but UTF-16 (Excel's “Unicode text”); save it as UTF-8"
    return None


def _zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            workbook = "xl/workbook.xml" in archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        workbook = False
    return (
        "this is an Excel workbook; save it as CSV UTF-8"
        if workbook
        else f"this is a zip archive; {UNPACK}"
    )


def not_utf8(path: Path, error: UnicodeDecodeError) -> DataError:
    return DataError(
        f"{path}: not UTF-8 (byte 0x{error.object[error.start]:02x}); save it as UTF-8"
    )


def read_text(path: Path) -> str:
    """A UTF-8 file, with or without a byte order mark. Raises DataError."""
    if other := instead(path):
        raise DataError(f"{path}: {other}")
    try:
        if (size := path.stat().st_size) > TABLE_BYTES:
            raise DataError(f"{path}: {size:,} bytes, more than {TABLE_BYTES:,}")
        raw = path.read_bytes()
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = f"byte 0x{raw[error.start]:02x} at {error.start:,}"
        raise DataError(f"{path}: not UTF-8 ({where}); save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None


@dataclass(frozen=True)
class Dialect:
    """How a csv separates its columns, by its first lines.

    `spaced`: a blank follows each separator, and is none of the cell. `skipped`: lines before the
    header (`sep=;`). `header`: names without blanks at their ends.
    """

    delimiter: str
    header: tuple[str, ...]
    skipped: int = 0
    spaced: bool = False

    def rows(self, lines: Iterable[str]) -> Iterator[list[str]]:
        """The records after the skipped lines, the header first; blank lines are none.

        For `csv` on slow ways.
        """
        return filter(None, self.reader(lines))

    def reader(self, lines: Iterable[str]):
        csv.field_size_limit(TABLE_BYTES)  # Python's own bound, 131,072, is below a long cell
        return csv.reader(
            islice(lines, self.skipped, None),
            delimiter=self.delimiter,
            skipinitialspace=self.spaced,
        )


def dialect(path: Path, expected: str = ",") -> Dialect:
    """Raises DataError for an empty file, or one that is not UTF-8."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = next(filter(str.strip, bounded(file, path)), "")
            file.seek(0)
            named = strip(first).strip('"').lower()
            if named.startswith("sep=") and len(named) <= 5:  # Excel's own line, the first of all
                delimiter = named[4:] or "\t"  # a tab, which strip took
                if delimiter not in SEPARATORS:
                    raise DataError(
                        f"{path}: line 1 names '{shown(delimiter)}' as separator; use a comma, "
                        "semicolon or tab"
                    )
                header = _header(file, path, delimiter, 1)
                return Dialect(delimiter, _names(header), 1, _spaced(header))
            header = _header(file, path, expected, 0)
            if len(header) == 1:
                found = {}
                for other in SEPARATORS:
                    file.seek(0)
                    found[other] = _header(file, path, other, 0)
                best = max(found, key=lambda other: len(found[other]))
                if len(found[best]) > 1:
                    return Dialect(best, _names(found[best]), 0, _spaced(found[best]))
            return Dialect(expected, _names(header), 0, _spaced(header))
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from None
    except csv.Error as error:
        said = (
            f"a column name is longer than {HEADER_CHARACTERS:,} characters"
            if "field limit" in str(error)
            else str(error)
        )
        raise DataError(f"{path}: {said}; mend its first line") from None


def _header(file, path: Path, delimiter: str, skipped: int) -> list[str]:
    csv.field_size_limit(HEADER_CHARACTERS)
    header = next(
        filter(None, csv.reader(islice(bounded(file, path), skipped, None), delimiter=delimiter)),
        None,
    )
    if not header:
        raise DataError(f"{path}: empty file")
    return header


def _names(header: list[str]) -> tuple[str, ...]:
    return tuple(
        strip(name.strip().strip('"')) if name.startswith(" ") else strip(name) for name in header
    )


def _spaced(header: list[str]) -> bool:
    return len(header) > 1 and all(name.startswith(" ") for name in header[1:])


def bounded(file, path: Path) -> Iterator[str]:
    """The lines of an open file, none longer than the bound."""
    number = 0
    while line := file.readline(TABLE_LINE_CHARACTERS + 1):
        number += 1
        if len(line) > TABLE_LINE_CHARACTERS:
            raise DataError(
                f"{path}: line {number} has more than {TABLE_LINE_CHARACTERS:,} characters"
            )
        yield line


def read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a corpus's own csv, every value as text ("nan" and "NA" stay).

    Raises DataError when a column is missing.
    """
    text = read_text(path)
    form = dialect(path)
    if absent := [c for c in columns if c not in form.header]:
        raise DataError(f"{path}: no column {', '.join(absent)}; found {listed(form.header)}")
    if double := [c for c in columns if form.header.count(c) > 1]:
        raise DataError(f"{path}: column '{double[0]}' is there twice")
    rows = []
    # not splitlines(): it breaks at U+0085, which MELD has in its text
    reader = form.reader(io.StringIO(text, newline=""))
    try:
        records = filter(None, reader)
        next(records)
        for i, record in enumerate(records):
            row = dict(zip(form.header, record, strict=False))
            if any(c not in row for c in columns):
                raise DataError(
                    f"{path}: {place(path, i)} has fewer columns than the header; the file may be "
                    "truncated"
                )
            if bad := [c for c in columns if "\0" in row[c]]:
                raise DataError(
                    f"{path}: {place(path, i)} has a zero byte in {bad[0]}; the file may be damaged"
                )
            rows.append(row)
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: {error}") from None
    return rows


def place(table: Path, row: int) -> str:
    """Where data row `row` (from 0) of a table begins, for a message: "line 7", as an editor counts
    it, blank lines and line breaks within quotes included. Parquet has no lines: "row 6", from 1.
    Reads the file again, which only a message costs.
    """
    suffix = table.suffix.lower()
    if suffix != ".parquet":
        with (
            suppress(csv.Error, DataError),
            table.open(encoding="utf-8-sig", errors="replace", newline="") as file,
        ):
            if suffix in EXPECTED:
                begins = _records(file, dialect(table, EXPECTED[suffix]))
                next(begins, None)  # the header
            else:
                begins = (number for number, line in enumerate(file, start=1) if line.strip())
            if (number := next(islice(begins, row, None), None)) is not None:
                return f"line {number}"
    return f"row {row + 1}"


def _records(file: Iterable[str], form: Dialect) -> Iterator[int]:
    """The line on which each record begins; a blank line is none."""
    reader, first = form.reader(file), 1 + form.skipped
    for record in reader:
        if record:
            yield first
        first = reader.line_num + 1 + form.skipped


def repair(text: str) -> str:
    """C1 control characters are cp1252 punctuation that was read as Latin-1 (’ became U+0092): map
    them back, and no-break spaces to spaces, so that the corpus's revisions agree. Five code points
    that cp1252 does not define stay as they are.
    """
    return "".join(_from_c1(c) if "\x80" <= c <= "\x9f" else c for c in text).replace(
        NO_BREAK_SPACE, " "
    )


def _from_c1(character: str) -> str:
    try:
        return character.encode("latin-1").decode("cp1252")
    except UnicodeDecodeError:
        return character


def hidden(name: str) -> bool:
    """Dot files, among them the `._` twins that macOS leaves beside every file of an archive."""
    return name.startswith(".")


def media_files(folder: Path, suffixes: Sequence[str] = MEDIA) -> tuple[dict[str, Path], int]:
    """stem -> file of the media directly in `folder`, and how many hidden ones were ignored.

    Raises DataError.
    """
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
                raise DataError(
                    f"{folder}: both {found[path.stem].name} and {name} for one clip; keep one of "
                    "them"
                )
            else:
                found[path.stem] = path
    return found, ignored


def folders(root: Path, depth: int) -> Iterator[Path]:
    """`root` and the folders below it, shallow ones first, hidden ones left out."""
    level = [root]
    for _ in range(depth + 1):
        yield from level
        try:
            level = [
                Path(e.path)
                for f in level
                for e in sorted(os.scandir(f), key=lambda e: e.name)
                if e.is_dir() and not hidden(e.name)
            ]
        except OSError as error:
            raise DataError(f"{error.filename}: {error.strerror}") from None


SEARCHED = 10_000  # entries that are looked through for a hint
SEARCH_LEVELS = 6  # folders below a root


def require_root(root: Path, info: CorpusInfo) -> None:
    if not root.is_dir():
        told = " (it is a file)" if root.exists() else ""
        parent = root.absolute().parent
        name = _folded(root.name)
        with suppress(OSError):
            alike = [
                entry.name
                for entry in os.scandir(parent)
                if entry.is_dir() and name in _folded(entry.name)
            ]
            if alike:
                told = f", but there is {listed(sorted(alike), 3)} in {shown(parent, 100)}"
        where = shown(root.absolute(), 120)
        raise DataError(
            f"{info.name}: no folder {where}{told} (--root or MER_DATA names another); to get it: "
            f"{info.obtain}"
        )


def elsewhere(root: Path, names: Iterable[str]) -> str:
    """A hint for a message that nothing of those names was found: where, within and a little above
    the levels that are searched, something of the same name in other case, or the very name, lies.
    Empty when nothing does.
    """
    wanted = {_folded(name) for name in names}
    found, seen = [], 0
    level = [os.fspath(root)]
    for _ in range(SEARCH_LEVELS):
        below = []
        for folder in level:
            with suppress(OSError):
                for entry in os.scandir(folder):
                    seen += 1
                    if _folded(entry.name) in wanted:
                        found.append(os.path.relpath(entry.path, root))
                    if entry.is_dir() and not hidden(entry.name):
                        below.append(entry.path)
            if seen > SEARCHED:
                break
        level = [] if found or seen > SEARCHED else below
    return (
        f"; there is {listed(sorted(found), 2)}: name its folder with --root, spelled as published"
        if found
        else ""
    )


def _folded(name: str) -> str:
    return normalize("NFC", name).casefold()


def cut_blanks(rows: Iterable[Utterance], report: Report) -> list[Utterance]:
    """Rows whose names have no blanks at their ends; each change is counted in the report."""
    out = []
    for u in rows:
        changed = {}
        for name in NAMES:
            value = getattr(u, name)
            if value is not None and (cut := strip(value)) != value:
                changed[name] = cut or None
                report.repairs[f"blanks at an end of {name}, cut off"].append(shown(u.id))
        out.append(replace(u, **changed) if changed else u)
    return out


def look(
    rows: Iterable[Utterance], root: Path, info: CorpusInfo, report: Report
) -> list[Utterance]:
    """Cut blanks off names, mark the known-bad rows, and report files that are absent or that
    cannot be media. Nothing is decoded.
    """
    seen: dict[str, str | None] = {}  # several rows may cut pieces from one file
    base = os.fspath(root)
    out = []
    for u in cut_blanks(rows, report):
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
    report.warnings += _hints([audio for audio, fault in seen.items() if fault == "missing"], base)
    return out


def _hints(missing: list[str], base: str) -> list[str]:
    """Why files may seem to be missing: other Unicode composition, other case, other blanks,
    backslashes.
    """
    listings: dict[str, dict[str, str]] = {}
    kinds: dict[str, list[str]] = {}
    for audio in missing[:SEARCHED]:
        folder, _, name = audio.rpartition("/")
        if folder not in listings:
            listings[folder] = {}
            with suppress(OSError, ValueError):
                listings[folder] = {
                    strip(_folded(other)): other for other in os.listdir(f"{base}/{folder}")
                }
        other = listings[folder].get(strip(_folded(name)))
        if other is None:
            if "\\" in audio:
                kinds.setdefault(
                    "hold backslashes, which separate folders on Windows only: write /", []
                ).append(audio)
            continue
        what = "blanks at an end of the file's name: rename the file"
        if normalize("NFC", other) == normalize("NFC", name):
            what = (
                "composed and decomposed accents (Unicode's NFC and NFD): rename the files, or "
                "write the paths alike"
            )
        elif strip(other) == other:
            what = "upper and lower case: write the paths as the files are called"
        kinds.setdefault(f"are there but for {what}", []).append(audio)
    return [
        f"{len(those):,} of the missing files {what}: {listed(those, 3)}"
        for what, those in kinds.items()
    ]


def _no_wait(path: str, flags: int) -> int:
    """An opener that does not wait for somebody to write into a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def unreadable(path: str) -> str | None:
    """Why a file cannot be media, from its size and first bytes: "missing", "empty", "a text
    file"…; None: it may be.
    """
    try:
        with open(path, "rb", buffering=0, opener=_no_wait) as file:
            head = file.read(512)
            regular = bool(head) or stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return (error.strerror or "cannot be read").lower()
    if not regular:
        return "a pipe, socket or device"
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
