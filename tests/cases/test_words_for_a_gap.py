"""What other programs write where there is nothing is a word by its spelling: counted and told,
with the way to say that it is none.

pandas writes "nan" after `astype(str)`, NumPy in an array of text (`np.array(["joy", np.nan])`),
MySQL and Hive `\\N`, R "NA", a spreadsheet "#N/A": with pandas-dev/pandas#48712 and
mozilla/DeepSpeech#1106.
"""

from __future__ import annotations

import numpy as np
import pytest

from mer.pipeline.datasets import prepare
from mer.pipeline.interchange import npz
from mer.pipeline.interchange.foreign import ImportOptions
from mer.pipeline.runtime.cells import warn_gap_words

SPELLINGS = ("nan", "NaN", "NA", "NULL", "None", "<NA>", "\\N", "#N/A", "NaT", "n/a", "(null)")


@pytest.mark.parametrize("word", SPELLINGS)
def test_a_table_keeps_the_word_and_says_so(tmp_path, word):
    rows = f"u1,hi,joy,s1\nu2,{word},{word},{word}\nu3,no,{word},s2\n"
    (tmp_path / "t.csv").write_text("id,text,label,speaker\n" + rows)
    manifest, found = prepare("table", source=tmp_path / "t.csv", split="none")
    assert manifest.rows[1].text == manifest.rows[1].label == manifest.rows[1].speaker == word
    for what, count in (("labels", 2), ("transcripts", 1), ("speakers", 1)):
        line = f"{what} that may stand for a gap: '{word}' ({count}); they count as words: where "
        assert sum(warning.startswith(line) for warning in found.warnings) == 1


def test_labels_that_were_named_are_meant(tmp_path):
    (tmp_path / "t.csv").write_text("id,text,label\nu1,hi,None\nu2,no,joy\n")
    found = prepare("table", source=tmp_path / "t.csv", split="none", labels="joy,None")[1]
    assert not any("gap" in warning for warning in found.warnings)


def test_several_labels_of_a_row(tmp_path):
    (tmp_path / "t.csv").write_text("id,text,label\nu1,hi,joy;fear\nu2,no,nan\n")
    found = prepare("table", source=tmp_path / "t.csv", split="none", task="multi")[1]
    assert any("labels that may stand for a gap: 'nan' (1)" in line for line in found.warnings)


def test_an_import_says_so_with_the_way_out(tmp_path):
    labels = np.array(["joy", np.nan, "anger", np.nan])  # NumPy makes the word of it
    spoken = np.array(["hi", "no", None, "x"], dtype="U4")
    path = tmp_path / "x.npz"
    features = np.ones((4, 2), np.float32)
    np.savez(path, id=list("abcd"), label=labels, transcript=spoken, audio=features)
    found = npz.read(path, ImportOptions())
    assert found.labels == ("anger", "joy", "nan")
    said = "\n".join(found.notes)
    assert "labels that may stand for a gap: 'nan' (2)" in said and "say --unlabelled='nan'" in said
    assert "transcripts that may stand for a gap: 'None' (1)" in said
    found = npz.read(path, ImportOptions(unlabelled="nan"))
    assert found.labels == ("anger", "joy") and [row["label"] for row in found.rows][1] is None
    assert not any(note.startswith("labels that may") for note in found.notes)


def test_words_that_stay_unsaid():
    assert warn_gap_words(["Nan", "none", "nap", None, "", "Nancy", "..."], "speakers") == []
    (line,) = warn_gap_words(SPELLINGS, "labels")
    assert "and 8 more" in line and len(line) < 300
