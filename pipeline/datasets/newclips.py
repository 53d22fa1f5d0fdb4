"""Files, folders, tables and manifests as new clips: what `mer predict` is given.

A folder is searched with all folders below it, linked ones too, each once, in the order of names.
Its media files are clips; a text file beside a clip that differs from it in the ending alone holds
its words. All other files are counted.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mer.pipeline.datasets import table
from mer.pipeline.datasets.files import hidden
from mer.pipeline.datasets.findings import Findings, some
from mer.pipeline.datasets.pattern import MEDIA
from mer.pipeline.datasets.tablefile import PARQUET, SUFFIXES
from mer.pipeline.datasets.textfiles import read_text
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Manifest, Utterance
from mer.pipeline.media.stages import Stage
from mer.pipeline.runtime.cells import strip, text_cell, without_zero_bytes
from mer.pipeline.runtime.columnar import FAILURES, open_parquet
from mer.pipeline.runtime.terminal import listed, plural, shown

WORDS = ".txt"  # ends the name of a file of words beside a clip
GIVEN, BESIDE = "given", "file"  # where the words of a clip come from
# The fields of a table that count for new clips; labels and the like are passed through.
FIELDS = ("audio", "text", "video", "id", "start", "end", "dialogue", "position")
SHOWN_KINDS = 6  # endings of files that are no media, in a line


@dataclass(frozen=True)
class Unusable:
    """A clip that cannot be taken, and why: `stage` as of a failed extraction."""

    id: str
    path: str
    stage: str
    reason: str


@dataclass
class NewClips:
    """Clips in their order.

    `words_from` says of every clip with words where they come from. `whole` are the ids of clips
    that were named as files: sound and picture, as far as there are any. `told` is what a table or
    manifest says of a clip besides, which no model is shown. `notes` are lines for the user. `base`
    is the folder that its paths are relative to.
    """

    clips: list[Utterance] = field(default_factory=list)
    words_from: dict[str, str] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)
    told: dict[str, dict[str, Any]] = field(default_factory=dict)
    unusable: list[Unusable] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    base: Path | None = None

    @property
    def asked(self) -> int:
        """All that were asked for, usable or not."""
        return len(self.clips) + len(self.unusable)


def gather(
    paths: Sequence[Path],
    *,
    words: bool,
    task: str = "single",
    root: Path | None = None,
    columns: Mapping[str, str] | None = None,
    dialogue: bool = False,
) -> NewClips:
    """The clips that some paths name.

    Args:
        paths: Media files and folders, in any number; or one manifest or table.
        words: Whether anybody wants to know what is said: else files of words are not read.
        task: Of the labels of a table: single, multi or regression.
        root: Of a manifest or table: what its paths are relative to, by default what it says
            itself, or the table's folder.
        columns: Of a table: field -> column, where that is not called like the field.
        dialogue: The clips of each folder are the turns of one conversation, in the order of their
            names with numbers as numbers: `turn2` before `turn10`.

    Returns:
        The clips; their ids are the paths as named, or those of the manifest.

    Raises:
        DataError: A manifest or table is not alone or cannot be read, or there is no clip.
    """
    rows = [path for path in paths if is_table(path)]
    if rows and len(paths) > 1:
        raise DataError(
            f"{shown(rows[0], 160)}: a table or manifest goes alone; name it without the other "
            f"{plural(len(paths) - 1, 'path')}, or put all clips in it"
        )
    if rows and dialogue:
        raise DataError(
            "--dialogue goes with folders; a table names dialogues in its columns dialogue and "
            "position (--column position=NAME)"
        )
    if rows:
        return _of_table(rows[0], task, root, columns or {})
    if columns or root is not None:
        option = "--column" if columns else "--root"
        raise DataError(f"{option} goes with a table or manifest; leave it out for files")
    found = _of_files(paths, words)
    return _as_dialogues(found) if dialogue else found


def _as_dialogues(found: NewClips) -> NewClips:
    """The clips of each folder as the turns of one conversation. One that cannot be taken keeps
    its place.
    """
    folders: dict[str, list[str]] = {}
    for name in (*(u.id for u in found.clips), *(one.id for one in found.unusable)):
        folders.setdefault(os.path.dirname(name), []).append(name)
    place: dict[str, tuple[str, int]] = {}
    for folder, ids in folders.items():
        place |= {name: (folder or ".", at) for at, name in enumerate(sorted(ids, key=_natural))}
    turns = []
    for clip in found.clips:
        folder, at = place[clip.id]
        turns.append(replace(clip, dialogue=folder, position=at))
    found.clips = turns
    return found


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts `turn10` behind `turn2`."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part[:18]), "") if part.isdecimal() else (-1, part) for part in parts]


def of_manifest(manifest: Manifest, root: Path | None = None) -> NewClips:
    """The rows of a manifest: absolute paths, and without labels, which belong to another corpus's
    label set.
    """
    base = os.path.abspath(root or manifest.root)
    found = NewClips(base=Path(base))
    for u in manifest.rows:
        audio = u.audio and os.path.normpath(os.path.join(base, u.audio))
        video = u.video and os.path.normpath(os.path.join(base, u.video))
        bare = replace(u, label=None, targets=None, unimodal=())
        found.clips.append(replace(bare, audio=audio, video=video))
        found.told[u.id] = {"label": u.label, "targets": u.targets}
        if u.text:
            found.words_from[u.id] = GIVEN
    return found


# --- tables and manifests


def is_table(path: Path) -> bool:
    """Whether a path is a table or manifest by its name."""
    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def _of_table(path: Path, task: str, root: Path | None, columns: Mapping[str, str]) -> NewClips:
    if path.suffix.lower() == PARQUET and _is_manifest(path):
        if columns:
            raise DataError(
                f"{shown(path, 160)}: a manifest, whose columns have their names; "
                "leave --column out"
            )
        found = of_manifest(Manifest.read(path), root)
    else:
        manifest, findings = table.prepare(
            path,
            audio_dir=root,
            columns=columns,
            task=task,
            split="none",
            folder_option="--root",
            fields=FIELDS,
        )
        found = of_manifest(manifest)
        found.notes += _told(findings)
    if not found.clips:
        raise DataError(f"{shown(path, 200)}: no rows, so that there is nothing to predict")
    return found


def is_own_manifest(path: Path) -> bool:
    """Whether a file is a manifest that `mer prepare` wrote, as in the folder that it is of."""
    if path.suffix.lower() != PARQUET:
        return False
    try:
        return _has_mark(path)
    except (*FAILURES, DataError):
        return False


def _is_manifest(path: Path) -> bool:
    """Whether a Parquet file is a manifest. A file that cannot be read counts as one: the error of
    reading it as a manifest then says why.
    """
    try:
        return _has_mark(path)
    except FAILURES:
        return True


def _has_mark(path: Path) -> bool:
    with path.open("rb") as file:
        return b"mer" in (open_parquet(file, path).schema_arrow.metadata or {})


def _told(findings: Findings) -> list[str]:
    """What was repaired in a table, and what is odd; that it has no labels is not."""
    lines = []
    for what, names in findings.repairs.items():
        lines.append(f"repaired: {what}: {len(names):,}: {some(names)}")
    odd = [warning for warning in findings.warnings if not warning.startswith("no label")]
    return lines + odd


# --- files and folders


@dataclass
class _Folder:
    """What was met on the way through folders."""

    clips: list[str] = field(default_factory=list)
    words: dict[str, str] = field(default_factory=dict)  # path without its ending -> path
    texts: list[str] = field(default_factory=list)  # files of words in folders
    others: Counter[str] = field(default_factory=Counter)  # ending -> files that are no media
    hidden: int = 0
    repeated: int = 0  # links to folders that were gone through before
    closed: list[str] = field(default_factory=list)  # folders that cannot be read, and why


def _of_files(paths: Sequence[Path], words: bool) -> NewClips:
    found, walked = NewClips(), _Folder()
    seen: set[tuple[int, int]] = set()
    named: list[str] = []
    for path in paths:
        if path.is_dir():
            before = len(walked.clips)
            _walk(str(path), seen, walked)
            named += walked.clips[before:]
            continue
        if path.suffix.lower() == WORDS and path.exists():
            raise DataError(
                f"{shown(path, 160)}: words without a clip; name the clip that it lies beside, or "
                "give words alone with --text or in a table with a text column"
            )
        named.append(str(path))
        walked.words |= words_beside(str(path)) if words else {}
    clips = list(dict.fromkeys(named))
    if len(clips) < len(named):
        found.notes.append(f"{plural(len(named) - len(clips), 'clip')} named twice, taken once")
    used = set()
    for clip in clips:
        file = walked.words.get(os.path.splitext(clip)[0]) if words else None
        used.add(file)
        _add(found, clip, file)
    lonely = [text for text in walked.texts if text not in used]
    found.notes += _passed_over(walked, lonely, words)
    if not clips:
        where = ", ".join(str(path) for path in paths)
        met = "; ".join(found.notes) or "nothing is there"
        remedy = "name the files, or a table with a text column where there are words alone"
        raise DataError(f"{shown(where, 120)}: no media files ({shown(met, 100)}); {remedy}")
    return found


def _walk(folder: str, seen: set[tuple[int, int]], walked: _Folder) -> None:
    """Everything below a folder, depth first in the order of names."""
    stack = [folder]
    while stack:
        path = stack.pop()
        if not os.path.isdir(path):
            _sort_in(path, walked)
            continue
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in seen:
                walked.repeated += 1
                continue
            seen.add((status.st_dev, status.st_ino))
            names = sorted(os.listdir(path), reverse=True)
        except OSError as error:
            walked.closed.append(f"{shown(path, 80)} ({error.strerror})")
            continue
        walked.hidden += sum(map(hidden, names))
        stack += [os.path.join(path, name) for name in names if not hidden(name)]


def _sort_in(path: str, walked: _Folder) -> None:
    """A file by the ending of its name."""
    stem, suffix = os.path.splitext(path)
    kind = suffix.lower()
    if kind in MEDIA:
        walked.clips.append(path)
    elif kind == WORDS:
        walked.words.setdefault(stem, path)
        walked.texts.append(path)
    else:
        walked.others[kind] += 1


def words_beside(path: str) -> dict[str, str]:
    """The file of words beside a clip, as `_Folder.words`."""
    stem = os.path.splitext(path)[0]
    for name in (stem + WORDS, stem + WORDS.upper()):
        if os.path.lexists(name) and not os.path.isdir(name):
            return {stem: name}
    return {}


def _add(found: NewClips, clip: str, words: str | None) -> None:
    """A clip by its path, with the words of a file."""
    stage, reason, text = Stage.OPEN, _spelling(clip), None
    if reason is None and words is not None:
        try:
            text = words_of(Path(words))
        except DataError as error:
            reason = str(error)
    if reason is not None:
        found.unusable.append(Unusable(clip, clip, stage, reason))
        return
    found.clips.append(Utterance(id=clip, audio=os.path.abspath(clip), text=text))
    found.whole.add(clip)
    if text is not None:
        found.words_from[clip] = BESIDE
    elif words is not None:
        found.notes.append(f"{shown(words, 160)}: no words in it")


def _spelling(path: str) -> str | None:
    """Why a path cannot be taken; None: it can."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return f"{shown(ascii(path)[1:-1], 160)}: its name is not UTF-8; rename that file"
    return None


def words_of(path: Path) -> str | None:
    """The words of a file: its lines as one, without blanks at their ends; None where it has none.

    Raises DataError for what is no text in UTF-8.
    """
    text = read_text(path)
    try:
        text_cell(text)
        without_zero_bytes(text)
    except DataError as error:
        raise DataError(f"{shown(path, 160)}: {error}") from None
    return " ".join(line for line in map(strip, text.splitlines()) if line) or None


def _passed_over(walked: _Folder, lonely: list[str], words: bool) -> Iterator[str]:
    """Lines on what is no clip, by kind."""
    if lonely and words:
        what = plural(len(lonely), f"{WORDS} file")
        # with the folder alone: of a long path the end would be cut off
        names = ["/".join(Path(text).parts[-2:]) for text in lonely]
        yield f"{what} without a clip of the same name left out: {listed(names, 3)}"
    elif lonely:
        yield f"{plural(len(lonely), f'{WORDS} file')} not read: the run reads no words"
    if walked.others:
        yield f"{no_media(walked.others)}; a file that is named itself is tried"
    if walked.hidden:
        yield f"{plural(walked.hidden, 'hidden entry', 'hidden entries')} left out"
    if walked.repeated:
        yield f"{plural(walked.repeated, 'folder')} reached twice, by links, and taken once"
    if walked.closed:
        count = len(walked.closed)
        what = plural(count, "folder")
        yield f"{what} left out that cannot be read: {listed(walked.closed, 3)}"


def no_media(others: Counter[str]) -> str:
    """What is said of files that are left out by the endings of their names, which `others`
    counts.
    """
    count = others.total()
    are = "is" if count == 1 else "are"
    kinds = _kinds(others.most_common())
    return f"{plural(count, 'file')} left out that {are} no media by name ({kinds})"


def _kinds(counts: Iterable[tuple[str, int]]) -> str:
    counts = list(counts)
    parts = [f"{count:,} {shown(kind, 12) or 'without ending'}" for kind, count in counts]
    more = f" and {len(parts) - SHOWN_KINDS:,} other kinds" if len(parts) > SHOWN_KINDS else ""
    return ", ".join(parts[:SHOWN_KINDS]) + more
