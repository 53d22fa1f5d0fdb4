"""Pictures → vectors: those of transformers' own processor and model, whatever the batch."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mer.pipeline.encoders.frozen import invariance
from mer.pipeline.encoders.images import Processor, Scaling, scale_of
from mer.pipeline.encoders.loading import resolve
from mer.pipeline.encoders.vision import Vision
from mer.pipeline.encoders.vit import ImageEncoder
from mer.pipeline.errors import DataError, EncoderError
from mer.pipeline.media.pictures import NO_PICTURES

from tests.encoders import checkpoints, pictures


def modality(folder: Path | str, **changes) -> Vision:
    return Vision(encoder=str(folder), budget=None, part=100, **changes)


def load(folder: Path | str, **changes) -> ImageEncoder:
    asked = modality(folder, **changes)
    checkpoint = asked.resolve(asked.encoder)
    asked.check(checkpoint)
    return asked.load(checkpoint, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """family → its checkpoint, made once."""
    known: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in known:
            folder = tmp_path_factory.mktemp("vision") / family
            known[family] = pictures.checkpoint(folder, family)
        return known[family]

    return make


def by_transformers(folder: Path, photograph: np.ndarray):
    """What the documentation of transformers says: its processor and model, on one picture."""
    from PIL import Image
    from transformers import AutoModel
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    inputs = processor(images=Image.fromarray(photograph), return_tensors="pt")
    with torch.inference_mode():
        return getattr(model, "vision_model", model)(**inputs, output_hidden_states=True)


def places(family: str, states: torch.Tensor) -> torch.Tensor:
    """By hand: the mean over everything that is a place in the picture."""
    if states.ndim == 4:
        return states.mean((2, 3))[0]
    before = {"deit": 2, "dinov2_with_registers": 4, "siglip": 0, "siglip_vision_model": 0}
    first = before.get(family, 0 if family == "swin" else 1)
    return states[0, first:].mean(0)


@pytest.mark.parametrize("family", pictures.FAMILIES)
def test_a_picture_gives_what_transformers_gives(family, made):
    folder = made(family)
    photograph = pictures.photographs()[2]
    output = by_transformers(folder, photograph)
    expected = {"mean": places(family, output.last_hidden_state)}
    if output.last_hidden_state.ndim == 3 and family not in (
        "swin",
        "siglip",
        "siglip_vision_model",
    ):
        expected["cls"] = output.last_hidden_state[0, 0]
    if output.pooler_output is not None:
        expected["pooler"] = output.pooler_output[0].flatten()
    assert pictures.DEFAULTS[family] in expected
    for pool, vector in expected.items():
        encoder = load(folder, pool_kind=pool)
        found = encoder.encode([encoder.processor(photograph)[None]])[0].frames
        assert found.shape == (1, encoder.dim) and found.dtype == np.float32
        np.testing.assert_allclose(found[0], vector, atol=2e-5)
        if pool == pictures.DEFAULTS[family]:
            default = load(folder)
            assert default.pool == pool
            again = default.encode([default.processor(photograph)[None]])[0].frames
            assert np.array_equal(again, found)


@pytest.mark.parametrize("family", pictures.FAMILIES)
def test_batch_equals_single(family, made):
    encoder = load(made(family), layer_means=True)
    scaled = [encoder.processor(photograph) for photograph in pictures.photographs(9)]
    items = [np.stack(scaled[:1]), np.stack(scaled[1:5]), np.stack(scaled[5:])]
    absolute, _ = invariance(encoder.encode, items)
    assert absolute < 2e-5


@pytest.mark.parametrize("family", ["vit", "dinov2", "clip", "siglip"])
def test_layers(family, made):
    """Layer N is hidden_states[N] of transformers; the mean of every layer is over the pictures
    that are kept.
    """
    folder, photographs = made(family), pictures.photographs(3)
    outputs = [by_transformers(folder, photograph) for photograph in photographs]
    hidden = []
    for output in outputs:
        layers = [*output.hidden_states[:-1], output.last_hidden_state]
        pooled = [state[0, 0] if family != "siglip" else state[0].mean(0) for state in layers]
        hidden.append(torch.stack(pooled))
    truth = torch.stack(hidden).numpy()  # (pictures, layers, width)
    for layer, expected in (
        ("0", truth[:, 0]),
        ("2", truth[:, 2]),
        ("mean:1-3", truth[:, 1:4].mean(1)),
        ("stack:1-3:2", np.concatenate([truth[:, 1], truth[:, 3]], 1)),
    ):
        encoder = load(folder, layer=layer)
        items = np.stack([encoder.processor(photograph) for photograph in photographs])
        np.testing.assert_allclose(encoder.encode([items])[0].frames, expected, atol=2e-5)
    encoder = load(folder, layer_means=True)
    assert (encoder.layer_count, encoder.width) == (4, 24)
    states = encoder.encode([items, items], [(1, 2), None])
    np.testing.assert_allclose(states[0].layer_means, truth[1:].mean(0), atol=2e-5)
    np.testing.assert_allclose(states[1].layer_means, truth.mean(0), atol=2e-5)


def test_stages_of_a_hierarchy(made):
    photograph = pictures.photographs()[0]
    output = by_transformers(made("convnext"), photograph)
    encoder = load(made("convnext"), layer="2", layer_means=True)
    found = encoder.encode([encoder.processor(photograph)[None]])[0]
    np.testing.assert_allclose(found.frames[0], output.hidden_states[2].mean((2, 3))[0], atol=2e-5)
    assert found.layer_means is None and encoder.layer_count == 0 and encoder.dim == 16
    with pytest.raises(DataError, match="different widths"):
        load(made("convnext"), layer="mean:1-3")


def test_options_that_do_not_go_with_an_encoder(made):
    for family, changes, said in (
        ("siglip", {"pool_kind": "cls"}, "no class token"),
        ("vit", {"layer": "9"}, "--vision-layer 9: this encoder has layers 0 to 3"),
        ("clip", {"pool_kind": "pooler", "layer": "2"}, "goes with the last layer"),
        ("vit", {"crop": "faces"}, "say where the faces are"),
        ("vit", {"boxes": "b.csv"}, "go with --vision-crop faces"),
        ("vit", {"crop": "faces", "boxes": "none.csv"}, "no such file or folder"),
        ("vit", {"crop": "faces", "model": "none.onnx"}, r"mer\[faces\]|no such file"),
    ):
        with pytest.raises(DataError, match=said) as caught:
            load(made(family), **changes)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_pooler_that_was_not_saved_is_missed(tmp_path):
    from transformers import ViTConfig, ViTModel

    folder = pictures.checkpoint(tmp_path / "vit", "vit")
    checkpoints.save(ViTModel(ViTConfig(**pictures.SMALL), add_pooling_layer=False), folder, False)
    assert load(folder).pool == "cls"
    with pytest.raises(EncoderError, match="weights are missing.*pooler"):
        load(folder, pool_kind="pooler")


def test_what_is_no_image_model_is_told_at_once(tmp_path, made):
    text = checkpoints.text(tmp_path / "text")
    sound = checkpoints.audio(tmp_path / "sound")
    for folder in (text, sound):
        with pytest.raises(EncoderError, match="is no image model"):
            load(folder)
    film = tmp_path / "film"
    film.mkdir()
    (film / "config.json").write_text(json.dumps({"model_type": "videomae", "num_frames": 16}))
    (film / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(EncoderError, match="several pictures at once"):
        load(film)
    bare = pictures.checkpoint(tmp_path / "bare", "vit")
    (bare / "preprocessor_config.json").unlink()
    with pytest.raises(EncoderError, match=r"no preprocessor_config.json"):
        load(bare)
    wrong = pictures.checkpoint(tmp_path / "wrong", "vit")
    described = json.loads((wrong / "preprocessor_config.json").read_text())
    described["size"] = {"height": 48, "width": 48}
    (wrong / "preprocessor_config.json").write_text(json.dumps(described))
    with pytest.raises(
        EncoderError, match="does not take what its image processor gives"
    ) as caught:
        load(wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (RuntimeError("\n  sizes differ\nat all"), "(sizes differ)"),
        (ValueError(""), "(ValueError)"),
        (TypeError(" \n "), "(TypeError)"),
    ],
)
def test_what_a_model_says_of_a_picture_is_one_line(raised, expected, made, monkeypatch):
    encoder = load(made("vit"))
    monkeypatch.setattr(encoder, "model", lambda **pixels: (_ for _ in ()).throw(raised))
    with pytest.raises(EncoderError) as caught:
        encoder._run(encoder.processor(pictures.photographs()[0])[None])
    assert str(caught.value).endswith(expected)


def test_lack_of_memory_is_not_laid_at_the_pictures_door(made, monkeypatch):
    """Who encodes tries a smaller batch then."""
    encoder = load(made("vit"))
    raised = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")
    monkeypatch.setattr(encoder, "model", lambda **pixels: (_ for _ in ()).throw(raised))
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        encoder._run(encoder.processor(pictures.photographs()[0])[None])


def test_a_model_that_masks_at_random_is_refused(tmp_path, monkeypatch):
    small = {**pictures.SMALL, "decoder_hidden_size": 8, "decoder_num_attention_heads": 2}
    small |= {"decoder_num_hidden_layers": 1, "decoder_intermediate_size": 8}
    monkeypatch.setitem(pictures.FAMILIES, "vit_mae", ("ViTImageProcessor", small))
    folder = pictures.checkpoint(tmp_path / "mae", "vit_mae")
    with pytest.raises(EncoderError, match="another result every time"):
        load(folder)


def test_the_built_in_one_tells_pictures_apart():
    encoder = load("builtin:tiny-vit", layer_means=True)
    assert not encoder.checkpoint.trained
    items = [encoder.processor(photograph)[None] for photograph in pictures.photographs(2)]
    first, second = (states.frames for states in encoder.encode(items))
    assert first.shape == (1, 96) and np.abs(first - second).max() > 0.1
    assert resolve("vision", "builtin:tiny-vit").hash == encoder.checkpoint.hash
    assert NO_PICTURES.shape[0] == 0


@pytest.mark.parametrize("family", pictures.FAMILIES)
def test_pictures_are_scaled_as_the_processor_does_it(family, made):
    """By the steps written down, to the bit, and without loading transformers."""
    checkpoint = resolve("vision", str(made(family)))
    scale, own = scale_of(checkpoint), Processor(str(made(family)))
    assert isinstance(scale, Scaling)
    for size in ((50, 70), (71, 40), (32, 32), (300, 400), (3, 40)):
        (photograph,) = pictures.photographs(1, size)
        assert np.array_equal(scale(photograph), own(photograph))


def test_a_processor_with_steps_of_its_own_is_used_itself(tmp_path):
    folder = pictures.checkpoint(tmp_path / "vit", "vit")
    described = json.loads((folder / "preprocessor_config.json").read_text())
    described |= {"image_processor_type": "FlavaImageProcessor", "crop_size": pictures.SQUARE}
    (folder / "preprocessor_config.json").write_text(json.dumps(described))
    assert isinstance(scale_of(resolve("vision", str(folder))), Processor)


def test_a_decoding_process_needs_no_torch(made):
    """What it unpickles to scale pictures imports neither torch nor transformers."""
    sent = pickle.dumps(scale_of(resolve("vision", str(made("vit")))))
    code = (
        "import pickle, sys, numpy as np; import mer.pipeline.media.workers; "
        f"scale = pickle.loads({sent!r}); print(scale(np.zeros((40, 30, 3), np.uint8)).shape); "
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.stdout.strip() == "(3, 32, 32)", told.stderr
