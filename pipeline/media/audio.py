"""Media file → float32 mono waveform at 16 kHz, with its true decoded length.

The channel is chosen before resampling, so that a 5.1 clip costs no more than a mono one. Which
decoder reads a file, and how long it is, is told by `containers` and `readers`. All functions
are top-level and their results picklable: they run in worker processes.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from pathlib import Path

import numpy as np

from mer.pipeline.media.containers import Look, look
from mer.pipeline.media.readers import MediaError, Source, open_source, what_changed
from mer.pipeline.runtime.limits import MEDIA_LEVEL, MEDIA_SAMPLES

RATE = 16_000
CHANNELS = ("auto", "centre", "mix")  # or a channel's number, from 0
CLIPPED = (0.999, 1e-3)  # "clipped": more than this share of the samples at or above this level
SILENT = 1e-4  # "silent": no sample above this level (-80 dB)

__all__ = ["Clip", "ClipInfo", "MediaError", "changed", "load", "probe", "resampled_length"]


@dataclass(frozen=True, slots=True)
class Clip:
    """`waveform` (n,) float32 mono at 16 kHz.

    `channel` is the one used, a name such as "FC", a number, or "mix". `flags` are those of
    `mer.pipeline.media.stages.Flag` that concern media, by name.
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
    track: str = "auto",
) -> Clip:
    """The part of a file from `start` to `end` seconds as 16 kHz mono.

    Args:
        path: A media file.
        channel: `auto` is the centre (FC) where the layout has one, else the mean of all; `centre`,
            `mix`, or a number from 0.
        start: Seconds on the file's time line; None: its beginning.
        end: Likewise; None: its end.
        track: `auto` is the default audio track, else the first; or a number from 0.

    Returns:
        The clip.

    Raises:
        MediaError: The file cannot be read, is cut off, or has nothing there.
    """
    path = Path(path)
    start, end, flags = _span(path, start, end)
    source = _source(path, track)
    pieces: list[tuple[int, np.ndarray]] = []
    held, used, first = 0.0, None, None
    complete = end is None
    with closing(_cut(source, start, end)) as blocks:
        for rate, names, reached, block in blocks:
            first = first or (rate, names)
            complete = complete or reached
            if block.shape[1]:
                used, mono = _pick(path, channel, names, block)
                pieces.append((rate, mono))
                held += _cost(len(mono), rate)
                _check_held(path, held, rate)
    _check_span(path, first, held, start)
    rate, names = first
    if not complete:
        flags.append("end_beyond")
    flags += [flag for flag in source.flags if flag not in flags]
    whole = []
    for piece_rate, group in groupby(pieces, key=lambda piece: piece[0]):
        monos = [mono for _, mono in group]
        whole.append((piece_rate, monos[0] if len(monos) == 1 else np.concatenate(monos)))
    flags += _judge(path, [x for _, x in whole])
    resampled = [_resample(x, r) for r, x in whole]
    waveform = resampled[0] if len(resampled) == 1 else np.concatenate(resampled)
    if any(r != RATE for r, _ in whole):
        _check_finite(path, waveform)
        flags.append("resampled")
    if any(_ratio(r) != Fraction(RATE, r) for r, _ in whole):
        flags.append("rate_rounded")
    return Clip(waveform, rate, len(names), used, tuple(flags))


def probe(
    path: str | os.PathLike,
    *,
    start: float | None = None,
    end: float | None = None,
    track: str = "auto",
) -> ClipInfo:
    """What `load` would return, without holding it: from the header where its length is verified,
    by decoding elsewhere.

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
    start, end, _ = _span(path, start, end)
    source = _source(path, track)
    lengths: list[tuple[int, int]] = []
    held, first = 0.0, None
    if source.exact:
        rate, channels, frames = (
            source.header.samplerate,
            source.header.channels,
            source.header.frames,
        )
        a, b = _bounds(rate, start, end)
        first = rate, ("",) * channels
        lengths.append((rate, max(0, min(frames, frames if b is None else b) - a)))
        held = _cost(lengths[0][1], rate)
        _check_held(path, held, rate)
    else:
        with closing(_cut(source, start, end, silent=True)) as blocks:
            for rate, names, _, block in blocks:
                first = first or (rate, names)
                lengths.append((rate, block.shape[1]))
                held += _cost(block.shape[1], rate)
                _check_held(path, held, rate)
    _check_span(path, first, held, start)
    rate, names = first
    samples = 0
    for piece_rate, group in groupby(
        filter(lambda pair: pair[1], lengths), key=lambda pair: pair[0]
    ):
        samples += resampled_length(sum(n for _, n in group), piece_rate)
    return ClipInfo(samples, rate, len(names))


def changed(path: str | os.PathLike) -> str | None:
    """Why a file is decoded otherwise than by the first version of the decoder; None when it is
    not. Needs FFmpeg for containers with time stamps, so it belongs into a process that may
    crash."""
    path = Path(path)
    return what_changed(path, look(path))


def _source(path: Path, track: str) -> Source:
    _check_file(path)
    if track != "auto" and not track.isdecimal():
        raise MediaError(f"audio track '{track}' is not auto or a number from 0", "track")
    try:
        found: Look = look(path)
    except OSError as error:
        raise MediaError(f"{path}: {error.strerror or error}", "open") from None
    return open_source(path, found, track)


def _cut(
    source: Source, start: float, end: float | None, *, silent: bool = False
) -> Iterator[tuple[int, tuple[str, ...], bool, np.ndarray]]:
    """Blocks (rate, channel names, whether `end` is reached, samples) of what lies between
    `start` and `end`."""
    with closing(source.blocks(start, silent=silent)) as blocks:
        for rate, names, offset, samples in blocks:
            a, b = _bounds(rate, start, end)
            reached = b is not None and offset + samples.shape[1] >= b
            yield (
                rate,
                names,
                reached,
                samples[:, max(0, a - offset) : None if b is None else max(0, b - offset)],
            )
            if reached:
                return


def _cost(n: int, rate: int) -> float:
    """Samples held for `n` at `rate`: before or after resampling, whichever is more."""
    return max(n, n * RATE / rate)


def _check_held(path: Path, held: float, rate: int) -> None:
    if held > MEDIA_SAMPLES:
        minutes = MEDIA_SAMPLES / max(rate, RATE) / 60
        raise MediaError(
            f"{path}: more than {minutes:.0f} minutes; give start and end to cut it", "too_long"
        )


def _check_finite(path: Path, x: np.ndarray) -> float:
    """The largest absolute value. Raises MediaError for NaN, infinity and what overflows in an
    encoder."""
    peak = float(max(x.max(), -x.min()))
    if not math.isfinite(peak):
        raise MediaError(
            f"{path}: {np.count_nonzero(~np.isfinite(x))} of {len(x)} samples are NaN or infinite",
            "nan",
        )
    if peak > MEDIA_LEVEL:
        raise MediaError(
            f"{path}: its samples reach {peak:.1e}, where full scale is 1: no sound, or floats of "
            "another scale",
            "nan",
        )
    return peak


def _judge(path: Path, parts: list[np.ndarray]) -> list[str]:
    """Flags that the level of a clip deserves. Raises MediaError for samples that are no
    numbers."""
    level, share = CLIPPED
    peak, full, count = 0.0, 0, 0
    for x in parts:
        highest = _check_finite(path, x)
        peak, count = max(peak, highest), count + len(x)
        if highest >= level:
            full += np.count_nonzero(np.abs(x) >= level)
    flags = ["clipped"] if full > share * count else []
    return flags + (["silent"] if peak <= SILENT else [])


def resampled_length(n: int, rate: int) -> int:
    """Samples at 16 kHz of `n` samples at `rate` Hz: ceil, as torchaudio."""
    ratio = _ratio(rate)
    return -(-n * ratio.numerator // ratio.denominator)


def _ratio(rate: int) -> Fraction:
    """16 kHz / rate, exact for every usual rate. The resampling kernel grows with the product of
    both terms, so a header's 44,101 Hz would take gigabytes: such a ratio is rounded (relative
    error below 1e-4) and flagged."""
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
