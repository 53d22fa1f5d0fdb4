"""What every family of encoders keeps, at random widths: the states of an item depend on nothing
but the item, and every layer is what it would be alone.
"""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from mer.pipeline.encoders.audio import Audio
from mer.pipeline.encoders.frozen import invariance
from mer.pipeline.encoders.modality import Encoder
from mer.pipeline.encoders.text import Text

from tests.encoders import checkpoints

ATOL = 2e-5


def _wav2vec2(kind: str, norm: str):
    def make(folder: Path, heads: int, width: int, blocks: int) -> Path:
        return checkpoints.audio(
            folder,
            kind,
            norm=norm,
            hidden_size=width,
            num_attention_heads=heads,
            num_hidden_layers=blocks,
            num_conv_pos_embedding_groups=heads,
        )

    return make


def _whisper(folder: Path, heads: int, width: int, blocks: int) -> Path:
    return checkpoints.whisper(
        folder, d_model=width, encoder_attention_heads=heads, encoder_layers=blocks
    )


def _wav2vec2_bert(positions: str):
    def make(folder: Path, heads: int, width: int, blocks: int) -> Path:
        return checkpoints.wav2vec2_bert(
            folder,
            hidden_size=width,
            num_attention_heads=heads,
            num_hidden_layers=blocks,
            position_embeddings_type=positions,
        )

    return make


def _roberta(folder: Path, heads: int, width: int, blocks: int) -> Path:
    return checkpoints.text(
        folder, hidden_size=width, num_attention_heads=heads, num_hidden_layers=blocks
    )


# family → (what makes a checkpoint, options of its modality)
FAMILIES = {
    "wav2vec2 with group norm": (_wav2vec2("wav2vec2", "group"), {}),
    "wav2vec2 with layer norm": (_wav2vec2("wav2vec2", "layer"), {}),
    "hubert": (_wav2vec2("hubert", "group"), {}),
    "wavlm": (_wav2vec2("wavlm", "group"), {}),
    "data2vec-audio": (_wav2vec2("data2vec-audio", "layer"), {}),
    "whisper, clip": (_whisper, {"window": "clip"}),
    "whisper, full": (_whisper, {"window": "full"}),
    "wav2vec2-bert": (_wav2vec2_bert("relative_key"), {}),
    "wav2vec2-bert, relative": (_wav2vec2_bert("relative"), {}),
    "wav2vec2-bert, rotary": (_wav2vec2_bert("rotary"), {}),
    "roberta": (_roberta, {}),
}


class Made:
    """A checkpoint of a family, of random width and depth."""

    def __init__(self, family: str, folder: Path):
        make, self.given = FAMILIES[family]
        self.random = np.random.default_rng(sum(map(ord, family)))
        heads = int(self.random.integers(1, 4))
        width = heads * 2 * int(self.random.integers(3, 9))
        self.folder = make(folder, heads, width, int(self.random.integers(2, 5)))
        self.width = width

    def load(self, layer: str = "last", layer_means: bool = False) -> Encoder:
        kind = Text if "tokenizer.json" in {path.name for path in self.folder.iterdir()} else Audio
        modality = kind(
            encoder=str(self.folder),
            budget=None,
            part=1,
            layer=layer,
            layer_means=layer_means,
            **self.given,
        )
        checkpoint = modality.resolve(modality.encoder)
        return modality.load(checkpoint, device="cpu", precision="fp32")

    def items(self, encoder: Encoder) -> list[np.ndarray]:
        if not hasattr(encoder, "prepare"):
            return [self.random.integers(3, 290, n) for n in (2, 30, 11, 4)]
        found = []
        for level, n in enumerate((560, 31_990, 5_000, 16_001, 399), start=1):
            wave = self.random.standard_normal(n) * 0.1 * level + 0.02 * level
            found.append(encoder.prepare(wave.astype(np.float32)))
        return found


# inside transformers' WavLM
pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")


@pytest.fixture(scope="module", params=FAMILIES)
def made(request, tmp_path_factory) -> Made:
    return Made(request.param, tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def everything(made) -> Encoder:
    """All layers side by side, and their means."""
    return made.load("stack:0-last", layer_means=True)


def test_batch_equals_single(made, everything):
    absolute, _ = invariance(everything.encode, made.items(everything))
    assert absolute < ATOL


def test_what_it_says_of_itself(made, everything):
    last = made.load()
    assert (last.dim, last.width, last.layer_count) == (made.width, made.width, 0)
    count = everything.layer_count
    assert count == last.choice.count + 1
    assert (everything.dim, everything.width) == (count * made.width, made.width)
    for states, plain in zip(
        *(encoder.encode(made.items(encoder)[:2]) for encoder in (everything, last)), strict=True
    ):
        assert states.frames.shape[1] == everything.dim and plain.frames.shape[1] == last.dim
        assert states.layer_means.shape == (count, made.width)
        assert states.frames.dtype == states.layer_means.dtype == np.float32
        assert plain.layer_means is None


def test_what_lies_beyond_an_item_is_never_read(made, everything):
    items = made.items(everything)
    batch = everything.collate(items)
    before = everything.forward(batch)
    beyond = batch[1] == 0
    if batch[0].is_floating_point():
        batch[0][beyond] = torch.nan
    else:
        batch[0][beyond] = 7
    for states, expected in zip(everything.forward(batch), before, strict=True):
        np.testing.assert_allclose(states.frames, expected.frames, atol=ATOL)
        np.testing.assert_allclose(states.layer_means, expected.layer_means, atol=ATOL)


def test_layer_k_of_means_and_of_a_stack_is_what_layer_k_stores(made, everything):
    items, width = made.items(everything), everything.width
    stacked = everything.encode(items)
    for layer in range(everything.layer_count):
        alone = made.load(str(layer))
        for item, states in zip(items, stacked, strict=True):
            expected = alone.encode([item])[0].frames
            part = states.frames[:, layer * width : (layer + 1) * width]
            np.testing.assert_allclose(part, expected, atol=ATOL)
            np.testing.assert_allclose(states.layer_means[layer], expected.mean(0), atol=ATOL)


def test_means_are_over_the_kept_steps(made, everything):
    items = made.items(everything)[1:4]
    kept = [None, (3, 5), (1, 3)]
    for states, span in zip(everything.encode(items, kept), kept, strict=True):
        first, steps = span or (0, len(states.frames))
        by_hand = states.frames[first : first + steps].mean(0)
        np.testing.assert_allclose(states.layer_means.reshape(-1), by_hand, atol=ATOL)


@pytest.mark.parametrize("setting", ["last", "1", "mean:0-1", "stack:0-last"])
def test_means_do_not_depend_on_what_is_stored_beside_them(made, setting):
    encoders = [made.load(setting, True), made.load(layer_means=True), made.load(setting)]
    items = made.items(encoders[0])[:3]
    for both, means, frames in zip(*(e.encode(items) for e in encoders), strict=True):
        np.testing.assert_array_equal(both.layer_means, means.layer_means)
        np.testing.assert_array_equal(both.frames, frames.frames)


def test_blocks_above_the_highest_layer_are_dropped_unless_means_need_them(made):
    def parameters(encoder) -> int:
        return sum(p.numel() for p in encoder.model.parameters())

    whole = parameters(made.load())
    assert parameters(made.load("1", layer_means=True)) == whole
    assert parameters(made.load("1")) == parameters(made.load("stack:0-1")) < whole


def test_threads_do_not_mix_their_states(made, everything):
    items = made.items(everything)[:3]
    expected = [everything.encode([item])[0] for item in items]
    found: list[list] = [[], [], []]

    def work(which: int) -> None:
        for _ in range(5):
            found[which].append(everything.encode([items[which]])[0])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for results, alone in zip(found, expected, strict=True):
        assert len(results) == 5
        for states in results:
            np.testing.assert_array_equal(states.frames, alone.frames)
            np.testing.assert_array_equal(states.layer_means, alone.layer_means)
