"""A list of labels in a csv is text: pandas writes ['joy', 'sad'], a JSON
writer ["joy", "sad"], NumPy ['joy' 'sad']. With --task multi their halves were classes of their
own, "['joy'" and "'sad']", without a word.
"""

from __future__ import annotations

import pytest

from mer.pipeline.datasets import table as tables

HEAD = "id\ttext\tlabel\tsplit\n"


def prepared(path, cells, **options):
    lines = (f"u{i}\twords\t{cell}\ttrain\n" for i, cell in enumerate(cells))
    path.write_text(HEAD + "".join(lines))
    return tables.prepare(path, task="multi", **options)


@pytest.mark.parametrize(
    "cells",
    [
        ("['joy', 'sad']", "['joy']", "[]"),
        ("['joy' 'sad']", "['joy']", "[]"),
        ("('joy', 'sad')", "('joy',)", "()"),
        ("{'sad', 'joy'}", "{'joy'}", ""),
        ("[joy, sad]", "[joy]", "[]"),
    ],
)
def test_they_are_its_labels(tmp_path, cells):
    manifest, findings = prepared(tmp_path / "t.tsv", cells)
    assert manifest.labels == ("joy", "sad")
    assert [u.targets for u in manifest.rows[:2]] == [(1, 1), (1, 0)]
    told = [w for w in findings.warnings if "with a list as text" in w]
    assert len(told) == 1 and "line 2" in told[0] and cells[0] in told[0]


def test_json_within_the_quotes_of_a_csv(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('id,text,label\na,x,"[""joy"", ""sad""]"\nb,x,"[""it\'s""]"\n')
    manifest, _ = tables.prepare(path, task="multi", split="none")
    assert manifest.labels == ("it's", "joy", "sad")
    assert [u.targets for u in manifest.rows] == [(0, 1, 1), (1, 0, 0)]


def test_an_empty_list_is_unlabelled(tmp_path):
    """As it is in JSON Lines and Parquet."""
    manifest, _ = prepared(tmp_path / "t.tsv", ["['joy']", "[]", ""])
    assert [u.targets for u in manifest.rows] == [(1,), None, None]


def test_what_is_no_list_stays(tmp_path):
    cells = ["(joy)", "joy; sad", "[joy", r"['don\'t']"]
    manifest, findings = prepared(tmp_path / "t.tsv", cells)
    assert manifest.labels == ("(joy)", "['don\\'t']", "[joy", "joy", "sad")
    assert not any("with a list as text" in w for w in findings.warnings)


def test_folds_that_look_alike_are_told(tmp_path):
    """Beside them: a column of folds with gaps is written 1.0 by one program and 1 by another."""
    from mer.pipeline.datasets import complete

    path = tmp_path / "t.csv"
    path.write_text("id,text,label,fold\na,x,p,1\nb,x,q,1.0\nc,x,p,2\n")
    _, findings = complete(*tables.prepare(path))
    told = "folds that are one number, spelled otherwise: '1' and '1.0'"
    assert any(told in warning for warning in findings.warnings)
