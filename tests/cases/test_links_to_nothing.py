"""DataLad and git-annex leave a link to nothing for each file that was not fetched. Of a folder of
which a part was fetched the rest was passed over without a word, as if it were the whole. And
beside a film, a folder of its pictures is no file of that name. Kin of dandi/dandisets#174.
"""

from __future__ import annotations

import os

import pytest

from mer.pipeline.datasets import folder as folders
from mer.pipeline.datasets import table as tables
from mer.pipeline.datasets.filenames import media_below
from mer.pipeline.errors import DataError

PATTERN = "{speaker}_{emotion}.wav"


@pytest.fixture
def root(tmp_path):
    """Two files of four are there."""
    place = tmp_path / "corpus"
    place.mkdir()
    for name in ("a_joy", "b_fear"):
        (place / f"{name}.wav").write_bytes(b"RIFF" + bytes(100))
    for name in ("c_joy", "d_fear"):
        (place / f"{name}.wav").symlink_to(".git/annex/objects/X/SHA256E-s1--0.wav")
    return place


def test_a_folder_counts_what_was_not_fetched(root):
    manifest, findings = folders.prepare(root, pattern=PATTERN, split="none")
    assert [u.id for u in manifest.rows] == ["a_joy", "b_fear", "c_joy", "d_fear"]
    assert findings.missing == ["c_joy", "d_fear"]
    assert any("2 of the missing files are links to nothing" in w for w in findings.warnings)


def test_so_does_a_corpus(root):
    assert media_below(root) == ["a_joy.wav", "b_fear.wav", "c_joy.wav", "d_fear.wav"]


def test_two_links_to_nothing_are_no_copies(root):
    for place in ("x", "y"):
        (root / place).mkdir()
        os.symlink("nothing.wav", root / place / "e_joy.wav")
    with pytest.raises(DataError, match="both 'e_joy', and not the same file"):
        folders.prepare(root, pattern=PATTERN, split="none")


def test_a_folder_beside_a_film_is_no_film(tmp_path):
    (tmp_path / "clip1").mkdir()
    (tmp_path / "clip1.mp4").write_bytes(b"film")
    (tmp_path / "clip2").write_bytes(b"RIFF" + bytes(100))
    (tmp_path / "clip2.wav").write_bytes(b"RIFF" + bytes(100))
    table = tmp_path / "t.csv"
    table.write_text("id,audio,label,split\na,clip1,x,train\nb,clip2,y,dev\n")
    manifest, _ = tables.prepare(table)
    assert [u.audio for u in manifest.rows] == ["clip1.mp4", "clip2"]
