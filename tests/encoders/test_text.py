"""Transcripts → token states."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mer.pipeline.encoders.bert import TextEncoder
from mer.pipeline.encoders.frozen import invariance
from mer.pipeline.encoders.loading import resolve
from mer.pipeline.errors import EncoderError

TEXTS = ["the", "the quick brown fox jumps over the lazy dog", "fox! 你好", "dog " * 12, "x"]


@pytest.fixture(scope="module")
def encoder(roberta) -> TextEncoder:
    return TextEncoder(resolve("text", str(roberta)), device="cpu")


def test_batch_equals_single(encoder):
    ids, cut = encoder.tokens(TEXTS)
    assert not any(cut)
    assert len({len(row) for row in ids}) > 2
    absolute, _ = invariance(encoder.encode, ids)
    assert absolute < 2e-5


def test_single_equals_transformers(encoder, roberta):
    from transformers import AutoModel, AutoTokenizer

    inputs = AutoTokenizer.from_pretrained(roberta, local_files_only=True)(
        TEXTS[1], return_tensors="pt"
    )
    inputs.pop("token_type_ids", None)
    with torch.inference_mode():
        expected = (
            AutoModel.from_pretrained(roberta, local_files_only=True, add_pooling_layer=False)
            .eval()(**inputs)
            .last_hidden_state[0]
        )
    np.testing.assert_allclose(
        encoder.encode(encoder.tokens([TEXTS[1]])[0])[0].frames, expected, atol=2e-5
    )


def test_special_tokens_are_kept(encoder):
    (ids,), _ = encoder.tokens(["fox"])
    assert (ids[0], ids[-1]) == (0, 2)
    assert len(encoder.encode([ids])[0].frames) == len(ids)


def test_long_transcripts_are_cut_and_counted(encoder):
    """66 positions, of which RoBERTa cannot use padding_idx + 1 = 2. The closing token stays."""
    assert encoder.limit == 64
    (ids,), (cut,) = encoder.tokens(["dog " * 200])
    assert cut and len(ids) == 64 and ids[-1] == 2
    assert np.isfinite(encoder.encode([ids])[0].frames).all()


def test_a_checkpoint_without_tokenizer(roberta, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((roberta / name).read_bytes())
    with pytest.raises(EncoderError, match="tokenizer"):
        TextEncoder(resolve("text", str(tmp_path)), device="cpu")
