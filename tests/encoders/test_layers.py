"""Layer settings, and the hidden states that they keep."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mer.pipeline.encoders.bert import TextEncoder
from mer.pipeline.encoders.layers import LayerChoice, parse_layers
from mer.pipeline.encoders.loading import resolve
from mer.pipeline.encoders.taps import blocks_of
from mer.pipeline.encoders.wav2vec2 import AudioEncoder
from mer.pipeline.errors import DataError, EncoderError


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


def items_of(encoder) -> list[np.ndarray]:
    random = np.random.default_rng(3)
    if isinstance(encoder, TextEncoder):
        return [random.integers(3, 290, n) for n in (2, 30, 11)]
    lengths = (400, 9_000, 5_000)
    return [encoder.prepare(random.standard_normal(n).astype(np.float32)) for n in lengths]


@pytest.fixture(params=["group", "layer", "roberta"])
def made(request):
    """An encoder of a family with the given layer settings."""
    folder = str(request.getfixturevalue(request.param))
    kind = "text" if request.param == "roberta" else "audio"
    build = TextEncoder if kind == "text" else AudioEncoder
    return lambda **options: build(resolve(kind, folder), device="cpu", **options)


def test_layer_k_of_means_and_stack_is_what_layer_k_stores(made):
    encoder = made(layer="stack:0-last", layer_means=True)
    count, width = encoder.layer_count, encoder.width
    assert encoder.dim == count * width
    items = items_of(encoder)
    stacked = encoder.encode(items)
    for layer in range(count):
        alone = made(layer=str(layer))
        assert (alone.dim, alone.layer_count) == (width, 0)
        for item, states in zip(items, stacked, strict=True):
            expected = alone.encode([item])[0].frames
            part = states.frames[:, layer * width : (layer + 1) * width]
            np.testing.assert_allclose(part, expected, atol=2e-5)
            np.testing.assert_allclose(states.layer_means[layer], expected.mean(0), atol=2e-5)


def test_means_are_over_the_kept_steps(made):
    encoder = made(layer="stack:0-last", layer_means=True)
    items = items_of(encoder)
    kept = [None, (3, 7), (1, 9)]
    for states, span in zip(encoder.encode(items, kept), kept, strict=True):
        first, steps = span or (0, len(states.frames))
        by_hand = states.frames[first : first + steps].mean(0)
        np.testing.assert_allclose(states.layer_means.reshape(-1), by_hand, atol=2e-5)


@pytest.mark.parametrize("setting", ["last", "1", "mean:0-1", "stack:0-last"])
def test_means_do_not_depend_on_what_is_stored_beside_them(made, setting):
    encoder, plain = made(layer=setting, layer_means=True), made(layer_means=True)
    items = items_of(encoder)
    bare = made(layer=setting)
    for a, b, c in zip(*(e.encode(items) for e in (encoder, plain, bare)), strict=True):
        np.testing.assert_array_equal(a.layer_means, b.layer_means)
        np.testing.assert_array_equal(a.frames, c.frames)
        assert a.layer_means.dtype == a.frames.dtype == np.float32 and c.layer_means is None


def test_what_lies_beyond_an_items_steps_is_not_in_its_means(made):
    """The hooks on their own, since the models see padding through their masks."""
    encoder = made(layer="0", layer_means=True)
    taps, width = encoder._taps, encoder.width
    states = torch.randn(2, 6, width)
    states[0, 4:] = torch.nan
    taps.begin([(1, 3), (0, 6)])
    means = taps._pass.mean(states)
    torch.testing.assert_close(means[0], states[0, 1:4].mean(0))
    torch.testing.assert_close(means[1], states[1].mean(0))


def test_blocks_above_the_highest_layer_are_dropped_unless_means_need_them(made):
    blocks = made().choice.count
    assert len(_blocks(made(layer="1"))) == 1
    assert len(_blocks(made(layer="stack:0-1"))) == 1
    assert len(_blocks(made(layer="1", layer_means=True))) == blocks


def _blocks(encoder):
    return getattr(encoder.model.encoder, "layers", None) or encoder.model.encoder.layer


def test_threads_do_not_mix_their_states(made):
    encoder = made(layer="stack:0-last", layer_means=True)
    items = items_of(encoder)
    expected = [encoder.encode([item])[0] for item in items]
    found: dict[int, list] = {0: [], 1: [], 2: []}

    def work(which: int) -> None:
        for _ in range(10):
            found[which].append(encoder.encode([items[which]])[0])

    threads = [threading.Thread(target=work, args=(i,)) for i in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for which, results in found.items():
        for states in results:
            np.testing.assert_array_equal(states.frames, expected[which].frames)
            np.testing.assert_array_equal(states.layer_means, expected[which].layer_means)


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
    with pytest.raises(EncoderError, match="does not tell its layers apart.*--no-layer-means"):
        encoder.encode([np.array([1, 2])])
