"""Titles above the header, a header again where tables were joined, row names of R, quotes of Spark
and MySQL, numbers with another minus: read with a line, or refused with a remedy that helps.

Siblings of asafdav/ng-csv#28, shancarter/mr-data-converter#52 and fastai/fastai#937.
"""

from __future__ import annotations

import json
import os

import pytest

from mer.pipeline.datasets import prepare
from mer.pipeline.errors import DataError

HEADER = "id,text,label\n"
ROWS = "u1,hello,joy\nu2,no,anger\n"


def prepared(tmp_path, content: str, name: str = "t.csv", **options):
    (tmp_path / name).write_text(content, encoding="utf-8")
    return prepare("table", source=tmp_path / name, split="none", **options)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("My corpus\n" + HEADER + ROWS, "first line names no column, line 2 does"),
        ("My corpus,,\n\n" + HEADER + ROWS, "first line names no column, line 3 does"),
        ("# by me\n# today\n" + HEADER + ROWS, "first line names no column, line 3 does"),
        ("title\n" + (HEADER + ROWS).replace(",", ";"), "line 2 does; leave out what is above"),
        (HEADER + ROWS + HEADER + "u3,x,joy\n", "line 4 is the header again; leave it out"),
        (HEADER + ROWS + ",,\n", "line 4 has nothing in any column that is read"),
        ("id^text^label\nu1^x^joy\n", "columns are separated by commas, semicolons, tabs"),
        ('"id","text"\n"1","u1","x"\n', "got 3: .*; mend that line, or the header where all"),
        ("id,text,\nu1,x\n", "line 2: Expected 3 columns, got 2: .*or the header where all"),
        ("id\nu1,x\n", "Expected 1 column, got 2"),
        (HEADER + "u1,x\n" + ROWS, "line 2: Expected 3 columns, got 2: .* mend that line, or"),
        (HEADER + ROWS + "u3,x\n", "line 4: Expected 3 columns, got 2: u3,x; mend that line$"),
    ],
)
def test_a_remedy_that_helps(tmp_path, content, said):
    with pytest.raises(DataError, match=said) as error:
        prepared(tmp_path, content)
    assert len(str(error.value)) - len(str(tmp_path)) < 300


def test_a_header_that_is_mapped_is_known_again(tmp_path):
    content = "name,words\nu1,x\nname,words\nu2,y\n"
    with pytest.raises(DataError, match="line 3 is the header again"):
        prepared(tmp_path, content, columns={"id": "name", "text": "words"})
    # a single column may well say what it is
    manifest, _ = prepared(tmp_path, "text\nhello\ntext\n")
    assert [row.text for row in manifest.rows] == ["hello", "text"]


def test_the_separator_that_shows_known_names(tmp_path):
    manifest, found = prepared(tmp_path, "id;text;label;note, other\nu1;well, no;joy;x\n")
    assert manifest.rows[0].text == "well, no" and manifest.rows[0].label == "joy"
    assert any("separated by semicolons" in line for line in found.warnings)
    manifest, _ = prepared(tmp_path, "id,text,a;b;c;d;e\nu1,x,2\n")
    assert manifest.rows[0].text == "x"


def test_names_that_differ_by_case_are_offered(tmp_path):
    _, found = prepared(tmp_path, "Id,text,LABEL\nu1,x,joy\n")
    said = "\n".join(found.warnings)
    assert "--column id=Id" in said and "--column label=LABEL" in said


def test_quotes_of_other_programs_are_told(tmp_path):
    content = 'id,text\nu1, "hello"\nu2,"say \\"hi\\" now"\nu3,"a ""b"""\nu4,c:\\x\n'
    manifest, found = prepared(tmp_path, content)
    assert manifest.rows[2].text == 'a "b"'
    said = "\n".join(found.warnings)
    assert "1 cell of text that begin with a blank and a quote" in said
    assert "1 cell of text with a backslash before a quote" in said and "line 3" in said


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("\u22120.5", "a minus sign of another kind"),
        ("\u20131", "a minus sign of another kind"),
        ("NULL", "leave the cell empty"),
        ("nan", "leave the cell empty"),
        ('"0,5"', "a decimal comma"),
        ("00:00:01.5", "write seconds"),
        ("1.5s", "write seconds"),
        ("500 ms", "write seconds"),
    ],
)
def test_what_is_no_number_has_a_hint(tmp_path, value, hint):
    with pytest.raises(DataError, match=f"line 2 has start .*expected a number; .*{hint}"):
        prepared(tmp_path, f"id,text,start\nu1,x,{value}\n")


def test_decimal_commas_of_a_regression(tmp_path):
    content = "id;text;label\nu1;x;0,5\nu2;y;-1,25\n"
    manifest, found = prepared(tmp_path, content, task="regression")
    assert [row.targets for row in manifest.rows] == [(0.5,), (-1.25,)]
    assert "2 cells of label with a decimal comma, read as a point" in found.warnings
    _, found = prepared(tmp_path, content)
    assert any("say --task regression" in line for line in found.warnings)
    assert not any("--task multi" in line for line in found.warnings)


@pytest.mark.parametrize("word", ["nan", "none", "NULL"])
def test_a_split_that_is_a_word_for_none(tmp_path, word):
    (tmp_path / "t.csv").write_text(f"id,text,split\nu1,x,train\nu2,y,{word}\n")
    with pytest.raises(DataError, match=f"split '{word}', expected .*or an empty cell for none"):
        prepare("table", source=tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (json.dumps([{"id": "u1", "text": "x"}], indent=1), "a JSON array"),
        (json.dumps({"id": "u1", "text": "x"}, indent=1), "each object whole, on a line of its"),
        ('{"id": "u1", "text": "x"},\n', "each object whole"),
        ('{"id": "u1", "text": "x"}\n{"id": \n', "line 2 is not JSON .* mend that line"),
    ],
)
def test_json_of_other_shapes(tmp_path, content, said):
    with pytest.raises(DataError, match=said):
        prepared(tmp_path, content, "t.jsonl")


def test_links_to_nothing_and_addresses(tmp_path):
    """git-annex and DataLad leave links where the content was not fetched."""
    os.symlink(".git/annex/objects/x/y.wav", tmp_path / "y.wav")
    rows = "u1,y.wav,x\nu2,https://example.org/a.wav,y\n"
    _, found = prepared(tmp_path, "id,audio,text\n" + rows)
    said = "\n".join(found.warnings)
    assert found.missing == ["u1", "u2"]
    assert "are links to nothing" in said and "git annex get" in said
    assert "are addresses, not paths" in said
