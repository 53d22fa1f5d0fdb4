"""The two decoders: soundfile where a header's length can be believed, PyAV (FFmpeg) for the rest,
along the presentation time line.

Both give blocks (rate, channel names, offset, samples (channels, n)). `offset` counts samples at
`rate` from the beginning of the file's time line, which is the container's start time: sound
that begins later, or a gap in the time stamps, is silence of that length.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

from mer.pipeline.errors import DataError
from mer.pipeline.media import containers
from mer.pipeline.media.containers import Look
from mer.pipeline.runtime.limits import MEDIA_GAP_SECONDS, MEDIA_RATES_HZ, MEDIA_RETRIES

BLOCK = 2**20  # samples over all channels decoded at a time
# Seconds between time stamps and samples that count as a delay or gap; below it lie rounding,
# jitter and the delays of encoders.
GAP = 0.05
DECODER_DELAY = 0.2  # seconds that a decoder may keep of a stream whose packets begin in time
# Seconds: a longer gap in a format whose clock may start anew is a new clock, no silence, as in
# ffmpeg.
JUMP = 10.0
BROKEN = 0.05  # share of a stream's packets that may be undecodable before the file is refused
SHORTFALL = (
    0.5,
    0.1,
)  # seconds and share that the first version let be missing against a duration in the header
PADDING = 1 << 20  # bytes of zeros after which a file counts as nothing else
CLOCK_MAY_RESTART = 0x0200  # AVFMT_TS_DISCONT

FLAC_LAYOUTS = {  # RFC 9639 table 14: FLAC fixes the order by the number of channels
    3: "FL FR FC", 4: "FL FR BL BR", 5: "FL FR FC BL BR", 6: "FL FR FC LFE BL BR",
    7: "FL FR FC LFE BC SL SR", 8: "FL FR FC LFE BL BR SL SR",
}  # fmt: skip
SIZED = {
    "wav",
    "aiff",
    "au",
    "caf",
    "w64",
}  # libsndfile has always read these, with or without a true length
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
    "mxf,nut,dv,mpegvideo,bonk,osq,shn,wsd,act,g722,g729,dss,svag,xwma,wtv,lc3,hcom,wve"
)
FIRST_VERSION = (  # what the first version let FFmpeg open
    "mov mp4 m4a 3gp 3g2 mj2 matroska webm avi wav w64 mp3 flac ogg aac aiff asf flv mpeg mpegts "
    "au caf amr"
).split()
TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICS")
FRAMED = {
    "mp3",
    "aac",
    "ac3",
    "eac3",
    "flac",
    "loas",
    "dts",
}  # streams of frames: what lies between two of them may be a tag


class MediaError(DataError):
    """`stage`: open | decode | truncated | empty | channel | track | rate | times | nan |
    too_long."""

    def __init__(self, message: str, stage: str = "decode"):
        super().__init__(message)
        self.stage = stage


Block = tuple[
    int, tuple[str, ...], int, np.ndarray
]  # rate, channel names, offset, samples (channels, n)


@dataclass
class Source:
    """A file that is about to be decoded. `flags` grows while `blocks` runs."""

    path: Path
    look: Look
    track: str = "auto"
    header: soundfile.SoundFile | None = None  # where soundfile reads it
    flags: list[str] = field(default_factory=list)

    def blocks(self, start: float, *, silent: bool = False) -> Iterator[Block]:
        """Decode, from `start` seconds or before. `silent`: zeros instead of samples, for whom
        only lengths matter."""
        if self.header is not None:
            return _soundfile_blocks(self, start)
        if self.look.parts:
            return _chained(self, start, silent)
        return _av_blocks(self, start, silent)

    @property
    def exact(self) -> bool:
        """Whether `header` has the true length, so that nothing need be decoded to learn it."""
        return self.header is not None and self.look.exact and self.look.kind in SIZED | {"flac"}


def open_source(path: Path, look: Look, track: str = "auto") -> Source:
    """Choose the decoder. Raises MediaError for a file that is cut off, or that claims what
    cannot be."""
    if look.missing:
        raise MediaError(f"{path}: truncated, {look.missing}", "truncated")
    if (
        not look.kind and (found := _other_content(path)) is not None
    ):  # FFmpeg would go by the suffix
        raise MediaError(f"{path}: not a media file that can be read (it is {found})", "open")
    source = Source(path, look, track, flags=list(look.flags))
    if look.exact:
        source.header = _header(path)
    if source.header is not None:
        check_rate(path, source.header.samplerate)
        if track not in ("auto", "0"):
            raise _no_track(path, track, 1)
    return source


def _header(path: Path) -> soundfile.SoundFile | None:
    """The file as soundfile opens it; None where PyAV is to read it."""
    try:
        header = soundfile.SoundFile(os.fsencode(path))
    except (soundfile.LibsndfileError, RuntimeError):
        return None  # a codec only FFmpeg has
    if header.format not in SOUNDFILE or not 0 <= header.frames < 1 << 62:
        return None
    if header.channels > 2 and (header.format != "FLAC" or header.channels > 8):
        return None  # soundfile does not tell the layout; PyAV does
    return header


def check_rate(path: Path, rate: int) -> None:
    lowest, highest = MEDIA_RATES_HZ
    if not lowest <= rate <= highest:
        raise MediaError(
            f"{path}: its header claims {rate} Hz, expected {lowest} to {highest}", "rate"
        )


def _no_track(path: Path, track: str, count: int) -> MediaError:
    has = "one audio track" if count == 1 else f"{count} audio tracks"
    return MediaError(
        f"{path}: audio track {track} asked for, the file has {has} (numbered from 0)", "track"
    )


# --- soundfile


def _soundfile_blocks(source: Source, start: float) -> Iterator[Block]:
    path, header = source.path, source.header
    if header.channels > 2:
        names = tuple(FLAC_LAYOUTS[header.channels].split())
    else:
        names = ("FC",) if header.channels == 1 else ("FL", "FR")
    try:
        with header as file:
            offset = (
                min(round(start * file.samplerate), max(0, file.frames)) if file.seekable() else 0
            )
            if offset:
                file.seek(offset)
            more = True
            while (
                more
            ):  # the last block is empty, so that a start beyond the end still tells the rate
                block = file.read(max(1, BLOCK // file.channels), dtype="float32", always_2d=True)
                yield file.samplerate, names, offset, block.T
                offset += len(block)
                more = len(block) > 0
            if file.frames > offset:
                raise MediaError(
                    f"{path}: truncated, {offset:,} of {file.frames:,} samples are there",
                    "truncated",
                )
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise MediaError(f"{path}: cannot be decoded ({_one_line(error)})", "decode") from None


# --- PyAV


class Window:
    """The bytes from `begin` to `end` of a file as a file, with those of `patch` in the place of
    its own."""

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
            at = place - self.begin - self._at
            if 0 <= at <= len(data) - len(value):
                data = data[:at] + value + data[at + len(value) :]
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


def _open(path: Path, window: Window | None):
    """PyAV's container of a file, or of a window on it."""
    import av

    options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
    try:
        # "file:" keeps a colon in the name from being read as a protocol
        return av.open(f"file:{path.absolute()}" if window is None else window, options=options)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise MediaError(
            f"{path}: not a media file that can be read ({_what_instead(path, error)})", "open"
        ) from None


def _other_content(path: Path) -> str | None:
    """What a file is that is no media file; zeros at its beginning alone may be padding."""
    try:
        with path.open("rb") as file:
            found = containers.other_content(file.read(512))
            if found == containers.ZEROS and file.read(PADDING).strip(b"\0"):
                return None
    except OSError as error:
        raise MediaError(f"{path}: {error.strerror or error}", "open") from None
    return found


def _what_instead(path: Path, error: Exception) -> str:
    """In our words, why a file cannot be opened."""
    import av

    if isinstance(error, av.error.InvalidDataError):
        return "no known container begins like this, or its header is damaged"
    if (
        getattr(error, "errno", None) == 22
    ):  # EINVAL is what FFmpeg says of a demuxer that is not allowed, too
        suffix = f" '{path.suffix}'" if path.suffix else ""
        return f"a format{suffix} that is not supported; convert it, e.g. to .wav or .flac"
    return _one_line(error)


def pick_track(path: Path, container, track: str):
    """The audio stream: the default one by its disposition, else the first; or number `track`.
    Raises MediaError."""
    import av

    streams = container.streams.audio
    if not streams:
        raise MediaError(f"{path}: no audio stream", "empty")
    if track != "auto":
        if int(track) >= len(streams):
            raise _no_track(path, track, len(streams))
        return streams[int(track)]
    marked = [stream for stream in streams if stream.disposition & av.stream.Disposition.default]
    return (marked or streams)[0]


@dataclass
class TimeLine:
    """Where samples lie: `offset` of the next one at `rate`, held against time stamps."""

    origin: float  # seconds of the container's clock at which its time line begins
    may_restart: bool  # its clock may start anew
    offset: int = 0
    rate: int = 0
    begun: bool = False
    in_time: bool = False  # the stream's packets begin where the time line does
    flags: list[str] = field(default_factory=list)

    def first_packet(self, time: float) -> None:
        self.in_time = time - self.origin <= GAP

    def silence(
        self, rate: int, time: float | None, *, tick: float = 0.0, start: float = 0.0
    ) -> int:
        """Samples of silence before a piece of sound that begins at `time` on the container's
        clock, which has a resolution of `tick`. Until `start` nothing is kept, and each piece
        lies where its own time stamp says, if that is more than its rounding: so ffmpeg cuts."""
        if rate != self.rate:
            self.offset = round(self.offset * rate / self.rate) if self.rate else 0
            self.rate = rate
        begun, self.begun = self.begun, True
        if time is None:
            return 0
        ahead = time - self.origin - self.offset / rate
        if not begun and self.in_time and 0 < ahead < DECODER_DELAY:
            self.origin += ahead
            return 0
        if abs(ahead) <= GAP:
            if (
                not begun and ahead < 0
            ):  # the container's start is rounded, or before what decoders leave out
                self.origin += ahead
            elif abs(ahead) > tick and time - self.origin <= start:
                self.offset += round(ahead * rate)
            return 0
        if ahead < 0 or ahead > MEDIA_GAP_SECONDS or (begun and self.may_restart and ahead > JUMP):
            self.origin += ahead  # another clock: what follows is taken to follow at once
            return 0
        self.flags.append("gap" if begun else "late")
        return round(ahead * rate)


def _time_line(container) -> TimeLine:
    origin = (container.start_time or 0) / 1_000_000
    return TimeLine(origin, bool(container.format.flags & CLOCK_MAY_RESTART))


def _chained(source: Source, start: float, silent: bool) -> Iterator[Block]:
    """Streams that follow one another in a file, each by a decoder of its own: rates and
    channels may change."""
    begin = 0.0
    for part in source.look.parts:
        seconds = 0.0
        for rate, names, offset, block in _av_blocks(source, max(0.0, start - begin), silent, part):
            yield rate, names, round(begin * rate) + offset, block
            seconds = (offset + block.shape[1]) / rate
        begin += seconds


def _packets(container, stream) -> Iterator:
    """The packets of a stream; FFmpeg may ask to be called again while it looks for the next
    one."""
    for _ in range(MEDIA_RETRIES):
        try:
            yield from container.demux(stream)
            return
        except BlockingIOError:
            continue


def _av_blocks(
    source: Source, start: float, silent: bool, part: tuple[int, int] | None = None
) -> Iterator[Block]:
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
        framed = container.format.name in FRAMED
        line, packets, broken, decoded = _time_line(container), 0, 0, 0
        try:
            for packet in _packets(container, stream):
                packets += 1
                if packets == 1 and packet.pts is not None:
                    line.first_packet(float(packet.pts * packet.time_base))
                try:
                    frames = packet.decode()
                except av.error.FFmpegError:
                    if not framed:
                        raise
                    content = bytes(packet)
                    broken += not content.startswith(TAGS) and content.strip(b"\0") != b""
                    continue
                for frame in frames:
                    rate = frame.sample_rate
                    check_rate(path, rate)
                    names = _names(frame.layout)
                    gap = line.silence(rate, frame.time, tick=float(frame.time_base), start=start)
                    while gap:
                        step = min(gap, BLOCK)
                        yield rate, names, line.offset, np.zeros((len(names), step), np.float32)
                        line.offset += step
                        gap -= step
                    block = _zeros(len(names), frame.samples) if silent else _planes(frame)
                    yield rate, names, line.offset, block
                    line.offset += block.shape[1]
                    decoded += block.shape[1]
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise MediaError(
                f"{path}: cannot be decoded after {line.offset:,} samples ({_one_line(error)})",
                "decode",
            ) from None
        finally:
            flags += dict.fromkeys(line.flags)
        if broken and (not decoded or broken > max(1, BROKEN * packets)):
            raise MediaError(
                f"{path}: cannot be decoded, {broken:,} of {packets:,} packets are damaged",
                "decode",
            )
        if broken:
            flags.append("damaged")
        claimed = source.look.samples
        if claimed and decoded < claimed:
            raise MediaError(
                f"{path}: truncated, {decoded:,} of {claimed:,} samples are there", "truncated"
            )


@contextmanager
def _opened(source: Source, part: tuple[int, int] | None = None) -> Iterator:
    """PyAV's container; None when only libsndfile can read the file, whose header `source` then
    has."""
    path, patch = source.path, source.look.patch
    window = None
    if part is not None or patch is not None:
        window = Window(path, *(part or (0, path.stat().st_size)), patch)
    with closing(window) if window is not None else nullcontext():
        try:
            container = _open(path, window)
        except MediaError:
            source.header = None if source.look.kind else _header(path)
            if source.header is None:
                raise
            check_rate(path, source.header.samplerate)
            container = None
        with container if container is not None else nullcontext():
            yield container


def _names(layout) -> tuple[str, ...]:
    channels = layout.channels
    return (
        tuple(c.name for c in channels) if len(channels) > 1 else ("FC",)
    )  # mono is its own centre, named or not


def _zeros(channels: int, n: int) -> np.ndarray:
    return np.broadcast_to(np.float32(0), (channels, n))


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
                return containers.NEW
            stream = pick_track(path, container, "auto")
            if not set(container.format.name.split(",")) & set(FIRST_VERSION):
                return containers.NEW
            if container.format.name in (
                "mp3",
                "flac",
                "ogg",
            ):  # the first version believed their headers
                return containers.NO_LENGTH
            if len(container.streams.audio) > 1:
                return "several audio tracks"
            line, rate, total = _time_line(container), stream.codec_context.sample_rate, 0
            fixed = stream.codec_context.frame_size or 0
            for packet in _packets(container, stream):
                if packet.pts is None or not rate or not (fixed or packet.duration):
                    continue
                if not line.begun:
                    line.first_packet(float(packet.pts * packet.time_base))
                line.silence(rate, float(packet.pts * packet.time_base))
                if line.flags:
                    break
                length = fixed or round(float(packet.duration * packet.time_base) * rate)
                line.offset += length
                total += length
            duration = stream.duration
            declared = float(duration * stream.time_base) if duration else 0.0
            if not duration and len(container.streams) == 1:
                declared = (container.duration or 0) / 1_000_000
    except (MediaError, av.error.FFmpegError, OSError, ValueError):
        return None
    if line.flags:
        return {"late": "sound that begins late", "gap": "a gap in its time stamps"}[line.flags[0]]
    was_truncated = (
        total and rate and declared - total / rate > max(SHORTFALL[0], SHORTFALL[1] * declared)
    )
    return containers.NO_LENGTH if was_truncated else None
