"""Tables and manifests made to exhaust a machine, or that promise what cannot be, end in one line;
each bound of `pipeline/runtime/limits.py` for tables has the test that hits it, with the bound made
small where a file at it would be large.
"""

from __future__ import annotations

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mer.pipeline import manifest as manifests
from mer.pipeline.datasets import prepare, tablefile
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Manifest, Utterance
from mer.pipeline.runtime import columnar, delimited, limits
from mer.pipeline.runtime.cells import text_cell


def refused(path, part, **options):
    with pytest.raises(DataError, match=part) as error:
        prepare("table", source=path, **options)
    said = str(error.value).replace(str(path), path.name)
    assert "\n" not in said and len(said) <= 300 and path.name in said


def test_columns(tmp_path):
    wide = limits.TABLE_COLUMNS + 1
    (tmp_path / "t.csv").write_text(",".join(map(str, range(wide))) + "\n")
    refused(tmp_path / "t.csv", "10,001 columns, more than 10,000")
    (tmp_path / "t.jsonl").write_text(json.dumps({f"k{i}": 1 for i in range(wide)}))
    refused(tmp_path / "t.jsonl", "more than 10,000 columns, at line 1")
    pq.write_table(
        pa.table([["x"]] * wide, names=[str(i) for i in range(wide)]), tmp_path / "t.parquet"
    )
    refused(tmp_path / "t.parquet", "10,001 columns, more than 10,000")


def test_rows(tmp_path, monkeypatch):
    for module in (tablefile, columnar):
        monkeypatch.setattr(module, "TABLE_ROWS", 10)
    rows = [{"id": str(i), "text": "x"} for i in range(11)]
    (tmp_path / "t.csv").write_text("id,text\n" + "".join(f"{row['id']},x\n" for row in rows))
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    for name in ("t.csv", "t.jsonl", "t.parquet"):
        refused(tmp_path / name, "more than 10", split="none")


def test_runs_of_equal_values(tmp_path):
    """50 million rows in a few kilobytes, and 4 million rows of one long text."""
    for rows, text, part in (
        (limits.TABLE_ROWS + 1, "x", "rows, more than"),
        (2 * 10**6, "x" * 1_000, "repeats counted, more than"),
    ):
        coded = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([text]))
        pq.write_table(pa.table({"id": coded, "text": coded}), tmp_path / "t.parquet")
        assert (tmp_path / "t.parquet").stat().st_size < 1_000_000
        refused(tmp_path / "t.parquet", part)


def test_long_lists_and_cells(tmp_path, monkeypatch):
    monkeypatch.setattr(columnar, "TABLE_VALUES", 1_000)
    pq.write_table(
        pa.table({"id": ["1"], "text": ["x"], "label": [["a"] * 1_001]}), tmp_path / "t.parquet"
    )
    refused(tmp_path / "t.parquet", "'label' holds 1,001 values, more than 1,000", task="multi")
    pq.write_table(
        pa.table({"id": ["1"], "text": ["x" * (4 * limits.CELL_CHARACTERS + 1)]}),
        tmp_path / "t.parquet",
    )
    refused(tmp_path / "t.parquet", "a cell of 4,000,001 bytes")
    for name, content in (
        ("t.csv", "id,text\n1,{}\n"),
        ("t.jsonl", '{{"id": "1", "text": "{}"}}\n'),
    ):
        (tmp_path / name).write_text(content.format("x" * (limits.CELL_CHARACTERS + 1)))
        refused(
            tmp_path / name,
            "(line 2|line 1): text has 1,000,001 characters, more than 1,000,000",
            split="none",
        )
    with pytest.raises(DataError, match="more than 4,096 bits"):
        text_cell(1 << limits.INTEGER_BITS)


def test_files_and_lines(tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_text("id,text\n1," + "x" * 5_000 + "\n")
    (tmp_path / "t.jsonl").write_text(json.dumps({"id": "1", "text": "x" * 5_000}))
    monkeypatch.setattr(delimited, "TABLE_LINE_CHARACTERS", 1_000)
    refused(tmp_path / "t.jsonl", "line 1 has more than 1,000 characters")
    (tmp_path / "h.csv").write_text("id," + "x" * 5_000 + "\n")
    refused(tmp_path / "h.csv", "line 1 has more than 1,000 characters")
    monkeypatch.setattr(tablefile, "TABLE_BYTES", 1_000)
    refused(tmp_path / "t.csv", "5,0.. bytes, more than 1,000")
    monkeypatch.setattr(columnar, "TABLE_BYTES", 1_000)
    pq.write_table(pa.table({"id": ["1"], "text": ["x" * 5_000]}), tmp_path / "t.parquet")
    refused(tmp_path / "t.parquet", "unpack to .* bytes, more than 1,000")


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (
            '{"id": "1", "text": "x", "d": ' + "[" * 100_000 + "]" * 100_000 + "}",
            "line 2 is not JSON .nested too deeply",
        ),
        (
            '{"id": ' + "9" * 10_000 + ', "text": "x"}',
            "line 2 is not JSON .a number of more than 4,300 digits",
        ),
        (
            '{"id": ' + "9" * 3_000 + ', "text": "x"}',
            "line 2: id is a whole number of more than 4,096 bits",
        ),
        ('{"id": "1", "id": "2", "text": "x"}', "line 2 is not JSON .'id' is there twice"),
        ('{"id": "1", "text": 1e999}', "line 2: text is inf, expected text"),
        ('{"id": "1", "text": "' + "\\u0000" + '"}', "line 2: text .* holds a zero byte"),
    ],
)
def test_json_lines(tmp_path, line, part):
    (tmp_path / "t.jsonl").write_text('{"id": "0", "text": "x"}\n' + line)
    refused(tmp_path / "t.jsonl", part, split="none")


def test_csv(tmp_path):
    for content, part in (
        (b"id,text\n1,a\0b\n", "line 2: text .* holds a zero byte"),
        (b"id,text\n1,a\n" + bytes(100), "line 3: Expected 2 columns, got 1"),
        (b"id,text," + b"x" * 200_000 + b"\n", "a column name is longer than 131,072 characters"),
        (b"id,text\n1," + b"x" * 40_000_000, "a record of more than 16,777,216 bytes"),
    ):
        (tmp_path / "t.csv").write_bytes(content)
        refused(tmp_path / "t.csv", part, split="none")


def test_paths_that_no_system_takes(tmp_path):
    long, deep = "n" * 300, "a/" * 2_000
    (tmp_path / "t.csv").write_text(f"id,audio,text\n1,{long},x\n2,{deep}b.wav,x\n")
    _, report = prepare("table", source=tmp_path / "t.csv", split="none")
    assert set(report.missing) | set(report.unreadable) == {"1", "2"}
    made = Manifest("m", "single", (), (Utterance("1"),), tmp_path)
    with pytest.raises((DataError, OSError)) as error:
        made.write(tmp_path / deep / "m.parquet")
    assert len(str(error.value)) < 5_000
    with pytest.raises(DataError, match="no such manifest"):
        Manifest.read(tmp_path / deep / "m.parquet")


# --- manifests


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"start": 2.0, "end": 1.0}, "ends at 1 s, not after its start at 2 s"),
        ({"start": 1.0, "end": 1.0}, "ends at 1 s, not after"),
        ({"start": -1.0}, "start -1, expected seconds from 0"),
        ({"end": 0.0}, "ends at 0 s, not after"),
        ({"start": float("nan")}, "start nan"),
        ({"end": float("inf")}, "end inf"),
        ({"position": -1}, "position -1; positions count from 0"),
        ({"audio": ""}, "audio '', which no file"),
        ({"audio": "a\0b"}, "which no file"),
        ({"label": "c"}, "unknown label 'c'; known: a, b"),
        ({"split": "eval"}, "split 'eval'"),
        ({"targets": (float("nan"),)}, "a target that is not a finite number"),
    ],
)
def test_rows_that_promise_what_cannot_be(tmp_path, changes, part):
    """Written by somebody else's program: mer's own refuses to make such rows."""
    Manifest("m", "single", ("a", "b"), (Utterance("1", label="a"),), tmp_path).write(
        tmp_path / "m.parquet"
    )
    made = pq.read_table(tmp_path / "m.parquet")
    for name, value in changes.items():
        at = made.column_names.index(name)
        made = made.set_column(
            at, made.schema.field(name), pa.array([value], made.schema.field(name).type)
        )
    pq.write_table(made, tmp_path / "m.parquet")
    with pytest.raises(DataError, match=rf"m.parquet: manifest of m: 1 .*{part}"):
        Manifest.read(tmp_path / "m.parquet")
    with pytest.raises(DataError, match=part):
        Manifest(
            "m", "single", ("a", "b"), (Utterance("1", **({"label": "a"} | changes)),), tmp_path
        )


@pytest.mark.parametrize("key", ["dataset", "task", "labels", "language", "root", "source"])
@pytest.mark.parametrize(
    "value", [None, 1, "joy", ["a", 1], {"a": 1}, "\ud83d", "a\0", ["a", "a"], [""]]
)
def test_metadata_of_any_kind(tmp_path, key, value):
    Manifest("m", "single", ("a",), (), tmp_path).write(tmp_path / "m.parquet")
    made = pq.read_table(tmp_path / "m.parquet")
    meta = json.loads(made.schema.metadata[b"mer"]) | {key: value}
    pq.write_table(made.replace_schema_metadata({"mer": json.dumps(meta)}), tmp_path / "m.parquet")
    fits = {"dataset": str, "language": str, "root": str, "source": dict}.get(key)
    if fits and isinstance(value, fits) and value != "\ud83d" and (key, value) != ("root", "a\0"):
        assert Manifest.read(tmp_path / "m.parquet").language
        return
    with pytest.raises(DataError, match="m.parquet"):
        Manifest.read(tmp_path / "m.parquet")


def test_metadata_without_bounds(tmp_path, monkeypatch):
    Manifest("m", "single", ("a",), (), tmp_path).write(tmp_path / "m.parquet")
    made = pq.read_table(tmp_path / "m.parquet")
    for raw, part in (
        ("[" * 100_000, "nested too deeply"),
        ('{"version": ' + "9" * 5_000 + "}", "more than 4,300 digits"),
        ("[]", "n.parquet: not a manifest"),
    ):
        pq.write_table(made.replace_schema_metadata({"mer": raw}), tmp_path / "n.parquet")
        with pytest.raises(DataError, match=part):
            Manifest.read(tmp_path / "n.parquet")
    monkeypatch.setattr(manifests, "MANIFEST_METADATA_BYTES", 10)
    with pytest.raises(DataError, match="metadata of .* bytes, more than 10"):
        Manifest.read(tmp_path / "m.parquet")


def test_a_pipe_as_manifest(tmp_path):
    os.mkfifo(tmp_path / "m.parquet")
    with pytest.raises(DataError, match="a pipe, socket or device, not a manifest"):
        Manifest.read(tmp_path / "m.parquet")
