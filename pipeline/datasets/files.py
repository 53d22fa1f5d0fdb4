"""What every corpus needs of a disk: its root, media files by folder, a first look at each file."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unicodedata import normalize

from mer.pipeline.datasets.corpora import CorpusInfo, LabelSet
from mer.pipeline.datasets.findings import Findings
from mer.pipeline.datasets.pattern import MEDIA
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import NAMES, Manifest, Utterance
from mer.pipeline.media.containers import other_content
from mer.pipeline.runtime.cells import strip
from mer.pipeline.runtime.files import near
from mer.pipeline.runtime.terminal import listed, plural, shown

MISSING = "missing"  # what is wrong with a file that is not there
ADDRESS = re.compile(r"(https?|ftp|s3|gs|file):/")  # a slash is left of the two
SEARCHED = 10_000  # entries that are looked through for a hint
SEARCH_LEVELS = 6  # folders below a root


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
        below: list[Path] = []
        try:
            for folder in level:
                inside = sorted(os.scandir(folder), key=lambda entry: entry.name)
                below += [
                    Path(entry.path)
                    for entry in inside
                    if entry.is_dir() and not hidden(entry.name)
                ]
        except OSError as error:
            raise DataError(f"{error.filename}: {error.strerror}") from None
        level = below


def require_root(root: Path, info: CorpusInfo) -> None:
    """Raise DataError unless `root` is a folder; it says what lies beside it under a like name."""
    if root.is_dir():
        return
    hint = " (it is a file)" if root.exists() else ""
    parent = root.absolute().parent
    name = _folded(root.name)
    with suppress(OSError):
        beside = [entry.name for entry in os.scandir(parent) if entry.is_dir()]
        alike = sorted(other for other in beside if name in _folded(other))
        if alike:
            hint = f", but there is {listed(alike, 3)} in {shown(parent, 100)}"
    hint = hint or near(root, "folder")
    where = shown(root.absolute(), 120)
    raise DataError(
        f"{info.name}: no folder {where}{hint} (--root or MER_DATA names another); to get it: "
        f"{info.obtain}"
    )


def elsewhere(root: Path, names: Iterable[str]) -> str:
    """A hint for a message that nothing of those names was found: where, within and a little above
    the levels that are searched, something of the same name in other case, or the very name, lies.
    Empty when nothing does.
    """
    wanted = {_folded(name) for name in names}
    found: list[str] = []
    seen = 0
    level = [os.fspath(root)]
    for _ in range(SEARCH_LEVELS):
        below: list[str] = []
        for entry in _entries(level, SEARCHED - seen):
            seen += 1
            if _folded(entry.name) in wanted:
                found.append(os.path.relpath(entry.path, root))
            if _is_searched(entry):
                below.append(entry.path)
        if found or seen > SEARCHED:
            break
        level = below
    if not found:
        return ""
    there = listed(sorted(found), 2)
    return f"; there is {there}: name its folder with --root, spelled as published"


def _entries(level: list[str], most: int) -> Iterator[os.DirEntry]:
    """What lies in some folders, those that can be read; folder by folder until there was more than
    `most`.
    """
    count = 0
    for folder in level:
        with suppress(OSError):
            for entry in os.scandir(folder):
                count += 1
                yield entry
        if count > most:
            return


def _is_searched(entry: os.DirEntry) -> bool:
    with suppress(OSError):  # links in a circle
        return entry.is_dir() and not hidden(entry.name)
    return False


def _folded(name: str) -> str:
    return normalize("NFC", name).casefold()


def cut_blanks(rows: Iterable[Utterance], findings: Findings) -> list[Utterance]:
    """Rows whose names have no blanks at their ends; each change is counted in the findings."""
    out = []
    for u in rows:
        changed: dict[str, Any] = {}
        for name in NAMES:
            value = getattr(u, name)
            if value is not None and (cut := strip(value)) != value:
                changed[name] = cut or None
                findings.repairs[f"blanks at an end of {name}, cut off"].append(shown(u.id))
        out.append(replace(u, **changed) if changed else u)
    return out


def manifest_of(
    rows: Iterable[Utterance],
    root: Path,
    info: CorpusInfo,
    chosen: LabelSet,
    findings: Findings,
) -> tuple[Manifest, Findings]:
    """The manifest of a corpus from its rows, after a first `look` at their files; `findings` is
    handed on.
    """
    seen = tuple(look(rows, root, info, findings))
    made = {"labels": chosen.name}
    manifest = Manifest(info.name, chosen.task, chosen.labels, seen, root, info.language, made)
    return manifest, findings


def look(
    rows: Iterable[Utterance], root: Path, info: CorpusInfo, findings: Findings
) -> list[Utterance]:
    """Cut blanks off names, mark the known-bad rows, and find files that are absent or that cannot
    be media. Nothing is decoded.

    Args:
        rows: The utterances of a corpus.
        root: What their media are relative to.
        info: The corpus, whose known-bad clips are marked.
        findings: Blanks, known-bad, missing and unreadable files are added to these.

    Returns:
        The rows in their order, none left out.
    """
    seen: dict[str, str | None] = {}  # several rows may cut pieces from one file
    base = os.fspath(root)
    out = []
    for u in cut_blanks(rows, findings):
        media = [path for path in (u.audio, u.video) if path is not None]
        for path in media:
            if path not in seen:
                seen[path] = unreadable(f"{base}/{path}")
        faults = [fault for path in media if (fault := seen[path]) is not None]
        fault = faults[0] if faults else None
        why = info.known_bad.get(u.id)
        if why is not None:
            findings.known_bad[u.id] = why
            u = replace(u, known_bad=why)
        elif fault == MISSING:
            findings.missing.append(u.id)
        elif fault is not None:
            findings.unreadable[u.id] = fault
        out.append(u)
    missing = [audio for audio, fault in seen.items() if fault == MISSING]
    findings.warnings += _hints(missing, base)
    return out


def warn_of_places(rows: Iterable[Utterance], findings: Findings) -> None:
    """Warn of turns whose place in their dialogue nobody knows, or that stand where another turn of
    their split does: a training with `data.context`, long after, refuses both.
    """
    turns = [u for u in rows if u.dialogue]
    unplaced = [u.id for u in turns if u.position is None]
    if len(unplaced) == len(turns):  # nobody has numbered them
        return
    if unplaced:
        what = plural(len(unplaced), "row of a dialogue has", "rows of dialogues have")
        findings.warnings.append(
            f"{what} no position, which data.context needs (first: {shown(unplaced[0], 60)})"
        )
    first: dict[tuple[str | None, str | None, int], str] = {}
    twice = []
    for u in turns:
        if u.position is not None:
            other = first.setdefault((u.split, u.dialogue, u.position), u.id)
            if other != u.id:
                twice.append(u)
    if twice:
        one = twice[0]
        other = first[one.split, one.dialogue, one.position or 0]
        what = plural(len(twice), "row has", "rows have")
        findings.warnings.append(
            f"{what} the position of another row of the dialogue, which data.context cannot tell "
            f"apart (first: {shown(other, 60)} and {shown(one.id, 60)})"
        )


def _hints(missing: list[str], base: str) -> list[str]:
    """Why files may seem to be missing: links to nothing, addresses, other Unicode composition,
    other case, other blanks, backslashes.
    """
    listings: dict[str, dict[str, str]] = {}
    kinds: dict[str, list[str]] = {}
    for audio in missing[:SEARCHED]:
        folder, _, name = audio.rpartition("/")
        if folder not in listings:
            listings[folder] = _by_plain_name(f"{base}/{folder}")
        other = listings[folder].get(strip(_folded(name)))
        if os.path.islink(f"{base}/{audio}"):
            what = "are links to nothing: of git-annex or DataLad? run `git annex get` there"
        elif ADDRESS.match(audio):
            what = "are addresses, not paths: download them first"
        elif other is not None:
            what = f"are there but for {_difference(name, other)}"
        elif "\\" in audio:
            what = "hold backslashes, which separate folders on Windows only: write /"
        else:
            continue
        kinds.setdefault(what, []).append(audio)
    hints = []
    for what, those in kinds.items():
        hints.append(f"{len(those):,} of the missing files {what}: {listed(those, 3)}")
    return hints


def _by_plain_name(folder: str) -> dict[str, str]:
    """The names in a folder by their form without case, composition and outer blanks."""
    with suppress(OSError, ValueError):
        return {strip(_folded(name)): name for name in os.listdir(folder)}
    return {}


def _difference(name: str, other: str) -> str:
    """How a name differs from that of a file, and what to do."""
    if normalize("NFC", other) == normalize("NFC", name):
        return (
            "composed and decomposed accents (Unicode's NFC and NFD): rename the files, or write "
            "the paths alike"
        )
    if strip(other) == other:
        return "upper and lower case: write the paths as the files are called"
    return "blanks at an end of the file's name: rename the file"


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
        return MISSING
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
    repeats: list[int] = []
    other = 0
    for i, (key, label) in enumerate(zip(keys, labels, strict=True)):
        if key in first:
            repeats.append(i)
            other += first[key] != label
        first.setdefault(key, label)
    return repeats, other
