"""Frame counts and pieces, against a plain loop and against the joined pieces of a real (small)
encoder.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mer.pipeline.encoders.geometry import CONTEXT, Geometry
from mer.pipeline.encoders.loading import resolve
from mer.pipeline.encoders.wav2vec2 import AudioEncoder
from mer.pipeline.errors import DataError

W2V = Geometry((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2), 768, 12)  # every published wav2vec2


def test_known_values():
    assert (W2V.hop, W2V.field, W2V.rate) == (320, 400, 50.0)
    assert [W2V.frames(n) for n in (1, 399, 400, 719, 720, 16_000, 160_000)] == [
        1,
        1,
        1,
        1,
        2,
        49,
        499,
    ]


@given(st.integers(400, 200_000))
def test_frames_match_real_convolutions(n):
    x = torch.empty(1, 1, n, device="meta")
    for kernel, stride in zip(W2V.kernels, W2V.strides, strict=True):
        x = torch.nn.functional.conv1d(x, torch.empty(1, 1, kernel, device="meta"), stride=stride)
    assert x.shape[-1] == W2V.frames(n)


@given(st.integers(1, 2_000_000), st.integers(60_000, 400_000), st.integers(1, 7))
def test_pieces_join_to_the_uncut_frames(samples, longest, multiple):
    joined = []
    for number, (first, end, skip, keep) in enumerate(
        W2V.pieces(samples, longest, multiple=multiple)
    ):
        assert 0 <= first < end <= samples and end - first <= longest and first % W2V.hop == 0
        assert skip + keep <= W2V.frames(end - first)
        start = first // W2V.hop + skip
        assert number == 0 or start % multiple == 0
        assert skip == CONTEXT or start == 0 or number == 0 or skip == start
        joined += range(start, start + keep)
    assert joined == list(range(W2V.frames(samples)))


def test_a_limit_below_the_overlap_is_refused():
    with pytest.raises(DataError, match="max-seconds"):
        list(W2V.pieces(100_000, 20_000))


def test_pieces_of_a_layer_norm_encoder_are_close_to_the_whole(layer):
    """Convolutions and their norms are local, so before attention the pieces give the uncut frames
    exactly.
    """
    encoder = AudioEncoder(resolve("audio", str(layer)), device="cpu", layer="0")
    clip = encoder.prepare(np.random.default_rng(0).standard_normal(120_000).astype(np.float32))
    whole = encoder.encode([clip])[0].frames
    pieces = [
        encoder.encode([clip[a:b]])[0].frames[skip : skip + keep]
        for a, b, skip, keep in encoder.geometry.pieces(len(clip), 60_000)
    ]
    assert len(pieces) > 2
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=2e-5)
