"""Names of files and folders that are not UTF-8 are named themselves, not the manifest that was to
be written. Siblings of huggingface/transformers#8886, on the side of the disk.
"""

from __future__ import annotations

import os

import pytest

from mer.pipeline.datasets import prepare
from mer.pipeline.errors import DataError

from tests.cases.imports import mer
from tests.datasets.trees import write_wav


@pytest.fixture
def latin(tmp_path):
    """A folder of a name that a disk of another encoding has; skips where there cannot be one."""
    try:
        os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    except OSError:
        pytest.skip("this file system has no names but UTF-8")
    return tmp_path / os.fsdecode(b"caf\xe9")


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_a_table_in_such_a_folder(latin, suffix):
    (latin / f"t.{suffix}").write_text("id,text\nu1,x\n")
    code, _, said = mer("prepare", "table", "--from", latin / f"t.{suffix}", "--out", "m.parquet")
    assert code == 1 and "internal" not in said
    assert "its path is not UTF-8; rename that file or folder" in said and said.count("\n") == 1


def test_clips_of_such_names(latin):
    root = latin.parent / "clips"
    root.mkdir()
    write_wav(root / "s1_joy.wav")
    (root / os.fsdecode(b"s2_ang\xe9r.wav")).write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"names of 1 media file are not UTF-8, first s2_ang.*r"):
        prepare("folder", root, pattern="{speaker}_{emotion}")
