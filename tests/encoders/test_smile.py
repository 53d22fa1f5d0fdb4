"""openSMILE's features, against the package called as its documentation says."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mer.pipeline.encoders import smile
from mer.pipeline.encoders.audio import Audio
from mer.pipeline.encoders.frozen import invariance
from mer.pipeline.errors import DataError, EncoderError
from mer.pipeline.extraction import ExtractOptions, extract
from mer.pipeline.store import FeatureStore

from tests.extract import corpus


def audio(encoder: str, **options) -> Audio:
    return Audio.of(ExtractOptions(audio_encoder=encoder, **options))


@pytest.fixture
def installed(monkeypatch) -> str:
    """The version of a package that may not be there."""
    monkeypatch.setattr(metadata, "version", lambda name: {"opensmile": "2.6.0"}[name])
    return "2.6.0"


def test_without_the_package_the_remedy_is_named(monkeypatch):
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    with pytest.raises(EncoderError, match=r"pip install 'mer\[opensmile\]' .*research"):
        audio("opensmile:eGeMAPSv02").resolve("opensmile:eGeMAPSv02")


@pytest.mark.parametrize(
    "encoder",
    [
        "opensmile:",
        "opensmile:eGeMAPS",
        "opensmile:egemapsv02",
        "opensmile:eGeMAPSv02:",
        "opensmile:eGeMAPSv02:func",
        "opensmile:" + "x" * 999,
    ],
)
def test_unknown_sets_are_refused(encoder, installed):
    with pytest.raises(EncoderError, match="SET one of eGeMAPSv02, ") as raised:
        smile.resolve(encoder)
    assert len(str(raised.value)) <= 300


def test_the_recipe_depends_on_set_level_and_version(monkeypatch, installed):
    one, lld = (smile.resolve(f"opensmile:eGeMAPSv02{level}") for level in ("", ":lld"))
    monkeypatch.setattr(metadata, "version", lambda name: "9")
    other = smile.resolve("opensmile:eGeMAPSv02")
    assert len({one.hash, lld.hash, other.hash}) == 3
    assert one.trained and (one.name, one.source) == ("opensmile:eGeMAPSv02",) * 2


@pytest.mark.parametrize("max_seconds", [60.0, 0.0, 5.0])
def test_clips_are_never_cut(installed, max_seconds):
    for level, frames in (("", 1), (":lld", 9_996)):
        modality = audio(f"opensmile:eGeMAPSv02{level}", max_seconds=max_seconds)
        checkpoint = modality.resolve(modality.encoder)
        geometry = modality.geometry(checkpoint)
        assert geometry.frames(1_600_000) == frames
        assert modality.recipe(checkpoint)["max_seconds"] == 0
        assert modality._longest(geometry) == 0
        described = modality.describe(checkpoint)
        assert described.frame_rate == (100.0 if level else None)


def test_it_has_one_layer(installed):
    modality = audio("opensmile:eGeMAPSv02", audio_layer="1")
    with pytest.raises(DataError, match="this encoder has layers 0 to 0"):
        modality.check(modality.resolve(modality.encoder))


@pytest.fixture(scope="module")
def opensmile():
    return pytest.importorskip("opensmile", reason="the extra mer[opensmile] is not installed")


def reference(opensmile, name: str, lld: bool, wave: np.ndarray) -> np.ndarray:
    level = (
        opensmile.FeatureLevel.LowLevelDescriptors if lld else opensmile.FeatureLevel.Functionals
    )
    tool = opensmile.Smile(feature_set=opensmile.FeatureSet[name], feature_level=level)
    return tool.process_signal(wave, 16_000).values.astype(np.float32)


@pytest.mark.filterwarnings("ignore:Feature set .* is deprecated")
@pytest.mark.parametrize("level", ["", ":lld"])
@pytest.mark.parametrize("name", smile.SETS)
def test_features_are_those_of_the_package(opensmile, name, level):
    modality = audio(f"opensmile:{name}{level}")
    checkpoint = modality.resolve(modality.encoder)
    encoder = modality.load(checkpoint, device="cpu", precision="fp32")
    random = np.random.default_rng(0)
    waves = [(random.standard_normal(n) * 0.1).astype(np.float32) for n in (960, 1_119, 9_000)]
    for wave, states in zip(waves, encoder.encode(waves), strict=True):
        expected = reference(opensmile, name, bool(level), wave)
        assert states.layer_means is None and states.frames.shape == (
            encoder.geometry.frames(len(wave)),
            encoder.dim,
        )
        np.testing.assert_array_equal(states.frames, expected)
    assert invariance(encoder.encode, waves) == (0.0, 0.0)


@pytest.mark.parametrize("level", [0.9, 1.0, 3.0])
def test_samples_from_full_scale_on_do_not_wrap_around(opensmile, tmp_path, level):
    """As a 16-bit file holds them, read by openSMILE itself."""
    wave = (level * np.sin(np.arange(16_000) / 13)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, 16_000, subtype="PCM_16")
    descriptors = opensmile.FeatureLevel.LowLevelDescriptors
    tool = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, descriptors)
    expected = tool.process_file(str(tmp_path / "a.wav"))["Loudness_sma3"].to_numpy()
    modality = audio("opensmile:eGeMAPSv02:lld")
    encoder = modality.load(modality.resolve(modality.encoder), device="cpu", precision="fp32")
    frames = encoder.encode([encoder.prepare(wave)])[0].frames
    np.testing.assert_allclose(frames[:, 0], expected, rtol=1e-3)


def test_threads_do_not_mix(opensmile):
    modality = audio("opensmile:eGeMAPSv02:lld")
    encoder = modality.load(modality.resolve(modality.encoder), device="cpu", precision="fp32")
    random = np.random.default_rng(1)
    waves = [(random.standard_normal(n) * 0.1).astype(np.float32) for n in (8_000, 9_000, 7_000)]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda wave: encoder.encode([wave])[0].frames, waves * 4))
    for frames, wave in zip(found, waves * 4, strict=True):
        np.testing.assert_array_equal(frames, encoder.encode([wave])[0].frames)


def test_from_manifest_to_store(opensmile, tmp_path):
    manifest, _ = corpus.make(tmp_path, 4)
    corpus.write_clip(manifest.root / manifest.rows[1].audio, 0.02, seed=3)
    options = corpus.options(
        audio_encoder="opensmile:eGeMAPSv02", text_encoder="none", dtype="float32", max_seconds=0.3
    )
    done = extract(manifest, tmp_path / "feats.h5", options)
    assert not done.untrained and f"audio: {smile.LICENCE}" in done.lines()
    with FeatureStore(tmp_path / "feats.h5") as store:
        info = store.header.modalities["audio"]
        assert (info.dim, info.frame_rate, info.encoder) == (88, None, "opensmile:eGeMAPSv02")
        for row, u in enumerate(manifest.rows):
            wave = soundfile.read(Path(manifest.root, u.audio), dtype="float32")[0]
            wave = np.pad(wave, (0, max(0, 960 - len(wave))))
            expected = reference(opensmile, "eGeMAPSv02", False, wave)
            np.testing.assert_allclose(store.features("audio", row), expected, rtol=1e-6)
