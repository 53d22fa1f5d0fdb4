"""Networks whose layers oneDNN has put in order give what transformers' own do."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from mer.pipeline.encoders import packed
from mer.pipeline.encoders.bert import TextEncoder
from mer.pipeline.encoders.frozen import computing, invariance, load_model
from mer.pipeline.encoders.loading import resolve
from mer.pipeline.encoders.packed import PackedLinear, can_pack, is_gelu, pack
from mer.pipeline.encoders.wav2vec2 import AudioEncoder
from mer.pipeline.encoders.waves import FRAMES_AT_A_TIME, Waves
from mer.pipeline.runtime.machine import one_thread

from tests.encoders import checkpoints

CPU = torch.device("cpu")
WIDE = {"conv_dim": [128] * 7, "hidden_size": 128, "intermediate_size": 256}
# one frame, one frame more than is computed at a time, and as many as they are
LENGTHS = (400, 719, 30_001, 320 * FRAMES_AT_A_TIME + 80, 320 * FRAMES_AT_A_TIME + 400)
pytestmark = pytest.mark.skipif(not can_pack(CPU, "fp32"), reason="torch was built without oneDNN")


def waveforms() -> list[np.ndarray]:
    """Noise with offsets: the variance of a first layer is a small difference of products then."""
    random = np.random.default_rng(3)
    return [
        (random.standard_normal(n) * 0.1 * (i + 1) + 0.5 * i).astype(np.float32)
        for i, n in enumerate(LENGTHS)
    ]


def alone(folder, waveform: np.ndarray) -> np.ndarray:
    """Frames of one waveform by transformers' own network."""
    model = load_model(resolve("audio", str(folder)), CPU)
    with torch.inference_mode():
        return model(torch.from_numpy(waveform)[None]).last_hidden_state[0].numpy()


# inside transformers' WavLM
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("wav2vec2", {"norm": "group"}),
        ("wav2vec2", {"norm": "group", "conv_bias": True}),
        ("wav2vec2", {"norm": "layer", "conv_bias": True}),
        ("hubert", {"norm": "layer"}),
        ("wavlm", {"norm": "group"}),
        ("data2vec-audio", {"norm": "layer"}),
    ],
)
@pytest.mark.parametrize("normalised", [True, False])
def test_waves_equal_transformers(tmp_path, family, changes, normalised):
    folder = checkpoints.audio(tmp_path / family, family, **changes, **WIDE)
    encoder = AudioEncoder(resolve("audio", str(folder)), device="cpu")
    assert isinstance(encoder.model.feature_extractor, Waves)
    encoder.normalised = normalised
    prepared = [encoder.prepare(waveform) for waveform in waveforms()]
    for states, waveform in zip(encoder.encode(prepared), prepared, strict=True):
        np.testing.assert_allclose(states.frames, alone(folder, waveform), atol=2e-5)


def test_a_clip_begins_the_same_in_any_company(tmp_path):
    """The convolutions see one clip at a time: no bit of it depends on the others."""
    folder = checkpoints.audio(tmp_path / "base", **WIDE)
    encoder = AudioEncoder(resolve("audio", str(folder)), device="cpu", layer="0")
    extractor = encoder.model.feature_extractor
    clips = [encoder.prepare(waveform) for waveform in waveforms()]
    batch = encoder.collate(clips)
    encoder._state.lengths = [encoder.geometry.first(len(clip)) for clip in clips]
    with torch.inference_mode():
        together = extractor(batch.samples)
        encoder._state.lengths = None
        for row, clip in zip(together, clips, strict=True):
            frames = encoder.geometry.frames(len(clip))
            assert torch.equal(row[:, :frames], extractor(torch.from_numpy(clip)[None])[0])
            assert not row[:, frames:].any()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bytes_do_not_depend_on_the_threads_it_was_loaded_with(tmp_path, precision):
    """Weights that are made while loading, as by a weight norm, are rounded as in every pass."""
    if not can_pack(CPU, precision):
        pytest.skip("this processor has no bf16")
    checkpoint = resolve("audio", str(checkpoints.audio(tmp_path / "base", **WIDE)))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            encoder = AudioEncoder(checkpoint, device="cpu", precision=precision)
            with one_thread():
                found.append(encoder.encode([encoder.prepare(waveforms()[2])])[0].frames)
    finally:
        torch.set_num_threads(before)
    assert found[0].tobytes() == found[1].tobytes()


def test_silence_stays_finite(tmp_path):
    encoder = AudioEncoder(
        resolve("audio", str(checkpoints.audio(tmp_path / "base", **WIDE))), device="cpu"
    )
    (states,) = encoder.encode([encoder.prepare(np.full(4000, 0.25, np.float32))])
    assert np.isfinite(states.frames).all()


def test_transcripts_equal_transformers(tmp_path):
    folder = checkpoints.text(
        tmp_path / "wide", hidden_size=128, intermediate_size=256, num_attention_heads=2
    )
    encoder = TextEncoder(resolve("text", str(folder)), device="cpu", layer_means=True)
    model = load_model(resolve("text", str(folder)), CPU)
    random = np.random.default_rng(0)
    rows = [random.integers(4, 20, n) for n in (3, 9, 14)]
    for states, row in zip(encoder.encode(rows), rows, strict=True):
        with torch.inference_mode():
            output = model(torch.from_numpy(row)[None], output_hidden_states=True)
        np.testing.assert_allclose(states.frames, output.last_hidden_state[0], atol=2e-5)
        means = torch.stack(output.hidden_states).mean(2)[:, 0]
        np.testing.assert_allclose(states.layer_means, means, atol=2e-5)


def test_half_precision_and_what_is_asked_in_full(tmp_path):
    """In bf16 both are there: layers in order, and the weights that fp32 is computed with."""
    if not can_pack(CPU, "bf16"):
        pytest.skip("this processor has no bf16")
    checkpoint = resolve("audio", str(checkpoints.audio(tmp_path / "base", **WIDE)))
    half = AudioEncoder(checkpoint, device="cpu", precision="bf16")
    full = AudioEncoder(checkpoint, device="cpu")
    prepared = [half.prepare(waveform) for waveform in waveforms()[1:4]]
    for a, b in zip(half.encode(prepared, precision="fp32"), full.encode(prepared), strict=True):
        np.testing.assert_allclose(a.frames, b.frames, atol=2e-5)
    for a, b in zip(half.encode(prepared), full.encode(prepared), strict=True):
        assert 0 < np.linalg.norm(a.frames - b.frames) / np.linalg.norm(b.frames) < 0.05
    assert invariance(half.encode, prepared)[1] < 5e-2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 7), (7,), (), (0, 7)])
def test_a_layer(precision, activation, bias, shape):
    if not can_pack(CPU, precision):
        pytest.skip("this processor has no bf16")
    torch.manual_seed(0)
    linear, x = nn.Linear(130, 200, bias=bias).requires_grad_(False), torch.randn(*shape, 130)
    with computing(CPU, precision):
        true = linear(x)
        true = nn.functional.gelu(true) if activation == "gelu" else true
        layer = PackedLinear(linear.weight, linear.bias, precision, activation)
        with ThreadPoolExecutor(4) as pool:  # several threads may be the first

            def run() -> torch.Tensor:
                with computing(CPU, precision):
                    return layer(x)

            found = [future.result() for future in [pool.submit(run) for _ in range(4)]]
    tolerance = 2e-6 if precision == "fp32" else 2e-2
    for y in found:
        assert y.dtype is true.dtype
        torch.testing.assert_close(y, true, atol=tolerance, rtol=tolerance)
        assert torch.equal(y, found[0])


def test_what_is_replaced():
    """Wide linear layers, each once; a shared one stays shared; other activations are left."""

    class Block(nn.Module):
        def __init__(self, activation: nn.Module) -> None:
            super().__init__()
            self.dense, self.intermediate_act_fn = nn.Linear(128, 256), activation

    model = nn.ModuleList([Block(nn.GELU()), Block(nn.GELU("tanh")), Block(nn.ReLU())])
    model.append(nn.Linear(127, 256))
    model.append(model[0].dense)
    model.requires_grad_(False)
    pack(model, CPU, "fp32")
    exact, rough, other, narrow, shared = model
    assert exact.dense is shared and exact.dense.activation == "gelu"
    assert isinstance(exact.intermediate_act_fn, nn.Identity)
    for block in (rough, other):
        assert isinstance(block.dense, PackedLinear) and block.dense.activation == "none"
        assert not isinstance(block.intermediate_act_fn, nn.Identity)
    assert type(narrow) is nn.Linear


@pytest.mark.parametrize("how", ["absent", "turned off"])
def test_without_the_operators_nothing_changes(monkeypatch, how):
    onednn = packed.torch.backends.mkldnn
    if how == "absent":
        monkeypatch.setattr(onednn, "is_available", lambda: False)
    else:
        monkeypatch.setattr(onednn, "enabled", False)
    model = nn.Sequential(nn.Linear(128, 128))
    pack(model, CPU, "fp32")
    assert type(model[0]) is nn.Linear
    assert not can_pack(torch.device("cuda"), "fp32")


def test_the_exact_gelu_only():
    from transformers.activations import ACT2FN

    assert is_gelu(ACT2FN["gelu"]) and is_gelu(nn.GELU())
    for name in ("gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "gelu_10"):
        assert not is_gelu(ACT2FN[name])
