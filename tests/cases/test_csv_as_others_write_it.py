"""CSV as Excel and others write it, files that are no table at all, and paths of other systems.

Reported as asafdav/ng-csv#28 (European Excel separates by semicolons),
shancarter/mr-data-converter#52 (sep=), fastai/fastai#937 (blanks after commas),
git-lfs/git-lfs#4366 (pointer files), eladrich/pix2vertex.pytorch#13 (a web page saved as the file).
"""

from __future__ import annotations

import gzip
import os
import zipfile
from unicodedata import normalize

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mer.pipeline.datasets import prepare
from mer.pipeline.datasets.corpora import corpus
from mer.pipeline.datasets.files import elsewhere, require_root
from mer.pipeline.errors import DataError

from tests.datasets.trees import write_wav

ROWS = [("u1", "a.wav", "hello", "joy"), ("u2", "a.wav", "no, never", "anger")]


def rows_of(tmp_path, content, name="t.csv", **options):
    write_wav(tmp_path / "a.wav")
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    manifest, report = prepare("table", source=tmp_path / name, split="none", **options)
    return [(u.id, u.audio, u.text, u.label) for u in manifest.rows], report, manifest


@pytest.mark.parametrize(
    ("content", "name", "note"),
    [
        (
            "id;audio;text;label\nu1;a.wav;hello;joy\nu2;a.wav;no, never;anger\n",
            "t.csv",
            "columns are separated by semicolons, as",
        ),
        (
            "id;audio;text;label\r\nu1;a.wav;hello;joy\r\nu2;a.wav;no, never;anger\r\n",
            "t.tsv",
            "columns are separated by semicolons",
        ),
        (
            "id\taudio\ttext\tlabel\nu1\ta.wav\thello\tjoy\nu2\ta.wav\tno, never\tanger\n",
            "t.csv",
            "columns are separated by tabs",
        ),
        (
            "id|audio|text|label\nu1|a.wav|hello|joy\nu2|a.wav|no, never|anger\n",
            "t.csv",
            "columns are separated by vertical bars",
        ),
        (
            'sep=,\r\nid,audio,text,label\r\nu1,a.wav,hello,joy\r\nu2,a.wav,"no, never",anger\r\n',
            "t.csv",
            "its first line names them",
        ),
        (
            '\ufeff"sep=;"\nid;audio;text;label\nu1;a.wav;hello;joy\nu2;a.wav;no, never;anger\n',
            "t.csv",
            "its first line names them",
        ),
        (
            "sep=\t\nid\taudio\ttext\tlabel\nu1\ta.wav\thello\tjoy\nu2\ta.wav\tno, never\tanger\n",
            "t.csv",
            "its first line names them",
        ),
        (
            'id, audio, text, label\nu1, a.wav, hello, joy\nu2, a.wav, "no, never", anger\n',
            "t.csv",
            "a blank follows each separator",
        ),
    ],
)
def test_other_separators_are_read_and_told(tmp_path, content, name, note):
    rows, report, _ = rows_of(tmp_path, content, name)
    assert rows == ROWS
    assert any(note in warning for warning in report.warnings)


@pytest.mark.parametrize(
    "header", ["id;text;split\n", "sep=;\nid;text;split\n", "id, text, split\n"]
)
def test_lines_are_counted_whatever_the_separator(tmp_path, header):
    between = ", " if ", " in header else ";"
    body = (
        between.join(["1", '"two\nlines"', "train"])
        + "\n\n"
        + between.join(["2", "x", "foo"])
        + "\n"
    )
    (tmp_path / "t.csv").write_text(header + body)
    line = header.count("\n") + 4
    with pytest.raises(DataError, match=f"line {line} has split 'foo'"):
        prepare("table", source=tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text(header + body + "3\n")
    with pytest.raises(DataError, match=f"line {line + 1}: Expected 3 columns, got 1"):
        prepare("table", source=tmp_path / "t.csv")


def test_decimal_commas(tmp_path):
    text = "id;text;start;end\nu1;x;0,5;1,25\nu2;y;2;3\n"
    _, report, manifest = rows_of(tmp_path, text)
    assert [(u.start, u.end) for u in manifest.rows] == [(0.5, 1.25), (2.0, 3.0)]
    assert "1 cell of start with a decimal comma, read as a point" in report.warnings
    # mixed, or not Excel's
    for other in ("id;text;start\nu1;x;0,5\nu2;y;1.5\n", 'id,text,start\nu1,x,"0,5"\n'):
        with pytest.raises(
            DataError, match="line 2 has start '0,5', expected a number; a decimal comma"
        ):
            rows_of(tmp_path, other)


@pytest.mark.parametrize("value", ["1_0", "0x10", "infinity", "1e999", "\uff11", "1 0", "nan"])
def test_numbers_are_plain_numbers(tmp_path, value):
    with pytest.raises(DataError, match="line 2 has start '.*', expected a number"):
        rows_of(tmp_path, f"id,text,start\nu1,x,{value}\n")


def test_the_columns_found_are_named(tmp_path):
    with pytest.raises(
        DataError,
        match=r"no column is called .*\(found ID, Text; case counts: --column id=ID --column "
        r"text=Text\)",
    ):
        rows_of(tmp_path, "ID,Text\nu1,x\n")
    with pytest.raises(DataError, match=r"neither audio nor text; .* \(found id, Wort\)"):
        rows_of(tmp_path, "id,Wort\nu1,x\n")
    _, report, _ = rows_of(tmp_path, "id,text,Audio\nu1,x,a.wav\n")
    assert "no audio column (--column audio=Audio): the utterances have no audio" in report.warnings
    with pytest.raises(DataError) as error:
        rows_of(tmp_path, ",".join(f"column{i}" for i in range(3_000)) + "\n")
    assert "and 2,988 more" in str(error.value)


def workbook(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.parquet"])
@pytest.mark.parametrize(
    ("make", "what"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12\n",
            "a Git LFS pointer.*git lfs pull",
        ),
        (
            b"<!DOCTYPE html><html><head><title>Virus scan warning</title>",
            "a web page.*download it again",
        ),
        (gzip.compress(b"id,text\n1,x\n", mtime=0), "gzip archive; unpack it first"),
        (workbook, "an Excel workbook; save it as CSV UTF-8"),
        ("id,text\n1,x\n".encode("utf-16"), "UTF-16.*save it as UTF-8"),
        (bytes(5000), "nothing but zero bytes; download it again"),
    ],
)
def test_what_a_file_is_instead_of_a_table(tmp_path, name, make, what):
    make(tmp_path / name) if callable(make) else (tmp_path / name).write_bytes(make)
    with pytest.raises(DataError, match=f"{name}: .*{what}"):
        prepare("table", source=tmp_path / name)


def test_a_table_under_the_name_of_another_kind(tmp_path):
    pq.write_table(pa.table({"id": ["1"], "text": ["x"]}), tmp_path / "p.csv")
    (tmp_path / "t.parquet").write_text("id,text\n1,x\n")
    (tmp_path / "j.csv").write_text('{"id": "1", "text": "x"}\n')
    (tmp_path / "array.jsonl").write_text('[{"id": "1", "text": "x"}]\n')
    for name, what in (
        ("p.csv", "this is Parquet; give it a name that ends in .parquet"),
        ("t.parquet", "this is text, not a readable Parquet"),
        ("j.csv", "this is JSON Lines"),
        ("array.jsonl", "a JSON array.*one object a line"),
    ):
        with pytest.raises(DataError, match=what):
            prepare("table", source=tmp_path / name)


def test_backslashes_of_windows(tmp_path):
    (tmp_path / "clips").mkdir()
    write_wav(tmp_path / "clips" / "b.wav")
    rows, report, _ = rows_of(
        tmp_path,
        "id,audio,text,label\n1,clips\\b.wav,x,a\n2,.\\clips\\b,x,b\n3,clips\\c.wav,x,b\n4,..\\t.csv,x,b\n",
    )
    assert [row[1] for row in rows] == ["clips/b.wav", "clips/b.wav", "clips\\c.wav", "..\\t.csv"]
    assert report.repairs["backslashes in audio read as /"] == ["1", "2"] and report.missing == [
        "3",
        "4",
    ]
    assert any("2 of the missing files hold backslashes" in warning for warning in report.warnings)
    (tmp_path / "below").mkdir()
    write_wav(tmp_path / "secret.wav")
    # they lead out no more than slashes do
    with pytest.raises(DataError, match="not a file within"):
        rows_of(tmp_path, "id,audio,text\n1,..\\secret.wav,x\n", root=tmp_path / "below")


def test_files_that_are_there_under_another_spelling(tmp_path):
    for name in ("\u00e9.wav", "Upper.WAV", "blank.wav "):
        write_wav(tmp_path / name) if name != "blank.wav " else (tmp_path / name).write_bytes(
            b"RIFF\0\0"
        )
    names = [normalize("NFD", "\u00e9.wav"), "upper.wav", "blank.wav", "gone.wav"]
    body = "".join(f"{i},{name},x\n" for i, name in enumerate(names))
    _, report, _ = rows_of(tmp_path, "id,audio,text\n" + body)
    said = [line for line in report.warnings if line.startswith("1 of the missing files ")]
    assert report.missing == ["0", "1", "2", "3"]
    for what in ("NFC and NFD", "upper and lower case", "blanks at an end of the file's name"):
        assert len([line for line in said if "there but for" in line and what in line]) == 1


def test_a_corpus_under_another_name(tmp_path):
    deep = tmp_path / "a" / "b" / "c" / "d"
    deep.mkdir(parents=True)
    (deep / "Train_Sent_Emo.csv").write_text("x")
    with pytest.raises(
        DataError,
        match=r"no \*_sent_emo.csv within .*; there is a/b/c/d/Train_Sent_Emo.csv: name its folder "
        r"with --root",
    ):
        prepare("meld", tmp_path)
    (tmp_path / "MELD.Raw").mkdir()
    with pytest.raises(DataError, match="no folder .*, but there is MELD.Raw in .*--root"):
        require_root(tmp_path / "meld.raw", corpus("meld"))
    assert elsewhere(tmp_path, ["nothing.csv"]) == ""


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet", "label.csv"])
def test_a_pipe_is_refused_at_once(tmp_path, name):
    os.mkfifo(tmp_path / name)
    corpus_name, root, options = (
        ("mosi", tmp_path, {})
        if name == "label.csv"
        else ("table", None, {"source": tmp_path / name})
    )
    with pytest.raises(DataError, match="a pipe, socket or device"):
        prepare(corpus_name, root, **options)


def test_a_pipe_in_place_of_a_clip_does_not_hold_things_up(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    _, report, _ = rows_of(tmp_path, "id,audio,text\n1,pipe.wav,x\n")
    assert report.unreadable == {"1": "a pipe, socket or device"}
