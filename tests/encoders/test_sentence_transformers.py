"""Folders of sentence-transformers: only their transformer is read, and every token is kept. The
real one is all-MiniLM-L6-v2 under MER_TEST_DATA.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mer.pipeline.encoders.bert import TextEncoder
from mer.pipeline.encoders.loading import resolve
from mer.pipeline.errors import EncoderError

from tests.encoders import textmodels

MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
TEXTS = ["You must’ve had your hands full.", "No!", "the fox " * 30, "What? " * 9]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return textmodels.save(tmp_path_factory.mktemp("st") / "bert", "bert")


def around(folder: Path, modules: object = MODULES) -> Path:
    """What sentence-transformers puts beside a transformer."""
    (folder / "modules.json").write_text(json.dumps(modules))
    settings = {"max_seq_length": 16, "do_lower_case": False}
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    pooling = folder / "1_Pooling"
    pooling.mkdir()
    mean = {"word_embedding_dimension": 24, "pooling_mode_mean_tokens": True}
    (pooling / "config.json").write_text(json.dumps(mean))
    return folder


def nested(plain: Path, folder: Path, inner: str = "0_Transformer", **first) -> Path:
    """As they were published before the transformer moved to the top."""
    folder.mkdir()
    shutil.copytree(plain, folder / inner)
    return around(folder, [MODULES[0] | {"path": inner} | first, MODULES[1]])


def test_the_transformer_is_at_the_top(plain, tmp_path):
    """The same key and features as of the bare transformer, and its own limit of 64 tokens."""
    folder = around(shutil.copytree(plain, tmp_path / "st"))
    assert resolve("text", str(folder)).hash == resolve("text", str(plain)).hash
    same_features(plain, folder)


@pytest.mark.parametrize("inner", ["0_Transformer", "deep/er"])
def test_the_transformer_is_in_a_folder(plain, tmp_path, inner):
    folder = nested(plain, tmp_path / "st", inner)
    checkpoint = resolve("text", str(folder))
    assert checkpoint.hash == resolve("text", str(plain)).hash
    assert (checkpoint.name, checkpoint.folder) == ("st", folder / inner)
    assert resolve("text", checkpoint.source).hash == checkpoint.hash
    same_features(plain, folder)


def same_features(plain: Path, folder: Path) -> None:
    one, other = (TextEncoder(resolve("text", str(f)), device="cpu") for f in (plain, folder))
    ids, longer = other.tokens(TEXTS)
    assert other.limit == textmodels.POSITIONS
    assert [len(row) for row in ids] == [len(row) for row in one.tokens(TEXTS)[0]]
    assert any(16 < len(row) < 64 for row in ids) and longer == [len(x) == 64 for x in ids]
    for a, b in zip(one.encode(ids), other.encode(ids), strict=True):
        np.testing.assert_array_equal(a.frames, b.frames)
        assert len(a.frames) and a.frames.shape[1] == one.dim


def test_the_hubs_cache(plain, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub" / "models--lab--sentences"
    (repo / "snapshots").mkdir(parents=True)
    nested(plain, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    found = resolve("text", "lab/sentences", offline=True)
    assert (found.name, found.revision) == ("lab/sentences", commit)
    assert found.source == f"lab/sentences@{commit}"
    assert found.hash == resolve("text", str(plain)).hash
    TextEncoder(found, device="cpu")


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        ({}, "not a JSON list"),
        ([], "its first module has no folder"),
        ([7], "its first module has no folder"),
        ([MODULES[0] | {"path": "../bert"}], "its first module has no folder"),
        ([MODULES[0] | {"path": "/etc"}], "its first module has no folder"),
        ([MODULES[0] | {"path": None}], "its first module has no folder"),
        ([MODULES[0] | {"path": "gone"}], "config.json: No such file"),
        ([MODULES[0] | {"path": ""}], "config.json: No such file"),
        (
            [{"path": "0", "type": "sentence_transformers.models.StaticEmbedding"}],
            "first module is sentence_transformers.models.StaticEmbedding, not a transformer",
        ),
        ([{"path": "0", "type": "x" * 999}], "not a transformer"),
    ],
)
def test_lists_of_modules_that_name_none(plain, tmp_path, modules, words):
    folder = nested(plain, tmp_path / "st")
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(EncoderError, match=words) as raised:
        resolve("text", str(folder))
    said = str(raised.value).replace(str(tmp_path), "")
    assert "\n" not in said and len(said) <= 300


# --- real weights


@pytest.fixture(scope="module")
def minilm(test_data) -> Path:
    folder = test_data / "encoders" / "all-MiniLM-L6-v2"
    if not folder.is_dir():
        pytest.skip("MER_TEST_DATA has no encoders/all-MiniLM-L6-v2")
    return folder


def test_minilm_is_transformers_own(minilm):
    """Every layer of a batch, against one transcript at a time."""
    from transformers import AutoModel, AutoTokenizer

    encoder = TextEncoder(
        resolve("text", str(minilm)), layer="stack:0-last", layer_means=True, device="cpu"
    )
    assert (encoder.width, encoder.layer_count, encoder.limit) == (384, 7, 512)
    ids, longer = encoder.tokens(TEXTS)
    assert not any(longer)
    model = AutoModel.from_pretrained(minilm, local_files_only=True, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(minilm, local_files_only=True)
    for text, row, states in zip(TEXTS, ids, encoder.encode(ids), strict=True):
        inputs = tokenizer(text, return_tensors="pt")
        assert inputs["input_ids"][0].tolist() == row.tolist()
        with torch.inference_mode():
            hidden = model(**inputs, output_hidden_states=True).hidden_states
        side_by_side = torch.cat(hidden, dim=-1)[0].numpy()
        np.testing.assert_allclose(states.frames, side_by_side, atol=2e-5)
        means = torch.stack([state[0].mean(0) for state in hidden]).numpy()
        np.testing.assert_allclose(states.layer_means, means, atol=2e-5)


def test_minilm_as_sentence_transformers_gives_it(minilm, tmp_path):
    """Its token embeddings are our frames."""
    library = pytest.importorskip("sentence_transformers")
    encoder = TextEncoder(resolve("text", str(minilm)), device="cpu")
    theirs = library.SentenceTransformer(str(minilm), device="cpu", local_files_only=True)
    theirs = theirs.float()  # it would compute in float16, in which these weights are kept
    embedded = theirs.encode(TEXTS, output_value="token_embeddings", show_progress_bar=False)
    ours = encoder.encode(encoder.tokens(TEXTS)[0])
    for a, b in zip(ours, embedded, strict=True):
        np.testing.assert_allclose(a.frames, b.float().numpy(), atol=2e-5)
