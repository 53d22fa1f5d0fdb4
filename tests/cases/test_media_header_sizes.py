"""Sizes that writers to a pipe leave in other containers, and those of a header in the place of
the audio's. Siblings of kyutai-labs/pocket-tts#229, naudio/NAudio#688 and cjcliffe/CubicSDR#616.
"""

from __future__ import annotations

import struct

import pytest

from mer.pipeline.media import audio as media

from tests.media.forms import RATE, SAMPLES, aiff, piped, put, sound, wav

SECONDS = SAMPLES / RATE


def aiff_of_sox() -> bytes:
    """0x7F000000 samples' bytes, and as many in the outer size."""
    content = aiff(0x7F00_0008, 0x3F80_0000)
    return put(content, 4, struct.pack(">I", 0x7F00_002E))


def rf64_of_size_0() -> bytes:
    """ds64 and its sizes as a writer to a pipe leaves them."""
    content = wav(0xFFFF_FFFF)
    ds64 = b"ds64" + struct.pack("<IQQQI", 28, 0, 0, 0, 0)
    return b"RF64" + struct.pack("<I", 0xFFFF_FFFF) + b"WAVE" + ds64 + content[12:]


SIZES = {
    "aiff by ffmpeg": ("aiff", lambda: piped("pcm_s16be", "aiff")),
    "aiff by SoX": ("aiff", aiff_of_sox),
    "RF64": ("wav", rf64_of_size_0),
    "RF64 by ffmpeg": ("wav", lambda: piped("pcm_s16le", "wav", options={"rf64": "always"})),
    "W64 by ffmpeg": ("w64", lambda: piped("pcm_s16le", "w64")),
    "CAF by ffmpeg": ("caf", lambda: piped("pcm_s16be", "caf")),
    "AU by ffmpeg": ("au", lambda: piped("pcm_s16be", "au")),
}


@pytest.mark.parametrize("name", SIZES)
def test_what_a_writer_to_a_pipe_leaves(tmp_path, name):
    suffix, make = SIZES[name]
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(make())
    clip = media.load(path)
    assert clip.seconds == pytest.approx(SECONDS, abs=0.01)
    assert len(clip.waveform) == media.probe(path).samples
    assert abs(clip.waveform).max() == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize("size", [1, 2, 8, 36, 44, 46, 58])
@pytest.mark.parametrize("outer", [None, 36, 0])
def test_the_size_of_a_header_is_none_of_the_audio(tmp_path, size, outer):
    content = wav(size)
    if outer is not None:
        content = put(content, 4, struct.pack("<I", outer))
    (tmp_path / "a.wav").write_bytes(content)
    clip = media.load(tmp_path / "a.wav")
    assert clip.seconds == pytest.approx(SECONDS, abs=2e-4) and "unsized" in clip.flags
    assert media.probe(tmp_path / "a.wav").samples == len(clip.waveform)


def test_a_clip_as_short_as_a_header_is_one(tmp_path):
    samples = (b"\x10\x20" * 20) + b"LIST" + struct.pack("<I", 4) + b"INFO"
    head = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16)
    chunks = head + b"data" + struct.pack("<I", 40) + samples
    (tmp_path / "a.wav").write_bytes(
        b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks
    )
    clip = media.load(tmp_path / "a.wav")
    assert len(clip.waveform) == 20 and clip.flags == ()


@pytest.mark.parametrize("suffix", ["raw", "RAW", "pcm", "bin"])
def test_a_name_is_no_format(tmp_path, suffix):
    """soundfile takes .raw for samples without a header, and wants a rate for them."""
    (tmp_path / f"a.{suffix}").write_bytes(sound("WAV", "PCM_16"))
    assert media.load(tmp_path / f"a.{suffix}").seconds == pytest.approx(SECONDS, abs=2e-4)
    (tmp_path / f"a.{suffix}").write_bytes(wav()[44:])
    with pytest.raises(media.MediaError, match="not a media file that can be read"):
        media.load(tmp_path / f"a.{suffix}")
