"""The csv beside a folder of arrays, and a table of boxes, as Excel writes them: semicolons,
`sep=`, blanks behind separators. "Say which with --column id=NAME (it has id;label)" helps nobody
(with asafdav/ng-csv#28, shancarter/mr-data-converter#52, fastai/fastai#937).
"""

from __future__ import annotations

import numpy as np
import pytest

from mer.pipeline.errors import DataError
from mer.pipeline.interchange import npydir
from mer.pipeline.interchange.foreign import ImportOptions
from mer.pipeline.media.faces import Box, boxes_for

FORMS = {  # separator, and what stands before the header
    "semicolons": (";", ""),
    "tabs": ("\t", ""),
    "sep": (";", "sep=;\n"),
    "sep in quotes, behind a blank line": (";", '\n"sep=;"\n'),
    "sep with separators": (",", "sep=,,,\n"),
    "spaced": (", ", ""),
}


def lines(form: str, *rows: tuple[str, ...]) -> str:
    separator, above = FORMS[form]
    return above + "".join(separator.join(row) + "\n" for row in rows)


@pytest.mark.parametrize("form", FORMS)
def test_an_index_of_arrays(tmp_path, form):
    (tmp_path / "audio").mkdir()
    for name in ("a", "b"):
        np.save(tmp_path / "audio" / f"{name}.npy", np.ones((3, 4), np.float32))
    rows = [("id", "label", "transcript"), ("a", "joy", '"well, no; yes"'), ("b", "anger", "x")]
    (tmp_path / "index.csv").write_text(lines(form, *rows))
    found = npydir.read(tmp_path, ImportOptions())
    assert [(row["id"], row["label"], row["text"]) for row in found.rows] == [
        ("a", "joy", "well, no; yes"),
        ("b", "anger", "x"),
    ]
    assert found.notes[0].startswith("index.csv: ") and "separat" in found.notes[0]
    (tmp_path / "index.csv").write_text(lines(form, *rows, ("c",)))
    line = 4 + FORMS[form][1].count("\n")
    with pytest.raises(DataError, match=f"line {line} has 1 cell, the header 3"):
        npydir.read(tmp_path, ImportOptions())


@pytest.mark.parametrize("form", FORMS)
def test_a_table_of_boxes(tmp_path, form):
    path = tmp_path / "boxes.csv"
    header = ("id", "time", "x", "y", "w", "h")
    path.write_text(lines(form, header, ("a", "0.5", "1", "2", "3", "4")))
    assert boxes_for(str(path), "a", "a.mp4") == (Box(0.5, 1, 2, 3, 4),)
    path.write_text(lines(form, header, ("a", "0.5", "1", "2", "3", "?")))
    line = 2 + FORMS[form][1].count("\n")
    with pytest.raises(DataError, match=f"line {line}: .* is no number"):
        boxes_for(str(path), "a", "a.mp4")
