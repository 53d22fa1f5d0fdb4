"""Media file → float32 mono waveform at 16 kHz, with its true decoded length.

WAV and FLAC headers give exact lengths; everything else is decoded to the end. The channel is
chosen before resampling, so that a 5.1 clip costs no more than a mono one. soundfile reads what
libsndfile knows, PyAV the rest (audio stream only) and every file with more than two channels whose
layout soundfile does not tell. All functions are top-level and their results picklable: they run in
worker processes.
"""

from __future__ import annotations

import math
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile

from mer.pipeline.errors import DataError

RATE = 16_000
CHANNELS = ("auto", "centre", "mix")  # or a channel's number, from 0
RATES = (1_000, 768_000)  # Hz; a header outside this range is damaged or hostile
MAX_HELD = 2**28  # samples of one channel held in memory: 1 GiB, 93 minutes at 48 kHz
BLOCK = 2**20  # samples over all channels decoded at a time
SOUNDFILE = {
    ".wav",
    ".flac",
    ".ogg",
    ".oga",
    ".opus",
    ".mp3",
    ".aiff",
    ".aif",
    ".au",
    ".w64",
    ".caf",
}
FLAC_LAYOUTS = {  # RFC 9639 table 14: FLAC fixes the order by the number of channels
    3: "FL FR FC", 4: "FL FR BL BR", 5: "FL FR FC BL BR", 6: "FL FR FC LFE BL BR",
    7: "FL FR FC LFE BC SL SR", 8: "FL FR FC LFE BL BR SL SR",
}  # fmt: skip
# Containers FFmpeg may open. Playlist formats (hls, concat) are left out: they would read other
# files and addresses.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,wav,w64,mp3,flac,ogg,aac,aiff,asf,flv,mpeg,mpegts,"
    "au,caf,amr"
)
CLIPPED = (0.999, 1e-3)  # "clipped": more than this share of the samples at or above this level
SILENT = 1e-4  # "silent": no sample above this level (-80 dB)
# samples by which an MP3 may be shorter than its header says: encoder delay and padding
MP3_SLACK = 2 * 1152
# seconds and share that may be missing against a container's own duration before it counts as
# truncated
SHORTFALL = (0.5, 0.1)


class MediaError(DataError):
    """`stage`: open | decode | truncated | empty | channel | rate | times | nan | too_long."""

    def __init__(self, message: str, stage: str = "decode"):
        super().__init__(message)
        self.stage = stage


@dataclass(frozen=True, slots=True)
class Clip:
    """`waveform` (n,) float32 mono at 16 kHz.

    `channel` is the one used, a name such as "FC", a number, or "mix". `flags`: resampled,
    rate_rounded, clipped, silent, start_clipped (a negative start), end_beyond (the file ends
    before `end`).
    """

    waveform: np.ndarray
    source_rate: int
    channels: int
    channel: str
    flags: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        return len(self.waveform) / RATE


@dataclass(frozen=True, slots=True)
class ClipInfo:
    """`samples` is exactly the length that `load` returns."""

    samples: int
    source_rate: int
    channels: int

    @property
    def seconds(self) -> float:
        return self.samples / RATE


def load(
    path: str | os.PathLike,
    *,
    channel: str = "auto",
    start: float | None = None,
    end: float | None = None,
) -> Clip:
    """The part of a file from `start` to `end` seconds as 16 kHz mono.

    Channel `auto` is the centre (FC) where the layout has one, else the mean of all; `centre`,
    `mix`, or a number from 0. Raises MediaError.
    """
    path = Path(path)
    start, end, flags = _span(path, start, end)
    pieces, held, used, first = [], 0, None, None
    with closing(_blocks(path, start)) as blocks:
        for rate, names, offset, block in blocks:
            first = first or (rate, names)
            if rate != first[0]:
                raise MediaError(
                    f"{path}: the sample rate changes inside the file from {first[0]} to {rate} Hz",
                    "decode",
                )
            a, b = _bounds(rate, start, end)
            block = (
                block[:, max(0, a - offset) : max(0, b - offset)]
                if b is not None
                else block[:, max(0, a - offset) :]
            )
            if block.shape[1]:
                used, mono = _pick(path, channel, names, block)
                pieces.append(mono)
                held += len(mono)
                if held > MAX_HELD:
                    raise MediaError(
                        f"{path}: more than {MAX_HELD / rate / 60:.0f} minutes; give start and "
                        "end to cut it",
                        "too_long",
                    )
            if b is not None and offset + block.shape[1] >= b and held >= b - a:
                break
    _check_span(path, first, held, start)
    rate, names = first
    a, b = _bounds(rate, start, end)
    if b is not None and held < b - a:
        flags.append("end_beyond")
    source = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    if not np.isfinite(source).all():
        raise MediaError(
            f"{path}: {np.count_nonzero(~np.isfinite(source))} of {len(source)} samples are NaN "
            "or infinite",
            "nan",
        )
    level, share = CLIPPED
    peak = float(np.abs(source).max())
    if peak >= level and np.count_nonzero(np.abs(source) >= level) > share * len(source):
        flags.append("clipped")
    if peak <= SILENT:
        flags.append("silent")
    if rate != RATE:
        flags.append("resampled")
        if _ratio(rate) != Fraction(RATE, rate):
            flags.append("rate_rounded")
    return Clip(_resample(source, rate), rate, len(names), used, tuple(flags))


def probe(
    path: str | os.PathLike, *, start: float | None = None, end: float | None = None
) -> ClipInfo:
    """What `load` would return, without holding it: from the header for WAV and FLAC, by decoding
    for the rest. Raises MediaError.
    """
    path = Path(path)
    start, end, _ = _span(path, start, end)
    header = _soundfile_header(path)
    if header is not None and header.format in (
        "WAV",
        "WAVEX",
        "FLAC",
        "RF64",
        "W64",
        "AIFF",
        "AU",
        "CAF",
    ):
        first, frames = (header.samplerate, ("",) * header.channels), header.frames
    else:
        first, frames = None, 0
        with closing(_blocks(path, 0.0)) as blocks:
            for rate, names, offset, block in blocks:
                first = first or (rate, names)
                frames = offset + block.shape[1]
                last = _bounds(rate, start, end)[1]
                if last is not None and frames >= last:
                    break
    rate, names = first or (RATE, ())
    a, b = _bounds(rate, start, end)
    held = max(0, min(frames, frames if b is None else b) - a)
    _check_span(path, first, held, start)
    if held > MAX_HELD:
        raise MediaError(
            f"{path}: more than {MAX_HELD / rate / 60:.0f} minutes; give start and end to cut it",
            "too_long",
        )
    return ClipInfo(resampled_length(held, rate), rate, len(names))


def resampled_length(n: int, rate: int) -> int:
    """Samples at 16 kHz of `n` samples at `rate` Hz: ceil, as torchaudio."""
    ratio = _ratio(rate)
    return -(-n * ratio.numerator // ratio.denominator)


def _ratio(rate: int) -> Fraction:
    """16 kHz / rate, exact for every usual rate.

    The resampling kernel grows with the product of both terms, so a header's 44,101 Hz would take
    gigabytes: such a ratio is rounded (relative error below 1e-4) and flagged.
    """
    return Fraction(RATE, rate).limit_denominator(1_000)


def _resample(source: np.ndarray, rate: int) -> np.ndarray:
    if rate == RATE:
        return np.ascontiguousarray(source, dtype=np.float32)
    import torch
    from torchaudio.functional import resample  # windowed sinc (Hann), width 6, roll-off 0.99

    ratio = _ratio(rate)
    with torch.inference_mode():
        return resample(
            torch.from_numpy(np.ascontiguousarray(source)), ratio.denominator, ratio.numerator
        ).numpy()


def _span(
    path: Path, start: float | None, end: float | None
) -> tuple[float, float | None, list[str]]:
    for name, value in (("start", start), ("end", end)):
        if value is not None and not math.isfinite(value):
            raise MediaError(f"{path}: {name} is {value}; expected seconds", "times")
    flags = ["start_clipped"] if start is not None and start < 0 else []
    start = max(0.0, start or 0.0)
    if end is not None and end <= start:
        raise MediaError(f"{path}: end {end:g} s is not after start {start:g} s", "times")
    return start, end, flags


def _bounds(rate: int, start: float, end: float | None) -> tuple[int, int | None]:
    return round(start * rate), None if end is None else round(end * rate)


def _check_span(path: Path, first: tuple | None, held: int, start: float) -> None:
    if held:
        return
    if first is not None and start > 0:
        raise MediaError(f"{path}: nothing at {start:g} s; the file ends before", "times")
    raise MediaError(f"{path}: no audio samples", "empty")


def _pick(
    path: Path, channel: str, names: tuple[str, ...], block: np.ndarray
) -> tuple[str, np.ndarray]:
    """(name of what was used, mono (n,)) from a block (channels, n)."""
    if channel in ("auto", "centre") and "FC" in names:
        return "FC", block[names.index("FC")].copy()
    if channel == "centre":
        raise MediaError(
            f"{path}: no centre channel among {len(names)} "
            f"({' '.join(filter(None, names)) or 'unnamed'})",
            "channel",
        )
    if channel in ("auto", "mix"):
        return "mix", block.mean(axis=0, dtype=np.float32)
    if not str(channel).isdecimal():
        raise MediaError(
            f"channel '{channel}' is not one of {', '.join(CHANNELS)} or a number from 0", "channel"
        )
    if int(channel) >= len(names):
        raise MediaError(
            f"{path}: channel {channel} asked for, the file has {len(names)} (numbered from 0)",
            "channel",
        )
    return str(channel), block[int(channel)].copy()


# --- readers: (rate, channel names, offset, block (channels, n))


def _blocks(path: Path, start: float) -> Iterator[tuple[int, tuple[str, ...], int, np.ndarray]]:
    header = _soundfile_header(path)
    if header is not None:
        names = (
            FLAC_LAYOUTS[header.channels].split()
            if header.channels > 2
            else ["FC"]
            if header.channels == 1
            else ["FL", "FR"]
        )
        return _soundfile_blocks(path, tuple(names), start)
    return _av_blocks(path)


def _soundfile_header(path: Path):
    """soundfile's view of the header, or None for a file that PyAV has to read.

    Raises MediaError for what is no media file at all.
    """
    _check_file(path)
    if path.suffix.lower() not in SOUNDFILE:
        return None
    try:
        header = soundfile.info(os.fsencode(path))
    except soundfile.LibsndfileError:
        return None  # perhaps another container under this name, or a codec only FFmpeg has
    if header.channels > 2 and (header.format != "FLAC" or header.channels > 8):
        return None  # soundfile does not tell the layout; PyAV does
    if header.format in ("WAV", "WAVEX"):
        _check_riff(path)
    _check_rate(path, header.samplerate)
    return header


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise MediaError(f"{path}: {getattr(error, 'strerror', None) or error}", "open") from None
    if not stat.S_ISREG(status.st_mode):
        what = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise MediaError(f"{path}: {what}, expected a media file", "open")
    if not os.access(path, os.R_OK):
        raise MediaError(f"{path}: no permission to read it", "open")
    if status.st_size == 0:
        raise MediaError(f"{path}: empty file", "empty")


def _check_rate(path: Path, rate: int) -> None:
    if not RATES[0] <= rate <= RATES[1]:
        raise MediaError(
            f"{path}: its header claims {rate} Hz, expected {RATES[0]} to {RATES[1]}", "rate"
        )


def _check_riff(path: Path) -> None:
    """libsndfile silently shortens a WAV whose data chunk is cut off; compare the chunk with the
    file. Writers to a pipe leave 0 or about 2 or 4 GB there, which says nothing.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != b"RIFF":
            return
        file.seek(12)
        while len(head := file.read(8)) == 8:
            name, length = head[:4], struct.unpack("<I", head[4:])[0]
            if name == b"data":
                missing = file.tell() + length - size
                if missing > 0 and length < 0x7FFF0000:
                    raise MediaError(
                        f"{path}: truncated, {missing:,} of {length:,} bytes of audio are missing",
                        "truncated",
                    )
                return
            file.seek(length + length % 2, os.SEEK_CUR)


def _soundfile_blocks(
    path: Path, names: tuple[str, ...], start: float
) -> Iterator[tuple[int, tuple[str, ...], int, np.ndarray]]:
    try:
        with soundfile.SoundFile(os.fsencode(path)) as file:
            offset = (
                min(round(start * file.samplerate), max(0, file.frames)) if file.seekable() else 0
            )
            if offset:
                file.seek(offset)
            more = True
            # the last block is empty, so that a start beyond the end still tells the rate
            while more:
                block = file.read(max(1, BLOCK // file.channels), dtype="float32", always_2d=True)
                yield file.samplerate, names, offset, block.T
                offset += len(block)
                more = len(block) > 0
            if file.frames - offset > (MP3_SLACK if file.format == "MPEG" else 0):
                raise MediaError(
                    f"{path}: truncated, {offset:,} of {file.frames:,} samples are there",
                    "truncated",
                )
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise MediaError(f"{path}: cannot be decoded ({_one_line(error)})", "decode") from None


def _av_blocks(path: Path) -> Iterator[tuple[int, tuple[str, ...], int, np.ndarray]]:
    import av

    try:
        # "file:" keeps a colon in the name from being read as a protocol
        container = av.open(
            f"file:{path.absolute()}",
            options={"protocol_whitelist": "file", "format_whitelist": CONTAINERS},
        )
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise MediaError(
            f"{path}: not a media file that can be read ({_one_line(error)})", "open"
        ) from None
    with container:
        if not container.streams.audio:
            raise MediaError(f"{path}: no audio stream", "empty")
        stream = container.streams.audio[0]
        offset = rate = 0
        try:
            for frame in container.decode(stream):
                rate = frame.sample_rate
                _check_rate(path, rate)
                block = _planes(frame)
                # mono is its own centre, named or not
                names = tuple(c.name for c in frame.layout.channels) if len(block) > 1 else ("FC",)
                yield rate, names, offset, block
                offset += block.shape[1]
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise MediaError(
                f"{path}: cannot be decoded after {offset:,} samples ({_one_line(error)})", "decode"
            ) from None
        declared = float(stream.duration * stream.time_base) if stream.duration else 0.0
        # Matroska has only the whole file's, which video may lengthen
        if not stream.duration and len(container.streams) == 1:
            declared = (container.duration or 0) / av.time_base
        seconds = offset / rate if rate else 0.0
        if offset and declared - seconds > max(SHORTFALL[0], SHORTFALL[1] * declared):
            raise MediaError(
                f"{path}: truncated, {seconds:.1f} of {declared:.1f} s are there", "truncated"
            )


def _planes(frame) -> np.ndarray:
    """An av.AudioFrame as float32 (channels, n), full scale 1."""
    array = frame.to_ndarray()
    if not frame.format.is_planar:
        array = array.reshape(-1, len(frame.layout.channels)).T
    if array.dtype == np.uint8:
        return (array.astype(np.float32) - 128.0) / 128.0
    if array.dtype.kind == "i":
        return array.astype(np.float32) / float(2 ** (8 * array.dtype.itemsize - 1))
    return array.astype(np.float32)


def _one_line(error: Exception) -> str:
    return (
        (getattr(error, "strerror", None) or str(error) or type(error).__name__)
        .strip()
        .splitlines()[0]
    )
