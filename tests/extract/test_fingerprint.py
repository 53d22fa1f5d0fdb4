"""Recipe and content: what changes the key, what does not, and what is remembered."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time

import pytest

from mer.pipeline.errors import DataError
from mer.pipeline.extraction.fingerprint import fingerprint, keys, untold
from mer.pipeline.extraction.memory import FileMemory
from mer.pipeline.extraction.options import ExtractOptions
from mer.pipeline.extraction.recipes import differences

from tests.extract import corpus


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return corpus.make(tmp_path_factory.mktemp("toy"), 4)[0]


OTHER = {
    "audio_track": "1",
    "audio_layer": "1",
    "text_layer": "stack:0-1",
    "layer_means": False,
    "text_windows": "windows",
    "pool": 2,
    "channel": "centre",
    "max_seconds": 1.0,
    "dtype": "float32",
    "precision": "bf16",
    "vision_encoder": "builtin:tiny-vit",
    "audio_encoder": "none",
    "text_encoder": "none",
}
# those of a modality that is asked for by name only
OF_VISION = {
    "vision_layer": "1",
    "vision_fps": 5.0,
    "vision_pool": "mean",
    "vision_crop": "left",
    "vision_boxes": "boxes.csv",
    "vision_faces": "yunet.onnx",
    "vision_no_face": "whole",
}
SAME = {
    "device": "cpu",
    "budget_seconds": 9.0,
    "budget_tokens": 9,
    "budget_pictures": 9,
    "max_failures": 5,
    "offline": True,
    "force": True,
    "threads": 3,
    "decoders": 3,
    "decode_timeout": 1.0,
    "shard_bytes": 5,
    "part_seconds": 1.0,
    "part_tokens": 1,
    "part_pictures": 1,
    "window": 2,
}

# options of encoders that the toy corpus does not use: refused with others
OF_SOME_ENCODERS = {"audio_window"}


def test_every_option_is_either_recipe_or_not():
    told = OTHER.keys() | OF_VISION.keys() | SAME.keys() | OF_SOME_ENCODERS
    assert {f.name for f in dataclasses.fields(ExtractOptions)} == told


@pytest.mark.parametrize("name", OTHER)
def test_recipe_options_change_the_key(toy, name):
    assert fingerprint(toy, corpus.options(**{name: OTHER[name]})) != fingerprint(
        toy, corpus.options()
    )


@pytest.mark.parametrize("name", OF_VISION)
def test_options_of_vision_change_the_key_where_it_is_asked_for(toy, name, tmp_path, monkeypatch):
    (tmp_path / "boxes.csv").write_text("id,time,x,y,w,h\nu000,0,1,1,5,5\n")
    (tmp_path / "yunet.onnx").write_bytes(b"weights")
    monkeypatch.setattr("mer.pipeline.encoders.vision.yunet", lambda model: None)
    monkeypatch.chdir(tmp_path)
    with_faces = {"vision_crop": "faces", "vision_boxes": "boxes.csv"}
    base = {"vision_no_face": with_faces, "vision_faces": with_faces}.get(name, {})
    changed = {**base, name: OF_VISION[name]}
    if name == "vision_faces":
        changed["vision_boxes"] = ""
    if name == "vision_boxes":
        changed = with_faces
    without = {**changed, "vision_encoder": "none"}
    assert fingerprint(toy, corpus.options(**without)) == fingerprint(toy, corpus.options())
    seen = {"vision_encoder": "builtin:tiny-vit"}
    assert fingerprint(toy, corpus.options(**seen, **changed)) != fingerprint(
        toy, corpus.options(**seen, **base)
    )


@pytest.mark.parametrize("name", SAME)
def test_other_options_do_not(toy, name):
    assert fingerprint(toy, corpus.options(**{name: SAME[name]})) == fingerprint(
        toy, corpus.options()
    )


def test_the_key_is_of_contents(tmp_path, toy):
    manifest, _ = corpus.make(tmp_path / "elsewhere", 4)
    assert fingerprint(manifest, corpus.options()) == fingerprint(toy, corpus.options())
    relabelled = dataclasses.replace(
        manifest,
        rows=tuple(
            dataclasses.replace(u, label=None, split="", speaker="x") for u in manifest.rows
        ),
    )
    assert fingerprint(relabelled, corpus.options()) == fingerprint(toy, corpus.options())
    for change in ({"text": "other"}, {"id": "other"}, {"start": 0.01}, {"audio": "clip2.wav"}):
        rows = (dataclasses.replace(manifest.rows[0], **change), *manifest.rows[1:])
        assert fingerprint(
            dataclasses.replace(manifest, rows=rows), corpus.options()
        ) != fingerprint(toy, corpus.options()), change
    corpus.write_clip(tmp_path / "elsewhere" / "clip3.wav", 0.5, seed=99)
    assert fingerprint(manifest, corpus.options()) != fingerprint(toy, corpus.options())


def test_text_only_keys_do_not_read_audio(toy, monkeypatch):
    monkeypatch.setattr(
        "mer.pipeline.extraction.memory.sha256_file", lambda path: pytest.fail(f"read {path}")
    )
    fingerprint(toy, corpus.options(audio_encoder="none"))


def test_hashes_are_remembered(tmp_path, monkeypatch):
    manifest, _ = corpus.make(tmp_path, 4)
    for clip in tmp_path.glob("*.wav"):
        os.utime(clip, (1_600_000_000, 1_600_000_000))
    memory, told = FileMemory(tmp_path / "memory"), []

    def cold(files, size):
        told.append((files, size))
        return untold(files, size)

    first = keys(manifest, corpus.options(), memory, cold=cold)
    memory.save()
    assert told == [(4, sum(clip.stat().st_size for clip in tmp_path.glob("*.wav")))]
    monkeypatch.setattr(
        "mer.pipeline.extraction.memory.sha256_file", lambda path: pytest.fail(f"read {path}")
    )
    again = keys(
        manifest,
        corpus.options(),
        FileMemory(tmp_path / "memory"),
        cold=lambda *a: pytest.fail("cold"),
    )
    assert again.fingerprint == first.fingerprint


def test_a_file_is_hashed_again_when_it_may_have_changed(tmp_path):
    clip = tmp_path / "x"
    clip.write_bytes(b"one")
    os.utime(clip, (1_600_000_000, 1_600_000_000))
    memory = FileMemory()
    one = memory.sha256(clip)
    assert memory.known(clip) == one
    clip.write_bytes(b"two")
    os.utime(clip, (1_600_000_000, 1_600_000_001))
    assert memory.known(clip) is None and memory.sha256(clip) != one


def test_a_fresh_file_is_not_trusted_yet(tmp_path):
    """Written within a tick of the clock of its hashing, it could change again and look
    the same.
    """
    clip = tmp_path / "x"
    clip.write_bytes(b"one")
    memory = FileMemory()
    memory.sha256(clip)
    assert memory.known(clip) is None
    os.utime(clip, (time.time() + 1e6,) * 2)  # a clock set back
    memory.sha256(clip)
    assert memory.known(clip) is None


@pytest.mark.parametrize("content", [b"", b"PAR1 garbage", b"{}"])
def test_a_damaged_memory_is_forgotten(tmp_path, content):
    (tmp_path / "memory").write_bytes(content)
    memory = FileMemory(tmp_path / "memory")
    memory.remember("ab", ":", 5)
    memory.save()
    assert FileMemory(tmp_path / "memory").spans == {("ab", ":"): 5}


def test_missing_files_have_a_key_too(tmp_path, toy):
    manifest, _ = corpus.make(tmp_path, 4)
    (tmp_path / "clip1.wav").unlink()
    found = keys(manifest, corpus.options(), FileMemory())
    assert found.digests["clip1.wav"].key(
        sound=True
    ) == "!missing" and found.fingerprint != fingerprint(toy, corpus.options())


def test_nothing_to_extract(toy):
    with pytest.raises(DataError, match="nothing to extract"):
        fingerprint(toy, corpus.options(audio_encoder="none", text_encoder=""))


@pytest.mark.parametrize(
    "change",
    [
        {"pool": 0},
        {"dtype": "int8"},
        {"precision": "fp8"},
        {"channel": "left"},
        {"max_seconds": -1},
        {"budget_seconds": 0},
        {"max_failures": -1},
    ],
)
def test_bad_options(change):
    with pytest.raises(DataError, match="--"):
        ExtractOptions(**change)


def test_without_torch(toy):
    """The key is wanted in CI before anything heavy is restored."""
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from mer.pipeline.manifest import Manifest\n"
        "from mer.pipeline.extraction.fingerprint import fingerprint\n"
        "from tests.extract import corpus\n"
        f"print(fingerprint(Manifest.read({str(toy.root / 'manifest.parquet')!r}), "
        "corpus.options()))\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys(), 'heavy'\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == fingerprint(toy, corpus.options())


def test_a_recipe_made_elsewhere_may_hold_anything():
    old = {"audio": {"encoder": "a"}, "text": 5}
    new = {"audio": {"encoder": "a"}, "text": {"encoder": "b"}}
    assert differences(old, new, {}) == ["text features: not there, asked for now"]
