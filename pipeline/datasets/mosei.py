"""CMU-MOSEI (Zadeh et al. 2018): MMSA's layout (label.csv and Raw/<video>/<clip>.mp4; sentiment
only) or CMU's (CMU_MOSEI_Labels.csd with sentiment and six emotions, transcripts, whole videos or
wavs that are cut by the label file's times).

Some transcripts hold bytes that are no UTF-8, some segments start before 0, some have no
transcript: each is counted.
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

LABELS = (
    "CMU_MOSEI_Labels.csd",
    "CMU_MOSEI_LabelsEmotions.csd",
    "CMU_MOSEI_All_Labels.csd",
    "All Labels.csd",
)
VALUES = 7  # sentiment, happy, sad, anger, surprise, disgust, fear
SAME_TIME = 0.05  # seconds by which a transcript's times may differ from the label's


def prepare(root: Path, info: CorpusInfo, *, labels: str | None = None) -> tuple[Manifest, Report]:
    require_root(root, info)
    chosen = info.label_set(labels)
    report = Report("mosei", expected=chosen.expected)
    below = cmu.below(root)
    file, table = cmu.find(below, *LABELS), cmu.find(below, "label.csv")
    # label.csv has sentiment only; its clip numbers are those of Raw
    by_table = table is not None and chosen.task != "multi"
    if by_table:
        segments = cmu.read_label_csv(table)
    elif file is not None:
        segments = _segments(file, below, info, report)
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
    rows = look(
        cmu.utterances(segments, cmu.Media(root, below, raw=by_table), chosen, report),
        root,
        info,
        report,
    )
    return Manifest(
        "mosei",
        chosen.task,
        chosen.labels,
        tuple(rows),
        root,
        info.language,
        {"labels": chosen.name},
    ), report


def _segments(file: Path, below: list[Path], info: CorpusInfo, report: Report) -> list[Segment]:
    """One a labelled interval; its number is the transcript's, or its place where the transcript
    has none.
    """
    split_of = cmu.read_folds(below, info, report)
    lines = _transcripts(below, report)
    out = []
    for video, (intervals, values) in cmu.read_csd(file, VALUES).items():
        if split_of and video not in split_of:
            report.dropped["segments of videos in no standard fold"] += [
                f"{video}_at{i}" for i in range(len(values))
            ]
            continue
        spoken = lines.get(video, [])
        taken: set[str] = set()
        for i, ((start, end), value) in enumerate(
            zip(intervals.tolist(), values.tolist(), strict=True)
        ):
            near = (
                line
                for line in spoken
                if max(abs(line[1] - start), abs(line[2] - end)) <= SAME_TIME
                and line[0] not in taken
            )
            number, _, _, text = next(near, (f"at{i}", start, end, None))
            taken.add(number)
            out.append(
                Segment(video, number, tuple(value), split_of.get(video, ""), text, start, end)
            )
    return out


def _transcripts(
    below: list[Path], report: Report
) -> dict[str, list[tuple[str, float, float, str | None]]]:
    """video -> (number, start, end, text), from lines `video___number___start___end___text`; the
    text may hold `___` itself.
    """
    folder = cmu.find(below, "Transcript/Segmented/Combined")
    out: dict[str, list[tuple[str, float, float, str | None]]] = {}
    odd = 0
    for file in sorted(folder.glob("*.txt")) if folder is not None else ():
        if hidden(file.name) or not file.is_file():
            continue
        text = file.read_bytes().decode("utf-8", errors="replace")
        if "\ufffd" in text:
            report.repairs[
                "transcripts with bytes that are not UTF-8, each replaced by U+FFFD"
            ].append(file.name)
        for line in filter(str.strip, text.split("\n")):
            parts = line.strip().split("___", 4)
            try:
                _, number, start, end, words = parts
                out.setdefault(file.stem, []).append(
                    (number.strip(), float(start), float(end), words.strip() or None)
                )
            except ValueError:
                odd += 1
    if odd:
        report.warnings.append(
            f"{odd:,} transcript lines are not video___number___start___end___text; they were "
            "skipped"
        )
    return out
