"""Corpora whose files say it all by their names: what the patterns of a TOML (`[files]`) read from
each path, joined with the table that comes with some (`[table]`).

Files of one utterance, a wav and the film it was cut from, make one row: the sound is its audio,
the film its video.
"""

from __future__ import annotations

import filecmp
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from mer.pipeline.datasets.corpora import CorpusInfo, FileRules, LabelSet
from mer.pipeline.datasets.corpustable import Line, read_lines, with_lines
from mer.pipeline.datasets.files import folders, hidden, look, require_root
from mer.pipeline.datasets.findings import Findings
from mer.pipeline.datasets.pattern import MEDIA, fill, has_fields
from mer.pipeline.datasets.textfiles import read_text
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Manifest, Utterance
from mer.pipeline.runtime.terminal import listed, plural, shown
from mer.pipeline.runtime.terms import SPLIT_ALIASES

DEPTH = 8  # folders below the root in which the one of transcripts is looked for
FILMS = (".mp4", ".mkv", ".webm", ".avi", ".mov")
FIXED = (
    "the same sentences are said in every emotion: text carries no emotion here, and what a model "
    "with text reaches, it reaches by sound and picture"
)


@dataclass(frozen=True)
class Named:
    """A media file whose name was read: its path below the root, and what its fields hold."""

    path: str
    id: str
    fields: Mapping[str, str]

    @property
    def is_film(self) -> bool:
        return os.path.splitext(self.path)[1].lower() in FILMS


# Reads what a table says: (root, corpus, label set, findings) -> id -> line, or None without one.
Reader = Callable[[Path, CorpusInfo, LabelSet, Findings], dict[str, Line] | None]


def prepare(
    root: Path, info: CorpusInfo, *, labels: str | None = None
) -> tuple[Manifest, Findings]:
    """The manifest of a corpus under `root` by the rules of its TOML."""
    return prepare_with(read_lines, root, info, labels)


def prepare_with(
    read: Reader,
    root: Path,
    info: CorpusInfo,
    labels: str | None,
    *,
    undecided: str | None = None,
) -> tuple[Manifest, Findings]:
    """As `prepare`, with another reader of what comes beside the files; rows whose label is
    `undecided` are kept without one.
    """
    require_root(root, info)
    chosen = info.label_set(labels)
    rules = info.files
    assert rules is not None
    findings = Findings(info.name, expected=chosen.expected)
    named, others = read_names(media_below(root), rules)
    findings.orphans = others
    named = _wanted(named, rules.where, findings)
    named = _wanted(named, chosen.where, findings)
    utterances = join_files(named, root, findings)
    rows = [row_of(files, rules) for files in utterances.values()]
    lines = read(root, info, chosen, findings) if info.table is not None else None
    if lines is None:
        rows = labelled(rows, chosen, findings)
    else:
        rows = with_lines(rows, lines, info, chosen, findings, undecided=undecided)
    if rules.transcripts:
        rows = with_transcripts(rows, root, rules.transcripts, findings)
    if info.fixed_sentences:
        findings.warnings.append(FIXED)
    rows = look(rows, root, info, findings)
    language = chosen.language or info.language
    source = {"labels": chosen.name}
    return Manifest(
        info.name, chosen.task, chosen.labels, tuple(rows), root, language, source
    ), findings


def media_below(root: Path) -> list[str]:
    """The media files below a folder, hidden ones left out, as paths relative to it.

    Raises DataError for a folder that cannot be read, and for names that are not UTF-8, which no
    manifest can hold.
    """
    found = [path for path in files_below(root) if is_media(path)]
    check_names(root, found)
    return found


def check_names(root: Path, paths: Iterable[str]) -> None:
    """Raise DataError for paths of media that are not UTF-8, which no manifest can hold."""
    odd = [path for path in paths if not is_utf8(path)]
    if odd:
        first = shown(ascii(odd[0])[1:-1], 100)
        raise DataError(
            f"{shown(root, 100)}: the names of {plural(len(odd), 'media file')} are not UTF-8, "
            f"first {first}; rename them"
        )


def is_media(path: str) -> bool:
    """Whether a file is taken for media by the ending of its name."""
    return os.path.splitext(path)[1].lower() in MEDIA


def files_below(root: Path, passed_over: list[str] | None = None) -> Iterator[str]:
    """The files below a folder, however deep, hidden ones left out, as paths relative to it;
    shallow ones first. A folder that links lead to as well is gone through once. A link to nothing
    with a name of media is a file that is missing: DataLad leaves one for each that it has not
    fetched. Hidden files with such names are added to `passed_over`.

    Raises DataError for a folder that cannot be read.
    """
    seen: set[tuple[int, int]] = set()
    level = [os.fspath(root)]
    while level:
        below: list[str] = []
        for folder in level:
            try:
                status = os.stat(folder)
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
                every = sorted(os.listdir(folder))
            except OSError as error:
                raise DataError(f"{folder}: {error.strerror}") from None
            names = [name for name in every if not hidden(name)]
            if passed_over is not None:
                passed_over += (name for name in every if hidden(name) and is_media(name))
            for path in (os.path.join(folder, name) for name in names):
                if os.path.isdir(path):
                    below.append(path)
                elif os.path.isfile(path) or (os.path.islink(path) and is_media(path)):
                    yield os.path.relpath(path, root)
        level = below


def is_utf8(path: str) -> bool:
    """Whether a path is text: names of files may be any bytes."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_names(paths: Iterable[str], rules: FileRules) -> tuple[list[Named], list[str]]:
    """The files that a pattern fits, with what it reads, and the others."""
    named, others = [], []
    for path in paths:
        for pattern in rules.patterns:
            fields = pattern.match(path)
            if fields is not None:
                stem = os.path.splitext(path)[0]
                tail = "/".join(stem.split("/")[-pattern.levels :])
                id = fill(rules.id, fields) if rules.id else tail
                named.append(Named(path, id, fields))
                break
        else:
            others.append(path)
    return named, others


def with_transcripts(
    rows: Iterable[Utterance], root: Path, name: str, findings: Findings
) -> list[Utterance]:
    """Rows with the transcripts of a folder of that name, a text file for each utterance; those
    without one are counted.
    """
    folder = next((folder for folder in folders(root, DEPTH) if folder.name == name), None)
    if folder is None:
        findings.warnings.append(f"no folder {name} below {root}: the utterances have no text")
        return list(rows)
    out, without = [], []
    for u in rows:
        path = folder / f"{u.id}.txt"
        text = " ".join(read_text(path).split()) if path.is_file() else ""
        if not text:
            without.append(u.id)
        out.append(replace(u, text=text or None))
    if without:
        findings.warnings.append(f"{len(without):,} without a transcript: {listed(without, 3)}")
    return out


def _wanted(
    named: Iterable[Named], where: Mapping[str, Sequence[str]], findings: Findings
) -> list[Named]:
    """The files whose fields hold what they may; the others are counted."""
    kept = []
    for file in named:
        other = next((name for name in where if file.fields[name] not in where[name]), None)
        if other is None:
            kept.append(file)
        else:
            what = f"{other} {shown(file.fields[other], 40)}"
            findings.dropped[f"files of {what}"].append(shown(file.path))
    return kept


def join_files(
    named: Iterable[Named], root: Path, findings: Findings
) -> dict[str, tuple[Named, Named | None]]:
    """id -> the file that is heard, and the one that is seen where that is another.

    Of several sounds the one whose ending stands first in MEDIA is taken, wav before mp3. A file
    that lies there twice under one name, as archives that were packed twice have it, is counted.
    """
    of_id: dict[str, list[Named]] = defaultdict(list)
    for file in named:
        of_id[file.id].append(file)
    out: dict[str, tuple[Named, Named | None]] = {}
    for id, files in of_id.items():
        once = _without_copies(files, root, findings)
        order = sorted(once, key=lambda file: MEDIA.index(os.path.splitext(file.path)[1].lower()))
        sounds = [file for file in order if not file.is_film]
        films = [file for file in order if file.is_film]
        heard = (sounds or films)[0]
        seen = films[0] if films and sounds else None
        for file in once:
            if file not in (heard, seen):
                findings.dropped["another file of the same utterance"].append(shown(file.path))
        out[id] = heard, seen
    return out


def _without_copies(files: Sequence[Named], root: Path, findings: Findings) -> list[Named]:
    """The files of an utterance without those that are there twice. Raises DataError for two files
    of one kind that are not the same.
    """
    first: dict[str, Named] = {}
    for file in files:
        suffix = os.path.splitext(file.path)[1].lower()
        if suffix not in first:
            first[suffix] = file
            continue
        there = first[suffix]
        one_name = os.path.basename(there.path) == os.path.basename(file.path)
        if not (one_name and _are_alike(root / there.path, root / file.path)):
            raise DataError(
                f"{shown(root, 60)}: {shown(there.path, 70)} and {shown(file.path, 70)} are both "
                f"'{shown(file.id, 40)}', and not the same file; keep one of them, or say more in "
                "the pattern"
            )
        findings.dropped["copies of a file"].append(shown(file.path))
    return list(first.values())


def _are_alike(one: Path, other: Path) -> bool:
    """Whether two files hold the same; what cannot be read holds nothing that is known."""
    with suppress(OSError):
        return filecmp.cmp(one, other, shallow=False)
    return False


def row_of(files: tuple[Named, Named | None], rules: FileRules) -> Utterance:
    """The row of an utterance, its label as the corpus has it."""
    heard, seen = files
    fields = {name: _word(rules, name, value) for name, value in heard.fields.items()}
    text = fields.get("text") or rules.texts.get(fields.get("sentence", ""))
    return Utterance(
        id=heard.id,
        audio=heard.path,
        text=fill(rules.text, fields) if rules.text else text,
        split=_split(fields.get("split", ""), heard.path),
        label=fields.get(rules.label),
        speaker=fill(rules.speaker, fields) if has_fields(rules.speaker, fields) else None,
        dialogue=fields.get("dialogue"),
        session=fields.get("session"),
        tags=tuple(f"{name}={fields[name]}" for name in rules.tags if name in fields),
        video=None if seen is None else seen.path,
    )


def _word(rules: FileRules, name: str, value: str) -> str:
    """What a field holds, spelled out."""
    return rules.words.get(name, {}).get(value, value)


def _split(word: str, path: str) -> str:
    if word.lower() not in SPLIT_ALIASES:
        raise DataError(
            f"{shown(path, 120)}: split '{shown(word, 40)}', expected train, dev (or valid) or test"
        )
    return SPLIT_ALIASES[word.lower()]


def labelled(rows: Iterable[Utterance], chosen: LabelSet, findings: Findings) -> list[Utterance]:
    """Rows with the classes of a label set; those whose label it does not have are counted."""
    out = []
    for u in rows:
        label = chosen.source.get(u.label or "")
        if label is None:
            findings.dropped[f"label {shown(u.label, 40)}"].append(shown(u.id))
        else:
            out.append(replace(u, label=label))
    return out
