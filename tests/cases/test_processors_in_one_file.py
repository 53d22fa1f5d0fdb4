"""Since transformers 5 a processor is saved as one file, processor_config.json, with a part for
each kind of input; the file that only says how sound or pictures are prepared is no longer there
(huggingface/transformers#44623). A fine-tuned WavLM was normalised, though its processor says that
it is not to be, and a CLIP model was refused as one without a processor. What is true comes from
transformers.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from mer.pipeline.encoders.loading import resolve
from mer.pipeline.encoders.vision import Vision
from mer.pipeline.encoders.wav2vec2 import AudioEncoder
from mer.pipeline.errors import EncoderError
from mer.pipeline.extraction.options import ExtractOptions

from tests.encoders import checkpoints, pictures

CLIP = np.random.default_rng(0).normal(0.2, 0.05, 4000).astype(np.float32)
ALONE, TOGETHER = "preprocessor_config.json", "processor_config.json"


def audio(folder, *, normalised):
    """A checkpoint whose processor was saved by transformers of today."""
    from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2Processor

    checkpoints.audio(folder)
    (folder / ALONE).unlink()
    (folder / "vocab.json").write_text(json.dumps({"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}))
    tokenizer = Wav2Vec2CTCTokenizer(folder / "vocab.json")
    extractor = Wav2Vec2FeatureExtractor(do_normalize=normalised)
    Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)
    assert (folder / TOGETHER).exists() and not (folder / ALONE).exists()
    return folder


def test_sound_is_prepared_as_the_processor_says(tmp_path):
    from transformers import AutoFeatureExtractor, AutoModel

    folder = audio(tmp_path / "sound", normalised=False)
    extractor = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    with torch.inference_mode():
        true = model(**extractor(CLIP, sampling_rate=16000, return_tensors="pt"))
    encoder = AudioEncoder(resolve("audio", str(folder)), device="cpu")
    found = encoder.encode([encoder.prepare(CLIP)])[0].frames
    np.testing.assert_allclose(found, true.last_hidden_state[0].numpy(), atol=2e-5)


def test_the_part_goes_before_the_file_of_that_alone(tmp_path):
    """As transformers has it; and it belongs to the key where it changes anything."""
    folder = audio(tmp_path / "sound", normalised=False)
    raw = resolve("audio", str(folder))
    (folder / ALONE).write_text(json.dumps({"do_normalize": True}))
    assert AudioEncoder(resolve("audio", str(folder)), device="cpu").normalised is False
    (folder / TOGETHER).unlink()
    assert resolve("audio", str(folder)).hash != raw.hash


def test_stores_made_before_keep_their_key(tmp_path):
    """A part that says what is done without one changes no feature, and no key; nor does one for
    another kind of input.
    """
    folder = audio(tmp_path / "sound", normalised=True)
    key = resolve("audio", str(folder)).hash
    (folder / TOGETHER).write_text(json.dumps({"image_processor": {"do_normalize": False}}))
    assert resolve("audio", str(folder)).hash == key
    (folder / TOGETHER).unlink()
    assert resolve("audio", str(folder)).hash == key


def test_pictures_are_prepared_as_the_processor_says(tmp_path):
    folder = pictures.checkpoint(tmp_path / "pictures", "clip_vision_model")
    options = ExtractOptions(vision_encoder=str(folder), layer_means=False)
    modality, shown = Vision.of(options), pictures.photographs(1)[0]

    def encoded():
        checkpoint = modality.resolve(str(folder))
        modality.check(checkpoint)
        encoder = modality.load(checkpoint, device="cpu", precision="fp32")
        return checkpoint.hash, encoder.encode([encoder.processor(shown)[None]])[0].frames

    key, true = encoded()
    part = json.loads((folder / ALONE).read_text())
    (folder / ALONE).unlink()
    (folder / TOGETHER).write_text(json.dumps({"image_processor": part}))
    other_key, found = encoded()
    np.testing.assert_array_equal(found, true)
    assert other_key != key
    (folder / ALONE).write_text(json.dumps(part))  # says the same, so that the old key stays
    assert encoded()[0] == key


def test_a_pointer_in_its_place_is_named(tmp_path):
    folder = audio(tmp_path / "sound", normalised=True)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12\n"
    (folder / TOGETHER).write_text(pointer)
    with pytest.raises(EncoderError, match=f"{TOGETHER}: a Git LFS pointer"):
        resolve("audio", str(folder))
