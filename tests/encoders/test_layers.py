"""Layer settings, and models that keep their blocks where others do not. What every family does
with them is in test_contract.py.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mer.pipeline.encoders.audio import Audio
from mer.pipeline.encoders.bert import TextEncoder
from mer.pipeline.encoders.layers import LayerChoice, parse_layers
from mer.pipeline.encoders.loading import resolve
from mer.pipeline.encoders.taps import blocks_of
from mer.pipeline.errors import DataError, EncoderError, KeyMismatchError
from mer.pipeline.extraction import extract

from tests.extract import corpus


@pytest.mark.parametrize(
    ("setting", "kind", "layers", "text"),
    [
        ("last", "last", (12,), "last"),
        ("12", "last", (12,), "last"),
        ("mean:12-12", "last", (12,), "last"),
        ("stack:12-last", "last", (12,), "last"),
        ("0", "one", (0,), "0"),
        ("07", "one", (7,), "7"),
        ("mean:3-5", "mean", (3, 4, 5), "mean:3-5"),
        ("mean:3-3", "mean", (3,), "mean:3-3"),
        ("mean:11-12", "mean", (11, 12), "mean:11-last"),
        ("stack:0-2", "stack", (0, 1, 2), "stack:0-2"),
        ("stack:0-2:1", "stack", (0, 1, 2), "stack:0-2"),
        ("stack:0-12:4", "stack", (0, 4, 8, 12), "stack:0-last:4"),
        ("stack:1-12:4", "stack", (1, 5, 9), "stack:1-9:4"),
        ("stack:3-5:9", "stack", (3,), "stack:3-3"),
    ],
)
def test_settings(setting, kind, layers, text):
    choice = parse_layers(setting, 12)
    assert choice == LayerChoice(kind, layers, 12)
    assert choice.text == text and parse_layers(text, 12) == choice
    assert choice.copies == (len(layers) if kind == "stack" else 1)
    assert choice.stack == (layers if kind == "stack" else ())


@pytest.mark.parametrize(
    "setting",
    [
        "",
        "-1",
        "13",
        "1.5",
        "first",
        "mean",
        "mean:3",
        "mean:5-3",
        "mean:0-13",
        "mean:0-4:2",
        "mean:last-3",
        "4:2",
        "last:2",
        "stack:1-4:0",
        "stack:1-4:",
        "stack:1-4:-1",
        "stack 1-4",
        " 3",
        "3\n",
        "٣",  # a digit to isdecimal
        "9" * 5000,
        "all" * 500,
    ],
)
def test_what_is_no_setting_is_one_line_that_names_the_option(setting):
    with pytest.raises(DataError, match="--text-layer") as raised:
        parse_layers(setting, 12, "--text-layer")
    assert len(str(raised.value)) <= 300 and "\n" not in str(raised.value)


@pytest.fixture
def albert(roberta, tmp_path):
    """It repeats one block, so there are none to hook."""
    from transformers import AlbertConfig, AlbertModel

    torch.manual_seed(3)
    config = AlbertConfig(
        vocab_size=300,
        embedding_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
    )
    AlbertModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    for path in roberta.glob("tokenizer*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return resolve("text", str(tmp_path))


def test_a_model_whose_blocks_are_elsewhere_is_asked_for_its_states(albert):
    encoder = TextEncoder(albert, device="cpu", layer="stack:0-last", layer_means=True)
    model = encoder.model
    assert blocks_of(model, 2) is None
    ids = np.array([1, 5, 9, 2])
    with torch.inference_mode():
        hidden = model(torch.from_numpy(ids)[None], output_hidden_states=True).hidden_states
    states = encoder.encode([np.array([1, 2]), ids])[1]
    expected = torch.cat(hidden, -1)[0].numpy()
    np.testing.assert_allclose(states.frames, expected, atol=2e-5)
    np.testing.assert_allclose(states.layer_means.reshape(-1), expected.mean(0), atol=2e-5)


def test_a_model_that_tells_no_layers_is_refused(albert):
    encoder = TextEncoder(albert, device="cpu", layer_means=True)
    encoder.model.forward = lambda **given: SimpleNamespace(last_hidden_state=torch.ones(1, 2, 16))
    with pytest.raises(
        EncoderError, match="'albert' does not tell its layers apart.*--no-layer-means"
    ):
        encoder.encode([np.array([1, 2])])


def test_a_store_of_the_last_block_without_its_norm_is_not_mixed_with_the_last_layer(
    tmp_path, monkeypatch
):
    """Before layers were counted as transformers does, `2` of two blocks lacked the final norm."""
    manifest, file = corpus.make(tmp_path, 3)
    options = corpus.options(text_encoder="none", audio_layer="2")
    recipe = Audio.recipe
    with monkeypatch.context() as patch:
        patch.setattr(Audio, "recipe", lambda *given: recipe(*given) | {"layer": "2"})
        extract(manifest, tmp_path / "feats.h5", options, source=file)
    with pytest.raises(KeyMismatchError, match="audio layer: 2 there, last now"):
        extract(manifest, tmp_path / "feats.h5", options, source=file)
    force = corpus.options(text_encoder="none", audio_layer="2", force=True)
    extract(manifest, tmp_path / "feats.h5", force, source=file)
    last = corpus.options(text_encoder="none", audio_layer="last")
    assert extract(manifest, tmp_path / "feats.h5", last, source=file).action == "nothing"
