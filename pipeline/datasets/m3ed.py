"""M3ED (Zhao et al. 2022): annotation.json, lists of series, and a wav an utterance
(`A_series_dialogue_utterance.wav`).

The published lists of series decide the split; counts only warn. The annotation's times
(HH:MM:SS:FF, within a dialogue's video) are not needed: the wavs are already cut, two of them to
fewer samples than one wav2vec2 frame sees.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from mer.pipeline.datasets.corpora import CorpusInfo, LabelSet
from mer.pipeline.datasets.files import (
    elsewhere,
    folders,
    look,
    media_files,
    read_text,
    require_root,
)
from mer.pipeline.datasets.findings import Report
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Manifest, Utterance
from mer.pipeline.runtime.cells import name_cell, strip, text_cell
from mer.pipeline.runtime.columnar import reason
from mer.pipeline.runtime.terminal import shown

# the download's name, and what other code calls it
AUDIO = ("modality_speech", "audio", "speech", "wav")
SPLITS = {"train": "train", "val": "dev", "test": "test"}
DEPTH = 2


def prepare(root: Path, info: CorpusInfo, *, labels: str | None = None) -> tuple[Manifest, Report]:
    require_root(root, info)
    chosen = info.label_set(labels)
    report = Report("m3ed", expected=chosen.expected)
    below = list(folders(root, DEPTH))
    file = next(
        (folder / "annotation.json" for folder in below if (folder / "annotation.json").is_file()),
        None,
    )
    if file is None:
        hint = elsewhere(root, ["annotation.json"])
        where = f"{DEPTH} levels of {shown(root.absolute(), 100)}"
        raise DataError(
            f"m3ed: no annotation.json within {where}{hint or f'; to get it: {info.obtain}'}"
        )
    split_of = _splits(below, root, info)
    folder, wavs = _wavs(below, root, report)
    rows, used = [], set()
    for series, dialogues in _object(read_text(file), file).items():
        series = strip(series)
        for dialogue, content in dialogues.items():
            try:
                if series not in split_of:
                    report.dropped[f"series {series}, in none of the lists"] += list(
                        content["Dialog"]
                    )
                    continue
                lines = sorted(
                    content["Dialog"].items(), key=lambda item: int(item[0].rsplit("_", 1)[1])
                )
                for position, (utterance, line) in enumerate(lines):
                    for value in (series, dialogue, utterance):
                        text_cell(value)
                    name = f"{line['Speaker']}_{utterance}"
                    used.add(name)
                    label, targets = _label(line["EmoAnnotation"], chosen)
                    person = _name(content["SpeakerInfo"][line["Speaker"]]["Name"])
                    wav = os.path.relpath(wavs.get(name, folder / f"{name}.wav"), root)
                    rows.append(
                        Utterance(
                            id=utterance,
                            audio=wav,
                            text=name_cell(line["Text"]),
                            split=split_of[series],
                            label=label,
                            targets=targets,
                            speaker=f"{series}/{person}",
                            dialogue=dialogue,
                            session=series,
                            position=position,
                        )
                    )
            except DataError as error:
                raise DataError(
                    f"{file}: {shown(dialogue)}: a cell {error}; mend it, or download the file "
                    "again"
                ) from None
            except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
                raise DataError(
                    f"{file}: {shown(dialogue)} is not as published ({type(error).__name__}: "
                    f"{shown(error)})"
                ) from None
    report.orphans = [
        os.path.relpath(path, root) for name, path in wavs.items() if name not in used
    ]
    rows = look(rows, root, info, report)
    return Manifest(
        "m3ed",
        chosen.task,
        chosen.labels,
        tuple(rows),
        root,
        info.language,
        {"labels": chosen.name},
    ), report


def _object(text: str, file: Path) -> dict:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a ValueError
        raise DataError(f"{file}: not JSON ({reason(error)})") from None
    if not isinstance(value, dict) or not all(isinstance(d, dict) for d in value.values()):
        raise DataError(f"{file}: expected an object of series")
    return value


def _splits(below: list[Path], root: Path, info: CorpusInfo) -> dict[str, str]:
    """series -> split, from the published lists."""
    out: dict[str, str] = {}
    for name, split in SPLITS.items():
        path = next(
            (
                f / f"movie_list_{name}.txt"
                for f in below
                if (f / f"movie_list_{name}.txt").is_file()
            ),
            None,
        )
        if path is None:
            raise DataError(
                f"m3ed: no movie_list_{name}.txt (folder splitInfo) below {root.absolute()}; to "
                f"get it: {info.obtain}"
            )
        for series in read_text(path).split():
            if out.setdefault(series, split) != split:
                raise DataError(f"{path}: series {series} is in two splits")
    return out


def _wavs(below: list[Path], root: Path, report: Report) -> tuple[Path, dict[str, Path]]:
    """(folder, stem -> file) of the utterances' wavs."""
    for name in AUDIO:
        for folder in below:
            if folder.name == name:
                wavs, ignored = media_files(folder)
                if ignored:
                    report.warnings.append(f"{ignored:,} hidden files in {folder} ignored")
                if wavs:
                    return folder, wavs
    report.warnings.append(f"no folder of wavs ({', '.join(AUDIO)}) found below {root}")
    return root / AUDIO[0], {}


def _name(value: object) -> str:
    """Raises ValueError for what is no text, and for a gap."""
    if not isinstance(value, str) or (name := name_cell(value)) is None:
        raise ValueError(f"'{shown(value)}' is no name")
    return name


def _label(annotation: dict, chosen: LabelSet) -> tuple[str | None, tuple[float, ...] | None]:
    if chosen.task == "single":
        label = _name(annotation["final_main_emo"]).lower()
        if label not in chosen.labels:
            raise ValueError(f"label '{shown(label)}'")
        return label, None
    names = {strip(name).lower() for name in annotation["final_mul_emo"].split(",")}
    if names - set(chosen.labels):
        raise ValueError(f"labels {', '.join(sorted(names))}")
    return None, tuple(float(label in names) for label in chosen.labels)
