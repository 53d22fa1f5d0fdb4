"""wav2vec2-BERT: mels, frames and states against transformers on single clips."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2BertModel

from mer.pipeline.encoders.audio import Audio
from mer.pipeline.encoders.geometry import wav2vec2_bert_geometry
from mer.pipeline.encoders.loading import resolve
from mer.pipeline.encoders.wav2vec2_bert import MelEncoder
from mer.pipeline.errors import EncoderError
from mer.pipeline.extraction import ExtractOptions, extract
from mer.pipeline.store import FeatureStore

from tests.encoders import checkpoints
from tests.extract import corpus

ATOL = 2e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return checkpoints.wav2vec2_bert(tmp_path_factory.mktemp("bert") / "small")


def load(folder: Path, **options) -> MelEncoder:
    return MelEncoder(resolve("audio", str(folder)), device="cpu", **options)


def by_transformers(folder: Path, wave: np.ndarray) -> np.ndarray:
    """All layers side by side; a frame that its own mask leaves out is left out here, too."""
    extractor = SeamlessM4TFeatureExtractor.from_pretrained(folder)
    model = Wav2Vec2BertModel.from_pretrained(folder, local_files_only=True).eval()
    inputs = extractor(wave, sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**inputs, output_hidden_states=True).hidden_states
    kept = inputs.attention_mask[0].bool()
    return torch.cat(hidden, -1)[0, kept].numpy()


@pytest.mark.parametrize("samples", [560, 719, 720, 880, 1_040, 9_000, 16_000])
def test_single_clips_equal_transformers(folder, samples):
    encoder = load(folder, layer="stack:0-last")
    random = np.random.default_rng(samples)
    wave = (random.standard_normal(samples) * 0.1 + 0.02).astype(np.float32)
    expected = by_transformers(folder, wave)
    states = encoder.encode([encoder.prepare(wave)])[0]
    assert len(states.frames) == len(expected) == encoder.geometry.frames(samples)
    np.testing.assert_allclose(states.frames, expected, atol=ATOL)


def test_geometry(folder):
    found = wav2vec2_bert_geometry(resolve("audio", str(folder)))
    assert (found.field, found.hop, found.rate, found.dim, found.layers) == (560, 320, 50.0, 24, 2)
    assert [found.frames(n) for n in (1, 559, 560, 879, 880, 16_000)] == [1, 1, 1, 1, 2, 49]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"processor": {"sampling_rate": 8000}}, "8000 Hz"),
        ({"processor": {"num_mel_bins": 40}}, "40 mels times 2, its model takes 160"),
        ({"processor": {"stride": 3}}, "80 mels times 3, its model takes 160"),
        ({"config": {"add_adapter": True}}, "adapter"),
        ({"config": {"hidden_size": None}}, "hidden_size is None"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(folder, changes, words):
    checkpoint = resolve("audio", str(folder))
    changed = {name: getattr(checkpoint, name) | values for name, values in changes.items()}
    with pytest.raises(EncoderError, match=words):
        MelEncoder(dataclasses.replace(checkpoint, **changed), device="cpu")


def test_from_manifest_to_store(folder, tmp_path):
    manifest, _ = corpus.make(tmp_path, 4)
    options = corpus.options(audio_encoder=str(folder), text_encoder="none", dtype="float32")
    done = extract(manifest, tmp_path / "feats.h5", options)
    assert done.self_test["audio"]["passed"]
    with FeatureStore(tmp_path / "feats.h5") as store:
        wave = soundfile.read(manifest.root / manifest.rows[2].audio, dtype="float32")[0]
        last = by_transformers(folder, wave)[:, -24:]
        # mels of nearly no variance are divided by it, so that rounding grows
        np.testing.assert_allclose(store.features("audio", 2), last, atol=1e-4)
    modality = Audio.of(ExtractOptions(audio_encoder=str(folder)))
    assert "window" not in modality.recipe(modality.resolve(str(folder)))
