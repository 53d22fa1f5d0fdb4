"""Media file → the pictures that a player shows at evenly spaced moments, as RGB.

The time line is that of the sound: seconds from the container's own start. A moment shows the last
frame whose time stamp is not after it; before the first frame it is the first. Pictures come out
as they are meant to be looked at: turned by the display matrix, with square pixels, in full-range
RGB by the frame's own matrix and range (BT.601 where it names none, as ffmpeg does). Interlaced
frames stay as decoded.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mer.pipeline.media.audio import check_file, span_of
from mer.pipeline.media.containers import look
from mer.pipeline.media.faces import Crop, cut
from mer.pipeline.media.readers import (
    FFMPEG_TICKS_HZ,
    GAP_SECONDS,
    MediaError,
    one_line,
    open_container,
    open_source,
    packets_of,
    pick_track,
)
from mer.pipeline.media.stages import Stage
from mer.pipeline.runtime.files import identity
from mer.pipeline.runtime.limits import MEDIA_FRAME_PIXELS, MEDIA_FRAMES

# A time stamp that is later than a moment by no more than this is not after it: sums of fractions.
ROUNDING_SECONDS = 1e-6
# Nearer than this to the beginning of a file it is decoded from there, with no jump.
JUMP_SECONDS = 5.0
# Demuxers that know where their key frames are, and give every packet its time of presentation.
INDEXED = {"mov", "matroska"}
# Codecs of which a container marks no key frame, or the first alone: each picture is drawn onto the
# one before, so that they are decoded from the beginning.
UNMARKED = {"gif"}
# Of packets that are kept from the look at their time stamps until they are decoded, so that a clip
# is opened and read once.
KEPT_BYTES = 32 << 20
FILMS_REMEMBERED = 4096  # by a decoding process: two numbers each
NO_PICTURES = np.empty((0, 0, 0, 3), np.uint8)

__all__ = ["Picture", "PicturesInfo", "Wanted", "count", "load", "probe", "streams", "take"]


@dataclass(frozen=True, slots=True)
class Picture:
    """What is shown at a moment.

    Attributes:
        time: The moment, in seconds on the file's time line.
        shown: The time stamp of the frame, likewise.
        pixels: (height, width, 3) uint8, RGB.
    """

    time: float
    shown: float
    pixels: np.ndarray


@dataclass(frozen=True, slots=True)
class PicturesInfo:
    """How many pictures a part of a file gives.

    Attributes:
        count: Moments; 0 where there is no picture there.
        begin: When the first frame is shown, in seconds on the file's time line.
        end: When the last one ends.
    """

    count: int
    begin: float = 0.0
    end: float = 0.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """The pictures of a part of a file that somebody wants, and what becomes of each.

    Attributes:
        fps: Moments in a second.
        first: The first one that is wanted, from 0.
        most: How many are wanted; None: all.
        crop: What is kept of each.
        with_sound: The sound that they belong to is in the same file: where the part has no end of
            its own, it is noted if the two do not end together.
        finish: (height, width, 3) uint8 → what is handed over. A function or object that can be
            pickled, for it may run in another process.
    """

    fps: float
    first: int = 0
    most: int | None = None
    crop: Crop = Crop()
    with_sound: bool = False
    finish: Callable[[np.ndarray], np.ndarray] | None = None


def count(seconds: float, fps: float) -> int:
    """Moments in so many seconds: the middles of intervals of 1 / fps that lie within, at least
    one.
    """
    return max(1, math.ceil(round(seconds * fps - 0.5, 6)))


def moments(start: float, seconds: float, fps: float, total: int) -> list[float]:
    """The moments, in seconds on the file's time line: the middle of each interval, or of a part
    that is shorter than half an interval.
    """
    if total == 1 and seconds * fps < 0.5:
        return [start + seconds / 2]
    return [start + (k + 0.5) / fps for k in range(total)]


def probe(
    path: str | os.PathLike, *, fps: float, start: float | None = None, end: float | None = None
) -> PicturesInfo:
    """How many pictures `load` would return; no picture is an answer, too.

    The time stamps of packets tell it where the container has one for each; else the frames are
    decoded.

    Args:
        path: A media file.
        fps: Moments in a second.
        start: Where the part begins, in seconds on the file's time line; None is its beginning.
        end: Where it ends, likewise; None is the end of the picture.

    Returns:
        The count; 0 for a file without a picture, or whose picture ends before `start`.

    Raises:
        MediaError: The file cannot be read, is cut off, or its picture is damaged.
    """
    with _Film.opened(Path(path)) as film:
        return _probe(film, fps, start, end)


def _probe(film: _Film, fps: float, start: float | None, end: float | None) -> PicturesInfo:
    begin, behind, _ = span_of(film.path, start, end)
    if film.stream is None:
        return PicturesInfo(0)
    first, last = film.extent()
    seconds = min(last, math.inf if behind is None else behind) - begin
    if seconds <= 0:
        return PicturesInfo(0, first, last)
    if seconds * fps > MEDIA_FRAMES:
        raise MediaError(
            f"{film.path}: more than {MEDIA_FRAMES:,} pictures; give start and end to cut it, or "
            "a lower --vision-fps",
            Stage.TOO_LONG,
        )
    return PicturesInfo(count(seconds, fps), first, last)


def streams(path: str | os.PathLike) -> tuple[bool, bool]:
    """Whether a file has sound, and whether it has a picture; nothing is decoded.

    Args:
        path: A media file.

    Returns:
        (sound, picture); covers of albums are no pictures.

    Raises:
        MediaError: The file cannot be read or is cut off.
    """
    with _Film.opened(Path(path)) as film:
        if film.container is None:  # of a kind that holds nothing but sound
            return True, False
        return bool(film.container.streams.audio), film.stream is not None


def load(
    path: str | os.PathLike,
    *,
    fps: float,
    start: float | None = None,
    end: float | None = None,
    first: int = 0,
    most: int | None = None,
) -> Generator[Picture, None, None]:
    """The pictures of a file, or of a part of it, one at a time.

    Args:
        path: As for `probe`.
        fps: As for `probe`.
        start: As for `probe`.
        end: As for `probe`.
        first: The first moment that is wanted, from 0.
        most: How many are wanted; None: all.

    Yields:
        The pictures in order: as many as `probe` says.

    Raises:
        MediaError: As for `probe`; and a picture that is wanted, or one that it is made from,
            cannot be decoded.
    """
    wanted = Wanted(fps, first, most)
    with _Film.opened(Path(path)) as film:
        info = _probe(film, fps, start, end)
        yield from _shown(film, _times(film.path, info, wanted, start, end))


def _times(
    path: Path, info: PicturesInfo, wanted: Wanted, start: float | None, end: float | None
) -> list[float]:
    """The moments that are wanted, in seconds on the file's time line."""
    if not info.count:
        return []
    begin, behind, _ = span_of(path, start, end)
    seconds = min(info.end, math.inf if behind is None else behind) - begin
    times = moments(begin, seconds, wanted.fps, info.count)
    return times[wanted.first : None if wanted.most is None else wanted.first + wanted.most]


def take(
    path: str | os.PathLike, wanted: Wanted, *, start: float | None, end: float | None
) -> tuple[np.ndarray, int, tuple[str, ...]]:
    """The pictures that are wanted, cropped and finished.

    Args:
        path: As for `probe`.
        wanted: Which, and what becomes of them.
        start: As for `probe`.
        end: As for `probe`.

    Returns:
        The pictures, one behind the other; how many the part has in all; names of `stages.Flag`.

    Raises:
        MediaError: As for `load` and `faces.cut`; or they come out in several sizes.
    """
    path = Path(path)
    found: list[np.ndarray] = []
    with _Film.opened(path) as film:
        info = _probe(film, wanted.fps, start, end)
        flags = flags_of(info, start, end, wanted.fps)
        for picture in _shown(film, _times(path, info, wanted, start, end)):
            pixels, is_there = cut(path, picture.pixels, picture.time, wanted.crop)
            if not is_there and "no_face" not in flags:
                flags.append("no_face")
            found.append(pixels if wanted.finish is None else wanted.finish(pixels))
    if end is None and wanted.with_sound and wanted.first == 0 and info.count:
        flags += _flags_beside_sound(info, _end_of_sound(path), wanted.fps)
    if len({one.shape for one in found}) > 1:
        raise MediaError(f"{path}: its pictures have several sizes", Stage.DECODE)
    return np.stack(found) if found else NO_PICTURES, info.count, tuple(flags)


def _shown(film: _Film, times: list[float]) -> Iterator[Picture]:
    """What is shown at each of the times, which ascend, of a film that has been probed: from the
    packets that are at hand; or after a jump to the key frame before them, where the file can be
    trusted to have found it; else from the beginning of the file.
    """
    if not times:
        return
    is_far = times[0] > JUMP_SECONDS
    if film.packets is not None and not is_far:
        yield from _from_the_first(film, times)
        return
    path = film.path
    film.close()
    if is_far:
        with _Film.opened(path) as film:
            if film.jump(times[0]):
                frames = film.frames()
                time, frame = next(frames, (0.0, None))
                if frame is not None and time <= times[0]:
                    yield from _chosen(film, frame, frames, times)
                    return
    with _Film.opened(path) as film:
        yield from _from_the_first(film, times)


def _from_the_first(film: _Film, times: list[float]) -> Iterator[Picture]:
    frames = film.frames()
    _, frame = next(frames, (0.0, None))
    if frame is None:
        raise MediaError(f"{film.path}: no picture can be decoded", Stage.DECODE)
    yield from _chosen(film, frame, frames, times)


def _chosen(film: _Film, frame: Any, frames: Iterator, times: list[float]) -> Iterator[Picture]:
    """The last frame that is not after each of the times, `frame` being the first of all."""
    wanted = iter(times)
    time: float | None = next(wanted)
    for shown, following in frames:
        while time is not None and shown > time + ROUNDING_SECONDS:
            yield film.picture(frame, time)
            time = next(wanted, None)
        if time is None:
            return
        frame = following
    while time is not None:
        yield film.picture(frame, time)
        time = next(wanted, None)


@dataclass
class _Film:
    """A file that is open, and its picture; `stream` is None where it has none.

    A context manager: leaving it closes the file. `packets` holds those of the picture once
    `extent` has read them, unless there are too many.
    """

    path: Path
    container: Any = None
    stream: Any = None
    origin: float = 0.0  # of the time line, on the container's clock in seconds
    last: tuple[Any, np.ndarray] | None = None  # the frame that was made into a picture, and that
    packets: list[Any] | None = None

    @classmethod
    def opened(cls, path: Path) -> _Film:
        """Raises MediaError for what is no media file or is cut off."""
        check_file(path)
        try:
            found = look(path)
        except OSError as error:
            raise MediaError(f"{path}: {error.strerror or error}", Stage.OPEN) from None
        source = open_source(path, found)
        if source.header is not None:  # libsndfile's formats hold sound only
            source.header.close()
            return cls(path)
        if found.parts:  # streams of sound, one behind the other
            return cls(path)
        container = open_container(path, None)
        film = cls(path, container, _picture_stream(container))
        film.origin = (container.start_time or 0) / FFMPEG_TICKS_HZ
        if film.stream is not None:
            try:
                film._configure()
            except BaseException:
                container.close()
                raise
        return film

    def _configure(self) -> None:
        context = self.stream.codec_context
        if context is None:
            raise MediaError(
                f"{self.path}: its picture is of a kind that cannot be decoded", Stage.DECODE
            )
        _check_pixels(self.path, context.width, context.height)
        context.thread_count = 1
        context.options = {"max_pixels": str(MEDIA_FRAME_PIXELS)}

    def __enter__(self) -> _Film:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Also where it is closed already."""
        self.packets = None
        if self.container is not None:
            self.container.close()
            self.container = None

    def jump(self, time: float) -> bool:
        """Go to the key frame at or before `time`; whether that can be relied on here."""
        import av

        if not self._indexed or self._unmarked:
            return False
        ticks = math.floor((time + self.origin) / self.stream.time_base)
        try:
            self.container.seek(ticks, backward=True, any_frame=False, stream=self.stream)
        except (av.error.FFmpegError, OSError):
            return False
        return True

    @property
    def _indexed(self) -> bool:
        return bool(INDEXED & set(self.container.format.name.split(",")))

    @property
    def _unmarked(self) -> bool:
        return self.stream.codec_context.name in UNMARKED

    def time(self, frame: Any) -> float:
        """When a frame is shown, in seconds on the file's time line."""
        stamp = frame.pts if frame.pts is not None else frame.dts
        if stamp is None:
            raise MediaError(f"{self.path}: its pictures have no time stamps", Stage.DECODE)
        return self._seconds(stamp, frame)

    def _seconds(self, stamp: int, of: Any) -> float:
        base = of.time_base  # integers divide to the nearest float, as their fraction would
        return stamp * base.numerator / base.denominator - self.origin

    def frames(self) -> Generator[tuple[float, Any], None, None]:
        """Every frame and its time, in order of presentation.

        What comes before the first key frame is left out: a file that was cut without decoding
        begins so. Raises MediaError for a packet or frame that is damaged.
        """
        import av

        # times of the first key frame, and of the last frame
        key, latest = -math.inf if self._unmarked else math.inf, -math.inf
        try:
            for packet in self.packets or packets_of(self.container, self.stream):
                if packet.is_keyframe and key == math.inf:
                    at = packet.pts if packet.pts is not None else packet.dts
                    key = -math.inf if at is None else self._seconds(at, packet)
                try:
                    frames = packet.decode()
                except av.error.FFmpegError:
                    if key < math.inf:
                        raise
                    continue
                for frame in frames:
                    time = self.time(frame)
                    if time < key - ROUNDING_SECONDS or time <= latest:
                        continue
                    if frame.is_corrupt:
                        raise MediaError(
                            f"{self.path}: damaged picture at {time:.3f} s", Stage.DECODE
                        )
                    latest = time
                    yield time, frame
        except (av.error.FFmpegError, OSError, ValueError) as error:
            where = f"after {latest:.3f} s" if latest > -math.inf else "at its beginning"
            raise MediaError(
                f"{self.path}: damaged picture {where} ({one_line(error)})", Stage.DECODE
            ) from None

    def extent(self) -> tuple[float, float]:
        """When the first frame is shown and the last one ends, in seconds on the time line.

        Only a small file with an index is read for it each time: then its packets are at hand.
        """
        version = identity(self.path)
        _, size, _ = version
        if self._indexed and size <= KEPT_BYTES:
            found = self._extent_of_packets()
            if found is not None:
                return found
        return _extent(self.path, version)

    def read_extent(self) -> tuple[float, float]:
        """As `extent`, by reading the whole file, which then stands at its end."""
        if self._indexed:
            found = self._extent_of_packets()
            if found is not None:
                return found
            self.container.seek(0)
        first, last = math.inf, -math.inf
        with closing(self.frames()) as frames:
            for time, frame in frames:
                first = min(first, time)
                length = float((frame.duration or 0) * frame.time_base)
                last = max(last, time + (length or self._usual_length))
        if first == math.inf:
            raise MediaError(f"{self.path}: no picture can be decoded", Stage.DECODE)
        return first, last

    def _extent_of_packets(self) -> tuple[float, float] | None:
        """As `extent`, from time stamps; None where a packet has none."""
        import av

        first, last = math.inf, -math.inf
        kept: list[Any] = []
        size = 0
        try:
            for packet in packets_of(self.container, self.stream):
                size += packet.size
                if size <= KEPT_BYTES:
                    kept.append(packet)
                if packet.size == 0 or packet.is_discard:
                    continue
                if packet.pts is None:
                    return None
                time = self._seconds(packet.pts, packet)
                length = float((packet.duration or 0) * packet.time_base)
                first = min(first, time)
                last = max(last, time + (length or self._usual_length))
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise MediaError(
                f"{self.path}: cannot be read ({one_line(error)})", Stage.DECODE
            ) from None
        if first == math.inf:
            return None
        self.packets = kept if size <= KEPT_BYTES else None
        return first, last

    @property
    def _usual_length(self) -> float:
        """Of a frame, in seconds, where it does not say itself."""
        rate = self.stream.average_rate
        return float(1 / rate) if rate else 0.0

    def picture(self, frame: Any, time: float) -> Picture:
        """A frame as it is to be looked at; the one before is kept, for slow films."""
        import av

        shown = self.time(frame)
        if self.last is None or self.last[0] is not frame:
            try:
                pixels = _rgb(self.path, frame, self.stream)
            except (av.error.FFmpegError, OSError, ValueError) as error:
                raise MediaError(
                    f"{self.path}: picture at {shown:.3f} s cannot be converted "
                    f"({one_line(error)})",
                    Stage.DECODE,
                ) from None
            self.last = frame, pixels
        return Picture(time, shown, self.last[1])


@lru_cache(maxsize=FILMS_REMEMBERED)
def _extent(path: Path, version: tuple[int, int, int]) -> tuple[float, float]:
    """As `_Film.extent`, remembered: a corpus may have thousands of utterances in one film.

    `version` is the `identity` of the file.
    """
    with _Film.opened(path) as film:
        return film.read_extent()


def _picture_stream(container: Any) -> Any:
    """The default video stream by its disposition, else the first; covers of albums are none."""
    import av

    kind = av.stream.Disposition
    still = kind.attached_pic | kind.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & still]
    marked = [stream for stream in streams if stream.disposition & kind.default]
    return next(iter(marked or streams), None)


def _check_pixels(path: Path, width: int, height: int) -> None:
    if width * height > MEDIA_FRAME_PIXELS:
        raise MediaError(
            f"{path}: pictures of {width} x {height}, more than {MEDIA_FRAME_PIXELS:,} pixels",
            Stage.TOO_LONG,
        )


def _rgb(path: Path, frame: Any, stream: Any) -> np.ndarray:
    """(height, width, 3) uint8, with square pixels and the right side up."""
    from av.video.reformatter import ColorRange, Interpolation

    ratio = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    width = max(1, round(frame.width * ratio)) if ratio else frame.width
    _check_pixels(path, width, frame.height)
    matrix = _display_matrix(frame)
    if _is_deep(frame.format):
        # The two formats of one film then give the same picture: swscale places chroma otherwise
        # where it reduces depth and changes matrix in one step.
        frame = frame.reformat(format=_eight_bits(frame.format), threads=1)
    picture = frame.reformat(
        format="rgb24",
        interpolation=Interpolation.BICUBIC,
        dst_color_range=ColorRange.JPEG,
        threads=1,
    )
    if width != frame.width:
        picture = picture.reformat(width=width, interpolation=Interpolation.BICUBIC, threads=1)
    return _turned(picture.to_ndarray(), matrix)


def _is_deep(form: Any) -> bool:
    """Whether a pixel format is YUV of more than 8 bits."""
    is_yuv = len(form.components) >= 3 and not form.is_rgb
    return is_yuv and form.components[0].bits > 8


def _eight_bits(form: Any) -> str:
    """The format of 8 bits with the same subsampling of chroma."""
    luma, chroma = form.components[:2]
    if chroma.width == luma.width:
        return "yuv444p"
    return "yuv422p" if chroma.height == luma.height else "yuv420p"


def _display_matrix(frame: Any) -> tuple[int, int, int, int] | None:
    """(a, b, c, d) of a frame's display matrix: where its axes point, ±1 or 0 each."""
    from av.sidedata.sidedata import Type

    if Type.DISPLAYMATRIX not in {data.type for data in frame.side_data}:
        return None
    a, b, _, c, d = struct.unpack("=9i", bytes(frame.side_data[Type.DISPLAYMATRIX]))[:5]
    scale = max(abs(a), abs(b), abs(c), abs(d)) or 1
    a, b, c, d = (round(value / scale) for value in (a, b, c, d))
    # A turn that is no multiple of 90° is left alone: its corners would lie outside the picture.
    return (a, b, c, d) if abs(a * d - b * c) == 1 else None


def _turned(pixels: np.ndarray, matrix: tuple[int, int, int, int] | None) -> np.ndarray:
    """The picture after a display matrix: a point (x, y) goes to (ax + cy, bx + dy)."""
    if matrix is None:
        return pixels
    a, b, c, d = matrix
    if a == d == 0:
        pixels = pixels.swapaxes(0, 1)
        a, d = c, b  # of the columns and rows as they lie now
    return np.ascontiguousarray(pixels[:: d or 1, :: a or 1])


def flags_of(info: PicturesInfo, start: float | None, end: float | None, fps: float) -> list[str]:
    """Names of `stages.Flag` that a part of a file deserves by its time line."""
    begin = max(0.0, start or 0.0)
    flags = []
    if info.count and info.begin - begin > max(GAP_SECONDS, 0.5 / fps):
        flags.append("picture_late")
    if end is not None and end - info.end > max(GAP_SECONDS, 1 / fps):
        flags.append("picture_short")
    return flags


def _flags_beside_sound(info: PicturesInfo, sound_end: float | None, fps: float) -> list[str]:
    """Names of `stages.Flag` where the picture does not end with its sound, by more than an
    interval.
    """
    if sound_end is None:
        return []
    tolerance = max(GAP_SECONDS, 1 / fps)
    if sound_end - info.end > tolerance:
        return ["picture_short"]
    return ["picture_long"] if info.end - sound_end > tolerance else []


def _end_of_sound(path: Path) -> float | None:
    """When the default sound of a file ends, in seconds on its time line, by the time stamps of its
    packets; None where it has none, or they cannot be read, which is for the sound's decoder to
    tell.
    """
    import av

    found = -math.inf
    try:
        with _Film.opened(path) as film:
            if film.container is None:
                return None
            for packet in packets_of(film.container, pick_track(path, film.container, "auto")):
                stamp = packet.pts if packet.pts is not None else packet.dts
                if stamp is not None:
                    length = float((packet.duration or 0) * packet.time_base)
                    found = max(found, film._seconds(stamp, packet) + length)
    except (MediaError, av.error.FFmpegError, OSError, ValueError):
        return None
    return found if found > -math.inf else None
