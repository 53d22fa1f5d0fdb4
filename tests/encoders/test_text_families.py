"""What every text architecture must keep, at random widths and with random weights. What is true
comes from transformers, one transcript at a time without any padding.
"""

from __future__ import annotations

import json
import shutil
import zlib

import numpy as np
import pytest
import torch

from mer.pipeline.encoders.frozen import invariance
from mer.pipeline.encoders.loading import resolve
from mer.pipeline.encoders.text import Text
from mer.pipeline.errors import DataError, EncoderError
from mer.pipeline.extraction.options import ExtractOptions

from tests.encoders import textmodels

TEXTS = ["the", "the quick brown fox jumps over the lazy dog", "fox! 你好", "dog " * 12, "x"]
EXACT = 2e-5  # batch against single, fp32
# transformers' DeBERTa compiles some of its functions when it is imported
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")


@pytest.fixture(scope="module", params=textmodels.FAMILIES)
def folder(request, tmp_path_factory):
    return textmodels.save(tmp_path_factory.mktemp("text") / request.param, request.param)


def load(folder, **options):
    """The encoder that `mer extract` with these options would use."""
    asked = ExtractOptions(**{"text_encoder": str(folder), "layer_means": False} | options)
    modality = Text.of(asked)
    checkpoint = modality.resolve(str(folder))
    modality.check(checkpoint)
    return modality.load(checkpoint, device="cpu", precision="fp32")


def reference(folder, head="AutoModel"):
    """transformers' own model, or the encoder of a pair."""
    import transformers

    model = getattr(transformers, head).from_pretrained(folder, local_files_only=True).eval()
    model = model.base_model
    return model.get_encoder() if model.config.is_encoder_decoder else model


def hidden_states(model, ids) -> list[np.ndarray]:
    row = torch.from_numpy(ids)[None]
    with torch.inference_mode():
        output = model(
            input_ids=row, attention_mask=torch.ones_like(row), output_hidden_states=True
        )
    return [state[0].numpy() for state in output.hidden_states]


def test_it_goes_to_its_family(folder):
    name = folder.name
    family = Text.of(ExtractOptions(text_encoder=str(folder))).family(resolve("text", str(folder)))
    if name in textmodels.DECODERS:
        assert family.name == "causal"
    elif name in textmodels.ENCODER_DECODERS:
        assert family.name == "seq2seq"
    else:
        assert family.name == "bert"


def test_batch_equals_single(folder):
    encoder = load(folder, layer_means=True, text_layer="stack:0-last")
    ids, _ = encoder.tokens(TEXTS)
    assert len({len(row) for row in ids}) > 2
    absolute, _ = invariance(encoder.encode, ids)
    assert absolute < EXACT


def test_order_does_not_matter(folder):
    encoder = load(folder, layer_means=True)
    ids, _ = encoder.tokens(TEXTS)
    order = np.random.default_rng(zlib.crc32(folder.name.encode())).permutation(len(ids))
    plain, shuffled = encoder.encode(ids), encoder.encode([ids[i] for i in order])
    for place, i in enumerate(order):
        np.testing.assert_allclose(shuffled[place].frames, plain[i].frames, atol=EXACT)
        np.testing.assert_allclose(shuffled[place].layer_means, plain[i].layer_means, atol=EXACT)


def test_every_layer_is_transformers_hidden_state(folder):
    """As frames one by one, side by side, on average, and as the mean over the tokens."""
    encoder = load(folder, layer_means=True, text_layer="stack:0-last")
    ids, _ = encoder.tokens(TEXTS)
    model = reference(folder)
    truths = [hidden_states(model, row) for row in ids]
    for row, true, states in zip(ids, truths, encoder.encode(ids), strict=True):
        assert len(true) == textmodels.BLOCKS + 1 == encoder.layer_count
        assert states.frames.shape == (len(row), len(true) * encoder.width)
        side_by_side = np.concatenate(true, axis=1)
        np.testing.assert_allclose(states.frames, side_by_side, atol=EXACT, rtol=1e-5)
        means = np.stack([state.mean(0) for state in true])
        np.testing.assert_allclose(states.layer_means, means, atol=EXACT, rtol=1e-5)
    for layer in range(textmodels.BLOCKS + 1):
        alone = load(folder, text_layer=str(layer)).encode(ids)
        for true, states in zip(truths, alone, strict=True):
            np.testing.assert_allclose(states.frames, true[layer], atol=EXACT, rtol=1e-5)
    average = load(folder, text_layer="mean:1-2").encode(ids[1:2])[0].frames
    first, second = truths[1][1:3]
    np.testing.assert_allclose(average, (first + second) / 2, atol=EXACT, rtol=1e-5)


def test_special_tokens_are_the_tokenizers(folder):
    encoder = load(folder)
    before, body, behind = textmodels.FAMILIES[folder.name].partition("$A")
    (ids,), _ = encoder.tokens(["fox"])
    assert encoder.ends == (len(before.split()), len(behind.split())) and body
    if encoder.ends.before:
        assert ids[0] == 0
    if encoder.ends.behind:
        assert ids[-1] == 2


def test_means_are_over_what_is_kept(folder):
    """As for the windows of a long transcript: a part of the steps counts."""
    encoder = load(folder, layer_means=True)
    ids, _ = encoder.tokens(TEXTS[1:2])
    kept = (2, 3)
    states = encoder.encode([ids[0], ids[0][:4]], [kept, None])[0]
    true = np.stack([state[2:5].mean(0) for state in hidden_states(reference(folder), ids[0])])
    np.testing.assert_allclose(states.layer_means, true, atol=EXACT, rtol=1e-5)


def test_settings_that_it_has_not(folder):
    for setting in (
        str(textmodels.BLOCKS + 1),
        "mean:2-1",
        "stack:0-9",
        "stack:0-2:0",
        "-1",
        "first",
    ):
        with pytest.raises(DataError, match="--text-layer") as raised:
            load(folder, text_layer=setting)
        assert len(str(raised.value)) <= 300


# --- checkpoints as they are published

WITH_HEADS = {
    "gpt2": "AutoModelForCausalLM",
    "llama": "AutoModelForCausalLM",
    "opt": "AutoModelForCausalLM",
    "qwen2": "AutoModelForCausalLM",
    "gemma": "AutoModelForCausalLM",
    "bloom": "AutoModelForCausalLM",
    "bert": "AutoModelForMaskedLM",
    "modernbert": "AutoModelForMaskedLM",
    "t5": "AutoModelForSeq2SeqLM",
    "bart": "AutoModelForSeq2SeqLM",
    "marian": "AutoModelForSeq2SeqLM",
}


@pytest.mark.parametrize("family", WITH_HEADS)
def test_a_checkpoint_with_a_head(tmp_path, family):
    """Keys `model.*`, `transformer.*`, and a head that is not used: the same states."""
    folder = textmodels.save(tmp_path / family, family, head=WITH_HEADS[family])
    encoder = load(folder)
    ids, _ = encoder.tokens(TEXTS)
    model = reference(folder, WITH_HEADS[family])
    for row, states in zip(ids, encoder.encode(ids), strict=True):
        true = hidden_states(model, row)[-1]
        np.testing.assert_allclose(states.frames, true, atol=EXACT, rtol=1e-5)


@pytest.mark.parametrize("family", WITH_HEADS)
@pytest.mark.parametrize("which", ["first", "last"])
def test_a_missing_weight_of_one_with_a_head(tmp_path, family, which):
    """Every weight of the blocks is needed, those of the decoder of a pair are not."""
    from safetensors.torch import load_file, save_file

    folder = textmodels.save(tmp_path / family, family, head=WITH_HEADS[family])
    weights = load_file(folder / "model.safetensors")
    pair = family in textmodels.ENCODER_DECODERS
    inside = [
        key
        for key in sorted(weights)
        if any(f".{name}." in f".{key}" for name in ("layers", "layer", "h", "block"))
        and ("decoder." not in key or not pair)
    ]
    gone = inside[0 if which == "first" else -1]
    del weights[gone]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EncoderError, match="1 weights are missing"):
        load(folder)


def test_the_decoder_of_a_pair_may_be_missing(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = textmodels.save(tmp_path / "bart", "bart")
    encoder = load(folder)
    ids, _ = encoder.tokens(TEXTS)
    before = encoder.encode(ids)
    weights = load_file(folder / "model.safetensors")
    kept = {key: x for key, x in weights.items() if not key.startswith("decoder.")}
    assert 0 < len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    for a, b in zip(before, load(folder).encode(ids), strict=True):
        np.testing.assert_array_equal(a.frames, b.frames)


def test_the_encoder_of_a_pair_alone(tmp_path):
    """As T5's is published without its decoder."""
    from transformers import T5EncoderModel

    folder = textmodels.save(tmp_path / "t5", "t5")
    alone = tmp_path / "alone"
    T5EncoderModel.from_pretrained(folder, local_files_only=True).save_pretrained(alone)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, alone)
    one, other = load(folder), load(alone)
    ids, _ = one.tokens(TEXTS)
    for a, b in zip(one.encode(ids), other.encode(ids), strict=True):
        np.testing.assert_array_equal(a.frames, b.frames)


def test_layers_of_several_widths(tmp_path):
    """OPT-350m's output is narrower than its hidden states."""
    folder = textmodels.save(tmp_path / "opt", "opt", hidden_size=16, word_embed_proj_dim=8)
    encoder = load(folder)
    ids, _ = encoder.tokens(TEXTS)
    assert (encoder.dim, encoder.encode(ids)[0].frames.shape[1]) == (8, 8)
    assert load(folder, text_layer="1").dim == 16
    for options in ({"layer_means": True}, {"text_layer": "stack:0-last"}):
        with pytest.raises(EncoderError, match="8 and 16 numbers wide; .*--no-layer-means"):
            load(folder, **options)


def test_fewer_hidden_states_than_blocks(tmp_path, monkeypatch):
    """An architecture that does not tell its layers still gives its output."""
    from transformers import BertModel

    folder = textmodels.save(tmp_path / "bert", "bert")
    ids, _ = load(folder).tokens(TEXTS)
    before = load(folder).encode(ids)
    forward = BertModel.forward

    def untold(self, *args, output_hidden_states=False, **kwargs):
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(BertModel, "forward", untold)
    for a, b in zip(load(folder).encode(ids), before, strict=True):
        np.testing.assert_array_equal(a.frames, b.frames)
    for options in ({"layer_means": True}, {"text_layer": "1"}):
        with pytest.raises(EncoderError, match="hidden states of 0 blocks, .* --no-layer-means"):
            load(folder, **options)


# --- what is no text encoder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return textmodels.save(tmp_path_factory.mktemp("text") / "gpt2", "gpt2")


def changed(folder, to, **changes):
    """A copy whose config.json says otherwise; None: nothing."""
    copy = shutil.copytree(folder, to)
    config = json.loads((copy / "config.json").read_text())
    kept = {key: value for key, value in (config | changes).items() if value is not None}
    (copy / "config.json").write_text(json.dumps(kept))
    return copy


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"is_encoder_decoder": True}, "no encoder of its own"),
        ({"model_type": "vit", "image_size": 224, "patch_size": 16}, "not a text encoder"),
        ({"model_type": "wav2vec2", "conv_kernel": [10, 3]}, "not a text encoder"),
        ({"model_type": "whisper", "num_mel_bins": 80}, "not a text encoder"),
        ({"model_type": "clip", "vision_config": {}}, "not a text encoder"),
        ({"model_type": "gemma3", "text_config": {}, "vocab_size": None}, "as a part"),
        ({"n_embd": None}, "config.json has no hidden_size"),
        ({"n_layer": None}, "config.json has no encoder_layers"),
        ({"vocab_size": None}, "config.json has no vocab_size"),
        ({"n_embd": "wide"}, "its n_embd is wide, not a number above 0"),
        ({"n_layer": 0}, "its n_layer is 0"),
        ({"n_layer": True}, "its n_layer is True"),
        ({"vocab_size": -1}, "its vocab_size is -1"),
        ({"n_positions": [3]}, "its n_positions is"),
        ({"model_type": "no-such-model"}, "cannot be loaded"),
        ({"model_type": None}, "cannot be loaded"),
        ({"model_type": ["gpt2"]}, "cannot be"),
        ({"n_layer": 4}, "weights are missing"),
        ({"n_embd": 36}, "have another shape|cannot be loaded"),
        ({"n_positions": 32}, "cannot be loaded|another shape"),
    ],
)
def test_configurations_that_are_none(tmp_path, gpt2, changes, words):
    with pytest.raises(EncoderError, match=words) as raised:
        load(changed(gpt2, tmp_path / "copy", **changes))
    said = str(raised.value)
    assert "\n" not in said and len(said.replace(str(tmp_path), "")) <= 300


def test_an_encoder_that_is_used_as_a_decoder(tmp_path):
    """BERT with `is_decoder` looks back only: the first tokens do not know the later ones."""
    folder = textmodels.save(tmp_path / "bert", "bert", is_decoder=True)
    encoder = load(folder)
    assert encoder.causal
    ids, _ = encoder.tokens([TEXTS[1]])
    whole, part = encoder.encode([ids[0], ids[0][:5]])
    np.testing.assert_allclose(whole.frames[:5], part.frames, atol=EXACT)


def looks_ahead(encoder) -> bool:
    """Whether the states of the first tokens know the later ones, by trying."""
    ids, _ = encoder.tokens([TEXTS[1]])
    whole, part = encoder.encode([ids[0], ids[0][:5]])
    return float(np.abs(whole.frames[:5] - part.frames).max()) > EXACT


def test_causal_is_what_looks_back_only(folder):
    """What windows rely on."""
    encoder = load(folder)
    assert encoder.causal == (folder.name in textmodels.DECODERS)
    assert looks_ahead(encoder) != encoder.causal


@pytest.mark.parametrize(
    ("family", "changes"),
    [("llama", {"is_causal": False}), ("gemma3_text", {"use_bidirectional_attention": True})],
)
def test_language_models_that_became_encoders(tmp_path, family, changes):
    encoder = load(textmodels.save(tmp_path / family, family, **changes))
    assert not encoder.causal and looks_ahead(encoder)
    absolute, _ = invariance(encoder.encode, encoder.tokens(TEXTS)[0])
    assert absolute < EXACT


def test_without_a_tokenizer(tmp_path, gpt2):
    copy = shutil.copytree(gpt2, tmp_path / "copy")
    for path in copy.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(EncoderError, match="no tokenizer in"):
        load(copy)


def test_a_padding_token_that_the_model_does_not_know(tmp_path):
    """As people add one to a language model's tokenizer, without widening the model."""
    from transformers import AutoTokenizer

    known = len(textmodels.tokenizer(textmodels.OPENING))
    folder = textmodels.save(tmp_path / "llama", "llama", vocab_size=known)
    before = load(folder)
    ids, _ = before.tokens(TEXTS)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.add_special_tokens({"pad_token": "<fill>"})
    assert tokenizer.pad_token_id >= known
    tokenizer.save_pretrained(folder)
    for a, b in zip(before.encode(ids), load(folder).encode(ids), strict=True):
        np.testing.assert_array_equal(a.frames, b.frames)


def test_a_tokenizer_of_another_model(tmp_path):
    folder = textmodels.save(tmp_path / "llama", "llama", vocab_size=200)
    with pytest.raises(EncoderError, match="gives id .* its model knows 200; they do not fit"):
        load(folder).tokens(["the quick brown fox", "\xff\xfe"])
