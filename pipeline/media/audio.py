"""Media file → float32 mono waveform at 16 kHz, with its true decoded length.

The channel is chosen before resampling, so that a 5.1 clip costs no more than a mono one. Which
decoder reads a file, and how long it is, is told by `containers` and `readers`. All functions
are top-level and their results picklable: they run in worker processes.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mer.pipeline.media.containers import look
from mer.pipeline.media.looks import Look
from mer.pipeline.media.readers import MediaError, Source, open_source, what_changed
from mer.pipeline.media.stages import Stage
from mer.pipeline.runtime.limits import MEDIA_LEVEL, MEDIA_SAMPLES

RATE = 16_000  # Hz, of every waveform that encoders take
CHANNELS = ("auto", "centre", "mix")  # or a channel's number, from 0
# A clip is "clipped" with more than this share of its samples at or above this level, where full
# scale is 1, and "silent" with no sample above that one, which is -80 dB.
CLIPPED_LEVEL, CLIPPED_SHARE = 0.999, 1e-3
SILENT_LEVEL = 1e-4
RATIO_TERM = 1_000  # the largest term of a ratio of rates that is resampled by

__all__ = ["Clip", "ClipInfo", "MediaError", "changed", "load", "probe", "resampled_length"]


@dataclass(frozen=True, slots=True)
class Clip:
    """Sound as an encoder takes it.

    Attributes:
        waveform: (n,) float32, mono at 16 kHz, full scale 1.
        source_rate: Hz, of the file.
        channels: How many the file has.
        channel: The one that was used: a name such as "FC", a number, or "mix".
        flags: Names of `stages.Flag`.
    """

    waveform: np.ndarray
    source_rate: int
    channels: int
    channel: str
    flags: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.waveform) / RATE


@dataclass(frozen=True, slots=True)
class ClipInfo:
    """What `load` would return, without its samples.

    Attributes:
        samples: Exactly the length that `load` returns, at 16 kHz.
        source_rate: Hz, of the file.
        channels: How many the file has.
    """

    samples: int
    source_rate: int
    channels: int

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.samples / RATE


def load(
    path: str | os.PathLike,
    *,
    channel: str = "auto",
    start: float | None = None,
    end: float | None = None,
    track: str = "auto",
) -> Clip:
    """The sound of a file, or a part of it, as 16 kHz mono.

    Args:
        path: A media file.
        channel: `auto` is the centre (FC) where the layout has one, else the mean of all; `centre`,
            `mix`, or a number from 0.
        start: Where the part begins, in seconds on the file's time line; None is its beginning.
        end: Where it ends, likewise; None is its end.
        track: `auto` is the default audio track, else the first; or a number from 0.

    Returns:
        The clip.

    Raises:
        MediaError: The file cannot be read, is cut off, or has nothing there.
    """
    path = Path(path)
    start, end, flags = span_of(path, start, end)
    source = _source(path, track)
    taken = _take(source, channel, start, end)
    if end is not None and not taken.reached_end:
        flags.append("end_beyond")
    flags += [flag for flag in source.flags if flag not in flags]
    stretches = _stretches(taken.pieces)
    flags += _judge(path, [mono for _, mono in stretches])
    waveform = _joined([_resample(mono, rate) for rate, mono in stretches])
    if any(rate != RATE for rate, _ in stretches):
        _check_finite(path, waveform)
        flags.append("resampled")
    if any(_ratio(rate) != Fraction(RATE, rate) for rate, _ in stretches):
        flags.append("rate_rounded")
    return Clip(waveform, taken.rate, taken.channels, taken.channel, tuple(flags))


def probe(
    path: str | os.PathLike,
    *,
    start: float | None = None,
    end: float | None = None,
    track: str = "auto",
) -> ClipInfo:
    """What `load` would return, without holding it: told by the header where its length is
    verified, and by decoding elsewhere.

    Args:
        path: A media file.
        start: As for `load`.
        end: As for `load`.
        track: As for `load`.

    Returns:
        Length, rate and channels.

    Raises:
        MediaError: As for `load`.
    """
    path = Path(path)
    start, end, _ = span_of(path, start, end)
    source = _source(path, track)
    lengths: list[tuple[int, int]] = []
    samples_held, rate, channels = 0.0, 0, 0
    header = source.exact_header
    if header is not None:
        rate, channels = header.samplerate, header.channels
        first, last = _bounds(rate, start, end)
        behind = header.frames if last is None else min(header.frames, last)
        lengths.append((rate, max(0, behind - first)))
        samples_held = _cost(lengths[0][1], rate)
        _check_held(path, samples_held, rate)
    else:
        with closing(_cut(source, start, end, silent=True)) as pieces:
            for piece in pieces:
                if not rate:
                    rate, channels = piece.rate, len(piece.names)
                lengths.append((piece.rate, piece.samples.shape[1]))
                samples_held += _cost(piece.samples.shape[1], piece.rate)
                _check_held(path, samples_held, piece.rate)
    _check_span(path, samples_held, start, known=rate > 0)
    heard = [(piece_rate, length) for piece_rate, length in lengths if length]
    samples = 0
    for piece_rate, group in groupby(heard, key=lambda pair: pair[0]):
        samples += resampled_length(sum(length for _, length in group), piece_rate)
    return ClipInfo(samples, rate, channels)


def changed(path: str | os.PathLike) -> str | None:
    """Why a file is decoded otherwise than by the first version of the decoder; None when it is
    not.

    It needs FFmpeg for containers with time stamps, so it belongs into a process that may crash.
    """
    path = Path(path)
    return what_changed(path, look(path))


def _source(path: Path, track: str) -> Source:
    """The file, looked at and with its decoder chosen. Raises MediaError."""
    check_file(path)
    if track != "auto" and not track.isdecimal():
        raise MediaError(f"audio track '{track}' is not auto or a number from 0", Stage.TRACK)
    try:
        found: Look = look(path)
    except OSError as error:
        raise MediaError(f"{path}: {error.strerror or error}", Stage.OPEN) from None
    return open_source(path, found, track)


class _Piece(NamedTuple):
    """A block of what was asked for: `samples` is (channels, n) at `rate`."""

    rate: int
    names: tuple[str, ...]  # of the channels
    reached_end: bool
    samples: np.ndarray


def _cut(
    source: Source, start: float, end: float | None, *, silent: bool = False
) -> Generator[_Piece, None, None]:
    """The blocks of what lies between `start` and `end` seconds."""
    with closing(source.blocks(start, silent=silent)) as blocks:
        for rate, names, offset, samples in blocks:
            first, last = _bounds(rate, start, end)
            begin = max(0, first - offset)
            if last is None:
                yield _Piece(rate, names, False, samples[:, begin:])
                continue
            reached = offset + samples.shape[1] >= last
            yield _Piece(rate, names, reached, samples[:, begin : max(0, last - offset)])
            if reached:
                return


@dataclass
class _Taken:
    """What was taken of a file: mono pieces with their rates, and what the first block told."""

    pieces: list[tuple[int, np.ndarray]]
    rate: int = 0
    channels: int = 0
    channel: str = ""
    reached_end: bool = False


def _take(source: Source, channel: str, start: float, end: float | None) -> _Taken:
    """Decode what lies between `start` and `end` seconds, one channel of it."""
    path, samples_held = source.path, 0.0
    taken = _Taken([])
    with closing(_cut(source, start, end)) as pieces:
        for piece in pieces:
            if not taken.rate:
                taken.rate, taken.channels = piece.rate, len(piece.names)
            taken.reached_end = taken.reached_end or piece.reached_end
            if piece.samples.shape[1]:
                taken.channel, mono = _pick(path, channel, piece.names, piece.samples)
                taken.pieces.append((piece.rate, mono))
                samples_held += _cost(len(mono), piece.rate)
                _check_held(path, samples_held, piece.rate)
    _check_span(path, samples_held, start, known=taken.rate > 0)
    return taken


def _stretches(pieces: Iterable[tuple[int, np.ndarray]]) -> list[tuple[int, np.ndarray]]:
    """Pieces that follow one another at one rate, joined."""
    stretches = []
    for rate, group in groupby(pieces, key=lambda piece: piece[0]):
        stretches.append((rate, _joined([mono for _, mono in group])))
    return stretches


def _joined(monos: Sequence[np.ndarray]) -> np.ndarray:
    return monos[0] if len(monos) == 1 else np.concatenate(monos)


def _cost(n: int, rate: int) -> float:
    """Samples held for `n` at `rate`: before or after resampling, whichever is more."""
    return max(n, n * RATE / rate)


def _check_held(path: Path, held: float, rate: int) -> None:
    """Raise MediaError when more samples are held than memory is meant for."""
    if held > MEDIA_SAMPLES:
        minutes = MEDIA_SAMPLES / max(rate, RATE) / 60
        raise MediaError(
            f"{path}: more than {minutes:.0f} minutes; give start and end to cut it", Stage.TOO_LONG
        )


def _check_finite(path: Path, x: np.ndarray) -> float:
    """The largest absolute value.

    Raises MediaError for NaN, infinity and what overflows in an encoder.
    """
    peak = float(max(x.max(), -x.min()))
    if not math.isfinite(peak):
        raise MediaError(
            f"{path}: {np.count_nonzero(~np.isfinite(x))} of {len(x)} samples are NaN or infinite",
            Stage.NAN,
        )
    if peak > MEDIA_LEVEL:
        raise MediaError(
            f"{path}: its samples reach {peak:.1e}, where full scale is 1: no sound, or floats of "
            "another scale",
            Stage.NAN,
        )
    return peak


def _judge(path: Path, parts: list[np.ndarray]) -> list[str]:
    """The flags that the level of a clip deserves. Raises MediaError for samples that are no
    numbers.
    """
    peak, full, count = 0.0, 0, 0
    for x in parts:
        highest = _check_finite(path, x)
        peak, count = max(peak, highest), count + len(x)
        if highest >= CLIPPED_LEVEL:
            full += int(np.count_nonzero(np.abs(x) >= CLIPPED_LEVEL))
    flags = ["clipped"] if full > CLIPPED_SHARE * count else []
    if peak <= SILENT_LEVEL:
        flags.append("silent")
    return flags


def resampled_length(n: int, rate: int) -> int:
    """Samples at 16 kHz of `n` samples at `rate` Hz: ceil, as torchaudio."""
    ratio = _ratio(rate)
    return -(-n * ratio.numerator // ratio.denominator)


def _ratio(rate: int) -> Fraction:
    """16 kHz / rate, exact for every usual rate.

    The resampling kernel grows with the product of both terms, so a header's 44,101 Hz would take
    gigabytes: such a ratio is rounded (relative error below 1e-4) and flagged.
    """
    return Fraction(RATE, rate).limit_denominator(RATIO_TERM)


def _resample(source: np.ndarray, rate: int) -> np.ndarray:
    """(n,) at `rate` as (m,) float32 at 16 kHz."""
    if rate == RATE:
        return np.ascontiguousarray(source, dtype=np.float32)
    import torch
    from torchaudio.functional import resample  # windowed sinc (Hann), width 6, roll-off 0.99

    ratio = _ratio(rate)
    with torch.inference_mode():
        return resample(
            torch.from_numpy(np.ascontiguousarray(source)), ratio.denominator, ratio.numerator
        ).numpy()


def span_of(
    path: Path, start: float | None, end: float | None
) -> tuple[float, float | None, list[str]]:
    """Start and end in seconds, and flags. Raises MediaError for times that are none."""
    for name, value in (("start", start), ("end", end)):
        if value is not None and not math.isfinite(value):
            raise MediaError(f"{path}: {name} is {value}; expected seconds", Stage.TIMES)
    flags = ["start_clipped"] if start is not None and start < 0 else []
    start = max(0.0, start or 0.0)
    if end is not None and end <= start:
        raise MediaError(f"{path}: end {end:g} s is not after start {start:g} s", Stage.TIMES)
    return start, end, flags


def _bounds(rate: int, start: float, end: float | None) -> tuple[int, int | None]:
    """Start and end in samples."""
    return round(start * rate), None if end is None else round(end * rate)


def _check_span(path: Path, samples_held: float, start: float, *, known: bool) -> None:
    """Raise MediaError when there is nothing; `known`: the file has sound somewhere."""
    if samples_held:
        return
    if known and start > 0:
        raise MediaError(f"{path}: nothing at {start:g} s; the file ends before", Stage.TIMES)
    raise MediaError(f"{path}: no audio samples", Stage.EMPTY)


def _pick(
    path: Path, channel: str, names: tuple[str, ...], block: np.ndarray
) -> tuple[str, np.ndarray]:
    """What was used, and it as mono (n,), of a block (channels, n).

    Raises MediaError for a channel that is not there.
    """
    if channel in ("auto", "centre") and "FC" in names:
        return "FC", block[names.index("FC")].copy()
    if channel == "centre":
        named = " ".join(filter(None, names)) or "unnamed"
        raise MediaError(f"{path}: no centre channel among {len(names)} ({named})", Stage.CHANNEL)
    if channel in ("auto", "mix"):
        return "mix", block.mean(axis=0, dtype=np.float32)
    if not str(channel).isdecimal():
        raise MediaError(
            f"channel '{channel}' is not one of {', '.join(CHANNELS)} or a number from 0",
            Stage.CHANNEL,
        )
    if int(channel) >= len(names):
        raise MediaError(
            f"{path}: channel {channel} asked for, the file has {len(names)} (numbered from 0)",
            Stage.CHANNEL,
        )
    return str(channel), block[int(channel)].copy()


def check_file(path: Path) -> None:
    """Raise MediaError unless there is a regular file that can be read and has content."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise MediaError(
            f"{path}: {getattr(error, 'strerror', None) or error}", Stage.OPEN
        ) from None
    if not stat.S_ISREG(status.st_mode):
        what = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise MediaError(f"{path}: {what}, expected a media file", Stage.OPEN)
    if not os.access(path, os.R_OK):
        raise MediaError(f"{path}: no permission to read it", Stage.OPEN)
    if status.st_size == 0:
        raise MediaError(f"{path}: empty file", Stage.EMPTY)
