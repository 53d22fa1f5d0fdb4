"""CMU-MOSI (Zadeh et al. 2016): MMSA's layout (label.csv and Raw/<video>/<clip>.mp4) or CMU's
(label file, transcripts, segmented media).

Segments are numbered from 1 in order of time in CMU's files. There is one speaker per video, who
is not named: folds go by video (`dialogue`).
"""

from __future__ import annotations

from pathlib import Path

from mer.pipeline.datasets import cmu
from mer.pipeline.datasets.cmu import Segment
from mer.pipeline.datasets.corpora import CorpusInfo
from mer.pipeline.datasets.files import manifest_of, require_root
from mer.pipeline.datasets.findings import Findings
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Manifest
from mer.pipeline.runtime.terminal import plural

LABELS = ("CMU_MOSI_Opinion_Labels.csd", "Opinion Segment Labels.csd")
DELIMITER = "_DELIM_"  # Transcript/Segmented/<video>.annotprocessed: `12_DELIM_THE TEXT`


def prepare(
    root: Path, info: CorpusInfo, *, labels: str | None = None, vision: bool = False
) -> tuple[Manifest, Findings]:
    """The manifest of CMU-MOSI under `root`; `labels` is sentiment (the default) or binary.
    With `vision` the films are named, too.
    """
    require_root(root, info)
    chosen = info.label_set(labels)
    findings = Findings("mosi", expected=chosen.expected)
    below = cmu.below(root)
    if (table := cmu.find(below, "label.csv")) is not None:
        segments = cmu.read_label_csv(table)
    elif (file := cmu.find(below, *LABELS)) is not None:
        segments = _segments(file, below, info, findings)
    else:
        raise DataError(
            f"mosi: no label.csv and no {LABELS[0]} below {root.absolute()}; to get them: "
            f"{info.obtain}"
        )
    found = cmu.utterances(segments, cmu.Media(root, below), chosen, findings, vision=vision)
    return manifest_of(found, root, info, chosen, findings)


def _segments(file: Path, below: list[Path], info: CorpusInfo, findings: Findings) -> list[Segment]:
    """One per labelled interval, numbered from 1 in order of time."""
    split_of = cmu.read_folds(below, info, findings)
    texts = _transcripts(below, findings)
    out = []
    for video, (intervals, values) in cmu.read_csd(file, 1).items():
        names = [str(i) for i in range(1, len(values) + 1)]
        if split_of and video not in split_of:
            dropped = findings.dropped["segments of videos in no standard fold"]
            dropped += [f"{video}_{name}" for name in names]
            continue
        split = split_of.get(video, "")
        for name, (start, end), value in zip(
            names, intervals.tolist(), values.tolist(), strict=True
        ):
            text = texts.get((video, name))
            out.append(Segment(video, name, tuple(value), split, text, start, end))
    return out


def _transcripts(below: list[Path], findings: Findings) -> dict[tuple[str, str], str]:
    """(video, number) -> text."""
    texts: dict[tuple[str, str], str] = {}
    odd = 0
    for file in cmu.transcripts(below, "Transcript/Segmented", "*.annotprocessed"):
        for line in file.read_bytes().decode("utf-8", errors="replace").split("\n"):
            number, delimiter, text = line.strip().partition(DELIMITER)
            odd += (bool(line.strip()) and not delimiter) or "\ufffd" in text
            if delimiter and text.strip():
                texts[file.stem, number.strip()] = text.strip()
    if odd:
        what = plural(
            odd, "transcript line is not UTF-8 or has", "transcript lines are not UTF-8 or have"
        )
        findings.warnings.append(f"{what} no {DELIMITER}")
    return texts
