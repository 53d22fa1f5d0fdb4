"""Missing values become gaps, bytes become text, and what is no text is an error that names its
line.

Reported as pandas-dev/pandas#48712 and mozilla/DeepSpeech#1106 (a missing transcript is the float
NaN), apache/arrow#1830 and apache/spark#1855 (Parquet text without the mark of text),
huggingface/transformers#8886 (half a surrogate pair).
"""

from __future__ import annotations

import datetime
import decimal
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mer.pipeline.datasets import prepare
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import SCHEMA, Manifest, Utterance
from mer.pipeline.runtime.cells import (
    name_cell,
    text_cell,
    warn_near_duplicates,
    without_zero_bytes,
)

NAMES = ("id", "audio", "text", "label", "split", "speaker", "dialogue", "session")
GOOD = {"id": "u1", "text": "hi", "label": "a", "split": "train", "start": 0.0, "end": 1.0}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None),
        (math.nan, None),
        (np.float32("nan"), None),
        (np.datetime64("NaT"), None),
        ("", None),
        (" \u200b", None),
        ("nan", "nan"),
        ("NA", "NA"),
        (" a ", " a "),
        (b"d\xc3\xa9j\xc3\xa0", "d\u00e9j\u00e0"),
        (b"ab\0\0", "ab"),
        (7, "7"),
        (np.int64(7), "7"),
        (1.5, "1.5"),
        (decimal.Decimal("1.50"), "1.50"),
        (True, "True"),
        (np.str_("x"), "x"),
    ],
)
def test_a_cell_as_text(value, text):
    assert text_cell(value) == text
    assert name_cell(value) == (text and text.strip())


@pytest.mark.parametrize(
    "value",
    [
        [1],
        (),
        {},
        {"path": "x"},
        np.array([1]),
        datetime.date(2020, 1, 1),
        datetime.datetime(2020, 1, 1),
        datetime.time(1),
        datetime.timedelta(1),
        np.datetime64("2020"),
        math.inf,
        -math.inf,
        b"\xff",
        "\ud83d",
        10**5000,
        1j,
        object(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_text_is_an_error(value):
    with pytest.raises(DataError) as error:
        text_cell(value)
    assert len(str(error.value)) < 200 and "\n" not in str(error.value)


def test_a_zero_byte_is_let_through_by_stores_and_refused_by_tables():
    assert text_cell("a\0b") == "a\0b" and without_zero_bytes("ab") == "ab"
    with pytest.raises(DataError, match="holds a zero byte"):
        without_zero_bytes("a\0b")


@pytest.mark.parametrize(
    "field", ["text", "label", "speaker", "dialogue", "session", "audio", "start", "end"]
)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_nan_is_a_gap_in_every_column(tmp_path, field, suffix):
    path = tmp_path / f"t.{suffix}"
    if suffix == "jsonl":
        path.write_text(
            "\n".join(
                json.dumps(GOOD | {"id": f"u{i}", field: v}) for i, v in enumerate((math.nan, 0.5))
            )
        )
    else:
        columns = {name: [value, value] for name, value in GOOD.items()}
        pq.write_table(
            pa.table(columns | {"id": ["u0", "u1"], field: pa.array([math.nan, 0.5])}), path
        )
    row = prepare("table", source=path, split="none")[0].rows[0]
    assert getattr(row, field) is None


@pytest.mark.parametrize("field", NAMES)
@pytest.mark.parametrize(
    "value",
    [["a"], {"a": 1}, math.inf, "broken \ud83d", "a\0b"],
    ids=["list", "struct", "inf", "half", "zero"],
)
def test_json_that_is_no_text_names_the_line(tmp_path, field, value):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + json.dumps(GOOD | {"id": "u2", field: value}))
    with pytest.raises(DataError, match=rf"t.jsonl: line 3: {field} ") as error:
        prepare("table", source=path, split="none")
    assert len(str(error.value)) - len(str(path)) < 250


NO_TEXT = [
    pa.array([datetime.date(2020, 1, 1)]),
    pa.array([0], pa.timestamp("ns", "Europe/Berlin")),
    pa.array([1], pa.duration("ns")),
    pa.array([1], pa.time64("ns")),
    pa.array([["a"]]),
    pa.array([{"path": "a.wav", "bytes": b"x"}]),
    pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int32())),
]


@pytest.mark.parametrize("field", (*NAMES, "start", "end", "duration"))
@pytest.mark.parametrize("values", NO_TEXT, ids=lambda values: str(values.type)[:20])
def test_parquet_columns_that_are_no_text_are_refused(tmp_path, field, values):
    path = tmp_path / "t.parquet"
    pq.write_table(
        pa.table(
            {name: [value] for name, value in GOOD.items() if name != field} | {field: values}
        ),
        path,
    )
    with pytest.raises(
        DataError, match=rf"t.parquet: column '{field}' .* expected text or numbers"
    ):
        prepare("table", source=path, split="none")


@pytest.mark.parametrize(
    "kind",
    [
        pa.binary(),
        pa.large_binary(),
        pa.binary(9),
        pa.binary_view(),
        pa.string_view(),
        pa.large_string(),
    ],
)
@pytest.mark.parametrize("field", NAMES[:6])
def test_bytes_of_parquet_are_utf8(tmp_path, kind, field):
    word = {"split": "train", "audio": "d\u00e9j.wav"}.get(field, "d\u00e9j\u00e0")
    raw = word.encode()
    if kind == pa.binary(9):  # a fixed width is filled up with zeros
        raw = raw.ljust(9, b"\0")
    values = pa.array([raw if "binary" in str(kind) else word], kind)
    pq.write_table(
        pa.table(
            {name: [value] for name, value in GOOD.items() if name != field} | {field: values}
        ),
        tmp_path / "t.parquet",
    )
    manifest, _ = prepare("table", source=tmp_path / "t.parquet")
    assert getattr(manifest.rows[0], field) == word


def test_bytes_that_are_not_utf8_name_the_row(tmp_path):
    pq.write_table(
        pa.table({"id": ["1", "2"], "text": pa.array([b"x", b"\xff\xfe"])}), tmp_path / "t.parquet"
    )
    with pytest.raises(DataError, match="row 2: text is bytes that are not UTF-8"):
        prepare("table", source=tmp_path / "t.parquet")


def test_dictionaries_and_duplicate_columns(tmp_path):
    path = tmp_path / "t.parquet"
    coded = pa.array(["a", None, "a"]).dictionary_encode()
    pq.write_table(pa.table({"id": ["1", "2", "3"], "text": coded}), path)
    assert [u.text for u in prepare("table", source=path, split="none")[0].rows] == ["a", None, "a"]
    pq.write_table(pa.Table.from_arrays([pa.array(["1"])] * 3, names=["id", "text", "text"]), path)
    with pytest.raises(DataError, match="column 'text' is there 2 times"):
        prepare("table", source=path)


def test_a_list_of_labels_is_several_only_where_several_are_meant(tmp_path):
    rows = [
        GOOD | {"id": "u1", "label": ["joy, mixed", " fear"]},
        GOOD | {"id": "u2", "label": "joy, mixed; fear"},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    manifest, _ = prepare("table", source=tmp_path / "t.jsonl", task="multi")
    # a comma within a list's item is no separator
    assert manifest.labels == ("fear", "joy", "joy, mixed", "mixed")
    assert [u.targets for u in manifest.rows] == [(1, 0, 1, 0), (1, 1, 0, 1)]
    with pytest.raises(DataError, match="line 1: label is a list, expected text; several labels"):
        prepare("table", source=tmp_path / "t.jsonl")


@pytest.mark.parametrize("name", [f.name for f in SCHEMA])
@pytest.mark.parametrize(
    "values", [*NO_TEXT[:4], pa.array([math.nan])], ids=lambda values: str(values.type)[:20]
)
def test_a_manifest_of_other_types_is_refused(tmp_path, name, values):
    # the columns of films, and of unimodal labels, are there only where a row names one
    film = {"video": "f.mp4", "video_start": 0.0, "video_end": 1.0}
    row = Utterance("1", label="a", unimodal=("text=a",), **film)
    Manifest("m", "single", ("a",), (row,), tmp_path).write(tmp_path / "m.parquet")
    table = pq.read_table(tmp_path / "m.parquet")
    pq.write_table(
        table.set_column(table.column_names.index(name), name, values), tmp_path / "m.parquet"
    )
    with pytest.raises(DataError, match="m.parquet"):
        Manifest.read(tmp_path / "m.parquet")


def test_names_that_look_alike():
    assert warn_near_duplicates(["joy", "anger", "joy", None]) == []
    for pair, how in (
        (("Joy", "joy"), "only by case:"),
        (("a b", "a  b"), "only by case or blanks"),
        (("\u00e9", "e\u0301"), "look alike"),
    ):
        (line,) = warn_near_duplicates(pair, "speakers")
        assert line.startswith("speakers that ") and how in line
