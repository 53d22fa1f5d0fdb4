"""M3ED (Zhao et al. 2022): annotation.json, lists of series, and a wav per utterance
(`A_series_dialogue_utterance.wav`).

The published lists of series decide the split; counts only warn. The annotation's times
(HH:MM:SS:FF, within a dialogue's video) are not needed: the wavs are already cut, two of them to
fewer samples than one wav2vec2 frame sees.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from mer.pipeline.datasets.corpora import CorpusInfo, LabelSet
from mer.pipeline.datasets.files import (
    elsewhere,
    folders,
    manifest_of,
    media_files,
    require_root,
)
from mer.pipeline.datasets.findings import Findings
from mer.pipeline.datasets.jsonfile import read_json
from mer.pipeline.datasets.textfiles import read_text
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Manifest, Utterance
from mer.pipeline.runtime.cells import name_cell, strip, text_cell
from mer.pipeline.runtime.terminal import plural, shown

# The download's name, and what other code calls it.
AUDIO = ("modality_speech", "audio", "speech", "wav")
SPLITS = {"train": "train", "val": "dev", "test": "test"}
DEPTH = 2


def prepare(
    root: Path, info: CorpusInfo, *, labels: str | None = None
) -> tuple[Manifest, Findings]:
    """The manifest of M3ED under `root`; `labels` is emotion (the default) or multi."""
    require_root(root, info)
    chosen = info.label_set(labels)
    findings = Findings("m3ed", expected=chosen.expected)
    below = list(folders(root, DEPTH))
    file = _first(below, "annotation.json")
    if file is None:
        hint = elsewhere(root, ["annotation.json"])
        where = f"{DEPTH} levels of {shown(root.absolute(), 100)}"
        raise DataError(
            f"m3ed: no annotation.json within {where}{hint or f'; to get it: {info.obtain}'}"
        )
    split_of = _splits(below, root, info)
    folder, wavs = _wavs(below, root, findings)
    rows: list[Utterance] = []
    used: set[str] = set()
    for series, dialogues in _object(file).items():
        series = strip(series)
        for dialogue, content in dialogues.items():
            with _reading(file, dialogue):
                if series not in split_of:
                    names = list(content["Dialog"])
                    findings.dropped[f"series {series}, in none of the lists"] += names
                    continue
                for line in _lines(series, dialogue, content):
                    used.add(line.wav)
                    wav = wavs.get(line.wav, folder / f"{line.wav}.wav")
                    label, targets = _label(line.emotions, chosen)
                    rows.append(
                        Utterance(
                            id=line.utterance,
                            audio=os.path.relpath(wav, root),
                            text=name_cell(line.text),
                            split=split_of[series],
                            label=label,
                            targets=targets,
                            speaker=f"{series}/{line.person}",
                            dialogue=dialogue,
                            session=series,
                            position=line.position,
                        )
                    )
    findings.orphans = [
        os.path.relpath(path, root) for name, path in wavs.items() if name not in used
    ]
    return manifest_of(rows, root, info, chosen, findings)


class Line(NamedTuple):
    """One utterance of a dialogue, as annotation.json has it."""

    utterance: str
    wav: str  # stem of its file
    person: str
    text: object
    emotions: dict
    position: int


def _lines(series: str, dialogue: str, content: dict) -> Iterator[Line]:
    """The utterances of a dialogue by their last number, which "10" comes behind "9" in."""
    spoken = sorted(content["Dialog"].items(), key=lambda item: int(item[0].rsplit("_", 1)[1]))
    for position, (utterance, line) in enumerate(spoken):
        for value in (series, dialogue, utterance):
            text_cell(value)
        speaker = line["Speaker"]
        yield Line(
            utterance=utterance,
            wav=f"{speaker}_{utterance}",
            person=_name(content["SpeakerInfo"][speaker]["Name"]),
            text=line["Text"],
            emotions=line["EmoAnnotation"],
            position=position,
        )


@contextmanager
def _reading(file: Path, dialogue: str) -> Iterator[None]:
    """Whatever is not as published in the block becomes one DataError that names the dialogue."""
    try:
        yield
    except DataError as error:
        raise DataError(
            f"{file}: {shown(dialogue)}: a cell {error}; mend it, or download the file again"
        ) from None
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError(
            f"{file}: {shown(dialogue)} is not as published ({type(error).__name__}: "
            f"{shown(error)})"
        ) from None


def _first(below: list[Path], name: str) -> Path | None:
    """The shallowest file of that name."""
    return next((folder / name for folder in below if (folder / name).is_file()), None)


def _object(file: Path) -> dict:
    """The content of annotation.json, by series."""
    value = read_json(file)
    if not isinstance(value, dict) or not all(isinstance(part, dict) for part in value.values()):
        raise DataError(f"{file}: expected an object of series")
    return value


def _splits(below: list[Path], root: Path, info: CorpusInfo) -> dict[str, str]:
    """series -> split, from the published lists."""
    out: dict[str, str] = {}
    for name, split in SPLITS.items():
        path = _first(below, f"movie_list_{name}.txt")
        if path is None:
            raise DataError(
                f"m3ed: no movie_list_{name}.txt (folder splitInfo) below {root.absolute()}; to "
                f"get it: {info.obtain}"
            )
        for series in read_text(path).split():
            if out.setdefault(series, split) != split:
                raise DataError(f"{path}: series {series} is in two splits")
    return out


def _wavs(below: list[Path], root: Path, findings: Findings) -> tuple[Path, dict[str, Path]]:
    """(folder, stem -> file) of the utterances' wavs."""
    for name in AUDIO:
        for folder in below:
            if folder.name == name:
                wavs, ignored = media_files(folder)
                if ignored:
                    findings.warnings.append(
                        f"{plural(ignored, 'hidden file')} in {folder} ignored"
                    )
                if wavs:
                    return folder, wavs
    findings.warnings.append(f"no folder of wavs ({', '.join(AUDIO)}) found below {root}")
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
