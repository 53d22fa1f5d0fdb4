"""Lengths: a header's length is a hint, streams that follow one another are all read.

From bastibe/python-soundfile#433, libsndfile/libsndfile#1001, #943 and #277,
DSheirer/sdrtrunk#1377, MusicPlayerDaemon/MPD#1200, kyutai-labs/pocket-tts#229,
naudio/NAudio#688, cjcliffe/CubicSDR#616.
"""

from __future__ import annotations

import re
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mer.pipeline.media import audio as media
from mer.pipeline.media import containers

from tests.media.forms import (
    FORMS,
    RATE,
    SAMPLES,
    Form,
    au,
    encode,
    ffmpeg_seconds,
    made,
    mp3,
    piped,
    put,
    sound,
    sweep,
    wav,
)

ROOT = Path(__file__).parents[2]
EXACT = 2 / 16_000  # seconds: rounding of the resampler
# where the ffmpeg binary up to version 5 loses what surrounds the joint
FLAC_JOINT = "FLAC, two files joined"


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_the_whole_clip_is_there(tmp_path, form: Form):
    path = tmp_path / f"clip.{form.suffix}"
    form.make(path)
    clip = media.load(path)
    assert len(clip.waveform) == media.probe(path).samples
    assert abs(clip.seconds - form.seconds) <= 2 * form.frame + EXACT
    assert form.flags <= set(clip.flags)
    ours = {"late", "gap", "unsized", "damaged", "trailing", "tracks"}
    assert set(clip.flags) & ours == form.flags


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_the_length_is_ffmpegs(tmp_path, form: Form):
    if shutil.which("ffmpeg") is None:
        pytest.skip("the ffmpeg binary is not installed")
    path = tmp_path / f"clip.{form.suffix}"
    form.make(path)
    if form.name == FLAC_JOINT:
        pytest.skip(
            "this ffmpeg may lose frames at the joint; test_the_whole_clip_is_there has the true "
            "length"
        )
    assert abs(media.load(path).seconds - ffmpeg_seconds(path, form.filters)) <= max(
        form.frame, 0.005
    )


def test_the_table_in_the_docs_is_of_these_forms():
    page = (ROOT / "docs" / "extraction.md").read_text()
    rows = re.findall(r"^\| (.+?) \| (\d\.\d{3}) \| (\d\.\d{3}) \| (\d\.\d{3}) \|", page, re.M)
    assert [row[0] for row in rows] == [form.name for form in FORMS]
    assert len(rows) >= 30


def pitch(waveform: np.ndarray, at: float) -> float:
    """Hertz at a moment."""
    first = round(at * 16_000)
    piece = waveform[first : first + 1600] * np.hanning(1600)
    return float(np.abs(np.fft.rfft(piece, 16_000)).argmax())


@pytest.mark.parametrize("suffix", ["ogg", "opus", "flac", "aac", "mp3"])
def test_joined_streams_of_other_rates_are_each_resampled(tmp_path, suffix):
    """A second stream with another rate: what is heard at 0.5 s into it is what it has there."""
    codec, container = {
        "ogg": ("", ""),
        "opus": ("libopus", "ogg"),
        "flac": ("flac", "flac"),
        "aac": ("aac", "adts"),
        "mp3": ("libmp3lame", "mp3"),
    }[suffix]
    content = b""
    for rate in (24_000, 48_000):
        if suffix == "ogg":
            soundfile.write(tmp_path / "x.ogg", sweep(2 * rate, rate), rate)
            content += (tmp_path / "x.ogg").read_bytes()
        else:
            content += made(codec, container, rate=rate, wave=sweep(2 * rate, rate))
    path = tmp_path / f"two.{suffix}"
    path.write_bytes(content)
    clip = media.load(path)
    assert clip.seconds == pytest.approx(4.0, abs=0.18) and media.probe(path).samples == len(
        clip.waveform
    )
    second = clip.seconds - 2.0
    assert pitch(clip.waveform, 0.5) == pytest.approx(200 + 300 * 0.55, abs=30)
    assert pitch(clip.waveform, second + 0.5) == pytest.approx(200 + 300 * 0.55, abs=45)


def test_a_span_in_the_second_stream(tmp_path):
    path = tmp_path / "two.opus"
    path.write_bytes(2 * made("libopus", "ogg"))
    span = media.load(path, start=3.0, end=3.5)
    assert len(span.waveform) == media.probe(path, start=3.0, end=3.5).samples == 8000
    assert pitch(span.waveform, 0.2) == pytest.approx(200 + 300 * (3.25 - 2.37), abs=30)


def test_other_headers_that_say_too_little(tmp_path):
    for name, content in {
        "zero.au": au(0),
        "small.au": au(1000),
        "large.au": au(2 * SAMPLES + 30),
    }.items():
        (tmp_path / name).write_bytes(content)
        assert media.load(tmp_path / name).seconds == pytest.approx(SAMPLES / RATE, abs=EXACT), name


def test_a_wav_behind_a_wav_is_told(tmp_path):
    (tmp_path / "two.wav").write_bytes(2 * wav())
    clip = media.load(tmp_path / "two.wav")
    assert clip.seconds == pytest.approx(SAMPLES / RATE, abs=EXACT) and "trailing" in clip.flags


@pytest.mark.parametrize(
    ("size", "right"),
    [
        (0, True),
        (10**9, True),
        (2 * 10**9, True),
        (1 << 30, True),
        ((1 << 30) - 44, True),
        (123_456_789, False),
        (2 * SAMPLES + 60, True),
        (2 * SAMPLES + 300, False),
    ],
)
def test_what_counts_as_a_placeholder(tmp_path, size, right):
    """The outer size claims as much, so only the number itself tells."""
    content = bytearray(wav(size))
    struct.pack_into("<I", content, 4, min(size + 36, 0xFFFFFFFF))
    (tmp_path / "a.wav").write_bytes(content)
    assert (containers.look(tmp_path / "a.wav").missing is None) == right


CUT = {
    "wav": wav,
    "flac": lambda: made("flac", "flac"),
    "mp3": mp3,
    "ogg": lambda: sound("OGG", "VORBIS"),
    "opus": lambda: made("libopus", "ogg"),
    "aac": lambda: made("aac", "adts"),
    "m4a": lambda: made("aac", "ipod"),
    "mkv": lambda: made("aac", "matroska"),
    "avi": lambda: made("libmp3lame", "avi"),
    "w64": lambda: sound("W64", "PCM_16"),
    "rf64": lambda: sound("RF64", "PCM_16"),
    "aiff": lambda: sound("AIFF", "PCM_16"),
    "caf": lambda: sound("CAF", "PCM_16"),
    "au": lambda: au(2 * SAMPLES),
    "wma": lambda: made("wmav2", "asf", rate=44_100, wave=sweep(104_517, 44_100)),
    "flv": lambda: made("aac", "flv", rate=44_100, wave=sweep(104_517, 44_100)),
    "wv": lambda: made("wavpack", "wv"),
    "tta": lambda: made("tta", "tta"),
}


@pytest.mark.parametrize("suffix", CUT)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_what_is_cut_off_is_refused(tmp_path, suffix, share):
    """From libsndfile/libsndfile#809: a download that broke."""
    content = CUT[suffix]()
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(content[: int(len(content) * share)])
    for read in (media.load, media.probe):
        with pytest.raises(media.MediaError) as error:
            read(path)
        assert error.value.stage in ("truncated", "decode", "empty", "open") and len(
            str(error.value)
        ) < 300 + len(str(path))


def test_a_stream_written_live_may_end_anywhere(tmp_path):
    """Nothing says how long it is, so nothing says that it is cut off."""
    content = piped("libopus", "webm", options={"live": "1"})
    (tmp_path / "a.webm").write_bytes(content)
    assert media.load(tmp_path / "a.webm").seconds == pytest.approx(SAMPLES / RATE, abs=0.02)


def test_a_recording_of_a_radio_stream(tmp_path):
    """It begins and ends within a frame."""
    content = made("libmp3lame", "mp3", options={"write_xing": "0", "id3v2_version": "0"})
    (tmp_path / "a.mp3").write_bytes(content[700:-50])
    assert media.load(tmp_path / "a.mp3").seconds == pytest.approx(SAMPLES / RATE, abs=0.2)


def test_what_stands_behind_the_audio_harms_nothing(tmp_path):
    for suffix, make in CUT.items():
        if suffix in ("wv", "wav", "au"):
            # WavPack's own reader refuses it; the others are told as trailing or are audio
            continue
        path = tmp_path / f"a.{suffix}"
        path.write_bytes(make())
        length = media.load(path).seconds
        for tail in (bytes(5000), b"hello world" * 50):
            path.write_bytes(make() + tail)
            assert media.load(path).seconds == pytest.approx(length, abs=0.05), (suffix, tail[:5])


def test_flac_headers_are_verified(tmp_path):
    content = made("flac", "flac")
    (tmp_path / "a.flac").write_bytes(content)
    assert containers.look(tmp_path / "a.flac").exact
    (tmp_path / "a.flac").write_bytes(put(content, len(content) - 1, bytes([content[-1] ^ 1])))
    with pytest.raises(media.MediaError):  # the checksum of the last frame
        media.load(tmp_path / "a.flac")


def test_mp3_with_a_true_header_is_believed(tmp_path):
    encode(str(tmp_path / "a.mp3"), "libmp3lame", "mp3")
    found = containers.look(tmp_path / "a.mp3")
    assert found.exact and found.why is None
