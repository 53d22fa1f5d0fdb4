"""Bounds: limits count resampled samples; a clip that overflows fails alone, by its name."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from mer.pipeline.extraction import extract
from mer.pipeline.media import audio as media
from mer.pipeline.media.audio import MediaError

from tests.extract import corpus


def test_a_low_rate_does_not_go_round_the_limit(tmp_path, monkeypatch):
    """16,000 samples at 1,000 Hz are 256,000 at 16 kHz."""
    monkeypatch.setattr(media, "MEDIA_SAMPLES", 100_000)
    soundfile.write(tmp_path / "a.flac", np.zeros(16_000), 1_000)
    for read in (media.load, media.probe):
        with pytest.raises(MediaError, match="give start and end") as error:
            read(tmp_path / "a.flac")
        assert error.value.stage == "too_long"
        read(tmp_path / "a.flac", start=1.0, end=2.0)


@pytest.mark.parametrize("level", [1e30, 3e38])
def test_samples_that_overflow_are_refused(tmp_path, level):
    wave = np.random.default_rng(0).uniform(-1, 1, 24_000).astype(np.float32) * np.float32(level)
    soundfile.write(tmp_path / "a.wav", wave, 24_000, subtype="FLOAT")
    with pytest.raises(MediaError, match="full scale is 1") as error:
        media.load(tmp_path / "a.wav")
    assert error.value.stage == "nan"


def test_integers_saved_as_floats_are_sound(tmp_path):
    wave = np.random.default_rng(0).uniform(-1, 1, 16_000).astype(np.float32) * np.float32(32_768)
    soundfile.write(tmp_path / "a.wav", wave, 16_000, subtype="FLOAT")
    assert np.array_equal(media.load(tmp_path / "a.wav").waveform, wave)


def test_one_loud_clip_costs_that_clip_alone(tmp_path):
    manifest, _ = corpus.make(tmp_path, 3)
    first = manifest.root / manifest.rows[0].audio
    soundfile.write(
        first,
        np.random.default_rng(0).uniform(-1, 1, 16_000).astype(np.float32) * np.float32(1e30),
        16_000,
        subtype="FLOAT",
    )
    report = extract(manifest, tmp_path / "f.h5", corpus.options(max_failures=1))
    assert report.utterances == 2
    assert [(failure.id, failure.stage) for failure in report.failures] == [
        (manifest.rows[0].id, "nan")
    ]


def test_an_encoder_that_overflows_names_the_clip(tmp_path, monkeypatch):
    """The self-test meets the clip first, and goes on without it."""
    from mer.pipeline.encoders.modality import States
    from mer.pipeline.encoders.wav2vec2 import AudioEncoder

    forward = AudioEncoder.forward

    def overflowing(self, batch, **given):
        found = forward(self, batch, **given)
        return [
            States(np.full_like(x.frames, np.nan)) if n == 9_600 else x
            for x, n in zip(found, batch[2], strict=True)
        ]

    manifest, _ = corpus.make(tmp_path, 3)
    corpus.write_clip(manifest.root / manifest.rows[1].audio, 0.6, 1)
    monkeypatch.setattr(AudioEncoder, "forward", overflowing)
    report = extract(manifest, tmp_path / "f.h5", corpus.options(max_failures=1))
    assert [(failure.id, failure.stage) for failure in report.failures] == [
        (manifest.rows[1].id, "nan")
    ]
