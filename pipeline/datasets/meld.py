"""MELD (Poria et al. 2019): three folders of mp4 clips and three csv files, however the archives
were unpacked.

Clip names repeat across splits, so ids are `{split}/dia{d}_utt{u}`. The csv's times differ from the
clips' by seconds in places and are not used. Both csv revisions give the same text: the one inside
MELD.Raw.tar.gz carries C1 control characters, which are repaired and counted.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from pathlib import Path

from mer.pipeline.datasets.corpora import CorpusInfo, LabelSet
from mer.pipeline.datasets.files import (
    elsewhere,
    find_repeats,
    folders,
    manifest_of,
    media_files,
    require_root,
)
from mer.pipeline.datasets.findings import Findings, some
from mer.pipeline.datasets.textfiles import place, read_csv, repair
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Manifest, Utterance
from mer.pipeline.runtime.cells import strip
from mer.pipeline.runtime.terminal import plural, shown

FOLDERS = {
    "train": ("train_splits", "train"),
    "dev": ("dev_splits_complete", "dev"),
    "test": ("output_repeated_splits_test", "test"),
}
COLUMN = {"emotion": "Emotion", "sentiment": "Sentiment"}  # label set -> csv column
DIALOGUE, UTTERANCE = "Dialogue_ID", "Utterance_ID"
# What two rows share when one is a copy of the other.
LINE = ("Utterance", "Speaker", "Season", "Episode", "StartTime", "EndTime")
NUMBER = re.compile(r"[0-9]{1,9}")
DEPTH = 3  # folders below the root that are searched


def prepare(
    root: Path, info: CorpusInfo, *, labels: str | None = None
) -> tuple[Manifest, Findings]:
    """The manifest of MELD under `root`; `labels` is emotion (the default) or sentiment."""
    require_root(root, info)
    chosen = info.label_set(labels)
    findings = Findings("meld", expected=chosen.expected)
    below = list(folders(root, DEPTH))
    rows: list[Utterance] = []
    for split in FOLDERS:
        table = _table(below, split, findings)
        if table is not None:
            rows += _rows(split, table, root, below, chosen, findings)
    if not rows:
        hint = elsewhere(root, [f"{split}_sent_emo.csv" for split in FOLDERS])
        where = f"{DEPTH} levels of {shown(root.absolute(), 100)}"
        raise DataError(
            f"meld: no *_sent_emo.csv within {where}{hint or f'; to get it: {info.obtain}'}"
        )
    return manifest_of(rows, root, info, chosen, findings)


def _rows(
    split: str,
    table: Path,
    root: Path,
    below: list[Path],
    chosen: LabelSet,
    findings: Findings,
) -> list[Utterance]:
    """The utterances of a split, in the order of its csv."""
    folder, clips = _clips(below, root, split, findings)
    column = COLUMN[chosen.name]
    lines = read_csv(table, [*LINE, DIALOGUE, UTTERANCE, column])
    rows: list[Utterance] = []
    for line, position in zip(lines, _positions(lines, table), strict=True):
        dialogue = f"dia{int(line[DIALOGUE])}"
        name = f"{dialogue}_utt{int(line[UTTERANCE])}"
        label = chosen.source.get(strip(line[column]).lower())
        if label is None:
            raise DataError(
                f"{table}: {name} has {column} '{shown(line[column])}'; known: "
                f"{', '.join(chosen.labels)}"
            )
        text, speaker = repair(line["Utterance"]), repair(line["Speaker"])
        if (text, speaker) != (line["Utterance"], line["Speaker"]):
            findings.repairs["old-encoding characters in text or speaker"].append(f"{split}/{name}")
        clip = clips.get(name, folder / f"{name}.mp4")
        rows.append(
            Utterance(
                id=f"{split}/{name}",
                audio=os.path.relpath(clip, root),
                text=strip(text) or None,
                split=split,
                label=label,
                speaker=speaker or None,
                dialogue=f"{split}/{dialogue}",
                position=position,
            )
        )
    _warn_of_repeats(split, rows, lines, column, findings)
    used = {row.id.removeprefix(f"{split}/") for row in rows}
    findings.orphans += [
        os.path.relpath(path, root) for name, path in clips.items() if name not in used
    ]
    return rows


def _warn_of_repeats(
    split: str,
    rows: list[Utterance],
    lines: list[dict[str, str]],
    column: str,
    findings: Findings,
) -> None:
    keys = (tuple(map(line.__getitem__, LINE)) for line in lines)
    repeats, other = find_repeats(keys, [line[column] for line in lines])
    if repeats:
        names = some([rows[i].id for i in repeats])
        findings.warnings.append(
            f"{plural(len(repeats), f'{split} row repeats', f'{split} rows repeat')} another row's "
            f"line and times, {other:,} of them with another label: {names}"
        )


def _table(below: list[Path], split: str, findings: Findings) -> Path | None:
    """The split's csv, the shallowest of several."""
    name = f"{split}_sent_emo.csv"
    found = [folder / name for folder in below if (folder / name).is_file()]
    if not found:
        findings.warnings.append(f"{name} not found: no {split} utterances")
        return None
    if len(found) > 1 and len({path.read_bytes() for path in found}) > 1:
        findings.warnings.append(
            f"several {name} that differ; {found[0]} is used, not {', '.join(map(str, found[1:]))}"
        )
    return found[0]


def _clips(
    below: list[Path], root: Path, split: str, findings: Findings
) -> tuple[Path, dict[str, Path]]:
    """(folder, stem -> file) of a split's clips; where there is no folder, the one that should be
    there, and no files.
    """
    names = FOLDERS[split]
    folder, clips, ignored = _first_with_clips(below, names)
    if folder is None:
        what = (
            f"no folder of {split} clips ({' or '.join(names)}, with dia*_utt* files) found below "
            f"{root}"
        )
        findings.warnings.append(what + elsewhere(root, names))
    if ignored:
        findings.warnings.append(f"{plural(ignored, 'hidden file')} in {folder} ignored")
    return folder or root / names[0], clips


def _first_with_clips(
    below: list[Path], names: tuple[str, ...]
) -> tuple[Path | None, dict[str, Path], int]:
    """(folder, stem -> file, hidden files) of the first folder of that name that has clips; the
    archive's own name comes first.
    """
    for name in names:
        for folder in below:
            if folder.name == name:
                clips, ignored = media_files(folder)
                if any(stem.startswith("dia") for stem in clips):
                    return folder, clips, ignored
    return None, {}, 0


def _positions(lines: list[dict[str, str]], table: Path) -> list[int]:
    """Each row's rank in its dialogue by utterance number: numbers have gaps, and many dialogues do
    not start at 0. Blanks around the numbers are cut off.
    """
    numbers = defaultdict(list)
    for i, line in enumerate(lines):
        dialogue, utterance = strip(line[DIALOGUE]), strip(line[UTTERANCE])
        line[DIALOGUE], line[UTTERANCE] = dialogue, utterance
        if not (NUMBER.fullmatch(dialogue) and NUMBER.fullmatch(utterance)):
            what = f"dialogue '{shown(dialogue)}' and utterance '{shown(utterance)}'"
            raise DataError(f"{table}: {place(table, i)} has {what}; expected numbers")
        numbers[int(dialogue)].append(int(utterance))
    ranks = {}
    for dialogue_number, utterances in numbers.items():
        for rank, utterance_number in enumerate(sorted(utterances)):
            ranks[dialogue_number, utterance_number] = rank
    return [ranks[int(line[DIALOGUE]), int(line[UTTERANCE])] for line in lines]
