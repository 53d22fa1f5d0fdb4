"""A checkpoint of which a file is a Git LFS pointer, a page or empty says so: "header too large"
helps nobody. Siblings of git-lfs/git-lfs#4366, for encoders cloned without git-lfs.
"""

from __future__ import annotations

import shutil

import pytest

from mer.pipeline.encoders.loading import resolve
from mer.pipeline.errors import EncoderError

from tests.encoders import checkpoints

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123\n"
INSTEAD = {
    "pointer": (POINTER, "a Git LFS pointer.*git lfs pull"),
    "annex": (b"/annex/objects/SHA256E-s1--a\n", "a git-annex pointer.*git annex get"),
    "page": (b"<!DOCTYPE html><html></html>", "a web page.*download it again"),
    "zeros": (bytes(5000), "a file that begins with nothing but zero bytes; download it"),
    "empty": (b"", "an empty file; download it again"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    checkpoints.audio(folder / "audio")
    checkpoints.audio(folder / "pickled", pickled=True)
    checkpoints.text(folder / "text")
    return folder


@pytest.mark.parametrize("name", INSTEAD)
@pytest.mark.parametrize(
    ("folder", "file"),
    [
        ("audio", "config.json"),
        ("audio", "model.safetensors"),
        ("audio", "preprocessor_config.json"),
        ("pickled", "pytorch_model.bin"),
        ("text", "tokenizer.json"),
    ],
)
def test_a_file_that_is_something_else(made, tmp_path, folder, file, name):
    content, said = INSTEAD[name]
    place = shutil.copytree(made / folder, tmp_path / folder)
    kind = "text" if folder == "text" else "audio"
    assert resolve(kind, str(place)).folder == place
    (place / file).write_bytes(content)
    with pytest.raises(EncoderError, match=f"{file}: {said}"):
        resolve(kind, str(place))
