"""Containers: what the decoders read is read, and what a file is instead is said.

From pytorch/audio#868, lhotse-speech/lhotse#362.
"""

from __future__ import annotations

import gzip
import wave

import numpy as np
import pytest
import soundfile

from mer.pipeline.datasets.files import unreadable
from mer.pipeline.media import audio as media
from mer.pipeline.media.audio import MediaError

from tests.media.forms import RATE, SAMPLES, made, sphere, sweep

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123\n"
INSTEAD = {
    "LFS pointer": (POINTER, "Git LFS pointer"),
    "page": (
        b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>",
        "an HTML page",
    ),
    "gzip": (gzip.compress(bytes(1000), mtime=0), "a gzip archive"),
    "zip": (b"PK\x03\x04" + bytes(200), "a zip archive"),
    "zeros": (bytes(1000), "only zero bytes"),
    "text": (b"a clip of joy\n" * 20, "a text file"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(100), "an image"),
    "xml": (b"<?xml version='1.0'?><error>denied</error>", "an XML file"),
}


@pytest.mark.parametrize("name", INSTEAD)
@pytest.mark.parametrize("suffix", ["wav", "mp3", "mp4", "flac", "xyz", "aac"])
def test_what_it_is_instead(tmp_path, name, suffix):
    content, said = INSTEAD[name]
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    with pytest.raises(MediaError, match=said) as error:
        media.load(path)
    assert error.value.stage == "open" and "Invalid" not in str(error.value)
    assert said in unreadable(str(path))


def test_sphere_is_no_text(tmp_path):
    for name in ("a.sph", "a.wav"):
        path = tmp_path / name
        path.write_bytes(sphere())
        assert unreadable(str(path)) is None
        clip = media.load(path)
        assert clip.seconds == pytest.approx(SAMPLES / RATE, abs=2e-4)
        assert np.corrcoef(clip.waveform[:8000], sweep(8000, 16_000))[0, 1] > 0.999


def test_formats_are_told_by_content(tmp_path):
    for codec, container in (
        ("wavpack", "wv"),
        ("tta", "tta"),
        ("flac", "flac"),
        ("pcm_s16le", "voc"),
    ):
        for suffix in (container, "wav", "bin"):
            path = tmp_path / f"a.{suffix}"
            path.write_bytes(made(codec, container))
            assert media.load(path).seconds == pytest.approx(SAMPLES / RATE, abs=2e-3), (
                codec,
                suffix,
            )


def test_a_format_that_is_not_supported_is_said_in_our_words(tmp_path):
    for name, content in (
        ("a.xyz", b"\x01\x02\x03\x04" * 100),
        ("a.mid", b"MThd" + bytes(100)),
        ("a.wav", bytes(range(256)) * 4),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MediaError) as error:
            media.load(tmp_path / name)
        assert "Invalid" not in str(error.value) and "Errno" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nsecret.wav\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile secret.wav\n",
        b"<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'></MPD>",
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n",
    ],
)
def test_lists_of_other_files_stay_closed(tmp_path, content):
    soundfile.write(tmp_path / "secret.wav", np.zeros(1600), 16_000)
    for suffix in ("wav", "m3u8", "mp4", "ffconcat", "mpd", "sdp"):
        (tmp_path / f"a.{suffix}").write_bytes(content)
        with pytest.raises(MediaError):
            media.load(tmp_path / f"a.{suffix}")


def test_wav_of_the_standard_library(tmp_path):
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(3)
        file.setframerate(16_000)
        file.writeframes(bytes(3 * 1601))  # an odd number of bytes
    clip = media.load(tmp_path / "a.wav")
    assert len(clip.waveform) == 1601 and clip.flags == ("silent",)
