"""Time lines: `start`, `end` and gaps follow time stamps.

From Zulko/moviepy#2284, shaka-project/shaka-packager#196, video-dev/hls.js#412.
"""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest

from mer.pipeline.media import audio as media

from tests.cases.test_media_lengths import pitch
from tests.media.forms import RATE, SAMPLES, encode, made

FILES = {
    "mp4": ("aac", "mp4"),
    "mkv": ("aac", "matroska"),
    "ts": ("aac", "mpegts"),
    "mov": ("pcm_s16le", "mov"),
    "avi": ("pcm_s16le", "avi"),
}
LATE = 1.5


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "mov"])
def test_sound_that_begins_late(tmp_path, suffix):
    path = tmp_path / f"late.{suffix}"
    codec, container = FILES[suffix]
    encode(str(path), codec, container, video=True, late=LATE)
    whole = media.load(path)
    assert "late" in whole.flags and whole.seconds == pytest.approx(LATE + SAMPLES / RATE, abs=0.09)
    assert np.abs(whole.waveform[: round(1.4 * 16_000)]).max() < 1e-3
    span = media.load(path, start=2.0, end=3.0)
    assert len(span.waveform) == media.probe(path, start=2.0, end=3.0).samples == 16_000
    assert pitch(span.waveform, 0.2) == pytest.approx(200 + 300 * (2.25 - LATE), abs=20)
    assert np.allclose(span.waveform[100:-100], whole.waveform[32_100:47_900], atol=0.05)


@pytest.mark.parametrize(
    ("suffix", "codec", "container"),
    [
        ("mkv", "pcm_s16le", "matroska"),
        ("mp4", "aac", "mp4"),
        ("webm", "libopus", "webm"),
        ("ts", "aac", "mpegts"),
        ("mka", "flac", "matroska"),
    ],
)
@pytest.mark.parametrize("gap", [(0.9, 1.1), (0.5, 1.7)])
def test_a_gap_is_silence_of_its_length(tmp_path, suffix, codec, container, gap):
    path = tmp_path / f"gap.{suffix}"
    encode(str(path), codec, container, gap=gap)
    clip = media.load(path)
    assert "gap" in clip.flags and clip.seconds == pytest.approx(SAMPLES / RATE, abs=0.09)
    middle = (gap[0] + gap[1]) / 2
    quiet = clip.waveform[round((middle - 0.02) * 16_000) : round((middle + 0.02) * 16_000)]
    assert (
        suffix == "ts" or np.abs(quiet).max() < 0.02
    )  # MPEG-TS has a time stamp for several frames together
    assert pitch(clip.waveform, 2.0) == pytest.approx(200 + 300 * 2.05, abs=20)
    span = media.load(path, start=1.9, end=2.3)
    assert pitch(span.waveform, 0.1) == pytest.approx(200 + 300 * 2.05, abs=20)


@pytest.mark.parametrize("suffix", ["ts", "mkv", "mp4"])
def test_a_clock_that_begins_elsewhere_is_no_delay(tmp_path, suffix):
    codec, container = FILES[suffix]
    encode(str(tmp_path / f"a.{suffix}"), codec, container, late=5.0)
    clip = media.load(tmp_path / f"a.{suffix}")
    if suffix == "mp4":  # its time line begins at 0, whatever its streams do
        return
    assert "late" not in clip.flags and clip.seconds == pytest.approx(SAMPLES / RATE, abs=0.09)


def test_encoder_delays_are_no_delay(tmp_path):
    for name, codec, container in (
        ("a.m4a", "aac", "ipod"),
        ("a.webm", "libopus", "webm"),
        ("a.mka", "aac", "matroska"),
        ("a.mp3", "libmp3lame", "mp3"),
    ):
        (tmp_path / name).write_bytes(made(codec, container))
        assert not {"late", "gap"} & set(media.load(tmp_path / name).flags), name


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
def test_spans_are_those_of_ffmpeg(tmp_path, suffix):
    if shutil.which("ffmpeg") is None:
        pytest.skip("the ffmpeg binary is not installed")
    codec, container = FILES[suffix]
    path = tmp_path / f"late.{suffix}"
    encode(str(path), codec, container, video=True, late=LATE)
    cut = [
        "ffmpeg",
        "-v",
        "quiet",
        "-i",
        str(path),
        "-ss",
        "2.0",
        "-to",
        "3.0",
        "-ac",
        "1",
        "-ar",
        "16000",
        "-f",
        "f32le",
        "-",
    ]
    theirs = np.frombuffer(subprocess.run(cut, capture_output=True, check=True).stdout, "<f4")
    ours = media.load(path, start=2.0, end=3.0).waveform
    n = min(len(ours), len(theirs))
    assert abs(len(ours) - len(theirs)) < 20 and np.corrcoef(ours[:n], theirs[:n])[0, 1] > 0.99
