"""Tracks: the one a person would hear. From kelciour/playphrase#13, buba447/simpsonstv#9."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from mer.pipeline.encoders import tiny
from mer.pipeline.encoders.audio import Audio
from mer.pipeline.errors import DataError
from mer.pipeline.extraction.fingerprint import Chosen, make_recipe
from mer.pipeline.extraction.options import ExtractOptions
from mer.pipeline.extraction.recipes import differences
from mer.pipeline.media import audio as media
from mer.pipeline.media.audio import MediaError

RATE = 48_000
HERTZ = (300, 700, 1100)  # of each track


def write(path: Path, default: int | None) -> Path:
    """A file with three tracks of one tone each, of which one is marked as default."""
    with av.open(str(path), "w") as out:
        streams = [out.add_stream("aac", rate=RATE, layout="mono") for _ in HERTZ]
        for number, stream in enumerate(streams):
            stream.disposition = (
                av.stream.Disposition.default if number == default else av.stream.Disposition(0)
            )
        for at in range(0, RATE, 1024):
            for hertz, stream in zip(HERTZ, streams, strict=True):
                wave = 0.3 * np.sin(2 * np.pi * hertz * np.arange(at, at + 1024) / RATE).astype(
                    np.float32
                )
                frame = av.AudioFrame.from_ndarray(
                    wave[None].astype(np.float32), format="fltp", layout="mono"
                )
                frame.sample_rate, frame.pts = RATE, at
                out.mux(stream.encode(frame))
        for stream in streams:
            out.mux(stream.encode(None))
    return path


def heard(path: Path, **given) -> int:
    waveform = media.load(path, **given).waveform[4000:12_000]
    return int(np.abs(np.fft.rfft(waveform)).argmax() * 2)


@pytest.mark.parametrize("default", [0, 1, 2])
def test_the_default_track_is_taken(tmp_path, default):
    path = write(tmp_path / "a.mkv", default)
    assert heard(path) == HERTZ[default] and "tracks" in media.load(path).flags


def test_a_track_by_its_number(tmp_path):
    path = write(tmp_path / "a.mkv", 1)
    assert [heard(path, track=str(n)) for n in range(3)] == list(HERTZ)
    assert media.probe(path, track="2").samples == len(media.load(path, track="2").waveform)
    for read in (media.load, media.probe):
        with pytest.raises(
            MediaError, match="audio track 3 asked for, the file has 3 audio tracks"
        ):
            read(path, track="3")


def test_a_file_of_one_track(tmp_path):
    import soundfile

    soundfile.write(tmp_path / "a.wav", np.zeros(1600), 16_000)
    assert len(media.load(tmp_path / "a.wav", track="0").waveform) == 1600
    with pytest.raises(MediaError, match="the file has one audio track") as error:
        media.load(tmp_path / "a.wav", track="1")
    assert error.value.stage == "track"
    with pytest.raises(MediaError, match="not auto or a number"):
        media.load(tmp_path / "a.wav", track="left")


def test_the_option_is_in_the_recipe_only_where_it_was_asked_for():
    class Point:
        hash, name = "x", "x"
        config, processor = tiny.config("audio", "builtin:tiny-wav2vec2"), tiny.PROCESSOR

    plain, asked = (
        make_recipe(options, [Chosen(Audio.of(options), Point())])
        for options in (ExtractOptions(), ExtractOptions(audio_track="1"))
    )
    assert "track" not in plain["audio"] and asked["audio"]["track"] == "1"
    assert differences(plain, asked, {}) == ["audio track: auto there, 1 now"]
    with pytest.raises(DataError, match="--audio-track"):
        ExtractOptions(audio_track="left")
