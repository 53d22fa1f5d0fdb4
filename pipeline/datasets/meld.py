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

from mer.pipeline.datasets.corpora import CorpusInfo
from mer.pipeline.datasets.files import (
    elsewhere,
    find_repeats,
    folders,
    look,
    media_files,
    place,
    read_csv,
    repair,
    require_root,
)
from mer.pipeline.datasets.findings import Report, some
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Manifest, Utterance
from mer.pipeline.runtime.cells import strip
from mer.pipeline.runtime.terminal import shown

FOLDERS = {
    "train": ("train_splits", "train"),
    "dev": ("dev_splits_complete", "dev"),
    "test": ("output_repeated_splits_test", "test"),
}
COLUMN = {"emotion": "Emotion", "sentiment": "Sentiment"}  # label set -> csv column
# what two rows share when one is a copy of the other
LINE = ("Utterance", "Speaker", "Season", "Episode", "StartTime", "EndTime")
NUMBER = re.compile(r"[0-9]{1,9}")
DEPTH = 3  # folders below the root that are searched


def prepare(root: Path, info: CorpusInfo, *, labels: str | None = None) -> tuple[Manifest, Report]:
    require_root(root, info)
    chosen = info.label_set(labels)
    report = Report("meld", expected=chosen.expected)
    below = list(folders(root, DEPTH))
    rows: list[Utterance] = []
    for split, names in FOLDERS.items():
        table = _table(below, split, report)
        if table is None:
            continue
        folder, clips, ignored = _clips(below, names)
        if folder is None:
            what = (
                f"no folder of {split} clips ({' or '.join(names)}, with dia*_utt* files) found "
                f"below {root}"
            )
            report.warnings.append(what + elsewhere(root, names))
        if ignored:
            report.warnings.append(f"{ignored:,} hidden files in {folder} ignored")
        lines = read_csv(table, [*LINE, "Dialogue_ID", "Utterance_ID", COLUMN[chosen.name]])
        column = COLUMN[chosen.name]
        used = set()
        for line, position in zip(lines, _positions(lines, table), strict=True):
            dialogue, name = (
                f"dia{int(line['Dialogue_ID'])}",
                f"dia{int(line['Dialogue_ID'])}_utt{int(line['Utterance_ID'])}",
            )
            label = chosen.source.get(strip(line[column]).lower())
            if label is None:
                raise DataError(
                    f"{table}: {name} has {column} '{shown(line[column])}'; known: "
                    f"{', '.join(chosen.labels)}"
                )
            text, speaker = repair(line["Utterance"]), repair(line["Speaker"])
            if text != line["Utterance"] or speaker != line["Speaker"]:
                report.repairs["old-encoding characters in text or speaker"].append(
                    f"{split}/{name}"
                )
            used.add(name)
            clip = clips.get(name) or (folder or root / names[0]) / f"{name}.mp4"
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
        repeats, other = find_repeats(
            (tuple(line[c] for c in LINE) for line in lines), (line[column] for line in lines)
        )
        if repeats:
            named = some([rows[len(rows) - len(lines) + i].id for i in repeats])
            what = (
                f"{len(repeats)} {split} rows repeat another row's line and times, {other} of "
                "them with another label"
            )
            report.warnings.append(f"{what}: {named}")
        report.orphans += [
            os.path.relpath(path, root) for name, path in clips.items() if name not in used
        ]
    if not rows:
        hint = elsewhere(root, [f"{split}_sent_emo.csv" for split in FOLDERS])
        where = f"{DEPTH} levels of {shown(root.absolute(), 100)}"
        raise DataError(
            f"meld: no *_sent_emo.csv within {where}{hint or f'; to get it: {info.obtain}'}"
        )
    rows = look(rows, root, info, report)
    return Manifest(
        "meld",
        chosen.task,
        chosen.labels,
        tuple(rows),
        root,
        info.language,
        {"labels": chosen.name},
    ), report


def _table(below: list[Path], split: str, report: Report) -> Path | None:
    """The split's csv, the shallowest of several."""
    found = [
        folder / f"{split}_sent_emo.csv"
        for folder in below
        if (folder / f"{split}_sent_emo.csv").is_file()
    ]
    if not found:
        report.warnings.append(f"{split}_sent_emo.csv not found: no {split} utterances")
        return None
    if len(found) > 1 and len({path.read_bytes() for path in found}) > 1:
        report.warnings.append(
            f"several {split}_sent_emo.csv that differ; {found[0]} is used, not "
            f"{', '.join(map(str, found[1:]))}"
        )
    return found[0]


def _clips(below: list[Path], names: tuple[str, ...]) -> tuple[Path | None, dict[str, Path], int]:
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
    not start at 0.
    """
    numbers = defaultdict(list)
    for i, line in enumerate(lines):
        line["Dialogue_ID"], line["Utterance_ID"] = (
            strip(line["Dialogue_ID"]),
            strip(line["Utterance_ID"]),
        )
        dialogue, utterance = line["Dialogue_ID"], line["Utterance_ID"]
        if not (NUMBER.fullmatch(strip(dialogue)) and NUMBER.fullmatch(strip(utterance))):
            what = f"dialogue '{shown(dialogue)}' and utterance '{shown(utterance)}'"
            raise DataError(f"{table}: {place(table, i)} has {what}; expected numbers")
        numbers[int(dialogue)].append(int(utterance))
    ranks = {d: {u: rank for rank, u in enumerate(sorted(us))} for d, us in numbers.items()}
    return [ranks[int(line["Dialogue_ID"])][int(line["Utterance_ID"])] for line in lines]
