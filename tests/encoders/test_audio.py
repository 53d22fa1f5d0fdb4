"""Waveforms → frames: the features of a clip do not depend on its batch, on padding, or on how it
was cut.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mer.pipeline.encoders.frozen import invariance
from mer.pipeline.encoders.loading import resolve
from mer.pipeline.encoders.wav2vec2 import AudioEncoder, OwnSampleGroupNorm, PerBatch
from mer.pipeline.errors import DataError, EncoderError

from tests.encoders import checkpoints

LENGTHS = (400, 719, 720, 5_000, 16_000, 30_001)


def load(folder, **options) -> AudioEncoder:
    return AudioEncoder(resolve("audio", str(folder)), device="cpu", **options)


def clips(lengths=LENGTHS) -> list[np.ndarray]:
    """Noise of different levels and offsets, so that statistics taken over the wrong
    samples show.
    """
    random = np.random.default_rng(0)
    return [
        (random.standard_normal(n) * 0.1 * (i + 1) + 0.05 * i).astype(np.float32)
        for i, n in enumerate(lengths)
    ]


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_batch_equals_single(norm, request):
    encoder = load(request.getfixturevalue(norm))
    absolute, _ = invariance(encoder.encode, [encoder.prepare(clip) for clip in clips()])
    assert absolute < 2e-5


@pytest.mark.parametrize("family", ["hubert", "wavlm", "wav2vec2-conformer"])
def test_batch_equals_single_in_the_family(family, tmp_path):
    """Nor is a word said of it: warnings are errors here."""
    encoder = load(checkpoints.audio(tmp_path / family, family))
    absolute, _ = invariance(encoder.encode, [encoder.prepare(clip) for clip in clips()])
    assert absolute < 2e-5


def test_a_batch_norm_before_positions_makes_nothing_of_padding(tmp_path):
    folder = checkpoints.audio(tmp_path / "hubert", "hubert", conv_pos_batch_norm=True)
    weights = load_file(folder / "model.safetensors")
    weights["encoder.pos_conv_embed.batch_norm.running_mean"] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    encoder = load(folder)
    absolute, _ = invariance(encoder.encode, [encoder.prepare(clip) for clip in clips()])
    assert absolute < 2e-5


@pytest.mark.parametrize("positions", ["relative", "rotary"])
def test_conformers_in_threads(tmp_path, positions):
    """Their tables of positions are one for all threads, and longer clips replace them."""
    changes = {"position_embeddings_type": positions, "max_source_positions": 8}
    encoder = load(checkpoints.audio(tmp_path / "conformer", "wav2vec2-conformer", **changes))
    tables = encoder.model.encoder.embed_positions
    entered, inside = [], threading.Event()

    def enter(table, args):
        entered.append(inside.is_set())
        inside.set()
        time.sleep(0.05)

    tables.module.register_forward_pre_hook(enter)
    tables.module.register_forward_hook(lambda *_: inside.clear())
    waves = [encoder.prepare(clip) for clip in clips()[-3:]]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda wave: encoder.encode([wave])[0].frames, waves))
    assert entered == [False] * 3
    for frames, wave in zip(together, waves, strict=True):
        np.testing.assert_allclose(frames, encoder.encode([wave])[0].frames, atol=2e-5)


def test_the_check_can_fail(group):
    """Without the own-sample norm the very same test shows a difference far above the tolerance
    (transformers#21534).
    """
    encoder = load(group)
    first = encoder.model.feature_extractor.conv_layers[0]
    first.layer_norm = first.layer_norm.norm
    absolute, _ = invariance(encoder.encode, [encoder.prepare(clip) for clip in clips()])
    assert absolute > 1e-2


def test_stacked_positional_convolutions_leak_unless_each_sees_zeros(tmp_path):
    """data2vec-audio has norms between them, so padding gets into the last frames."""
    encoder = load(checkpoints.audio(tmp_path / "d2v", "data2vec-audio", norm="layer"))
    for layers in encoder.model.encoder.pos_conv_embed.layers:
        layers._forward_pre_hooks.clear()
    absolute, _ = invariance(encoder.encode, [encoder.prepare(clip) for clip in clips()])
    assert absolute > 2e-5


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_single_clip_equals_transformers(norm, request):
    """One clip through transformers' own feature extractor and model, as its documentation says."""
    from transformers import AutoModel, Wav2Vec2FeatureExtractor

    folder = request.getfixturevalue(norm)
    clip = clips()[4]
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    processor = Wav2Vec2FeatureExtractor.from_pretrained(folder, local_files_only=True)
    with torch.inference_mode():
        output = model(
            processor(clip, sampling_rate=16_000, return_tensors="pt").input_values,
            output_hidden_states=True,
        )
    # of the last block transformers 4 gives the state after the final norm, transformers 5 before
    layers = [*output.hidden_states[:3], output.last_hidden_state]
    for layer, expected in (
        ("last", output.last_hidden_state),
        ("0", layers[0]),
        ("2", layers[2]),
        ("3", output.last_hidden_state),
        ("mean:1-3", torch.stack(layers[1:]).mean(0)),
        ("stack:0-3:2", torch.cat([layers[0], layers[2]], -1)),
        ("stack:2-last", torch.cat(layers[2:], -1)),
    ):
        encoder = load(folder, layer=layer)
        np.testing.assert_allclose(
            encoder.encode([encoder.prepare(clip)])[0].frames, expected[0], atol=2e-5
        )


@pytest.mark.parametrize("layer_name", ["0", "1", "mean:0-2"])
def test_layers_are_batch_independent_too(group, layer_name):
    encoder = load(group, layer=layer_name)
    absolute, _ = invariance(encoder.encode, [encoder.prepare(clip) for clip in clips()])
    assert absolute < 2e-5


@pytest.mark.parametrize("layer_name", ["4", "-1", "mean:2-1", "mean:0-9", "all", "1-2"])
def test_unknown_layers_are_refused(group, layer_name):
    with pytest.raises(DataError, match="--audio-layer"):
        load(group, layer=layer_name)


def test_padding_is_never_read(group):
    """The frames of a clip are the same whatever lies beyond its end in the padded row; NaN there
    must not spread.
    """
    encoder = load(group)
    batch = encoder.collate([encoder.prepare(clip) for clip in clips()[-2:]])
    before = encoder.forward(batch)
    batch.samples[0, batch.lengths[0] :] = 1e3
    after = encoder.forward(batch)
    np.testing.assert_allclose(after[0].frames, before[0].frames, atol=2e-5)


def test_short_clips_are_padded_to_one_frame(group):
    encoder = load(group)
    frames = encoder.encode([encoder.prepare(clips((7,))[0]), encoder.prepare(clips((400,))[0])])
    assert [x.frames.shape for x in frames] == [(1, 24), (1, 24)]


def test_own_sample_group_norm_against_a_loop():
    norm = torch.nn.GroupNorm(4, 4)
    torch.nn.init.normal_(norm.weight)
    module = OwnSampleGroupNorm(norm, PerBatch())
    x, lengths = torch.randn(3, 4, 50), [50, 13, 2]
    module.state.lengths = lengths
    out = module(x)
    for row, n in enumerate(lengths):
        torch.testing.assert_close(out[row, :, :n], norm(x[row : row + 1, :, :n])[0])
        assert not out[row, :, n:].any()


def test_half_precision_is_close(tmp_path):
    """Without groups of few channels, which oneDNN gets wrong in bfloat16 on processors with AMX
    (pytorch issue 163347).
    """
    encoder = load(
        checkpoints.audio(tmp_path / "wide", num_conv_pos_embedding_groups=1), precision="bf16"
    )
    prepared = encoder.prepare(clips()[4])
    half = encoder.encode([prepared])[0].frames
    full = encoder.encode([prepared], precision="fp32")[0].frames
    assert 0 < np.linalg.norm(half - full) / np.linalg.norm(full) < 0.05


def test_processor_without_normalisation(tmp_path):
    folder = checkpoints.audio(tmp_path / "raw")
    (folder / "preprocessor_config.json").write_text('{"do_normalize": false}')
    clip = clips()[3]
    np.testing.assert_array_equal(load(folder).prepare(clip), clip)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"processor": {"sampling_rate": 8000}}, "8000 Hz"),
        ({"config": {"add_adapter": True}}, "adapter"),
        ({"config": {"conv_kernel": None}}, "convolution"),
        ({"config": {"model_type": "sew"}}, "joins frames"),
    ],
)
def test_unsuitable_checkpoints_are_refused(group, changes, words):
    import dataclasses

    checkpoint = resolve("audio", str(group))
    checkpoint = dataclasses.replace(
        checkpoint, **{name: getattr(checkpoint, name) | values for name, values in changes.items()}
    )
    with pytest.raises(EncoderError, match=words):
        AudioEncoder(checkpoint, device="cpu")


def test_a_text_model_is_no_audio_encoder(roberta):
    with pytest.raises(EncoderError, match="not of the wav2vec2 family"):
        load(roberta)


def test_a_wrong_device_or_precision_is_refused(group):
    with pytest.raises(DataError, match="device 'gpu'"):
        AudioEncoder(resolve("audio", str(group)), device="gpu")
    with pytest.raises(DataError, match="precision"):
        load(group, precision="fp8")
