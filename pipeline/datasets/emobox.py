"""EmoBox's lists (Ma et al. 2024): a JSON line for each clip of 32 corpora, and files that name the
train, valid and test part of each official fold.

The lists name files by paths of whoever made them (`downloads/savee/JE_n23.wav`); a file is looked
for below the root by its name, and where several clips have one, by the folders above it. They
have no speakers: where a corpus's names of files hold them, a rule of `SPEAKERS` reads them.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import normalize

from mer.pipeline.datasets.corpora import CorpusInfo
from mer.pipeline.datasets.filenames import media_below
from mer.pipeline.datasets.files import look
from mer.pipeline.datasets.findings import Findings
from mer.pipeline.datasets.folds import check_speakers, counted
from mer.pipeline.datasets.jsonfile import read_json
from mer.pipeline.datasets.pattern import MEDIA, Pattern, fill
from mer.pipeline.datasets.textfiles import read_text
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Manifest, Utterance
from mer.pipeline.runtime.columnar import reason
from mer.pipeline.runtime.files import near
from mer.pipeline.runtime.terminal import did_you_mean, listed, plural, shown
from mer.pipeline.runtime.terms import SPLIT_ALIASES, fold_entry

FOLDER = re.compile(r"fold_?(\d+)")
LIST = re.compile(r"(?P<corpus>.+)_(?P<part>train|valid|test)_fold_?(?P<fold>\d+)\.jsonl")
LABELS = "label_map.json"
PREFIX = "downloads/"  # of the paths in the lists
# Corpus -> (pattern of its paths, template of the speaker).
# Source: EmoBox's own scripts (EmoBox/preprocess/scripts, `spk`), but of shemo the README of
# https://github.com/pariajm/sharif-emotional-speech-database (F03S02: woman 03), of iemocap the
# corpus. Those of emns and pavoque are of one speaker each. Of emozionalmente, meld, mer2023, mesd,
# msppodcast and resd no name holds the speaker; the letter of m3ed says who speaks in one dialogue
# only, and is another person in the next.
SPEAKERS = {
    "aesdd": ("{emotion:1}{sentence:digits} ({speaker:digits})*", "{speaker}"),
    "ased": ("{a}-{b}-{c}-{d}-{speaker}", "{speaker}"),
    "asvpesd": ("{a}-{b}-{c}-{d}-{e}-{speaker}-*", "{speaker}"),
    "cafe": ("{speaker}-*", "{speaker}"),
    "casia": ("{speaker}/{emotion}/{number:any}", "{speaker}"),
    "cremad": ("{speaker}_*", "{speaker}"),
    "emodb": ("{speaker:2}*", "{speaker}"),
    "emovdb": ("{speaker}_{emotion}/*", "{speaker}"),
    "emovo": ("{emotion}-{speaker}-*", "{speaker}"),
    "enterface": ("{speaker}_*", "{speaker}"),
    "esd": ("{speaker}_*", "{speaker}"),
    # the letter of the utterance, not of the dialogue, says who speaks
    "iemocap": ("{session:5}{worn:1}_*_{letter:1}{number}", "{session}{letter}"),
    "jlcorpus": ("{speaker}_*", "{speaker}"),
    "mead": ("{speaker}/{kind}/{emotion}/{level:any}/{number:any}", "{speaker}"),
    "oreau": ("{speaker:2}*", "{speaker}"),
    "polish": ("{speaker}.{emotion}_*", "{speaker}"),
    "ravdess": ("{a}-{b}-{c}-{d}-{e}-{f}-{speaker}", "{speaker}"),
    "savee": ("{speaker}_*", "{speaker}"),
    "shemo": ("{speaker:3}*", "{speaker}"),
    "subesco": ("{gender}_{speaker}_*", "{gender}_{speaker}"),
    "tess": ("{speaker}_*", "{speaker}"),
    "turevdb": ("{speaker}_*", "{speaker}"),
    "urdu": ("{speaker}_*", "{speaker}"),
}
# Corpus -> what a few names of files call a speaker -> what the others call the same one.
RESPELT = {
    "aesdd": {"01": "1"},  # f10 (01)
    "tess": {"OA": "OAF"},  # OA_bite_neutral
}
# those of other languages than English; asvpesd and esd are of several
LANGUAGES = {
    "aesdd": "el",
    "ased": "am",
    "cafe": "fr",
    "casia": "zh",
    "emodb": "de",
    "emovo": "it",
    "emozionalmente": "it",
    "m3ed": "zh",
    "mer2023": "zh",
    "mesd": "es",
    "oreau": "fr",
    "pavoque": "de",
    "polish": "pl",
    "resd": "ru",
    "shemo": "fa",
    "subesco": "bn",
    "turevdb": "tr",
    "urdu": "ur",
}


@dataclass(frozen=True)
class Clip:
    """A line of a list. `start` and `end` are seconds into the file; None: all of it."""

    key: str
    wav: str
    code: str
    start: float | None
    end: float | None


def prepare(
    root: str | os.PathLike | None = None,
    *,
    meta: str | os.PathLike | None = None,
    fold: str | None = None,
    labels: str | None = None,
    speaker_independent: bool = False,
    name: str | None = None,
    language: str | None = None,
) -> tuple[Manifest, Findings]:
    """The manifest of a corpus by EmoBox's lists.

    Args:
        root: Where the media are, at any depth.
        meta: The folder with the corpus's lists: NAME.jsonl, label_map.json, fold_1, …
        fold: The fold that becomes the split, instead of all folds as such.
        labels: None: EmoBox has one label set for each corpus.
        speaker_independent: Refuse folds in which a speaker is trained on and tested.
        name: Of the corpus, by default that of the lists.
        language: Code, by default that of the corpus.

    Returns:
        The manifest, and what was found.

    Raises:
        DataError: The lists are not there or not as published, or a fold names keys that the whole
            list has not.
    """
    if root is None or meta is None:
        raise DataError("emobox: name the lists with --meta DIR and the media with --root DIR")
    if labels is not None:
        raise DataError(f"emobox: --labels {shown(labels, 40)}: the lists have one set of labels")
    root, meta = Path(root), Path(meta)
    for folder, option in ((root, "--root"), (meta, "--meta")):
        if not folder.is_dir():
            guess = near(folder, "folder")
            raise DataError(f"{shown(folder, 200)}: no such folder ({option}){guess}")
    corpus, lists = _lists(meta)
    name = name or corpus
    findings = Findings(name)
    clips = _clips(meta, corpus, lists)
    folds = _folds(clips, lists, fold, findings)
    label_of = _label_map(meta, clips.values(), findings)
    places = _find_media(clips.values(), root, findings)
    speakers = _speakers(clips.values(), corpus, findings)
    rows = []
    for clip in clips.values():
        label = label_of.get(clip.code)
        if label is None:
            what = f"label {shown(clip.code, 40)}, which {LABELS} has not"
            findings.dropped[what].append(shown(clip.key))
            continue
        parts = folds.get(clip.key, {})
        rows.append(
            Utterance(
                id=clip.key,
                audio=places[clip.key],
                split=next(iter(parts.values()), "") if len(lists) == 1 or fold else "",
                label=label,
                speaker=speakers.get(clip.key),
                start=clip.start,
                end=clip.end,
                folds=tuple(fold_entry(number, part) for number, part in parts.items()),
            )
        )
    if speaker_independent:
        check_speakers(str(meta), counted(rows))
    language = language or LANGUAGES.get(corpus, "en")
    info = CorpusInfo.unknown(name, language)
    rows = look(rows, root, info, findings)
    classes = tuple(dict.fromkeys(label_of.values()))
    source = {"lists": meta.name, "fold": fold}
    return Manifest(name, "single", classes, tuple(rows), root, language, source), findings


# --- the lists


def _lists(meta: Path) -> tuple[str, dict[str, dict[str, Path]]]:
    """(name of the corpus, fold -> part -> its list)."""
    found: dict[str, dict[str, Path]] = {}
    corpora: dict[str, None] = {}
    for folder in sorted(meta.iterdir()):
        if not (folder.is_dir() and FOLDER.fullmatch(folder.name)):
            continue
        # The spelling with the last underscore is the newer one, and sorted behind the other.
        for path in sorted(folder.iterdir(), key=lambda path: path.name.replace("_", "\uffff")):
            match = LIST.fullmatch(path.name)
            if match:
                part = SPLIT_ALIASES[match["part"]]
                found.setdefault(str(int(match["fold"])), {})[part] = path
                corpora[match["corpus"]] = None
    if not found:
        raise DataError(
            f"{meta}: no lists of folds (fold_1/NAME_train_fold_1.jsonl); --meta takes the folder "
            "of one corpus, data/NAME of https://github.com/emo-box/EmoBox"
        )
    if len(corpora) > 1:
        raise DataError(f"{meta}: lists of several corpora: {listed(corpora)}; name one's folder")
    for number, parts in found.items():
        if lacking := [part for part in ("train", "test") if part not in parts]:
            raise DataError(f"{meta}: fold {number} has no {' and no '.join(lacking)} list")
    ordered = sorted(found.items(), key=lambda item: int(item[0]))
    return next(iter(corpora)), dict(ordered)


def _clips(meta: Path, corpus: str, lists: Mapping[str, Mapping[str, Path]]) -> dict[str, Clip]:
    """Key -> clip: of the whole list, or of all folds' where there is none."""
    whole = meta / f"{corpus}.jsonl"
    paths = [whole] if whole.is_file() else [p for parts in lists.values() for p in parts.values()]
    clips: dict[str, Clip] = {}
    for path in paths:
        for clip in _read(path):
            there = clips.setdefault(clip.key, clip)
            if there != clip:
                raise DataError(f"{path}: '{shown(clip.key, 60)}' is there twice, with other words")
    if not clips:
        raise DataError(f"{paths[0]}: no clip in it")
    return clips


def _read(path: Path) -> Iterable[Clip]:
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            clip = Clip(
                key=_text(row, "key"),
                wav=_text(row, "wav"),
                code=_text(row, "emo"),
                start=row.get("start_time") or None,
                end=row.get("end_time"),
            )
            if not all(isinstance(time, int | float | None) for time in (clip.start, clip.end)):
                raise ValueError("a time that is no number")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                f"{path}: line {number} is not a clip of EmoBox ({reason(error)})"
            ) from None
        yield clip


def _text(row: Mapping[str, Any], key: str) -> str:
    if not isinstance(row[key], str) or not row[key].strip():
        raise ValueError(f"its {key} is no text")
    return row[key].strip()


def _folds(
    clips: Mapping[str, Clip],
    lists: Mapping[str, Mapping[str, Path]],
    only: str | None,
    findings: Findings,
) -> dict[str, dict[str, str]]:
    """Key -> fold -> part. Labels that a fold gives otherwise than the whole list are counted."""
    if only is not None and only not in lists:
        guess = did_you_mean(only, lists)
        raise DataError(f"--fold {shown(only, 20)}: there are {listed(lists, 40)}{guess}")
    relabelled: dict[str, None] = {}
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for fold, parts in lists.items():
        if only is not None and fold != only:
            continue
        for part, path in parts.items():
            inside = list(_read(path))
            keys = [clip.key for clip in inside]
            if unknown := [key for key in keys if key not in clips]:
                raise DataError(
                    f"{path}: {len(unknown):,} of its {len(keys):,} keys are not in the list of "
                    f"the whole corpus: {listed(unknown, 3)}"
                )
            both = [key for key in keys if fold in found[key]]
            if both or len(set(keys)) < len(keys):
                raise DataError(
                    f"{path}: {plural(len(both) or len(keys) - len(set(keys)), 'key')} twice in "
                    f"fold {fold}: {listed(both or keys, 2)}"
                )
            for clip in inside:
                found[clip.key][fold] = part
                if clip.code.casefold() != clips[clip.key].code.casefold():
                    relabelled[clip.key] = None
    if relabelled:
        some = plural(len(relabelled), "clip has", "clips have")
        findings.warnings.append(
            f"{some} another label in the lists of folds than in that of the whole corpus, whose "
            f"label is taken: {listed(relabelled, 3)}"
        )
    return found


def _label_map(meta: Path, clips: Iterable[Clip], findings: Findings) -> dict[str, str]:
    """Code -> class. A code that differs from the map's by case only is its, which is counted."""
    codes: dict[str, list[str]] = defaultdict(list)
    for clip in clips:
        codes[clip.code].append(clip.key)
    path = meta / LABELS
    if not path.is_file():
        findings.warnings.append(f"no {LABELS}: labels are called as in the lists")
        return {code: code for code in sorted(codes)}
    given = read_json(path)
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given.values()):
        raise DataError(f"{path}: expected an object, code to name")
    named = {code: name.strip() for code, name in given.items()}
    folded = {code.casefold(): name for code, name in named.items()}
    for code in codes.keys() - named.keys():
        if code.casefold() in folded:
            named[code] = folded[code.casefold()]
            findings.repairs[f"label {shown(code, 40)} in another case"] += codes[code]
    if not codes.keys() & named.keys():
        raise DataError(
            f"{path}: has none of the labels of the lists ({listed(codes)}): another corpus's?"
        )
    return named


# --- media and speakers


def _find_media(clips: Iterable[Clip], root: Path, findings: Findings) -> dict[str, str]:
    """Key -> path below the root; for a file that is not there the list's own path.

    A file is known by its name, whatever lies above it. Where several paths of the lists end in one
    name (casia has a `201.wav` of each speaker in each emotion), a file is of the one whose folders
    are most like its own, and of none where that is not one: a clip whose own file is absent must
    not get another's.
    """
    clips = list(clips)
    wavs: dict[str, dict[str, None]] = defaultdict(dict)  # stem -> paths of the lists
    for clip in clips:
        wavs[_stem(clip.wav)][clip.wav] = None
    everything = media_below(root)
    found: dict[str, list[str]] = defaultdict(list)  # path of the lists -> its files
    unclear: set[str] = set()
    by_tail = {stem: _by_tail(paths) for stem, paths in wavs.items()}
    for path in everything:
        owners = _most_like(path, by_tail.get(_stem(path), {}))
        if len(owners) == 1:
            found[owners[0]].append(path)
        else:
            unclear.update(owners)
    places, several, unclaimed = {}, [], []
    for clip in clips:
        best = _best(clip.wav, found.get(clip.wav, []))
        places[clip.key] = best[0] if best else clip.wav.removeprefix(PREFIX)
        if len(best) > 1:
            several.append(clip.key)
        if not best and clip.wav in unclear:
            unclaimed.append(clip.key)
    if several:
        findings.warnings.append(
            f"{plural(len(several), 'clip has', 'clips have')} several files of their name below "
            f"{shown(root, 80)}, the first of which is taken: {listed(several, 3)}"
        )
    if unclaimed:
        findings.warnings.append(
            f"{plural(len(unclaimed), 'clip is', 'clips are')} missing although files of their "
            "name are there: their folders do not tell whose they are, call these as the lists do "
            f"({listed(unclaimed, 3)})"
        )
    findings.orphans = sorted(set(everything) - set(places.values()))
    return places


def _by_tail(wavs: Iterable[str]) -> dict[tuple[str, ...], list[str]]:
    """The folders above a file, the nearest first and as many as one likes -> the paths that have
    these.
    """
    found: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for wav in wavs:
        folders = _folders_above(wav)
        for length in range(len(folders) + 1):
            found[folders[:length]].append(wav)
    return found


def _most_like(path: str, by_tail: Mapping[tuple[str, ...], Sequence[str]]) -> Sequence[str]:
    """Those of the lists' paths that a file's is most like; several: nobody can tell them apart."""
    folders = _folders_above(path)
    lengths = range(len(folders), -1, -1)
    wavs = next((by_tail[folders[:n]] for n in lengths if folders[:n] in by_tail), ())
    if len(wavs) < 2:
        return wavs
    alike = {wav: _likeness(wav, path) for wav in wavs}
    most = max(alike.values())
    return [wav for wav in wavs if alike[wav] == most]


def _best(wav: str, files: Sequence[str]) -> list[str]:
    """Those of a clip's files that are called as in the list, whose folders are most like; the
    ending that MEDIA has first stands first.
    """
    same = [path for path in files if _name(path) == _name(wav)] or files
    most = max((_likeness(wav, path) for path in same), default=(0, 0, False))
    best = [path for path in same if _likeness(wav, path) == most]
    return sorted(best, key=lambda path: MEDIA.index(os.path.splitext(path)[1].lower()))


def _likeness(wav: str, path: str) -> tuple[int, int, bool]:
    """How many folders from the file upwards two paths have in common, how many at any height, and
    whether the files are called the same, with their ending.
    """
    left, right = _folders_above(wav), _folders_above(path)
    count = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        count += 1
    return count, len({*left} & {*right}), _name(wav) == _name(path)


def _plain(path: str) -> str:
    """A path without what differs from disk to disk: case, and how accents are composed."""
    return normalize("NFC", path).casefold()


def _folders_above(path: str) -> tuple[str, ...]:
    """The folders of a path, the nearest to the file first."""
    return tuple(_plain(path).split("/")[-2::-1])


def _name(path: str) -> str:
    return _plain(path).rpartition("/")[2]


def _stem(path: str) -> str:
    """The name of a file without its ending, by which it is looked for."""
    return os.path.splitext(_name(path))[0]


def _speakers(clips: Iterable[Clip], corpus: str, findings: Findings) -> dict[str, str]:
    """Key -> speaker, by the rule for the corpus's names of files."""
    clips = list(clips)
    if corpus not in SPEAKERS:
        findings.warnings.append(
            f"the lists have no speakers, and {shown(corpus, 40)}'s names of files hold none: dev "
            "is carved from train by utterance, so that voices of dev may be in train, too"
        )
        return {}
    text, template = SPEAKERS[corpus]
    pattern = Pattern(text)
    found = {}
    for clip in clips:
        fields = pattern.match(clip.wav)
        if fields is not None:
            speaker = fill(template, fields)
            found[clip.key] = RESPELT.get(corpus, {}).get(speaker, speaker)
    without: Sequence[str] = [clip.key for clip in clips if clip.key not in found]
    if without:
        findings.warnings.append(
            f"{len(without):,} of {plural(len(clips), 'clip')} without a speaker in their name: "
            f"{listed(without, 3)}"
        )
    return found
