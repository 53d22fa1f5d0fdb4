"""CMU-MOSEI (Zadeh et al. 2018): MMSA's layout (label.csv and Raw/<video>/<clip>.mp4; sentiment
only) or CMU's (CMU_MOSEI_Labels.csd with sentiment and six emotions, transcripts, whole videos or
wavs that are cut by the label file's times).

Some transcripts hold bytes that are no UTF-8, some segments start before 0, some have no
transcript: each is counted.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from mer.pipeline.datasets import cmu
from mer.pipeline.datasets.cmu import Segment
from mer.pipeline.datasets.corpora import CorpusInfo
from mer.pipeline.datasets.files import manifest_of, require_root
from mer.pipeline.datasets.findings import Findings
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Manifest
from mer.pipeline.runtime.terminal import plural

LABELS = (
    "CMU_MOSEI_Labels.csd",
    "CMU_MOSEI_LabelsEmotions.csd",
    "CMU_MOSEI_All_Labels.csd",
    "All Labels.csd",
)
VALUES = 7  # sentiment, happy, sad, anger, surprise, disgust, fear
SAME_TIME = 0.05  # seconds by which a transcript's times may differ from the label's


def prepare(
    root: Path, info: CorpusInfo, *, labels: str | None = None, vision: bool = False
) -> tuple[Manifest, Findings]:
    """The manifest of CMU-MOSEI under `root`; `labels` is sentiment (the default), binary, or
    emotions. With `vision` the films are named, too.
    """
    require_root(root, info)
    chosen = info.label_set(labels)
    findings = Findings("mosei", expected=chosen.expected)
    below = cmu.below(root)
    file, table = cmu.find(below, *LABELS), cmu.find(below, "label.csv")
    # label.csv has sentiment only; its clip numbers are those of Raw.
    by_table = table is not None and chosen.task != "multi"
    if table is not None and by_table:
        segments = cmu.read_label_csv(table)
    elif file is not None:
        segments = _segments(file, below, info, findings)
    elif table is not None:
        raise DataError(
            f"mosei: emotions need {LABELS[0]} below {root.absolute()}; {table.name} has "
            "sentiment only"
        )
    else:
        raise DataError(
            f"mosei: no {LABELS[0]} and no label.csv below {root.absolute()}; to get them: "
            f"{info.obtain}"
        )
    media = cmu.Media(root, below, raw=by_table)
    found = cmu.utterances(segments, media, chosen, findings, vision=vision)
    return manifest_of(found, root, info, chosen, findings)


class Spoken(NamedTuple):
    """A line of a transcript; `start` and `end` in seconds into the video."""

    number: str
    start: float
    end: float
    text: str | None


def _segments(file: Path, below: list[Path], info: CorpusInfo, findings: Findings) -> list[Segment]:
    """A segment for every labelled interval. Its number is that of the transcript; without a
    transcript it is the interval's place.
    """
    split_of = cmu.read_folds(below, info, findings)
    lines = _transcripts(below, findings)
    out = []
    for video, (intervals, values) in cmu.read_csd(file, VALUES).items():
        places = [f"at{i}" for i in range(len(values))]
        if split_of and video not in split_of:
            dropped = findings.dropped["segments of videos in no standard fold"]
            dropped += [f"{video}_{place}" for place in places]
            continue
        split = split_of.get(video, "")
        left = list(lines.get(video, []))
        for place, (start, end), value in zip(
            places, intervals.tolist(), values.tolist(), strict=True
        ):
            line = _spoken_at(left, start, end) or Spoken(place, start, end, None)
            left = [other for other in left if other.number != line.number]
            out.append(Segment(video, line.number, tuple(value), split, line.text, start, end))
    return out


def _spoken_at(lines: list[Spoken], start: float, end: float) -> Spoken | None:
    """The line whose start and end are these, to within `SAME_TIME` seconds."""
    for line in lines:
        if max(abs(line.start - start), abs(line.end - end)) <= SAME_TIME:
            return line
    return None


def _transcripts(below: list[Path], findings: Findings) -> dict[str, list[Spoken]]:
    """video -> lines `video___number___start___end___text`; the text may hold `___` itself."""
    out: dict[str, list[Spoken]] = {}
    odd = 0
    for file in cmu.transcripts(below, "Transcript/Segmented/Combined", "*.txt"):
        text = file.read_bytes().decode("utf-8", errors="replace")
        if "\ufffd" in text:
            what = "transcripts with bytes that are not UTF-8, each replaced by U+FFFD"
            findings.repairs[what].append(file.name)
        for line in filter(str.strip, text.split("\n")):
            try:
                _, number, start, end, words = line.strip().split("___", 4)
                spoken = Spoken(number.strip(), float(start), float(end), words.strip() or None)
            except ValueError:
                odd += 1
                continue
            out.setdefault(file.stem, []).append(spoken)
    if odd:
        findings.warnings.append(
            f"{plural(odd, 'transcript line is', 'transcript lines are')} not "
            "video___number___start___end___text; skipped"
        )
    return out
