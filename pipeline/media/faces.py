"""Which part of a picture an encoder sees: all of it, its centre, a half, or a face.

Where faces are is told by a table of boxes, by OpenFace's files, or by a detector whose model file
the user names. A face becomes a square around its box, so that no encoder distorts it.
"""

from __future__ import annotations

import hashlib
import math
import os
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mer.pipeline.errors import DataError
from mer.pipeline.media.readers import MediaError
from mer.pipeline.media.stages import Stage
from mer.pipeline.runtime.delimited import Dialect, dialect
from mer.pipeline.runtime.files import identity, near
from mer.pipeline.runtime.limits import DETECTOR_BYTES, TABLE_BYTES
from mer.pipeline.runtime.terminal import amount, first_line, listed, shown

COLUMNS = ("id", "time", "x", "y", "w", "h")
LANDMARKS = 68  # of OpenFace, in pixels: x_0 … x_67, y_0 … y_67
MARGIN = 0.25  # of a box's longer side that is added on each side
# A box stands for pictures that are no further away than this: half a second is a slow blink.
BOX_SECONDS = 0.5
SCORE = 0.6  # that a face must have from the detector, of 1
DETECTED_PIXELS = 320  # on a side of the picture that a detector is tried on
FALLBACKS = ("centre", "whole", "fail")  # for a picture without a face
CROPS = ("none", "centre", "left", "right", "side", "faces")


class Box(NamedTuple):
    """A face: when, in seconds on the file's time line, and where, in pixels of the picture as it
    is looked at.
    """

    time: float
    x: float
    y: float
    w: float
    h: float


@dataclass(frozen=True, eq=False)
class Told:
    """What a source says of an utterance: its boxes, ascending in time."""

    boxes: tuple[Box, ...] = ()

    @cached_property
    def digest(self) -> str:
        """In the content keys of old stores: it stays as it is. One film has many utterances."""
        spelled = repr([tuple(box) for box in self.boxes])
        return hashlib.sha256(spelled.encode()).hexdigest()


NOTHING_TOLD = Told()


@dataclass(frozen=True, slots=True)
class Crop:
    """What is kept of each picture.

    Attributes:
        kind: "none", "centre" (the largest square in the middle), "left" or "right" (halves),
            "boxes" or "detector".
        boxes: For "boxes", ascending in time.
        fallback: What a picture without a face gives: "centre", "whole", or "fail".
        model: For "detector", the path of its model.
    """

    kind: str = "none"
    boxes: tuple[Box, ...] = ()
    fallback: str = "centre"
    model: str = ""

    def between(self, begin: float, end: float) -> Crop:
        """With those boxes only that can stand for pictures from `begin` to `end` seconds."""
        first = bisect_left(self.boxes, begin - BOX_SECONDS, key=_time)
        behind = bisect_right(self.boxes, end + BOX_SECONDS, key=_time)
        return replace(self, boxes=self.boxes[first:behind])


def _time(box: Box) -> float:
    return box.time


def cut(path: Path, pixels: np.ndarray, time: float, crop: Crop) -> tuple[np.ndarray, bool]:
    """A part of a picture.

    Args:
        path: Names the file in an error.
        pixels: (height, width, 3).
        time: Of the picture, in seconds on the file's time line.
        crop: Which part.

    Returns:
        The part, and whether what was looked for is there: a face.

    Raises:
        MediaError: A box lies outside the picture; or there is no face, and that is to fail.
    """
    height, width = pixels.shape[:2]
    if crop.kind == "none":
        return pixels, True
    if crop.kind == "centre":
        return _centre(pixels), True
    if crop.kind in ("left", "right"):
        half = max(1, width // 2)
        return (pixels[:, :half] if crop.kind == "left" else pixels[:, width - half :]), True
    box = _nearest(crop.boxes, time) if crop.kind == "boxes" else _detected(pixels, time, crop)
    if box is not None:
        return _square(path, pixels, box), True
    if crop.fallback == "fail":
        raise MediaError(f"{path}: no face at {time:.2f} s", Stage.FACE)
    return (_centre(pixels) if crop.fallback == "centre" else pixels), False


def _centre(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


def _square(path: Path, pixels: np.ndarray, box: Box) -> np.ndarray:
    """The square around a box and its margin, moved into the picture where it reaches beyond."""
    height, width = pixels.shape[:2]
    if not _is_seen(box, width, height):
        raise MediaError(
            f"{path}: the box of {box.w:g} x {box.h:g} at ({box.x:g}, {box.y:g}), {box.time:.2f} "
            f"s, lies outside the picture of {width} x {height}",
            Stage.FACE,
        )
    side = max(1, min(round(max(box.w, box.h) * (1 + 2 * MARGIN)), height, width))
    left = min(max(0, round(box.x + box.w / 2 - side / 2)), width - side)
    top = min(max(0, round(box.y + box.h / 2 - side / 2)), height - side)
    return pixels[top : top + side, left : left + side]


def _nearest(boxes: Sequence[Box], time: float) -> Box | None:
    """The box nearest in time, the largest where several are; None where none is near."""
    at = bisect_left(boxes, time, key=_time)
    around = [boxes[place].time for place in (at - 1, at) if 0 <= place < len(boxes)]
    if not around:
        return None
    nearest = min(around, key=lambda then: abs(then - time))
    if abs(nearest - time) > BOX_SECONDS:
        return None
    first = bisect_left(boxes, nearest, key=_time)
    same = []
    for box in boxes[first:]:
        if box.time != nearest:
            break
        same.append(box)
    return max(same, key=_area)


def _area(box: Box) -> float:
    return box.w * box.h


def _is_seen(box: Box, width: int, height: int) -> bool:
    """Whether a part of it lies in the picture."""
    return box.x < width and box.y < height and box.x + box.w > 0 and box.y + box.h > 0


# --- a detector


def _detected(pixels: np.ndarray, time: float, crop: Crop) -> Box | None:
    """The largest face in the picture that OpenCV's YuNet finds."""
    detector = yunet(crop.model)
    height, width = pixels.shape[:2]
    detector.setInputSize((width, height))
    _, faces = detector.detect(np.ascontiguousarray(pixels[:, :, ::-1]))  # it takes BGR
    if faces is None:
        return None
    found = []
    for x, y, w, h in faces[:, :4].tolist():
        box = Box(time, x, y, w, h)
        # numbers of a broken model may be no numbers
        if all(map(math.isfinite, box)) and w > 0 and h > 0 and _is_seen(box, width, height):
            found.append(box)
    return max(found, key=_area, default=None)


def yunet(model: str) -> Any:
    """OpenCV's YuNet with the weights in the file `model`, loaded once. Raises DataError."""
    try:
        import cv2
    except ImportError:
        raise DataError(
            "--vision-faces: OpenCV is not installed; run pip install 'mer[faces]', or give boxes "
            "with --vision-boxes"
        ) from None
    if not Path(model).is_file():
        raise DataError(
            f"--vision-faces {shown(model)}: no such file{near(model)}; it takes YuNet's .onnx file"
        )
    version = _version(model)
    if os.stat(model).st_size > DETECTOR_BYTES:
        raise DataError(
            f"--vision-faces {shown(model)}: not a YuNet model (more than {amount(DETECTOR_BYTES)})"
        )
    try:
        return _detector(model, version)
    except cv2.error as error:
        said = first_line(getattr(error, "err", "") or error)
        raise DataError(f"--vision-faces {shown(model)}: not a YuNet model ({said})") from None


@lru_cache(maxsize=1)
def _detector(model: str, version: tuple[int, ...]) -> Any:
    """Tried on a picture, for a file of another network is loaded without a word. It is handed over
    as bytes, for a name that is no UTF-8 ends the process. Raises cv2.error.
    """
    import cv2

    cv2.setNumThreads(1)  # there are as many decoding processes as there are cores
    logging = cv2.utils.logging
    level = logging.setLogLevel(logging.LOG_LEVEL_SILENT)  # it writes to stderr by itself
    try:
        weights = np.fromfile(model, np.uint8)
        none = np.empty(0, np.uint8)
        black = np.zeros((DETECTED_PIXELS, DETECTED_PIXELS, 3), np.uint8)
        detector = cv2.FaceDetectorYN.create("onnx", weights, none, black.shape[:2], SCORE)
        detector.detect(black)
    finally:
        logging.setLogLevel(level)
    return detector


# --- boxes in files


def boxes_for(source: str, id: str, media: str) -> tuple[Box, ...]:
    """The boxes of an utterance, ascending in time.

    Args:
        source: A table (csv, tsv) with the columns id, time, x, y, w, h; or a folder of OpenFace's
            csv files. Ids and names of files are those of utterances, or else of media files
            without their endings.
        id: Of the utterance.
        media: The path of its media file.

    Raises:
        DataError: There is no such file, or it is no such table.
    """
    return (_told(source, id, media) or NOTHING_TOLD).boxes


def boxes_digest(source: str, id: str, media: str) -> str:
    """The sha256 of the boxes of an utterance.

    Arguments and errors are those of `boxes_for`.
    """
    return (_told(source, id, media) or NOTHING_TOLD).digest


def has_boxes(source: str, id: str, media: str) -> bool:
    """Whether anything is said of an utterance there, be it that no face was found.

    Arguments and errors are those of `boxes_for`.
    """
    return _told(source, id, media) is not None


def _told(source: str, id: str, media: str) -> Told | None:
    """None where nothing is said of the utterance."""
    names = (id, Path(media).stem)
    if not Path(source).is_dir():
        table = _table(source, _version(source))
        return next((table[name] for name in names if name in table), None)
    for name in names:
        path = Path(source) / f"{name}.csv"
        if "/" not in name and path.is_file():
            return _openface(str(path), _version(path))
    return None


def _version(path: str | Path) -> tuple[int, int, int]:
    """A file that keeps it is not read twice. Raises DataError."""
    try:
        return identity(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None


@lru_cache(maxsize=4)
def _table(source: str, version: tuple[int, ...]) -> Mapping[str, Told]:
    table = _read(Path(source), COLUMNS)
    found: dict[str, list[Box]] = {}
    for row, (id, *numbers) in enumerate(zip(*table, strict=True)):
        found.setdefault(str(id), []).append(_box(source, row, numbers))
    return {id: Told(tuple(sorted(boxes))) for id, boxes in found.items()}


def _box(source: str, row: int, numbers: Sequence[Any]) -> Box:
    try:
        box = Box(*map(float, numbers))
    except (TypeError, ValueError):
        place = f"{source}: line {_line(source, row)}"
        raise DataError(f"{place}: time, x, y, w or h is no number") from None
    if not all(map(math.isfinite, box)) or box.w <= 0 or box.h <= 0 or box.time < 0:
        said = ", ".join(f"{number:g}" for number in box)
        raise DataError(
            f"{source}: line {_line(source, row)}: no box (time, x, y, w, h: {said}); sizes are "
            "above 0, times from 0"
        )
    return box


def _line(source: str, row: int) -> int:
    """Where a row below the header begins, as an editor counts: Arrow passes over empty lines."""
    with open(source, encoding="utf-8-sig") as file:
        filled = (number for number, line in enumerate(file, start=1) if line.strip("\r\n"))
        above = 1 + bool(dialect(Path(source), known=COLUMNS).skipped)  # the header, and `sep=;`
        return next(islice(filled, row + above, None))


@lru_cache(maxsize=256)
def _openface(source: str, version: tuple[int, ...]) -> Told:
    """The boxes around the landmarks in a file of OpenFace's; frames without success are left out.

    Raises DataError for what is no such file.
    """
    names = [f"{axis}_{number}" for axis in "xy" for number in range(LANDMARKS)]
    timestamp, success, *points = _read(Path(source), ("timestamp", "success", *names))
    try:
        times = np.array(timestamp, np.float64)
        places = np.array(points, np.float64).reshape(2, LANDMARKS, -1)
        seen = np.array(success, np.float64) == 1
    except (TypeError, ValueError):
        raise DataError(f"{source}: a timestamp, success or landmark is no number") from None
    low, high = places.min(1), places.max(1)
    sizes = high - low
    good = seen & np.isfinite(times) & np.isfinite(places).all((0, 1)) & (sizes > 0).all(0)
    found = []
    for at in np.flatnonzero(good):
        found.append(Box(float(times[at]), *map(float, low[:, at]), *map(float, sizes[:, at])))
    return Told(tuple(sorted(found)))


def _read(path: Path, columns: Sequence[str]) -> list[list]:
    """These columns of a csv or tsv, blanks around their names aside. Raises DataError."""
    import pyarrow as pa
    from pyarrow import csv

    try:
        if not path.is_file():
            raise DataError(f"{path}: no such table of boxes")
        if path.stat().st_size > TABLE_BYTES:
            raise DataError(f"{path}: more than {TABLE_BYTES:,} bytes")
        form = dialect(path, known=columns) if path.stat().st_size else Dialect(",", ())
        names = form.header
        twice = [name for name in columns if names.count(name) > 1]
        if twice:
            raise DataError(f"{path}: two columns are called {twice[0]}")
        absent = [name for name in columns if name not in names]
        if absent:
            there = listed(names, 4) or "none"
            raise DataError(
                f"{path}: no column {shown(absent[0])} among {there}; a table of boxes has "
                f"{', '.join(COLUMNS)}, OpenFace's files timestamp, success, x_0 …"
            )
        reading = csv.ReadOptions(column_names=list(names), skip_rows=form.skipped)
        kinds = {name: pa.string() for name in columns}
        converting = csv.ConvertOptions(include_columns=list(columns), column_types=kinds)
        table = csv.read_csv(path, reading, csv.ParseOptions(delimiter=form.delimiter), converting)
    except (OSError, UnicodeDecodeError, pa.ArrowException, ValueError) as error:
        if isinstance(error, DataError):
            raise
        said = first_line(error)
        raise DataError(f"{path}: not a readable table ({said})") from None
    return [[value.strip() for value in table[name].to_pylist()[1:]] for name in columns]
