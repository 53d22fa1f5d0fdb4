"""CMU-MOSI (Zadeh et al. 2016): MMSA's layout (label.csv and Raw/<video>/<clip>.mp4) or CMU's
(label file, transcripts, segmented media).

Segments are numbered from 1 in order of time in CMU's files. One speaker a video, who is not named:
folds go by video (`dialogue`).
"""

from __future__ import annotations

from pathlib import Path

from mer.pipeline.datasets import cmu
from mer.pipeline.datasets.cmu import Segment
from mer.pipeline.datasets.corpora import CorpusInfo
from mer.pipeline.datasets.files import hidden, look, require_root
from mer.pipeline.datasets.findings import Report
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Manifest

LABELS = ("CMU_MOSI_Opinion_Labels.csd", "Opinion Segment Labels.csd")
DELIMITER = "_DELIM_"  # Transcript/Segmented/<video>.annotprocessed: `12_DELIM_THE TEXT`


def prepare(root: Path, info: CorpusInfo, *, labels: str | None = None) -> tuple[Manifest, Report]:
    require_root(root, info)
    chosen = info.label_set(labels)
    report = Report("mosi", expected=chosen.expected)
    below = cmu.below(root)
    if (table := cmu.find(below, "label.csv")) is not None:
        segments = cmu.read_label_csv(table)
    elif (file := cmu.find(below, *LABELS)) is not None:
        segments = _segments(file, below, info, report)
    else:
        raise DataError(
            f"mosi: no label.csv and no {LABELS[0]} below {root.absolute()}; to get them: "
            f"{info.obtain}"
        )
    rows = look(
        cmu.utterances(segments, cmu.Media(root, below), chosen, report), root, info, report
    )
    return Manifest(
        "mosi",
        chosen.task,
        chosen.labels,
        tuple(rows),
        root,
        info.language,
        {"labels": chosen.name},
    ), report


def _segments(file: Path, below: list[Path], info: CorpusInfo, report: Report) -> list[Segment]:
    split_of = cmu.read_folds(below, info, report)
    texts = _transcripts(below, report)
    out = []
    for video, (intervals, values) in cmu.read_csd(file, 1).items():
        if split_of and video not in split_of:
            report.dropped["segments of videos in no standard fold"] += [
                f"{video}_{i + 1}" for i in range(len(values))
            ]
            continue
        for i, ((start, end), value) in enumerate(
            zip(intervals.tolist(), values.tolist(), strict=True), start=1
        ):
            out.append(
                Segment(
                    video,
                    str(i),
                    tuple(value),
                    split_of.get(video, ""),
                    texts.get((video, str(i))),
                    start,
                    end,
                )
            )
    return out


def _transcripts(below: list[Path], report: Report) -> dict[tuple[str, str], str]:
    """(video, number) -> text."""
    folder = cmu.find(below, "Transcript/Segmented")
    texts: dict[tuple[str, str], str] = {}
    odd = 0
    for file in sorted(folder.glob("*.annotprocessed")) if folder is not None else ():
        if hidden(file.name) or not file.is_file():
            continue
        for line in file.read_bytes().decode("utf-8", errors="replace").split("\n"):
            number, delimiter, text = line.strip().partition(DELIMITER)
            odd += bool(line.strip()) and not delimiter or "\ufffd" in text
            if delimiter and text.strip():
                texts[file.stem, number.strip()] = text.strip()
    if odd:
        report.warnings.append(f"{odd:,} transcript lines are not UTF-8 or have no {DELIMITER}")
    return texts
