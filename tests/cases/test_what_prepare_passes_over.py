"""What `mer prepare` did without a word: a column `duration`, which says how long a file is as
often as where a piece ends, cut files; times that contradict each other were settled; hidden
recordings were no part of a folder; and a blank behind a class of --map ended in a remedy that
could not help. Found by an adversary.
"""

from __future__ import annotations

import pytest

from mer.pipeline.datasets import folder as folders
from mer.pipeline.datasets import table as tables


def told(tmp_path, columns, *rows):
    path = tmp_path / "t.csv"
    lines = (f"u{i},words,{row}\n" for i, row in enumerate(rows))
    path.write_text(f"id,text,{columns}\n" + "".join(lines))
    manifest, findings = tables.prepare(path, split="none")
    return manifest, "\n".join(findings.warnings)


def test_a_duration_alone_is_told(tmp_path):
    manifest, said = told(tmp_path, "duration", "0.05", "", "3.5")
    assert [u.end for u in manifest.rows] == [0.05, None, 3.5]
    assert "2 rows are cut where duration alone says, the first, on line 2, at 0.05 s" in said


def test_a_duration_behind_a_start_is_not(tmp_path):
    manifest, said = told(tmp_path, "start,duration", "1,0.5", "0,2")
    assert [u.end for u in manifest.rows] == [1.5, 2] and "duration" not in said


def test_times_that_contradict_each_other_are_counted(tmp_path):
    manifest, said = told(tmp_path, "start,end,duration", "1,2,1.0", "1,2,3", ",2,1.5", "1,2,")
    assert [u.end for u in manifest.rows] == [2, 2, 2, 2]
    assert "2 rows have a duration that is not end - start, the first on line 3" in said


@pytest.fixture
def root(tmp_path):
    for name in ("a_ANG", "b_HAP", "._a_ANG", ".c_HAP"):
        (tmp_path / f"{name}.wav").write_bytes(b"RIFF" + bytes(100))
    return tmp_path


def test_hidden_recordings_are_counted(root):
    manifest, findings = folders.prepare(root, pattern="{speaker}_{emotion}", split="none")
    assert len(manifest) == 2
    assert "2 hidden media files left out: ._a_ANG.wav, .c_HAP.wav" in findings.warnings


def test_a_class_of_a_map_has_no_blanks(root):
    mapping = {"ANG": " anger ", " HAP": "joy"}
    manifest, _ = folders.prepare(
        root, pattern="{speaker}_{emotion}", mapping=mapping, split="none"
    )
    manifest.check_names()
    assert manifest.labels == ("anger", "joy")
