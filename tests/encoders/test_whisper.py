"""Whisper: against transformers on single clips, and against mels and positions cut by hand."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder as Network

from mer.pipeline.encoders.audio import Audio
from mer.pipeline.encoders.geometry import whisper_geometry
from mer.pipeline.encoders.loading import resolve
from mer.pipeline.encoders.modality import Lengths, Rows
from mer.pipeline.encoders.whisper import WhisperEncoder
from mer.pipeline.errors import DataError, EncoderError
from mer.pipeline.extraction import ExtractOptions, extract
from mer.pipeline.manifest import Utterance
from mer.pipeline.media.stages import Flag
from mer.pipeline.store import FeatureStore

from tests.encoders import checkpoints
from tests.extract import corpus

ATOL = 2e-5
DATA = os.environ.get("MER_TEST_DATA")
REAL = Path(DATA or "", "encoders", "whisper-base-encoder")
real = pytest.mark.skipif(
    not DATA or not REAL.is_dir(), reason="MER_TEST_DATA has no whisper-base-encoder"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return checkpoints.whisper(tmp_path_factory.mktemp("whisper") / "small")


def load(folder: Path, **options) -> WhisperEncoder:
    return WhisperEncoder(resolve("audio", str(folder)), device="cpu", **options)


def network(folder: Path) -> Network:
    """Transformers' encoder with the checkpoint's weights, filled in by name."""
    config = WhisperConfig.from_pretrained(folder)
    model = Network(config)
    weights = load_file(folder / "model.safetensors")
    short = {k.removeprefix("encoder."): v.float() for k, v in weights.items()}
    model.load_state_dict(short)
    return model.eval()


def tone(n: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    wave = np.sin(np.arange(n) / 15) * np.sin(np.arange(n) / 3000) * 0.3
    return (wave + random.standard_normal(n) * 0.01).astype(np.float32)


def mels(folder: Path, wave: np.ndarray) -> torch.Tensor:
    extractor = WhisperFeatureExtractor.from_pretrained(folder)
    return extractor(wave, sampling_rate=16_000, return_tensors="pt").input_features


def padded(folder: Path, wave: np.ndarray, model: Network) -> list[np.ndarray]:
    """Every layer as transformers gives them for the padded window, cut to 50 frames a second."""
    with torch.inference_mode():
        output = model(mels(folder, wave), output_hidden_states=True)
    frames = -(-len(wave) // 320)
    return [x[0, :frames].numpy() for x in (*output.hidden_states[:-1], output.last_hidden_state)]


def cut(folder: Path, wave: np.ndarray, model: Network) -> list[np.ndarray]:
    """Every layer of nothing but the clip's own frames, as one would write it."""
    frames = -(-len(wave) // 320)
    with torch.inference_mode():
        x = torch.nn.functional.gelu(model.conv1(mels(folder, wave)[..., : 2 * frames]))
        x = torch.nn.functional.gelu(model.conv2(x)).permute(0, 2, 1)
        x = x + model.embed_positions.weight[:frames]
        found = [x]
        for block in model.layers:
            found.append(block(found[-1], None))
        found[-1] = model.layer_norm(found[-1])
    return [x[0].numpy() for x in found]


# 31,900 samples: the window's end, where the spectrum is mirrored, is in the clip's last frame
LENGTHS = (1, 319, 320, 321, 5_000, 16_000, 31_400, 31_900, 32_000)


@pytest.mark.parametrize("window", ["full", "clip"])
def test_single_clips_equal_the_reference(folder, window):
    encoder = load(folder, window=window, layer="stack:0-last")
    model, reference = network(folder), padded if window == "full" else cut
    for n in LENGTHS:
        wave = tone(n)
        states = encoder.encode([encoder.prepare(wave)])[0]
        assert len(states.frames) == -(-n // 320)
        expected = np.concatenate(reference(folder, wave, model), axis=1)
        np.testing.assert_allclose(states.frames, expected, atol=ATOL, err_msg=str(n))


def test_silence_has_features_too(folder):
    for window in ("full", "clip"):
        encoder = load(folder, window=window)
        wave = np.zeros(8_000, np.float32)
        reference = padded if window == "full" else cut
        expected = reference(folder, wave, network(folder))[-1]
        np.testing.assert_allclose(encoder.encode([wave])[0].frames, expected, atol=ATOL)


def test_a_batch_of_windows_is_told_as_long_as_it_is(folder):
    """Budgets and plans count what is computed."""
    assert load(folder, window="full").window == 32_000 and load(folder, window="clip").window == 0
    rows = Rows((Utterance("a", "a.wav"),), Path())
    lengths = Lengths((5_000,), (16,), (Flag(0),))
    for window, length in (("full", 32_000), ("clip", 5_000), ("", 32_000)):
        audio = Audio(encoder=str(folder), budget=None, part=1, window=window)
        (item,) = audio.items([0], rows, lengths, audio.resolve(str(folder)))
        assert (item.length, item.end, item.keep) == (length, 5_000, 16)


@pytest.mark.parametrize("form", ["model", "generation", "pickled"])
def test_a_checkpoint_with_its_decoder_gives_the_same_and_loads_no_decoder(folder, form, tmp_path):
    whole = load(checkpoints.whisper(tmp_path / form, form=form))
    bare = load(folder)
    wave = tone(9_000)
    np.testing.assert_array_equal(whole.encode([wave])[0].frames, bare.encode([wave])[0].frames)
    names = [{name for name, _ in e.model.named_parameters()} for e in (whole, bare)]
    assert names[0] == names[1] and not any("decoder" in name for name in names[0])


def edit_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("form", "change", "words"),
    [
        (
            "encoder",
            lambda w: {k: v for k, v in w.items() if k != "encoder.layers.1.fc1.weight"},
            "1 weights are missing .*layers.1.fc1.weight",
        ),
        (
            "generation",
            lambda w: {k: v for k, v in w.items() if "encoder." not in k},
            "weights are missing",
        ),
        (
            "encoder",
            lambda w: w | {"encoder.conv1.weight": torch.zeros(24, 21, 3)},
            "another shape",
        ),
    ],
)
def test_weights_that_are_not_whole_are_refused(form, change, words, tmp_path):
    folder = checkpoints.whisper(tmp_path / "whisper", form=form)
    edit_weights(folder, change)
    with pytest.raises(EncoderError, match=words) as raised:
        load(folder)
    assert len(str(raised.value).replace(str(folder), "")) <= 300


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"processor": {"sampling_rate": 8000}}, "8000 Hz"),
        ({"processor": {"feature_size": 128}}, "gives 128 mels, its model takes 20"),
        ({"processor": {"chunk_length": 30}}, "windows of 30 s, its model takes 2 s"),
        ({"processor": {"chunk_length": "x" * 999}}, "windows of xxx"),
        ({"processor": {"sampling_rate": "x" * 999}}, "expects xxx"),
        ({"processor": {"dither": 0.1}}, "dither"),
        ({"processor": {"hop_length": 0}}, "hop_length is 0"),
        ({"config": {"num_mel_bins": -1}}, "num_mel_bins is -1"),
        ({"config": {"encoder_layers": None}}, "encoder_layers is None"),
        ({"config": {"d_model": "x" * 999}}, "d_model is xxx"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(folder, changes, words):
    checkpoint = resolve("audio", str(folder))
    changed = {name: getattr(checkpoint, name) | values for name, values in changes.items()}
    checkpoint = dataclasses.replace(checkpoint, **changed)
    with pytest.raises(EncoderError, match=words) as raised:
        WhisperEncoder(checkpoint, device="cpu")
    assert len(str(raised.value)) <= 300


def test_clip_says_how_far_it_is_from_the_padded_window(folder):
    encoder = load(folder, window="clip")
    items = [tone(n, seed=n) for n in (5_000, 12_000)]
    model = network(folder)
    distances = []
    for wave in items:
        truth, found = padded(folder, wave, model)[-1], cut(folder, wave, model)[-1]
        for one, other in zip(found, truth, strict=True):
            distances.append(np.sqrt(((one - other) ** 2).sum()) / np.sqrt((other**2).sum()))
    told = encoder.self_test(items)["window_distance"]
    assert told == pytest.approx(np.median(distances), rel=1e-3) and told > 1e-3
    assert encoder.self_test([tone(32_000)])["window_distance"] < 1e-5
    assert load(folder, window="full").self_test(items) == {}


def audio(folder: Path, **options) -> Audio:
    return Audio.of(ExtractOptions(audio_encoder=str(folder), **options))


@pytest.mark.parametrize(("asked", "longest"), [(60.0, 2.0), (0.0, 2.0), (2.0, 2.0), (1.5, 1.5)])
def test_the_recipe_says_the_window_and_the_longest_piece(folder, asked, longest):
    modality = audio(folder, max_seconds=asked)
    checkpoint = modality.resolve(str(folder))
    recipe = modality.recipe(checkpoint)
    assert (recipe["max_seconds"], recipe["window"]) == (longest, "full")
    assert audio(folder, **Audio.options_of(recipe)).recipe(checkpoint) == recipe
    clip = audio(folder, audio_window="clip", max_seconds=asked).recipe(checkpoint)
    assert clip == recipe | {"window": "clip"}
    options = Audio.options_of(clip)
    assert audio(folder, **options).recipe(checkpoint) == clip


def test_a_window_is_asked_only_of_encoders_that_have_one(folder, layer):
    audio(folder, audio_window="full").check(resolve("audio", str(folder)))
    with pytest.raises(DataError, match="--audio-window clip: audio encoder .* has no window"):
        audio(layer, audio_window="clip").check(resolve("audio", str(layer)))
    assert "window" not in audio(layer).recipe(resolve("audio", str(layer)))
    with pytest.raises(DataError, match="--audio-window 'half' is not full or clip"):
        ExtractOptions(audio_window="half")


@pytest.mark.parametrize("window", ["full", "clip"])
def test_long_clips_are_cut_into_windows(tmp_path, window):
    """Each piece alone through the encoder, its inner frames kept, pooled on the clip's grid."""
    folder = checkpoints.whisper(tmp_path / "whisper", max_source_positions=200)
    manifest, _ = corpus.make(tmp_path / "clips", 3)
    corpus.write_clip(manifest.root / manifest.rows[0].audio, 9.0, seed=1)
    options = corpus.options(
        audio_encoder=str(folder),
        audio_window=window,
        text_encoder="none",
        dtype="float32",
        pool=3,
    )
    done = extract(manifest, tmp_path / "feats.h5", options)
    told = [line for line in done.lines() if "from the encoder's full window" in line]
    assert len(told) == (window == "clip")
    assert ("window_distance" in done.self_test["audio"]) == (window == "clip")
    wave = soundfile.read(manifest.root / manifest.rows[0].audio, dtype="float32")[0]
    encoder, kept = load(folder, window=window), []
    # windows of 200 frames less 50 of overlap on each inner side: 99 frames at a time, pooled by 3
    for start in range(0, 450, 90):
        first, last = max(0, start - 50), min(450, start + 90 + 50)
        frames = encoder.encode([wave[first * 320 : last * 320]])[0].frames
        kept.append(frames[start - first : start - first + 90])
    expected = np.concatenate(kept).reshape(150, 3, -1).mean(1)
    with FeatureStore(tmp_path / "feats.h5") as store:
        assert store.header.recipe["audio"]["window"] == window
        assert store.header.modalities["audio"].frame_rate == pytest.approx(50 / 3)
        np.testing.assert_allclose(store.features("audio", 0), expected, atol=1e-4)


def test_geometry(folder):
    found = whisper_geometry(resolve("audio", str(folder)))
    assert (found.hop, found.rate, found.window, found.dim, found.layers) == (
        320,
        50.0,
        32_000,
        24,
        3,
    )
    assert [found.frames(n) for n in (1, 320, 321, 32_000)] == [1, 1, 2, 100]


# --- real weights


@pytest.fixture(scope="module")
def base():
    return network(REAL)


@real
@pytest.mark.parametrize("window", ["full", "clip"])
def test_the_real_encoder_equals_the_reference(base, window):
    """Relative to the largest number, as everywhere else: inner layers have some of hundreds."""
    encoder = load(REAL, window=window, layer="stack:0-last", layer_means=True)
    assert (encoder.width, encoder.layer_count, encoder.geometry.window) == (512, 7, 480_000)
    wave, reference = tone(40_123), padded if window == "full" else cut
    batch = [wave] if window == "full" else [tone(64_000, seed=1), wave]  # a window takes seconds
    states = encoder.encode(batch)[-1]
    expected = np.concatenate(reference(REAL, wave, base), axis=1)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(states.frames / scale, expected / scale, atol=ATOL)
    means = expected.mean(0) / scale
    np.testing.assert_allclose(states.layer_means.reshape(-1) / scale, means, atol=ATOL)


@real
def test_the_real_encoder_tells_vowels_apart(base):
    """What no random network does: speech-like buzzes of two vowels are told apart at any pitch."""
    encoder = load(REAL, window="clip", layer="4")
    found = {}
    for vowel, formants in {"a": (750, 1200), "i": (280, 2300)}.items():
        for pitch in (110, 150):
            found[vowel, pitch] = encoder.encode([buzz(pitch, formants)])[0].frames.mean(0)
    same = np.linalg.norm(found["a", 110] - found["a", 150])
    other = np.linalg.norm(found["a", 110] - found["i", 110])
    assert other > 1.5 * same


def buzz(pitch: float, formants: tuple[float, ...], seconds: float = 0.6) -> np.ndarray:
    t = np.arange(int(seconds * 16_000)) / 16_000
    wave = np.zeros_like(t)
    for harmonic in range(1, int(4000 / pitch)):
        frequency = harmonic * pitch
        gain = sum(1 / (1 + ((frequency - f) / 80) ** 2) for f in formants)
        wave += gain * np.sin(2 * np.pi * frequency * t)
    return (0.1 * wave / np.abs(wave).max()).astype(np.float32)
