"""The two decoders: soundfile where a header's length can be believed, PyAV (FFmpeg) for the rest,
along the presentation time line.

Both give blocks (rate, channel names, offset, samples (channels, n)). `offset` counts samples at
`rate` from the beginning of the file's time line, which is the container's start time: sound
that begins later, or a gap in the time stamps, is silence of that length.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from mer.pipeline.errors import DataError
from mer.pipeline.media import containers, looks
from mer.pipeline.media.looks import Look
from mer.pipeline.media.stages import Stage
from mer.pipeline.runtime.limits import (
    LINE_CHARACTERS,
    MEDIA_GAP_SECONDS,
    MEDIA_RATES_HZ,
    MEDIA_RETRIES,
)
from mer.pipeline.runtime.terminal import first_line

BLOCK_SAMPLES = 2**20  # over all channels, decoded at a time
# Between time stamps and samples: more counts as a delay or gap, below it lie rounding, jitter and
# the delays of encoders.
GAP_SECONDS = 0.05
# What a decoder may keep of a stream whose packets begin in time.
DECODER_DELAY_SECONDS = 0.2
# A longer gap, in a format whose clock may start anew, is a new clock and no silence, as in ffmpeg.
NEW_CLOCK_SECONDS = 10.0
# By so much an MP3 is entered before what is wanted: frames may keep bits in as many as ten others
# before them, and sound goes on from one to the next.
MP3_WARM_UP_SECONDS = 1.0
BROKEN_SHARE = 0.05  # of a stream's packets that may be undecodable before the file is refused
# What the first version let be missing against a duration in the header.
FIRST_VERSION_MISSING_SECONDS, FIRST_VERSION_MISSING_SHARE = 0.5, 0.1
CONTENT_BYTES = 512  # from the beginning of a file, by which its content is told
ZERO_BYTES = 1 << 20  # after which a file of zeros counts as nothing else
CLOCK_MAY_RESTART = 0x0200  # AVFMT_TS_DISCONT
FFMPEG_TICKS_HZ = 1_000_000  # AV_TIME_BASE, of a container's start time and duration

FLAC_LAYOUTS = {  # RFC 9639 table 14: FLAC fixes the order by the number of channels
    3: "FL FR FC", 4: "FL FR BL BR", 5: "FL FR FC BL BR", 6: "FL FR FC LFE BL BR",
    7: "FL FR FC LFE BC SL SR", 8: "FL FR FC LFE BL BR SL SR",
}  # fmt: skip
# libsndfile has always read these, with or without a true length.
SIZED = {"wav", "aiff", "au", "caf", "w64"}
# Formats that libsndfile tells by their content; matrices and instruments are no recordings.
SOUNDFILE = {
    "WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "OGG", "MP3", "NIST", "VOC", "AVR",
    "IRCAM", "PAF", "PVF", "SVX",
}  # fmt: skip
# Demuxers of FFmpeg that read one local file and nothing else. Playlists (hls, concat, dash), sdp
# and image sequences are left out: they would open other files and addresses. So are raw samples,
# which any file could be taken for.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,wav,w64,mp3,flac,ogg,aac,aiff,asf,flv,mpeg,mpegts,"
    "au,caf,amr,amrnb,amrwb,ac3,eac3,dts,dtshd,truehd,mlp,wv,tta,tak,ape,mpc,mpc8,voc,nistsphere,"
    "loas,gsm,qcp,sox,ircam,avr,pvf,rm,oma,dsf,iff,"
    "mxf,nut,dv,gif,mpegvideo,bonk,osq,shn,wsd,act,g722,g729,dss,svag,xwma,wtv,lc3,hcom,wve"
)
# What the first version let FFmpeg open, and of these the formats whose headers it believed.
FIRST_VERSION = set(
    (
        "mov mp4 m4a 3gp 3g2 mj2 matroska webm avi wav w64 mp3 flac ogg aac aiff asf flv mpeg "
        "mpegts au caf amr"
    ).split()
)
FIRST_VERSION_BELIEVED = ("mp3", "flac", "ogg")
TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICS")
# Streams of frames: what lies between two of them may be a tag.
FRAMED = {"mp3", "aac", "ac3", "eac3", "flac", "loas", "dts"}
# FFmpeg's kinds of samples; a "p" behind the name: each channel in a plane of its own.
SAMPLE_TYPES = {
    "u8": np.uint8,
    "s16": np.int16,
    "s32": np.int32,
    "s64": np.int64,
    "flt": np.float32,
    "dbl": np.float64,
}
# How FFmpeg calls channels that have no common layout, "3 channels (FC+FL+FR)", those of a sound
# field, and one without a name.
LISTED, AMBISONIC, NAMELESS = "channels (", "ambisonic", "NONE"
# Rate, names of the channels, offset, samples (channels, n).
Block = tuple[int, tuple[str, ...], int, np.ndarray]
Blocks = Generator[Block, None, None]


NO_SOUND = "no audio stream"  # of a file that has something else


class MediaError(DataError):
    """A file, or what was asked of it, that gives no sound; `stage` says where it failed."""

    def __init__(self, message: str, stage: str = Stage.DECODE):
        super().__init__(message)
        self.stage = Stage(stage)


@dataclass
class Source:
    """A file that is about to be decoded.

    Attributes:
        path: The file.
        look: What its bytes tell.
        track: Which audio track is meant, "auto" or a number from 0.
        header: The file as soundfile opened it, where soundfile reads it.
        flags: Names of `stages.Flag`; the list grows while `blocks` runs.
    """

    path: Path
    look: Look
    track: str = "auto"
    header: Any = None
    flags: list[str] = field(default_factory=list)

    def blocks(self, start: float, *, silent: bool = False) -> Blocks:
        """Decode.

        Args:
            start: Where to begin, in seconds; the first block may lie before.
            silent: Give zeros instead of samples, to whom only lengths matter.

        Returns:
            The blocks, in order.
        """
        if self.header is not None:
            return _soundfile_blocks(self, start)
        if self.look.parts:
            return _chained(self, start, silent)
        return _av_blocks(self, start, silent)

    @property
    def exact_header(self) -> Any:
        """The header where it has the true length, so that nothing need be decoded to learn it."""
        exact = self.look.exact and self.look.kind in SIZED | {"flac"}
        return self.header if exact else None


def open_source(path: Path, look: Look, track: str = "auto") -> Source:
    """Choose the decoder.

    Args:
        path: A regular file.
        look: What its bytes tell.
        track: "auto" or a number from 0.

    Returns:
        The file, ready to be decoded.

    Raises:
        MediaError: It is cut off, is no media file, or claims what cannot be.
    """
    if look.missing:
        raise MediaError(f"{path}: truncated, {look.missing}", Stage.TRUNCATED)
    if not look.kind:  # FFmpeg would go by the suffix
        found = _other_content(path)
        if found is not None:
            raise MediaError(
                f"{path}: not a media file that can be read (it is {found})", Stage.OPEN
            )
    source = Source(path, look, track, flags=list(look.flags))
    if look.exact:
        source.header = _header(path)
    if source.header is not None:
        check_rate(path, source.header.samplerate)
        if track not in ("auto", "0"):
            raise _no_track(path, track, 1)
    return source


def _header(path: Path) -> Any:
    """The file as soundfile opens it; None where PyAV is to read it."""
    try:
        header = soundfile.SoundFile(os.fsencode(path))
    # A codec that only FFmpeg has; or a name in .raw, for which soundfile wants to be told a rate.
    except (soundfile.LibsndfileError, RuntimeError, TypeError):
        return None
    if header.format not in SOUNDFILE or not 0 <= header.frames < 1 << 62:
        return None
    if header.channels > 2 and (header.format != "FLAC" or header.channels > 8):
        return None  # soundfile does not tell the layout; PyAV does
    return header


def check_rate(path: Path, rate: int) -> None:
    """Raise MediaError for a rate that no recording has."""
    lowest, highest = MEDIA_RATES_HZ
    if not lowest <= rate <= highest:
        raise MediaError(
            f"{path}: its header claims {rate} Hz, expected {lowest} to {highest}", Stage.RATE
        )


def _no_track(path: Path, track: str, count: int) -> MediaError:
    has = "one audio track" if count == 1 else f"{count} audio tracks"
    return MediaError(
        f"{path}: audio track {track} asked for, the file has {has} (numbered from 0)", Stage.TRACK
    )


# --- soundfile


def _soundfile_blocks(source: Source, start: float) -> Blocks:
    """Decode by libsndfile, from `start` seconds or before."""
    path, header = source.path, source.header
    if header.channels > 2:
        names = tuple(FLAC_LAYOUTS[header.channels].split())
    else:
        names = ("FC",) if header.channels == 1 else ("FL", "FR")
    try:
        with header as file:
            offset = 0
            if file.seekable():
                offset = min(round(start * file.samplerate), max(0, file.frames))
                if file.format == "MP3":  # a frame needs bits of those before it
                    offset = max(0, offset - round(MP3_WARM_UP_SECONDS * file.samplerate))
            if offset:
                file.seek(offset)
            more = True
            # The last block is empty, so that a start beyond the end still tells the rate.
            while more:
                frames = max(1, BLOCK_SAMPLES // file.channels)
                block = file.read(frames, dtype="float32", always_2d=True)
                yield file.samplerate, names, offset, block.T
                offset += len(block)
                more = len(block) > 0
            if file.frames > offset:
                raise MediaError(
                    f"{path}: truncated, {offset:,} of {file.frames:,} samples are there",
                    Stage.TRUNCATED,
                )
    except (soundfile.LibsndfileError, RuntimeError) as error:
        said = one_line(error)
        raise MediaError(f"{path}: cannot be decoded ({said})", Stage.DECODE) from None


# --- PyAV


class Window:
    """The bytes from `begin` to `end` of a file as a file, with those of `patch` in the place of
    its own.
    """

    def __init__(self, path: Path, begin: int, end: int, patch: tuple[int, bytes] | None = None):
        self._file = path.open("rb")
        self.begin, self.end, self.patch, self._at = begin, end, patch, 0
        self.name = str(path)

    def read(self, count: int = -1) -> bytes:
        rest = self.end - self.begin - self._at
        self._file.seek(self.begin + self._at)
        data = self._file.read(max(0, rest if count < 0 else min(count, rest)))
        if self.patch is not None:
            place, value = self.patch
            here = self.begin + self._at
            first, last = max(place, here), min(place + len(value), here + len(data))
            if first < last:
                piece = value[first - place : last - place]
                data = data[: first - here] + piece + data[last - here :]
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.end - self.begin}[whence]
        self._at = max(0, origin + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        self._file.close()


def open_container(path: Path, window: Window | None):
    """PyAV's container of a file, or of a window on it."""
    import av

    options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
    try:
        # "file:" keeps a colon in the name from being read as a protocol
        return av.open(f"file:{path.absolute()}" if window is None else window, options=options)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        why = _what_instead(path, error)
        raise MediaError(f"{path}: not a media file that can be read ({why})", Stage.OPEN) from None


def _other_content(path: Path) -> str | None:
    """What a file is that is no media file; zeros at its beginning alone may be padding."""
    try:
        with path.open("rb") as file:
            found = containers.other_content(file.read(CONTENT_BYTES))
            if found == containers.ZEROS and file.read(ZERO_BYTES).strip(b"\0"):
                return None
    except OSError as error:
        raise MediaError(f"{path}: {error.strerror or error}", Stage.OPEN) from None
    return found


def _what_instead(path: Path, error: Exception) -> str:
    """In our words, why a file cannot be opened."""
    import av

    if isinstance(error, av.error.InvalidDataError):
        return "no known container begins like this, or its header is damaged"
    # This is what FFmpeg says of a demuxer that is not allowed, too.
    if getattr(error, "errno", None) == errno.EINVAL:
        suffix = f" '{path.suffix}'" if path.suffix else ""
        return f"a format{suffix} that is not supported; convert it, e.g. to .wav or .flac"
    return one_line(error)


def pick_track(path: Path, container, track: str):
    """The audio stream that is meant.

    Args:
        path: Names the file in an error.
        container: As PyAV opened it.
        track: "auto" is the default one by its disposition, else the first; or a number from 0.

    Returns:
        PyAV's stream.

    Raises:
        MediaError: There is none, or not that many.
    """
    import av

    streams = container.streams.audio
    if not streams:
        raise MediaError(f"{path}: {NO_SOUND}", Stage.EMPTY)
    if track != "auto":
        if int(track) >= len(streams):
            raise _no_track(path, track, len(streams))
        return streams[int(track)]
    marked = [stream for stream in streams if stream.disposition & av.stream.Disposition.default]
    return (marked or streams)[0]


@dataclass
class TimeLine:
    """Where samples lie: `offset` of the next one at `rate`, held against time stamps.

    Attributes:
        origin: Seconds of the container's clock at which its time line begins.
        may_restart: Its clock may start anew.
        offset: Samples from the beginning of the time line to the next one.
        rate: Hz.
        begun: A piece of sound has been placed.
        in_time: The stream's packets begin where the time line does.
        flags: "late" and "gap", as they are met.
    """

    origin: float
    may_restart: bool
    offset: int = 0
    rate: int = 0
    begun: bool = False
    in_time: bool = False
    flags: list[str] = field(default_factory=list)

    def first_packet(self, time: float) -> None:
        """Note that the stream's first packet is at `time` on the container's clock."""
        self.in_time = time - self.origin <= GAP_SECONDS

    def silence(
        self, rate: int, time: float | None, *, tick: float = 0.0, start: float = 0.0
    ) -> int:
        """Hold a piece of sound against the time line.

        Args:
            rate: Hz, of the piece.
            time: When it begins on the container's clock, in seconds; None where it does not say.
            tick: Seconds, the resolution of that clock.
            start: Until then nothing is kept, and each piece lies where its own time stamp says,
                if that is more than its rounding: so ffmpeg cuts. In seconds.

        Returns:
            Samples of silence before the piece.
        """
        if rate != self.rate:
            self.offset = round(self.offset * rate / self.rate) if self.rate else 0
            self.rate = rate
        begun, self.begun = self.begun, True
        if time is None:
            return 0
        ahead = time - self.origin - self.offset / rate
        if self._is_rounding(begun, ahead):
            # The container's start is rounded, or lies before what decoders leave out.
            self.origin += ahead
            return 0
        if abs(ahead) <= GAP_SECONDS:
            if abs(ahead) > tick and time - self.origin <= start:
                self.offset += round(ahead * rate)
            return 0
        if self._is_another_clock(begun, ahead):
            self.origin += ahead  # what follows is taken to follow at once
            return 0
        self.flags.append("gap" if begun else "late")
        return round(ahead * rate)

    def _is_rounding(self, begun: bool, ahead: float) -> bool:
        """Whether the first piece, `ahead` of its place in seconds, begins the time line."""
        if begun:
            return False
        kept_by_decoder = self.in_time and 0 < ahead < DECODER_DELAY_SECONDS
        return kept_by_decoder or -GAP_SECONDS <= ahead < 0

    def _is_another_clock(self, begun: bool, ahead: float) -> bool:
        """Whether a piece so many seconds ahead of its place goes by another clock."""
        if ahead < 0 or ahead > MEDIA_GAP_SECONDS:
            return True
        return begun and self.may_restart and ahead > NEW_CLOCK_SECONDS


def _time_line(container) -> TimeLine:
    origin = (container.start_time or 0) / FFMPEG_TICKS_HZ
    return TimeLine(origin, bool(container.format.flags & CLOCK_MAY_RESTART))


def _chained(source: Source, start: float, silent: bool) -> Blocks:
    """Streams that follow one another in a file, each by a decoder of its own: rates and channels
    may change.
    """
    begin = 0.0
    for part in source.look.parts:
        seconds = 0.0
        for rate, names, offset, block in _av_blocks(source, max(0.0, start - begin), silent, part):
            yield rate, names, round(begin * rate) + offset, block
            seconds = (offset + block.shape[1]) / rate
        begin += seconds


def packets_of(container, stream) -> Iterator:
    """The packets of a stream; FFmpeg may ask to be called again while it looks for the next
    one.
    """
    for _ in range(MEDIA_RETRIES):
        try:
            yield from container.demux(stream)
            return
        except BlockingIOError:
            continue


@dataclass
class _Decoding:
    """A stream on its way through its decoder, and what was met: packets, those of them that were
    broken, samples. `named` are its channels, where the container alone names them.
    """

    container: Any
    stream: Any
    line: TimeLine
    named: tuple[str, ...] = ()
    packets: int = 0
    broken: int = 0
    samples: int = 0

    def frames(self) -> Iterator:
        """The frames of the stream. In a stream of frames, packets that cannot be decoded are left
        out and counted, unless they are tags or padding.
        """
        import av

        framed = self.container.format.name in FRAMED
        for packet in packets_of(self.container, self.stream):
            self.packets += 1
            if self.packets == 1 and packet.pts is not None:
                self.line.first_packet(float(packet.pts * packet.time_base))
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                if not framed:
                    raise
                content = bytes(packet)
                self.broken += not content.startswith(TAGS) and content.strip(b"\0") != b""
                continue
            yield from frames

    def blocks(self, path: Path, start: float, silent: bool) -> Blocks:
        """The frames along the time line, silence where it has any before them."""
        line = self.line
        for frame in self.frames():
            rate = frame.sample_rate
            check_rate(path, rate)
            names = self.named if _is_unnamed(frame.layout) else ()
            names = names or _names(frame.layout)
            gap = line.silence(rate, frame.time, tick=float(frame.time_base), start=start)
            while gap:
                step = min(gap, BLOCK_SAMPLES)
                yield rate, names, line.offset, np.zeros((len(names), step), np.float32)
                line.offset += step
                gap -= step
            block = _zeros(len(names), frame.samples) if silent else _planes(frame)
            yield rate, names, line.offset, block
            line.offset += block.shape[1]
            self.samples += block.shape[1]

    def check(self, path: Path, claimed: int | None) -> None:
        """Raise MediaError when too much is broken, or less is there than the header claimed."""
        most = max(1, BROKEN_SHARE * self.packets)
        if self.broken and (not self.samples or self.broken > most):
            raise MediaError(
                f"{path}: cannot be decoded, {self.broken:,} of {self.packets:,} packets are "
                "damaged",
                Stage.DECODE,
            )
        if claimed and self.samples < claimed:
            raise MediaError(
                f"{path}: truncated, {self.samples:,} of {claimed:,} samples are there",
                Stage.TRUNCATED,
            )


def _av_blocks(
    source: Source, start: float, silent: bool, part: tuple[int, int] | None = None
) -> Blocks:
    """Decode a stream to the end of its data, from `start` seconds or before."""
    import av

    path, flags = source.path, source.flags
    with _opened(source, part) as container:
        if container is None:
            yield from _soundfile_blocks(source, 0.0)
            return
        stream = pick_track(path, container, source.track)
        if len(container.streams.audio) > 1:
            flags.append("tracks")
        line = _time_line(container)
        decoding = _Decoding(container, stream, line, _order_of_its_own(stream.codec_context))
        try:
            yield from decoding.blocks(path, start, silent)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            said = one_line(error)
            raise MediaError(
                f"{path}: cannot be decoded after {line.offset:,} samples ({said})", Stage.DECODE
            ) from None
        finally:
            flags += dict.fromkeys(line.flags)
        decoding.check(path, source.look.samples)
        if decoding.broken:
            flags.append("damaged")


@contextmanager
def _opened(source: Source, part: tuple[int, int] | None = None) -> Iterator:
    """PyAV's container; None when only libsndfile can read the file, whose header `source` then
    has.
    """
    path, patch = source.path, source.look.patch
    window = None
    if part is not None or patch is not None:
        window = Window(path, *(part or (0, path.stat().st_size)), patch)
    with closing(window) if window is not None else nullcontext():
        try:
            container = open_container(path, window)
        except MediaError:
            source.header = None if source.look.kind else _header(path)
            if source.header is None:
                raise
            check_rate(path, source.header.samplerate)
            container = None
        with container if container is not None else nullcontext():
            yield container


def _order_of_its_own(context) -> tuple[str, ...]:
    """The names of the channels, where the file has them in an order of its own; else ().

    The order is taken from the decoder, whose frames then have channels without names: PyAV gives
    the memory of such a layout back with every frame, and with the decoder once more.
    """
    layout = context.layout
    names = tuple(channel.name for channel in layout.channels)
    with suppress(ValueError, RuntimeError):  # none that FFmpeg has a name for
        if LISTED in layout.name:
            context.layout = f"{len(names)} channels"
            return names
        if not layout.name.startswith(AMBISONIC):
            context.layout = layout.name  # the same, in memory that is not shared
    return ()


def _is_unnamed(layout) -> bool:
    return all(channel.name == NAMELESS for channel in layout.channels)


def _names(layout) -> tuple[str, ...]:
    """Names of the channels; mono is its own centre, named or not."""
    channels = layout.channels
    return tuple(channel.name for channel in channels) if len(channels) > 1 else ("FC",)


def _zeros(channels: int, n: int) -> np.ndarray:
    return np.broadcast_to(np.float32(0), (channels, n))


def _planes(frame) -> np.ndarray:
    """An av.AudioFrame as float32 (channels, n), full scale 1.

    Its planes are counted here: of eight PyAV's own `to_ndarray` takes what lies behind them for a
    ninth.
    """
    channels = frame.layout.nb_channels
    dtype = SAMPLE_TYPES[frame.format.name.removesuffix("p")]
    if frame.format.is_planar:
        planes = frame.planes[:channels]
        array = np.stack([np.frombuffer(plane, dtype, frame.samples) for plane in planes])
    else:
        array = np.frombuffer(frame.planes[0], dtype, frame.samples * channels)
        array = array.reshape(-1, channels).T
    if array.dtype == np.uint8:
        return (array.astype(np.float32) - 128.0) / 128.0
    if array.dtype.kind == "i":
        return array.astype(np.float32) / float(2 ** (8 * array.dtype.itemsize - 1))
    return array.astype(np.float32)


def one_line(error: Exception) -> str:
    """What the system or FFmpeg says, without the number and the file before it."""
    return first_line(getattr(error, "strerror", None) or error, LINE_CHARACTERS)


# --- whether this version decodes a file otherwise


def what_changed(path: Path, look: Look) -> str | None:
    """Why a file is decoded otherwise than by the first version, from its packets' time stamps;
    nothing is decoded.

    Args:
        path: A media file whose bytes alone do not tell.
        look: What its bytes tell.

    Returns:
        The reason, None when both versions decode it alike or neither can.
    """
    import av

    if look.why or look.missing or look.exact:
        return look.why
    source = Source(path, look)
    try:
        with _opened(source) as container:
            if container is None:
                return looks.NEW
            return _what_changed_in(path, container)
    except (MediaError, av.error.FFmpegError, OSError, ValueError):
        return None


def _what_changed_in(path: Path, container) -> str | None:
    """As `what_changed`, for what PyAV opened."""
    stream = pick_track(path, container, "auto")
    if not set(container.format.name.split(",")) & FIRST_VERSION:
        return looks.NEW
    if container.format.name in FIRST_VERSION_BELIEVED:
        return looks.NO_LENGTH
    if len(container.streams.audio) > 1:
        return "several audio tracks"
    line, rate = _time_line(container), stream.codec_context.sample_rate
    total = _walk_packets(container, stream, line)
    declared = float(stream.duration * stream.time_base) if stream.duration else 0.0
    if not stream.duration and len(container.streams) == 1:
        declared = (container.duration or 0) / FFMPEG_TICKS_HZ
    if line.flags:
        return {"late": "sound that begins late", "gap": "a gap in its time stamps"}[line.flags[0]]
    if not total or not rate:
        return None
    allowed = max(FIRST_VERSION_MISSING_SECONDS, FIRST_VERSION_MISSING_SHARE * declared)
    was_truncated = declared - total / rate > allowed
    return looks.NO_LENGTH if was_truncated else None


def _walk_packets(container, stream, line: TimeLine) -> int:
    """Samples that a stream's packets hold by their own durations, placed on the time line, until
    the first that lies elsewhere.
    """
    rate, fixed = stream.codec_context.sample_rate, stream.codec_context.frame_size or 0
    total = 0
    for packet in packets_of(container, stream):
        if packet.pts is None or not rate or not (fixed or packet.duration):
            continue
        time = float(packet.pts * packet.time_base)
        if not line.begun:
            line.first_packet(time)
        line.silence(rate, time)
        if line.flags:
            break
        length = fixed or round(float(packet.duration * packet.time_base) * rate)
        line.offset += length
        total += length
    return total
