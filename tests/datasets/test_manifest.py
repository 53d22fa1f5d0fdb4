"""The manifest file: what is written is read, its hash names the rows only, and what is no manifest
says so in one line.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mer.pipeline.errors import DataError
from mer.pipeline.manifest import LATER, SCHEMA, Manifest, Utterance

HASH_BEFORE = "e40af3610e40078de02664d2c9032fd320e3f3de387e194b0af9ae6ffd2a1af4"
ROWS = (
    Utterance(
        "train/dia0_utt0",
        "a/b.wav",
        "nan",
        "train",
        "joy",
        None,
        "s",
        "d",
        "Ses01",
        3,
        0.5,
        1.25,
        "cut",
        ("x", "y"),
    ),
    Utterance("-id$_$1", None, "مرحبا 😀\n", "", None, None),
)


def make(root, rows=ROWS, **changes) -> Manifest:
    return Manifest(
        **{"dataset": "m", "task": "single", "labels": ("joy", "sad"), "rows": rows, "root": root}
        | changes
    )


def test_round_trip(tmp_path):
    manifest = make(tmp_path / "media", language="zh", source={"seed": 1})
    manifest.write(tmp_path / "m.parquet")
    again = Manifest.read(tmp_path / "m.parquet")
    assert again == manifest and again.hash == manifest.hash
    before = pa.schema([field for field in SCHEMA if field.name not in LATER])
    assert pq.read_schema(tmp_path / "m.parquet").remove_metadata() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.parquet"]  # no temporary file is left


@pytest.mark.parametrize(("task", "targets"), [("multi", (1.0, 0.0)), ("regression", (-1.5,))])
def test_targets(tmp_path, task, targets):
    manifest = make(tmp_path, (Utterance("1", targets=targets), Utterance("2")), task=task)
    manifest.write(tmp_path / "m.parquet")
    assert Manifest.read(tmp_path / "m.parquet").rows == manifest.rows
    with pytest.raises(DataError, match="1 has 3 targets"):
        make(tmp_path, (Utterance("1", targets=(1.0, 0.0, 0.0)),), task=task)


def test_some_rows_with_one_target_and_some_with_more_are_refused(tmp_path):
    """One target under several names is allowed, of all rows: which it is, is not known of one."""
    rows = (Utterance("a", targets=(1.0,)), Utterance("b"), Utterance("c", targets=(1.0, 2.0)))
    for order in (rows, rows[::-1]):
        with pytest.raises(DataError, match="a has 1 target and c has 2") as caught:
            make(tmp_path, order, task="regression")
        assert "give every row as many" in str(caught.value) and len(str(caught.value)) <= 300
    for same in (rows[:2], rows[1:]):
        assert len(make(tmp_path, same, task="regression")) == 2


def test_the_hash_is_of_the_rows_and_not_of_the_place(tmp_path):
    manifest = make(tmp_path)
    assert manifest.hash == make(tmp_path / "elsewhere", source={"x": 1}).hash
    changes = {
        "text": "x",
        "label": "sad",
        "split": "dev",
        "start": 0.25,
        "tags": ("x",),
        "position": 4,
        "known_bad": None,
    }
    hashes = {
        make(tmp_path, (replace(ROWS[0], **{k: v}), ROWS[1])).hash for k, v in changes.items()
    }
    assert len(hashes | {manifest.hash, make(tmp_path, ROWS[::-1]).hash}) == len(changes) + 2


@pytest.mark.parametrize(
    ("rows", "changes", "part"),
    [
        ((Utterance("1"), Utterance("1")), {}, "duplicate id '1'"),
        ((Utterance(""),), {}, "empty id"),
        ((Utterance("1", split="eval"),), {}, "1 has split 'eval'"),
        ((Utterance("1", label="bliss"),), {}, "1 has unknown label 'bliss'; known: joy, sad"),
        ((), {"task": "sorting"}, "task 'sorting' is not one of"),
    ],
)
def test_rows_that_make_no_sense(tmp_path, rows, changes, part):
    with pytest.raises(DataError, match=part):
        make(tmp_path, rows, **changes)


def test_files_that_are_no_manifest(tmp_path):
    good = make(tmp_path)
    good.write(tmp_path / "good.parquet")
    table = pq.read_table(tmp_path / "good.parquet")
    meta = json.loads(table.schema.metadata[b"mer"])

    def write(name, table, meta):
        pq.write_table(
            table.replace_schema_metadata(
                {"mer": meta if isinstance(meta, str) else json.dumps(meta)}
            ),
            tmp_path / name,
        )

    (tmp_path / "text.parquet").write_text("id,text\n")
    pq.write_table(pa.table({"id": ["1"]}), tmp_path / "plain.parquet")
    write("version.parquet", table, meta | {"version": 9})
    write("json.parquet", table, "{")
    write("keys.parquet", table, {k: v for k, v in meta.items() if k != "root"})
    write("columns.parquet", table.drop_columns(["speaker"]), meta)
    write("types.parquet", table.set_column(9, "position", pa.array(["x", None])), meta)
    write("nulls.parquet", table.set_column(0, "id", pa.array([None, "2"], pa.string())), meta)
    for name, part in (
        ("absent.parquet", "no such manifest; make one with `mer prepare`"),
        ("text.parquet", "not a readable Parquet"),
        ("plain.parquet", "not a mer manifest; turn a table into one"),
        ("version.parquet", "version 9, this mer reads 1"),
        ("json.parquet", "not a manifest of version 1"),
        ("keys.parquet", "'root'"),
        ("columns.parquet", "speaker"),
        ("types.parquet", "not a manifest of version 1"),
        ("nulls.parquet", "null|empty id|NoneType"),
    ):
        with pytest.raises(DataError, match=part) as error:
            Manifest.read(tmp_path / name)
        assert name in str(error.value) or "empty id" in str(error.value)
        assert "\n" not in str(error.value)


def test_a_picture_in_another_file(tmp_path):
    rows = (Utterance("1", "a.wav", video="a.avi", video_start=2.0, video_end=3.5), Utterance("2"))
    manifest = make(tmp_path, rows)
    manifest.write(tmp_path / "m.parquet")
    again = Manifest.read(tmp_path / "m.parquet")
    assert again == manifest and again.hash == manifest.hash
    before = pa.schema([field for field in SCHEMA if field.name != "unimodal"])
    assert pq.read_schema(tmp_path / "m.parquet").remove_metadata() == before
    assert manifest.hash != make(tmp_path, (Utterance("1", "a.wav"), Utterance("2"))).hash


def test_without_one_a_manifest_is_as_it_was_before_there_were_any(tmp_path):
    """Its hash is in runs and stores; this one was made by the code of 5953f79."""
    rows = (Utterance("1", "a.wav", "hello", "train", "joy", start=0.5), Utterance("2", text="so"))
    assert make(tmp_path, rows).hash == HASH_BEFORE


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"video": ""}, "no file can be called"),
        ({"video_start": 1.0}, "without a video"),
        ({"video": "a.avi", "video_start": 2.0, "video_end": 1.0}, "has a video that ends at 1 s"),
        ({"video": "a.avi", "video_start": -1.0}, "video_start -1, expected seconds"),
    ],
)
def test_pictures_that_cannot_be(tmp_path, changes, said):
    with pytest.raises(DataError, match=said):
        make(tmp_path, (Utterance("1", **changes),))
