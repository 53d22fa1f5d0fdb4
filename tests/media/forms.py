"""One clip in many forms, codec × container × defect of the header, and the table of their lengths
in docs/extraction.md.

    python -m tests.media.forms        # prints the table; needs the ffmpeg binary for its column

The clip is 2.37 s of a rising tone at 24 kHz. Everything is made by PyAV, soundfile and
arithmetic, so that it can be tested without ffmpeg: the true length is known.
"""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import soundfile

from mer.pipeline.media import audio as media

RATE = 24_000
SAMPLES = 56_880  # 2.37 s
SECONDS = SAMPLES / RATE
DELAY = 0.5  # seconds by which sound begins late
TIMED = "aresample=async=1:first_pts=0"  # what makes ffmpeg write the silence of delays and gaps


@dataclass(frozen=True)
class Form:
    """`make(path)` writes it; `seconds` is the true length, `frame` the seconds of one codec
    frame, by which lengths may differ."""

    name: str
    suffix: str
    make: Callable[[Path], None]
    frame: float
    seconds: float = SECONDS
    filters: str = ""
    flags: frozenset[str] = frozenset()


def sweep(n: int = SAMPLES, rate: int = RATE) -> np.ndarray:
    """A tone that rises from 200 Hz by 300 Hz a second: every moment sounds otherwise."""
    t = np.arange(n) / rate
    return (0.4 * np.sin(2 * np.pi * (200 + 150 * t) * t)).astype(np.float32)


# --- how they are made


def encode(
    target,
    codec: str,
    container: str,
    *,
    wave: np.ndarray | None = None,
    rate: int = RATE,
    late: float = 0.0,
    gap: tuple[float, float] | None = None,
    video: bool = False,
    options: dict | None = None,
    bit_rate: int = 64_000,
) -> None:
    """`wave` by FFmpeg's encoder, `late` seconds after the beginning, with the seconds `gap`
    left out of the time line; `video`: beside a black picture, so that the time line begins at
    0."""
    wave = sweep() if wave is None else wave
    with av.open(target, "w", format=container, options=options or {}) as out:
        picture = (
            out.add_stream("mpeg4", rate=25, width=64, height=64, pix_fmt="yuv420p")
            if video
            else None
        )
        stream = out.add_stream(codec, rate=rate, layout="mono")
        if not codec.startswith("pcm") and codec not in ("flac", "wavpack", "tta"):
            stream.bit_rate = bit_rate
        if picture is not None:
            black = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            for number in range(25 * 3):
                black.pts = number
                out.mux(picture.encode(black))
            out.mux(picture.encode(None))
        resampler = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=rate)
        pieces = [(0, wave)]
        if gap is not None:
            a, b = (round(x * rate) for x in gap)
            pieces = [(0, wave[:a]), (b, wave[b:])]
        step = stream.codec_context.frame_size or 1024
        for first, piece in pieces:
            for at in range(0, len(piece), step):
                frame = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(piece[None, at : at + step]), format="fltp", layout="mono"
                )
                frame.sample_rate = rate
                frame.pts = first + at + round(late * rate)
                for ready in resampler.resample(frame):
                    out.mux(stream.encode(ready))
        out.mux(stream.encode(None))


def through(codec: str, container: str, **given) -> Callable[[Path], None]:
    return lambda path: encode(str(path), codec, container, **given)


def piped(codec: str, container: str, **given) -> bytes:
    """What a writer leaves that cannot go back to its header."""

    class Pipe(io.RawIOBase):
        def __init__(self):
            self.content = bytearray()

        def write(self, data) -> int:
            self.content += data
            return len(data)

        def writable(self) -> bool:
            return True

        def seekable(self) -> bool:
            return False

    pipe = Pipe()
    encode(pipe, codec, container, **given)
    return bytes(pipe.content)


def made(codec: str, container: str, **given) -> bytes:
    """The bytes of a file by FFmpeg's muxer."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        encode(str(path), codec, container, **given)
        return path.read_bytes()


def sound(format: str, subtype: str | None = None, **given) -> bytes:
    """The bytes of a file by libsndfile."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        soundfile.write(path, sweep(), RATE, format=format, subtype=subtype, **given)
        return path.read_bytes()


def saved(content: Callable[[], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content()) and None


def wav(size: int | None = None, *, extra: bytes = b"") -> bytes:
    """A WAV of 16-bit samples whose data chunk claims `size` bytes, with `extra` before it."""
    samples = (sweep() * 32767).astype("<i2").tobytes()
    chunks = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16) + extra
    chunks += b"data" + struct.pack("<I", len(samples) if size is None else size) + samples
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def claims_two_billion() -> bytes:
    """As writers that promise 2,000,000,000 bytes: the outer size says so, too."""
    content = bytearray(wav(2_000_000_000))
    struct.pack_into("<I", content, 4, 2_000_000_036)
    return bytes(content)


def mp3_in_wav() -> bytes:
    mp3 = made("libmp3lame", "mp3", options={"write_xing": "0", "id3v2_version": "0"})
    header = struct.pack("<IHHIIHHHHIHHH", 30, 0x55, 1, RATE, 8000, 1, 0, 12, 1, 2, 192, 1, 0)
    chunks = b"fmt " + header + b"data" + struct.pack("<I", len(mp3)) + mp3
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def put(content: bytes, at: int, value: bytes) -> bytes:
    return content[:at] + value + content[at + len(value) :]


def flac_claims(total: int) -> bytes:
    content = made("flac", "flac")
    at = content.index(b"fLaC") + 21
    return put(
        content,
        at,
        bytes([content[at] & 0xF0 | total >> 32]) + struct.pack(">I", total & 0xFFFFFFFF),
    )


def mp3_claims(frames: int) -> bytes:
    """A wrong number of frames, and no number of bytes, in the Xing header."""
    content = made("libmp3lame", "mp3")
    at = max(content.find(b"Xing"), content.find(b"Info"))
    content = put(content, at + 8, struct.pack(">I", frames))
    return put(content, at + 4, struct.pack(">I", struct.unpack(">I", content[at + 4 : at + 8])[0]))


def mp3() -> bytes:
    return made("libmp3lame", "mp3")


def tagged(content: bytes) -> bytes:
    ape = b"APETAGEX" + struct.pack("<IIII", 2000, 32, 0, 0) + bytes(8)
    return content + ape + b"TAG" + b"title".ljust(125, b"\0")


def sphere() -> bytes:
    samples = (sweep() * 32767).astype("<i2").tobytes()
    fields = (
        f"NIST_1A\n   1024\nchannel_count -i 1\nsample_count -i {SAMPLES}\nsample_rate -i "
        f"{RATE}\nsample_n_bytes -i 2\n"
    )
    fields += "sample_byte_format -s2 01\nsample_sig_bits -i 16\nsample_coding -s3 pcm\nend_head\n"
    return fields.encode().ljust(1024) + samples


def au(size: int) -> bytes:
    samples = (sweep() * 32767).astype(">i2").tobytes()
    return b".snd" + struct.pack(">IIIII", 24, size, 3, RATE, 1) + samples


def caf_open() -> bytes:
    content = sound("CAF", "PCM_16")
    return put(content, content.index(b"data") + 4, struct.pack(">q", -1))


def aiff(ssnd: int, frames: int) -> bytes:
    """An AIFF whose sizes are what they should not be."""
    content = sound("AIFF", "PCM_16")
    content = put(content, content.index(b"SSND") + 4, struct.pack(">I", ssnd))
    return put(content, content.index(b"COMM") + 10, struct.pack(">I", frames))


AAC, OPUS, MP3, VORBIS, FLAC = 1024 / RATE, 0.02, 576 / RATE, 2048 / RATE, 0.0
TWICE = 2 * SECONDS
BOTH_GAP = (0.9, 1.4)  # seconds left out
UNSIZED = frozenset({"unsized"})
FORMS = [
    Form("PCM, WAV", "wav", saved(wav), 0),
    Form("float, WAV", "wav", saved(lambda: sound("WAV", "FLOAT")), 0),
    Form("PCM, WAV: data size 0", "wav", saved(lambda: wav(0)), 0, flags=UNSIZED),
    Form(
        "PCM, WAV: data size 2·10⁹, outer size too",
        "wav",
        saved(claims_two_billion),
        0,
        flags=UNSIZED,
    ),
    Form("PCM, WAV: data size 10⁹", "wav", saved(lambda: wav(10**9)), 0, flags=UNSIZED),
    Form(
        "PCM, WAV: 36 bytes too large",
        "wav",
        saved(lambda: wav(2 * SAMPLES + 36)),
        0,
        flags=UNSIZED,
    ),
    Form("PCM, WAV: FFFFFFFF", "wav", saved(lambda: wav(0xFFFFFFFF)), 0, flags=UNSIZED),
    Form(
        "PCM, WAV written to a pipe",
        "wav",
        saved(lambda: piped("pcm_s16le", "wav")),
        0,
        flags=UNSIZED,
    ),
    Form(
        "PCM, WAV with JUNK and an odd LIST",
        "wav",
        saved(lambda: wav(extra=b"JUNK\x04\0\0\0abcdLIST\x05\0\0\0INFOx\0")),
        0,
    ),
    Form("MP3 in WAV (tag 0x55)", "wav", saved(mp3_in_wav), 2 * MP3),
    Form("PCM, RF64", "rf64", saved(lambda: sound("RF64", "PCM_16")), 0),
    Form("PCM, W64", "w64", saved(lambda: sound("W64", "PCM_16")), 0),
    Form("PCM, AIFF", "aiff", saved(lambda: sound("AIFF", "PCM_16")), 0),
    Form(
        "PCM, AIFF: size 7FFFFFFF",
        "aiff",
        saved(lambda: aiff(0x7FFFFFFF, SAMPLES)),
        0,
        flags=UNSIZED,
    ),
    Form("PCM, AU: size FFFFFFFF", "au", saved(lambda: au(0xFFFFFFFF)), 0, flags=UNSIZED),
    Form("PCM, CAF: size −1", "caf", saved(caf_open), 0),
    Form("PCM, NIST SPHERE", "sph", saved(sphere), 0),
    Form("PCM, VOC", "voc", saved(lambda: made("pcm_s16le", "voc")), 0),
    Form("FLAC", "flac", saved(lambda: made("flac", "flac")), FLAC),
    Form(
        "FLAC written to a pipe", "flac", saved(lambda: piped("flac", "flac")), FLAC, flags=UNSIZED
    ),
    Form(
        "FLAC: length 20,000 samples too short",
        "flac",
        saved(lambda: flac_claims(SAMPLES - 20_000)),
        FLAC,
    ),
    Form(
        "FLAC, two files joined",
        "flac",
        saved(lambda: 2 * made("flac", "flac")),
        4608 / RATE,
        seconds=TWICE,
    ),
    Form("FLAC, Ogg", "oga", through("flac", "ogg"), FLAC),
    Form("WavPack", "wv", through("wavpack", "wv"), 0),
    Form("TTA", "tta", through("tta", "tta"), 0),
    Form("MP3 with Xing", "mp3", saved(mp3), MP3),
    Form(
        "MP3 without Xing",
        "mp3",
        saved(lambda: made("libmp3lame", "mp3", options={"write_xing": "0"})),
        2 * MP3,
    ),
    Form("MP3 written to a pipe", "mp3", saved(lambda: piped("libmp3lame", "mp3")), 2 * MP3),
    Form("MP3, Xing counts half the frames", "mp3", saved(lambda: mp3_claims(50)), 2 * MP3),
    Form("MP3 with ID3v2, APE and ID3v1", "mp3", saved(lambda: tagged(mp3())), MP3),
    Form(
        "MP3, two files joined, tags between",
        "mp3",
        saved(lambda: 2 * tagged(mp3())),
        3 * MP3,
        seconds=TWICE,
    ),
    Form("Vorbis, Ogg", "ogg", saved(lambda: sound("OGG", "VORBIS")), VORBIS),
    Form(
        "Vorbis, Ogg, two streams chained",
        "ogg",
        saved(lambda: 2 * sound("OGG", "VORBIS")),
        VORBIS,
        seconds=TWICE,
    ),
    Form("Opus, Ogg", "opus", through("libopus", "ogg"), OPUS),
    Form(
        "Opus, Ogg, two streams chained",
        "opus",
        saved(lambda: 2 * made("libopus", "ogg")),
        OPUS,
        seconds=TWICE,
    ),
    Form("Opus, WebM", "webm", through("libopus", "webm"), OPUS),
    Form(
        "Opus, WebM written live",
        "webm",
        saved(lambda: piped("libopus", "webm", options={"live": "1"})),
        OPUS,
    ),
    Form("AAC, ADTS", "aac", through("aac", "adts"), 2 * AAC),
    Form(
        "AAC, ADTS, two files joined",
        "aac",
        saved(lambda: 2 * made("aac", "adts")),
        4 * AAC,
        seconds=TWICE,
    ),
    Form("AAC, M4A (edit list)", "m4a", through("aac", "ipod"), AAC),
    Form(
        "AAC, MP4 in fragments",
        "mp4",
        saved(lambda: piped("aac", "mp4", options={"movflags": "frag_keyframe+empty_moov"})),
        2 * AAC,
    ),
    Form("AAC, MP4 beside a picture", "mp4", through("aac", "mp4", video=True), AAC),
    Form(
        "AAC, MP4, sound 0.5 s late",
        "mp4",
        through("aac", "mp4", video=True, late=DELAY),
        2 * AAC,
        seconds=SECONDS + DELAY,
        filters=TIMED,
        flags=frozenset({"late"}),
    ),
    Form(
        "AAC, Matroska, sound 0.5 s late",
        "mkv",
        through("aac", "matroska", video=True, late=DELAY),
        2 * AAC,
        seconds=SECONDS + DELAY,
        filters=TIMED,
        flags=frozenset({"late"}),
    ),
    Form(
        "AAC, MPEG-TS, sound 0.5 s late",
        "ts",
        through("aac", "mpegts", video=True, late=DELAY),
        2 * AAC,
        seconds=SECONDS + DELAY,
        filters=TIMED,
        flags=frozenset({"late"}),
    ),
    Form(
        "PCM, Matroska, 0.5 s left out",
        "mkv",
        through("pcm_s16le", "matroska", gap=BOTH_GAP),
        0.002,
        filters=TIMED,
        flags=frozenset({"gap"}),
    ),
    Form("AAC, MPEG-TS", "ts", through("aac", "mpegts"), 2 * AAC),
    Form("MP3, AVI", "avi", through("libmp3lame", "avi"), 2 * MP3),
    Form(
        "AAC, FLV",
        "flv",
        through("aac", "flv", rate=44_100, wave=sweep(104_517, 44_100)),
        2 * 1024 / 44_100,
    ),
    Form(
        "AC-3",
        "ac3",
        through("ac3", "ac3", rate=48_000, wave=sweep(113_760, 48_000)),
        1536 / 48_000,
    ),
    Form(
        "WMA, ASF",
        "wma",
        through("wmav2", "asf", rate=44_100, wave=sweep(104_517, 44_100)),
        2 * 2048 / 44_100,
    ),
]


def ffmpeg_seconds(path: Path, filters: str = "") -> float:
    """Length as the ffmpeg binary decodes it to 16 kHz mono. With `filters` it reads the picture
    too, else it lets the time line of some containers begin with the sound."""
    timed = ["-af", filters, "-map", "0:a"] if filters else []
    picture = ["-map", "0:v?", "-f", "null", "-"] if filters else []
    command = [
        "ffmpeg",
        "-v",
        "quiet",
        "-i",
        str(path),
        *timed,
        "-ac",
        "1",
        "-ar",
        "16000",
        "-f",
        "f32le",
        "-",
        *picture,
    ]
    found = subprocess.run(command, capture_output=True, check=False)
    return len(found.stdout) / 4 / 16_000


def rows(folder: Path) -> Iterator[str]:
    """The table, line by line."""
    yield "| form | true | mer | ffmpeg | flags |"
    yield "|---|---|---|---|---|"
    for number, form in enumerate(FORMS):
        path = folder / f"{number}.{form.suffix}"
        form.make(path)
        clip = media.load(path)
        flags = ", ".join(flag for flag in clip.flags if flag != "resampled")
        yield (
            f"| {form.name} | {form.seconds:.3f} | {clip.seconds:.3f} | "
            f"{ffmpeg_seconds(path, form.filters):.3f} | {flags} |"
        )


if __name__ == "__main__":
    if shutil.which("ffmpeg") is None:
        sys.exit("the ffmpeg binary is needed for its column")
    with tempfile.TemporaryDirectory() as place:
        for line in rows(Path(place)):
            print(line)
