"""MP3, MP2, AAC in ADTS and AC-3, frame after frame: how many there are, and whether the last one
is whole.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from mer.pipeline.media.looks import NEW, NO_LENGTH, SEVERAL, Look
from mer.pipeline.runtime.limits import MEDIA_CHUNKS, MEDIA_SCANNED_BYTES

FIRST_FRAME_BYTES = 64 * 1024  # searched for the first frame of an MP3 or AAC stream
BIT_RATES = {  # kbit/s by index, of MPEG-1 layer III and II, and of both in MPEG-2
    (3, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (3, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (2, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}  # fmt: skip
LAYER_BITS = {3: 0x02, 2: 0x04}  # of a header's second byte
AC3_BIT_RATES = (  # kbit/s by index
    32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 576, 640,
)  # fmt: skip
TAIL_BYTES = 160  # behind a single frame, where a tag may stand
SAMPLE_RATES = (44_100, 48_000, 32_000)  # Hz by index, of MPEG-1


@dataclass(frozen=True, slots=True)
class _Frame:
    """What a frame's header says: its length in bytes, its samples, and what does not change within
    a stream.
    """

    length: int
    samples: int
    settings: tuple


def _mp3_frame(data: bytes, at: int) -> _Frame | None:
    """The frame of MPEG layer III at `at`, if there is one."""
    return _mpeg_frame(data, at, 3)


def _mp2_frame(data: bytes, at: int) -> _Frame | None:
    """The frame of MPEG layer II at `at`, if there is one."""
    return _mpeg_frame(data, at, 2)


def _mpeg_frame(data: bytes, at: int, layer: int) -> _Frame | None:
    if at + 4 > len(data) or data[at] != 0xFF or data[at + 1] & 0xE6 != 0xE0 | LAYER_BITS[layer]:
        return None
    version = data[at + 1] >> 3 & 3  # 0: 2.5, 2: 2, 3: 1
    index, rate = data[at + 2] >> 4, data[at + 2] >> 2 & 3
    if version == 1 or rate == 3 or index in (0, 15):
        return None
    hertz = SAMPLE_RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
    samples = 1152 if version == 3 or layer == 2 else 576
    kbits = BIT_RATES[max(version, 2), layer][index]
    length = samples // 8 * kbits * 1000 // hertz + (data[at + 2] >> 1 & 1)
    return _Frame(length, samples, (version, hertz, data[at + 3] >> 6 == 3))


def _adts_frame(data: bytes, at: int) -> _Frame | None:
    """The frame of AAC in ADTS at `at`, if there is one."""
    if at + 7 > len(data) or data[at] != 0xFF or data[at + 1] & 0xF6 != 0xF0:
        return None
    length = (data[at + 3] & 3) << 11 | data[at + 4] << 3 | data[at + 5] >> 5
    if length < 7 or not data[at + 2] >> 2 & 15 < 13:
        return None
    return _Frame(length, 1024, (data[at + 2] & 0xFD,))


def _ac3_frame(data: bytes, at: int) -> _Frame | None:
    """The frame of AC-3 or E-AC-3 at `at`, if there is one (ATSC A/52 sections 5.4.1 and
    E.2.3.1).
    """
    if at + 8 > len(data) or data[at : at + 2] != b"\x0b\x77":
        return None
    rate, size, edition = data[at + 4] >> 6, data[at + 4] & 63, data[at + 5] >> 3
    if edition > 10:  # E-AC-3
        return _Frame(2 * ((data[at + 2] & 7) << 8 | data[at + 3]) + 2, 1536, ())
    if rate == 3 or size > 37:
        return None
    kbits = AC3_BIT_RATES[size >> 1]
    words = {0: 2 * kbits, 1: kbits * 96_000 // 44_100 + (size & 1), 2: 3 * kbits}[rate]
    return _Frame(2 * words, 1536, (rate,))


def look_at_frames(file: BinaryIO, size: int, begin: int) -> Look:
    """MP3, ADTS and AC-3: walk from frame to frame. Exact for an MP3 whose Xing or Info header
    counts the frames that are there.
    """
    if size > MEDIA_SCANNED_BYTES:
        return Look("", why=NO_LENGTH)
    file.seek(begin)
    data = file.read()
    for kind, frame_at in FRAME_KINDS:
        at = _first_frame(data, frame_at)
        if at is not None:
            return _look_from(kind, data, at, frame_at)
    return Look("")


FrameAt = Callable[[bytes, int], _Frame | None]
FRAME_KINDS: tuple[tuple[str, FrameAt], ...] = (
    ("mp3", _mp3_frame),
    ("aac", _adts_frame),
    ("ac3", _ac3_frame),
    ("mp2", _mp2_frame),
)


def _first_frame(data: bytes, frame_at: FrameAt) -> int | None:
    """Where the first frame that others follow begins."""
    for at in range(min(len(data), FIRST_FRAME_BYTES)):
        if data[at] not in (0xFF, 0x0B):
            continue
        first = frame_at(data, at)
        if first is None:
            continue
        behind = at + first.length
        followed = frame_at(data, behind) or behind >= len(data) - TAIL_BYTES
        if followed and (at == 0 or _run(data, at, frame_at, 4)):
            return at
    return None


def _run(data: bytes, at: int, frame_at: FrameAt, count: int) -> bool:
    """Whether `count` frames follow one another from `at` on."""
    for _ in range(count):
        frame = frame_at(data, at)
        if frame is None:
            return False
        at += frame.length
    return True


@dataclass
class _FrameWalk:
    """What was met on the way from frame to frame; places and lengths in bytes."""

    begin: int
    end: int  # of the audio, before tags
    parts: list[int]  # where settings change
    frames: int = 0
    broken: bool = False  # something else stands between frames
    beyond: int = 0  # by which the last frame ends behind the end


def _walk(data: bytes, begin: int, first: _Frame, frame_at: FrameAt) -> _FrameWalk:
    """Walk from frame to frame. An AAC decoder takes the settings of a stream's first frame for
    all, so it matters where they change.
    """
    walk = _FrameWalk(begin, _without_tags(data), [0])
    at, settings = begin, first.settings
    while at < walk.end:
        frame = frame_at(data, at)
        if frame is None:
            walk.broken, at = True, _resync(data, at + 1, walk.end, frame_at)
            continue
        if frame.settings != settings and _run(data, at, frame_at, 3):
            walk.broken, settings = True, frame.settings
            walk.parts.append(at)
        if at + frame.length > walk.end:
            rest = data[walk.end : at + frame.length]
            if at + frame.length > len(data) or rest.strip(b"\0"):  # not only zeros at its end
                walk.beyond = at + frame.length - walk.end
            break
        walk.frames += 1
        at += frame.length
    return walk


def _look_from(kind: str, data: bytes, at: int, frame_at: FrameAt) -> Look:
    """The look at a stream whose first frame begins at `at`."""
    first = frame_at(data, at)
    assert first is not None
    claimed, claimed_bytes = None, None
    if kind == "mp3":
        claimed, claimed_bytes = _mp3_header(data[at : at + first.length])
    walk = _walk(data, at, first, frame_at)
    counted = walk.frames - (claimed is not None)
    missing = _missing_frames(walk, counted, claimed, claimed_bytes, first.length)
    if missing:
        return Look(kind, missing=missing)
    if kind in ("ac3", "mp2"):
        return Look(kind, why=NEW if kind == "ac3" else None)
    if kind == "aac":
        parts: tuple[tuple[int, int], ...] = ()
        if 1 < len(walk.parts) < MEDIA_CHUNKS:
            parts = tuple(zip(walk.parts, [*walk.parts[1:], len(data)], strict=True))
        return Look(kind, why=SEVERAL if walk.broken else None, parts=parts)
    exact = claimed == counted and not walk.broken
    return Look(kind, exact=exact, why=None if exact else NO_LENGTH)


def _missing_frames(
    walk: _FrameWalk, counted: int, claimed: int | None, claimed_bytes: int | None, length: int
) -> str | None:
    """What says that a stream is cut off, if anything; `length` is that of its first frame."""
    if claimed is not None and claimed - counted > 2:
        if claimed_bytes is None:
            cut_off = walk.beyond > 0
        else:
            cut_off = walk.begin + claimed_bytes - walk.end > 2 * length
        if cut_off:
            return f"{counted:,} of {claimed:,} frames are there"
    if walk.beyond and walk.begin == 0 and not walk.broken:
        if claimed is None or counted < claimed:
            return f"its last frame ends {walk.beyond:,} bytes behind the end of the file"
    return None


def _resync(data: bytes, at: int, end: int, frame_at: FrameAt) -> int:
    """Where frames go on behind something else."""
    sync = b"\x0b\x77" if frame_at is _ac3_frame else b"\xff"
    while 0 <= (at := data.find(sync, at, end)):
        if _run(data, at, frame_at, 2):
            return at
        at += 1
    return end


def _mp3_header(frame: bytes) -> tuple[int | None, int | None]:
    """(frames, bytes) that a Xing, Info or VBRI header claims."""
    for name in (b"Xing", b"Info"):
        at = frame.find(name, 4, 60)
        if at >= 0 and len(frame) >= at + 16:
            fields, one, two = struct.unpack(">III", frame[at + 4 : at + 16])
            if not fields & 1:
                return None, one if fields & 2 else None
            return one, two if fields & 2 else None
    if frame[36:40] == b"VBRI":
        size, frames = struct.unpack(">II", frame[46:54])
        return frames, size
    return None, None


MOST_TAGS = 8  # at the end of a file


def _without_tags(data: bytes) -> int:
    """Where the audio ends: before ID3v1, APE and Lyrics3 tags and padding."""
    end = len(data)
    for _ in range(MOST_TAGS):
        if data[end - 128 : end - 125] == b"TAG":
            end -= 128
        elif data[end - 32 : end - 24] == b"APETAGEX":
            size, _, flags = struct.unpack("<III", data[end - 20 : end - 8])
            end -= min(end, size + 32 * (flags >> 31))
        elif data[end - 9 : end] == b"LYRICS200" and data[end - 15 : end - 9].isdigit():
            end -= min(end, int(data[end - 15 : end - 9]) + 15)
        else:
            break
    return len(data[:end].rstrip(b"\0")) if data[end - 1 : end] == b"\0" else end
