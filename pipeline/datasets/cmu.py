"""What CMU-MOSI and CMU-MOSEI share: MMSA's label.csv, the SDK's label files (.csd, HDF5) and
folds, media by segment or by video.

Ids are `<video>_<clip>`. Video ids hold `_` and may start with `-`; MMSA joins with `$_$`.
"""

from __future__ import annotations

import ast
import math
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from mer.pipeline.datasets.corpora import CorpusInfo, LabelSet
from mer.pipeline.datasets.files import folders, hidden, media_files
from mer.pipeline.datasets.findings import Findings, some
from mer.pipeline.datasets.textfiles import place, read_csv, read_text
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Utterance
from mer.pipeline.runtime.cells import strip
from mer.pipeline.runtime.columnar import reason, require_regular
from mer.pipeline.runtime.limits import TABLE_VALUES
from mer.pipeline.runtime.terminal import plural, shown

DEPTH = 4
MODES = {"train": "train", "valid": "dev", "val": "dev", "dev": "dev", "test": "test"}
# names in the SDK's *_std_folds.py
FOLDS = {"standard_train_fold": "train", "standard_valid_fold": "dev", "standard_test_fold": "test"}
# best first
SEGMENTS = (
    "Audio/WAV_16000/Segmented",
    "Audio/Segmented",
    "Video/Segmented",
    "Videos/Segmented/Combined",
)
WHOLE = ("Audio/WAV_16000/Full", "Audio/Full/WAV_16000", "Video/Full", "Videos/Full/Combined")

SEEN_SEGMENTS = ("Video/Segmented", "Videos/Segmented/Combined")
SEEN_WHOLE = ("Video/Full", "Videos/Full/Combined")


@dataclass(frozen=True, slots=True)
class Segment:
    """`values`: sentiment, then whatever the label file adds.

    `start`, `end`: seconds into the whole video, where known.
    """

    video: str
    clip: str
    values: tuple[float, ...]
    split: str = ""
    text: str | None = None
    start: float | None = None
    end: float | None = None


def find(below: list[Path], *names: str) -> Path | None:
    """The first of those names, best first, that lies in one of the folders."""
    for name in names:
        for folder in below:
            if (folder / name).exists():
                return folder / name
    return None


def below(root: Path) -> list[Path]:
    """The folders to look in.

    Videos' own folders (Raw/<video>/) are many, and nothing is looked for in them.
    """
    return [
        folder
        for folder in folders(root, DEPTH)
        if "Raw" not in folder.relative_to(root).parts[:-1]
    ]


def read_label_csv(path: Path) -> list[Segment]:
    """MMSA's label.csv: video_id, clip_id, text, label, …, mode."""
    out = []
    for i, row in enumerate(read_csv(path, ["video_id", "clip_id", "text", "label", "mode"])):
        mode = strip(row["mode"]).lower()
        if mode not in MODES:
            raise DataError(
                f"{path}: {place(path, i)} has mode '{shown(row['mode'])}'; expected train, valid "
                "or test"
            )
        video, clip = strip(row["video_id"]), strip(row["clip_id"])
        if not re.fullmatch(r"[\w-]+", video) or not re.fullmatch(r"\w+", clip):
            what = f"video '{shown(video)}', clip '{shown(clip)}'"
            raise DataError(f"{path}: {place(path, i)} has {what}, which cannot be file names")
        try:
            value = float(strip(row["label"]))
        except ValueError:
            raise DataError(
                f"{path}: {place(path, i)} has label '{shown(row['label'])}', expected a number"
            ) from None
        out.append(Segment(video, clip, (value,), MODES[mode], strip(row["text"]) or None))
    return out


def read_csd(path: Path, values: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """video -> (intervals (n, 2) in seconds, features (n, values)), in order of time, from an SDK
    label file.
    """
    out = {}
    require_regular(path)
    try:
        with h5py.File(path) as file:
            for root in file.values():
                for video, entry in root["data"].items():
                    intervals, features = _array(entry["intervals"]), _array(entry["features"])
                    if intervals.shape != (len(features), 2) or features.shape[1:] != (values,):
                        raise DataError(
                            f"{path}: {video} has intervals {intervals.shape} and features "
                            f"{features.shape}"
                        )
                    order = np.argsort(intervals[:, 0], kind="stable")
                    out[video] = intervals[order], features[order]
    except (
        OSError,
        KeyError,
        AttributeError,
        TypeError,
        ValueError,
        RuntimeError,
        MemoryError,
    ) as error:
        what = f"{type(error).__name__}: {reason(error)}"
        raise DataError(
            f"{path}: not a label file of CMU-MultimodalSDK ({what}); download it again"
        ) from None
    return out


def _array(dataset) -> np.ndarray:
    """A small dataset that lies in the file itself; ValueError for any other."""
    layout = dataset.id.get_create_plist()  # asked before any other call on it
    if layout.get_layout() == h5py.h5d.VIRTUAL or layout.get_external_count():
        raise ValueError("a dataset whose values lie in another file")
    if dataset.size is None or dataset.size > TABLE_VALUES:
        raise ValueError(f"a dataset of more than {TABLE_VALUES:,} values")
    return np.asarray(dataset[()], float)


def read_folds(folders: list[Path], info: CorpusInfo, findings: Findings) -> dict[str, str]:
    """video -> split: the SDK's `*_std_folds.py` where one lies below the root (it is parsed, not
    run), else the corpus's own list.
    """
    out: dict[str, str] = {}
    file = _folds_file(folders)
    if file is None:
        for split, videos in info.videos.items():
            out |= dict.fromkeys(videos, split)
        if not out:
            findings.warnings.append(
                f"no cmu_{info.name}_std_folds.py found: no split; copy it from CMU-MultimodalSDK "
                "into the root"
            )
        return out
    try:
        for node in ast.parse(read_text(file)).body:
            name = _assigned(node)
            if isinstance(node, ast.Assign) and name in FOLDS:
                out |= dict.fromkeys(ast.literal_eval(node.value), FOLDS[name])
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise DataError(
            f"{file}: not the standard folds of CMU-MultimodalSDK ({reason(error)})"
        ) from None
    if set(out.values()) != set(FOLDS.values()):
        raise DataError(f"{file}: expected lists named {', '.join(FOLDS)}")
    return out


def _folds_file(folders: list[Path]) -> Path | None:
    """The first file of standard folds, in the shallowest folder that has one."""
    for folder in folders:
        for path in sorted(folder.glob("*std_folds.py")):
            return path
    return None


def _assigned(node: ast.stmt) -> str:
    """The name that a statement assigns to; "" for any other statement."""
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return ""


def transcripts(below: list[Path], name: str, pattern: str) -> list[Path]:
    """The transcript files of a folder, hidden ones left out; none where there is no folder."""
    folder = find(below, name)
    if folder is None:
        return []
    files = (path for path in sorted(folder.glob(pattern)) if path.is_file())
    return [path for path in files if not hidden(path.name)]


class Media:
    """Where a segment's sound is: a file of its own, or a piece of its video's file.

    Folders are listed once. `raw`: whether clip numbers are MMSA's, so that Raw/<video>/<clip>.mp4
    may be taken.
    """

    def __init__(self, root: Path, folders: list[Path], *, raw: bool = True):
        self.root = root
        self.raw = find(folders, "Raw") if raw else None
        self.segments = self._files(folders, SEGMENTS)
        self.whole = self._files(folders, WHOLE)
        self.seen_segments = self._files(folders, SEEN_SEGMENTS)
        self.seen_whole = self._files(folders, SEEN_WHOLE)

    def _files(self, folders: list[Path], names: tuple[str, ...]) -> dict[str, Path]:
        files: dict[str, Path] = {}
        for name in reversed(names):  # the best one last, to win
            for folder in folders:
                if (folder / name).is_dir():
                    files |= media_files(folder / name)[0]
        return files

    def find(self, segment: Segment) -> tuple[str, float | None, float | None]:
        """(path relative to the root, start, end); the path of what should be there when nothing
        is.
        """
        name = f"{segment.video}_{segment.clip}"
        if name in self.segments:
            return os.path.relpath(self.segments[name], self.root), None, None
        if segment.start is not None and segment.video in self.whole:
            whole = os.path.relpath(self.whole[segment.video], self.root)
            return whole, max(0.0, segment.start), segment.end
        if segment.start is not None and self.raw is None:
            return f"{WHOLE[0]}/{segment.video}.wav", max(0.0, segment.start), segment.end
        raw = self.raw if self.raw is not None else self.root / "Raw"
        return os.path.relpath(raw / segment.video / f"{segment.clip}.mp4", self.root), None, None

    def film(self, segment: Segment) -> tuple[str | None, float | None, float | None]:
        """(path of its picture relative to the root, start, end); None where there is none."""
        name = f"{segment.video}_{segment.clip}"
        if name in self.seen_segments:
            return os.path.relpath(self.seen_segments[name], self.root), 0.0, None
        if segment.start is not None and segment.video in self.seen_whole:
            whole = os.path.relpath(self.seen_whole[segment.video], self.root)
            return whole, max(0.0, segment.start), segment.end
        raw = None if self.raw is None else self.raw / segment.video / f"{segment.clip}.mp4"
        if raw is not None and raw.exists():
            return os.path.relpath(raw, self.root), 0.0, None
        return None, None, None


def utterances(
    segments: list[Segment],
    media: Media,
    chosen: LabelSet,
    findings: Findings,
    *,
    vision: bool = False,
) -> list[Utterance]:
    """Rows in the order of the segments; with `vision`, with their films where those are other
    files than the sound's.

    Upper-case transcripts become lower-case, negative starts 0; both are counted.
    """
    out = []
    unseen: list[str] = []
    positions: Counter[str] = Counter()
    for segment in segments:
        name = f"{segment.video}_{segment.clip}"
        if not all(map(math.isfinite, segment.values)):
            findings.dropped["a label that is not a number"].append(name)
            continue
        text = segment.text
        if text and text.isupper() and len(text) > 1:
            text = text.lower()
            findings.repairs["upper-case text made lower-case"].append(name)
        if not _is_span(segment):
            findings.dropped[
                "a span that is none (it ends before it starts, or is no number)"
            ].append(name)
            continue
        audio, start, end = media.find(segment)
        if start is not None and segment.start is not None and segment.start < 0:
            findings.repairs["negative start set to 0"].append(name)
        film, begin, close = media.film(segment) if vision else (None, None, None)
        if vision and film is None:
            unseen.append(name)
        if film == audio:  # its own file has the picture, and the same span
            film, begin, close = None, None, None
        label, targets = _label(segment.values, chosen)
        out.append(
            Utterance(
                id=name,
                audio=audio,
                text=text,
                split=segment.split,
                label=label,
                targets=targets,
                dialogue=segment.video,
                position=positions[segment.video],
                start=start,
                end=end,
                video=film,
                video_start=begin,
                video_end=close,
            )
        )
        positions[segment.video] += 1
    if unseen:
        findings.warnings.append(
            f"{plural(len(unseen), 'segment has', 'segments have')} no film: {some(unseen)}"
        )
    if silent := [u.id for u in out if u.text is None]:
        findings.warnings.append(
            f"{plural(len(silent), 'segment has', 'segments have')} no transcript: {some(silent)}"
        )
    return out


def _is_span(segment: Segment) -> bool:
    """Whether a segment's times, where it has both, leave something after a start below 0 is cut
    off.
    """
    if segment.start is None or segment.end is None:
        return True
    return max(0.0, segment.start) < segment.end < math.inf


def _label(
    values: tuple[float, ...], chosen: LabelSet
) -> tuple[str | None, tuple[float, ...] | None]:
    if chosen.name == "binary":
        return chosen.labels[values[0] >= 0], None
    if chosen.task == "regression":
        return None, (values[0],)
    return None, tuple(float(value > 0) for value in values[1:])
