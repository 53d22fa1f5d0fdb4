"""Layer means on real weights, from the file to the store, against transformers on single items:
MiniLM and the encoder of Whisper (`MER_TEST_DATA`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from mer.pipeline.extraction import ExtractOptions, extract
from mer.pipeline.manifest import Manifest, Utterance
from mer.pipeline.store import FeatureStore

TEXTS = ("I do not know what to say.", "Oh!", "Why would you do that to me, of all people?")
WHISPER, MINILM = "whisper-base-encoder", "all-MiniLM-L6-v2"
SECONDS = (1.3, 0.4, 2.1)


@pytest.fixture(scope="module")
def store(test_data, tmp_path_factory) -> FeatureStore:
    """Three clips cut from real speech, and three lines."""
    folder = tmp_path_factory.mktemp("real")
    encoders = test_data / "encoders"
    for name in (WHISPER, MINILM):
        if not (encoders / name).is_dir():
            pytest.skip(f"MER_TEST_DATA has no encoders/{name}")
    speech = next(iter(sorted(test_data.rglob("*.wav")) or sorted(test_data.rglob("*.flac"))), None)
    if speech is None:
        pytest.skip("no real speech there")
    wave, rate = soundfile.read(speech, dtype="float32", always_2d=True)
    rows = []
    for number, (text, seconds) in enumerate(zip(TEXTS, SECONDS, strict=True)):
        path = folder / f"{number}.wav"
        soundfile.write(path, np.resize(wave[:, 0], round(seconds * 16_000)), 16_000)
        rows.append(Utterance(f"u{number}", path.name, text, "train", "a"))
    manifest = Manifest("toy", "single", ("a",), tuple(rows), folder)
    options = ExtractOptions(
        audio_encoder=str(encoders / WHISPER),
        text_encoder=str(encoders / MINILM),
        audio_window="full",
        dtype="float32",
        device="cpu",
        decoders=0,
    )
    extract(manifest, folder / "feats.h5", options)
    return FeatureStore(folder / "feats.h5")


def test_minilm(store, test_data):
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = test_data / "encoders" / MINILM
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    found = store.layer_means("text")
    assert found.shape == (3, 7, 384)
    for row, text in enumerate(TEXTS):
        with torch.inference_mode():
            hidden = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        expected = np.stack([x[0].mean(0).numpy() for x in hidden.hidden_states])
        np.testing.assert_allclose(found[row], expected, rtol=0, atol=5e-5)


def test_whisper(store, test_data):
    """transformers takes windows of 30 s; of its steps those of the clip are averaged."""
    import torch
    from safetensors.torch import load_file
    from transformers import WhisperFeatureExtractor
    from transformers.models.whisper.modeling_whisper import WhisperConfig, WhisperEncoder

    folder = test_data / "encoders" / WHISPER
    model = WhisperEncoder(WhisperConfig.from_pretrained(folder)).eval()
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({k.removeprefix("encoder."): v.float() for k, v in weights.items()})
    mels = WhisperFeatureExtractor.from_pretrained(folder)
    found = store.layer_means("audio")
    assert found.shape == (3, 7, 512)
    for row in range(3):
        wave, _ = soundfile.read(Path(store.path).parent / f"{row}.wav", dtype="float32")
        inputs = mels(wave, sampling_rate=16_000, return_tensors="pt")
        with torch.inference_mode():
            hidden = model(inputs["input_features"], output_hidden_states=True).hidden_states
        steps = -(-len(wave) // 320)
        expected = np.stack([x[0, :steps].mean(0).numpy() for x in hidden])
        np.testing.assert_allclose(found[row], expected, rtol=0, atol=2e-4)
