"""Files that are something else, of kinds that others met: git-annex pointers, Avro, ORC, lz4, an
answer with its headers. Siblings of git-lfs/git-lfs#4366 and eladrich/pix2vertex.pytorch#13.
"""

from __future__ import annotations

import pytest

from mer.pipeline.datasets import prepare
from mer.pipeline.errors import DataError
from mer.pipeline.media import audio as media

from tests.cases.imports import imported

INSTEAD = {
    "git-annex": (b"/annex/objects/SHA256E-s100--abc.csv\n", "git-annex pointer.*git annex get"),
    "Feather": (b"FEA1" + bytes(50), "Arrow or Feather"),
    "Avro": (b"Obj\x01\x04\x14avro.codec" + bytes(50), "an Avro file"),
    "ORC": (b"ORC" + bytes(50), "an ORC file"),
    "lz4": (b"\x04\x22\x4d\x18" + bytes(50), "an lz4 archive.*unpack"),
    "compress": (b"\x1f\x9d\x90" + bytes(50), "a compress archive"),
    "HTTP": (b"HTTP/1.1 200 OK\r\nContent-Type: text/csv\r\n\r\nid,text\n", "a web server"),
    "conflict": (b"<<<<<<< HEAD\nid,text\n=======\nid,b\n>>>>>>> x\n", "a merge conflict"),
    "comment": (b"<!-- saved from url -->\n<html></html>", "a web page"),
    "MATLAB": (b"MATLAB 5.0 MAT-file, Platform: GLNXA64" + bytes(100), "a MATLAB file"),
}


@pytest.mark.parametrize("name", INSTEAD)
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_instead_of_a_table(tmp_path, name, suffix):
    content, said = INSTEAD[name]
    (tmp_path / f"t.{suffix}").write_bytes(content)
    with pytest.raises(DataError, match=said):
        prepare("table", source=tmp_path / f"t.{suffix}")


@pytest.mark.parametrize("name", INSTEAD)
@pytest.mark.parametrize("kind", ["mmsa", "npz", "parquet"])
def test_instead_of_features(tmp_path, name, kind):
    content, said = INSTEAD[name]
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DataError, match=said):
        imported(kind, tmp_path / "x", tmp_path / "f.h5")


@pytest.mark.parametrize("name", INSTEAD)
def test_instead_of_a_clip(tmp_path, name):
    content, said = INSTEAD[name]
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(media.MediaError, match=said):
        media.load(tmp_path / "a.wav")
