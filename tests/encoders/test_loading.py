"""Encoder ids → files: what is accepted, what is refused, and what the hash covers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mer.pipeline.encoders.bert import TextEncoder
from mer.pipeline.encoders.loading import resolve
from mer.pipeline.encoders.wav2vec2 import AudioEncoder
from mer.pipeline.errors import EncoderError
from mer.pipeline.runtime.limits import CHECKPOINT_TEXT_BYTES

from tests.encoders import checkpoints


@pytest.fixture
def copy(group, tmp_path):
    return shutil.copytree(group, tmp_path / "copy")


def edit_weights(folder, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_hash_is_of_contents(group, copy):
    assert resolve("audio", str(copy)).hash == resolve("audio", str(group)).hash
    edit_weights(copy, lambda weights: weights["feature_projection.projection.bias"].add_(1e-3))
    assert resolve("audio", str(copy)).hash != resolve("audio", str(group)).hash


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_hash_covers_configuration(group, copy, name):
    content = json.loads((copy / name).read_text())
    (copy / name).write_text(json.dumps(content | {"extra": 1}))
    assert resolve("audio", str(copy)).hash != resolve("audio", str(group)).hash


@pytest.mark.parametrize("name", ["source.spm", "spm.model"])
def test_hash_covers_pieces_where_they_are_the_tokenizer(tmp_path, name):
    """Beside a tokenizer.json they say nothing more, and older stores keep their key."""
    folder = checkpoints.text(tmp_path / "text")
    plain = resolve("text", str(folder)).hash
    (folder / name).write_bytes(b"pieces")
    assert resolve("text", str(folder)).hash == plain
    (folder / "tokenizer.json").unlink()
    one = resolve("text", str(folder)).hash
    (folder / name).write_bytes(b"other pieces")
    assert resolve("text", str(folder)).hash != one


def test_other_files_do_not_matter(group, copy):
    (copy / "README.md").write_text("hello")
    (copy / "optimizer.pt").write_bytes(b"x")
    assert resolve("audio", str(copy)).hash == resolve("audio", str(group)).hash


def test_a_missing_weight_is_fatal(copy):
    edit_weights(copy, lambda weights: weights.pop("encoder.layers.1.attention.q_proj.weight"))
    with pytest.raises(
        EncoderError, match="1 weights are missing .*encoder.layers.1.attention.q_proj.weight"
    ):
        AudioEncoder(resolve("audio", str(copy)), device="cpu")


def test_a_weight_of_another_shape_is_fatal(copy):
    edit_weights(
        copy, lambda weights: weights.update({"feature_projection.projection.bias": torch.zeros(5)})
    )
    with pytest.raises(EncoderError):
        AudioEncoder(resolve("audio", str(copy)), device="cpu")


def test_what_no_feature_passes_through_may_be_missing(copy):
    edit_weights(copy, lambda weights: weights.pop("masked_spec_embed"))
    AudioEncoder(resolve("audio", str(copy)), device="cpu")


def test_heads_of_other_tasks_do_not_matter(tmp_path, group):
    """A CTC checkpoint has its encoder under a prefix and a head besides; the features are those of
    the bare encoder.
    """
    from transformers import AutoConfig, AutoModel, Wav2Vec2ForCTC

    model = Wav2Vec2ForCTC(AutoConfig.from_pretrained(group))
    model.wav2vec2 = AutoModel.from_pretrained(group, local_files_only=True)
    checkpoints.save(model, tmp_path, pickled=False)
    shutil.copy(group / "preprocessor_config.json", tmp_path)
    clip = np.random.default_rng(0).standard_normal(4000).astype(np.float32)
    a, b = (
        AudioEncoder(resolve("audio", str(folder)), device="cpu").encode([clip])[0].frames
        for folder in (group, tmp_path)
    )
    np.testing.assert_array_equal(a, b)


def test_bin_only(tmp_path, group):
    folder = checkpoints.audio(tmp_path / "bin", pickled=True)
    checkpoint = resolve("audio", str(folder))
    assert not checkpoint.safetensors
    clip = np.random.default_rng(0).standard_normal(4000).astype(np.float32)
    a, b = (
        AudioEncoder(resolve("audio", str(f)), device="cpu").encode([clip])[0].frames
        for f in (group, folder)
    )
    np.testing.assert_array_equal(a, b)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    """The weights-only unpickler stops at the first thing that is not a tensor."""
    folder = checkpoints.audio(tmp_path / "evil", pickled=True)
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return open, (str(marker), "w")

    torch.save({"feature_projection.projection.bias": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(EncoderError, match="audio encoder evil"):
        AudioEncoder(resolve("audio", str(folder)), device="cpu")
    assert not marker.exists()


@pytest.mark.parametrize("damage", [b"", b"not a file of weights", b"\xff" * 100])
def test_damaged_weights_are_one_line(copy, damage):
    (copy / "model.safetensors").write_bytes(damage)
    with pytest.raises(EncoderError) as error:
        AudioEncoder(resolve("audio", str(copy)), device="cpu")
    assert "\n" not in str(error.value)


def test_a_pickle_cut_short_is_one_short_line(tmp_path):
    """PyTorch's own message has 800 characters."""
    folder = checkpoints.audio(tmp_path / "audio", pickled=True)
    weights = folder / "pytorch_model.bin"
    weights.write_bytes(weights.read_bytes()[:-700])
    with pytest.raises(EncoderError) as raised:
        AudioEncoder(resolve("audio", str(folder)), device="cpu")
    assert len(str(raised.value).replace(str(folder), "")) <= 300


@pytest.mark.parametrize(
    ("encoder", "words"),
    [
        ("./nowhere", "no such directory"),
        ("/no/where/at/all", "no such directory"),
        ("", "no such directory"),
        ("builtin:nothing", "known: builtin:tiny-wav2vec2"),
        ("builtin:tiny-roberta", "known: builtin:tiny-wav2vec2"),
    ],
)
def test_unknown_ids(encoder, words):
    with pytest.raises(EncoderError, match=words):
        resolve("audio", encoder)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", None, "config.json: No such file .* emotion2vec's, cannot be loaded"),
        ("config.json", "{", "not JSON"),
        ("config.json", "[]", "not a JSON object"),
        ("model.safetensors", None, "neither"),
    ],
)
def test_incomplete_directories(copy, name, content, words):
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_text(content)
    with pytest.raises(EncoderError, match=words):
        resolve("audio", str(copy))


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("odd", ["pipe", "folder", "nested", "large"])
def test_json_that_is_none(copy, name, odd):
    """A pipe hung, deep nesting was an internal error."""
    path = copy / name
    path.unlink()
    match odd:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "nested":
            path.write_text("[" * 100_000)
        case "large":
            path.touch()
            os.truncate(path, CHECKPOINT_TEXT_BYTES + 1)
    words = {
        "nested": "not JSON",
        "large": "more than 268,435,456 bytes",
    }.get(odd, "a folder, device or pipe where a file should be")
    with pytest.raises(EncoderError, match=f"{name}: {words}") as raised:
        resolve("audio", str(copy))
    assert len(str(raised.value)) <= 300 + len(str(copy))


def test_a_vocabulary_without_end_is_not_hashed(tmp_path):
    folder = checkpoints.text(tmp_path / "text")
    os.truncate(folder / "tokenizer.json", 1 << 40)
    with pytest.raises(EncoderError, match="tokenizer.json: more than 268,435,456 bytes"):
        resolve("text", str(folder))


def test_a_tokenizer_that_its_library_does_not_understand_is_one_line(tmp_path):
    """The library raises a bare Exception."""
    folder = checkpoints.text(tmp_path / "text")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["<s>"] = {}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(EncoderError, match="its tokenizer cannot be loaded"):
        TextEncoder(resolve("text", str(folder)), device="cpu")


def test_offline_never_touches_the_network(tmp_path):
    """In a process that cannot open a socket at all, an id that is not in the cache is one clear
    line.
    """
    script = (
        "import socket\n"
        "def refuse(*args, **kwargs): raise SystemExit('network touched')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "from mer.pipeline.encoders.loading import resolve\n"
        "from mer.pipeline.errors import EncoderError\n"
        "for encoder in ('roberta-large', 'someone/model@0123456'):\n"
        "    try: resolve('text', encoder, offline=True)\n"
        "    except EncoderError as error: print(error)\n"
    )
    environment = {"HF_HOME": str(tmp_path), "PYTHONPATH": ".", "PATH": "/usr/bin:/bin"}
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("--offline forbids downloading") == 2


def test_hub_snapshots_are_found_offline_by_id_and_revision(tmp_path, group, monkeypatch):
    """A cache laid out as the hub's client leaves it: the commit is recorded, a pinned revision is
    found again.
    """
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub" / "models--lab--voice"
    shutil.copytree(group, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    found = [
        resolve("audio", encoder, offline=True) for encoder in ("lab/voice", f"lab/voice@{commit}")
    ]
    assert [(c.name, c.revision, c.source) for c in found] == [
        ("lab/voice", commit, f"lab/voice@{commit}")
    ] * 2
    assert found[0].hash == resolve("audio", str(group)).hash


def test_resolving_does_not_load_torch(group):
    call = f"from mer.pipeline.encoders.loading import resolve; resolve('audio', {str(group)!r})"
    script = f"import sys; {call}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_names(group, monkeypatch):
    monkeypatch.chdir(group)
    checkpoint = resolve("audio", ".")
    assert (checkpoint.name, checkpoint.trained, checkpoint.source) == ("base", True, str(group))


def test_built_in_encoders_are_the_same_everywhere():
    """Whatever the global generator's state, and without moving it."""
    torch.manual_seed(1)
    clip = np.sin(np.arange(8000) / 20).astype(np.float32)
    first = (
        AudioEncoder(resolve("audio", "builtin:tiny-wav2vec2"), device="cpu")
        .encode([clip])[0]
        .frames
    )
    state = torch.get_rng_state()
    second = AudioEncoder(resolve("audio", "builtin:tiny-wav2vec2"), device="cpu")
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(second.encode([clip])[0].frames, first)
    assert not second.checkpoint.trained and second.geometry.hop == 320


def test_built_in_text_encoder():
    encoder = TextEncoder(resolve("text", "builtin:tiny-roberta"), device="cpu")
    ids, cut = encoder.tokens(["Hello, hello!", "hello , HELLO !", "你好", "word " * 600])
    np.testing.assert_array_equal(ids[0], ids[1])
    assert [len(row) for row in ids] == [6, 6, 4, 512] and cut == [False, False, False, True]
    assert encoder.encode(ids[:3])[2].frames.shape == (4, encoder.dim)
