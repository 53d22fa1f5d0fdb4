"""Published folds in one's own tables: columns, JSON lists, and what is wrong with them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from mer.cli import main
from mer.pipeline.manifest import Manifest, Utterance

from tests.datasets.trees import write_wav

SPEAKERS = ("ann", "ann", "ben", "ben", "cat", "cat")


def write_table(folder: Path, **columns: list[str]) -> Path:
    """Six rows u0…u5 of three speakers, with these columns more."""
    sound = write_wav(folder / "u.wav").name
    names = ["id", "audio", "label", "speaker", *columns]
    with open(folder / "t.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for row, speaker in enumerate(SPEAKERS):
            others = [column[row] for column in columns.values()]
            writer.writerow([f"u{row}", sound, "ab"[row % 2], speaker, *others])
    return folder / "t.csv"


def run(table: Path, *options: str):
    out = str(table.parent / "m.parquet")
    return CliRunner().invoke(
        main, ["prepare", "table", "--from", str(table), "--out", out, *options]
    )


def folds_of(table: Path) -> list[tuple[str, ...]]:
    return [u.folds for u in Manifest.read(table.parent / "m.parquet").rows]


def test_a_column_of_names_says_which_fold_tests_a_row(tmp_path):
    table = write_table(tmp_path, fold=["1", "1", "2", "2", "10", ""])
    done = run(table)
    assert done.exit_code == 0, done.stderr
    assert folds_of(table) == [
        *[("1=test", "2=train", "10=train")] * 2,
        *[("1=train", "2=test", "10=train")] * 2,
        ("1=train", "2=train", "10=test"),
        (),
    ]
    assert "published folds: 3, for `mer train --folds published`" in done.stdout
    assert "  1: 3 train, 2 test\n  2: 3 train, 2 test\n  10: 4 train, 1 test\n" in done.stdout
    assert {u.split for u in Manifest.read(tmp_path / "m.parquet").rows} == {""}


def test_a_column_of_parts_is_one_fold_and_several_are_several(tmp_path):
    first = ["train", "train", "valid", "valid", "test", "test"]
    second = ["test", "test", "train", "train", "Training", ""]
    table = write_table(tmp_path, a=first, b=second)
    done = run(table, "--column", "fold=a", "--column", "fold=b")
    assert done.exit_code == 0, done.stderr
    assert folds_of(table) == [
        *[("a=train", "b=test")] * 2,
        *[("a=dev", "b=train")] * 2,
        ("a=test", "b=train"),
        ("a=test",),
    ]


def test_columns_of_a_repeated_cross_validation_have_folds_of_their_own(tmp_path):
    table = write_table(tmp_path, r1=list("121212"), r2=list("112211"))
    assert run(table, "--column", "fold=r1", "--column", "fold=r2").exit_code == 0
    assert folds_of(table)[1] == ("r1.1=train", "r1.2=test", "r2.1=test", "r2.2=train")


def test_a_split_column_stays_beside_folds(tmp_path):
    table = write_table(
        tmp_path, split=["train"] * 3 + ["dev", "test", "test"], fold=list("112233")
    )
    assert run(table).exit_code == 0
    rows = Manifest.read(tmp_path / "m.parquet").rows
    assert [u.split for u in rows] == ["train"] * 3 + ["dev", "test", "test"]
    assert rows[0].folds == ("1=test", "2=train", "3=train")


@pytest.mark.parametrize(
    ("lists", "folds"),
    [
        ([["u0", "u1"], ["u2"]], {"u0": ("1=test", "2=train"), "u5": ("1=train", "2=train")}),
        ({"x": ["u0"]}, {"u0": ("x=test",), "u1": ("x=train",)}),
        (
            {"x": {"train": ["u0"], "val": ["u1"], "test": ["u2"]}},
            {"u0": ("x=train",), "u1": ("x=dev",), "u2": ("x=test",), "u3": ()},
        ),
        ([{"test": ["u0"], "dev": ["u1"]}], {"u0": ("1=test",), "u1": ("1=dev",)}),
        ([{"test": ["u0"], "dev": ["u1"]}], {"u2": ("1=train",), "u5": ("1=train",)}),
    ],
)
def test_lists_in_json(lists, folds, tmp_path):
    table = write_table(tmp_path)
    (tmp_path / "folds.json").write_text(json.dumps(lists))
    done = run(table, "--fold-lists", str(tmp_path / "folds.json"))
    assert done.exit_code == 0, done.stderr
    found = {u.id: u.folds for u in Manifest.read(tmp_path / "m.parquet").rows}
    assert {id: found[id] for id in folds} == folds


@pytest.mark.parametrize(
    ("lists", "said"),
    [
        ({"x": ["u0", "v1", "v2"]}, "fold 'x' names 2 of its 3 ids that no row has: v1, v2"),
        ({"x": ["u0", "u0"]}, "fold 'x' has 1 id twice: u0"),
        ({"x": {"train": ["u0"], "test": ["u0"]}}, "fold 'x' has 1 id twice: u0"),
        ({"x": {"train": ["u0"]}}, "fold 'x' has nothing to test"),
        ({"x": []}, "fold 'x' has nothing to test"),
        ({"x": {"tset": ["u0"]}}, "fold 'x' has a part 'tset'"),
        ({"x": {"dev": ["u0"], "valid": ["u1"], "test": ["u2"]}}, "a part 'valid'"),
        ({"x": "u0"}, "fold 'x' is not a list of ids"),
        ({"x": [["u0"]]}, "fold 'x': its test is not a list of ids"),
        ({}, "expected an object or a list of folds"),
        ("u0", "expected an object or a list of folds"),
    ],
)
def test_lists_that_cannot_be_are_one_line_with_counts(lists, said, tmp_path):
    table = write_table(tmp_path)
    (tmp_path / "folds.json").write_text(json.dumps(lists))
    done = run(table, "--fold-lists", str(tmp_path / "folds.json"))
    assert done.exit_code == 1 and not done.stdout
    assert said in " ".join(done.stderr.split()) and len(done.stderr.strip()) <= 300


def test_what_would_be_lost_without_a_word_is_refused(tmp_path):
    table = write_table(tmp_path, fold=list("112233"))
    lists = tmp_path / "folds.json"
    lists.write_text('{"a": ["u1"], "a": ["u2"]}')
    done = run(table, "--fold-lists", str(lists))
    assert done.exit_code == 1 and "'a' is there twice" in " ".join(done.stderr.split())
    done = run(table, "--fold-lists", str(lists), "--column", "fold=fold")
    assert done.exit_code == 1 and "give one of them" in done.stderr


def test_one_name_alone_is_no_fold(tmp_path):
    done = run(write_table(tmp_path, fold=["1"] * 6))
    assert done.exit_code == 1
    assert "column 'fold' names one fold, '1'; two are needed" in " ".join(done.stderr.split())


def test_a_speaker_on_both_sides_is_told_and_refused_where_none_may_be(tmp_path):
    table = write_table(tmp_path, fold=list("112122"))
    done = run(table)
    assert done.exit_code == 0
    assert "1: 3 train, 3 test; 1 speaker of its test (1 row) in train, too" in done.stdout
    done = run(table, "--speaker-independent")
    said = " ".join(done.stderr.split())
    assert done.exit_code == 1 and "2 of 2 folds not speaker-independent" in said
    assert "in fold '1' 1 speaker of test (ben; 1 row) in train, too" in said
    assert run(write_table(tmp_path, fold=list("112233")), "--speaker-independent").exit_code == 0


def test_a_column_that_is_not_there_is_named(tmp_path):
    done = run(write_table(tmp_path), "--column", "fold=cv")
    assert done.exit_code == 1 and "no column 'cv' (for fold)" in done.stderr


def test_a_manifest_without_folds_is_of_version_1_and_hashes_as_before(tmp_path):
    import pyarrow.parquet as pq

    for version, folds in ((1, ()), (2, ("1=test",))):
        manifest = Manifest(
            "m", "single", ("a",), (Utterance("x", label="a", folds=folds),), tmp_path
        )
        manifest.write(tmp_path / "m.parquet")
        schema = pq.read_schema(tmp_path / "m.parquet")
        assert json.loads(schema.metadata[b"mer"])["version"] == version
        assert ("folds" in schema.names) == (version == 2)
        assert Manifest.read(tmp_path / "m.parquet").rows == manifest.rows
    bare = Manifest("m", "single", ("a",), (Utterance("x", label="a"),), tmp_path)
    # sha256 of the version before folds came
    assert bare.hash == "1d393d4cb206c76714adb0603dabaeb2d2f476b31b71460ed0ff1ee24307018e"


@pytest.mark.parametrize(
    "later, version, digest",
    [
        (
            {"folds": ("1=test",)},
            2,
            "7d2a0d7f3f503e03bf42c7188998aa8bb4bbda2ad97b459e22ba894a127e483c",
        ),
        (
            {"video": "v.mp4", "video_start": 0.5, "video_end": 1.5},
            2,
            "7333a557ec1d9c9251611c02162ee2a9980eda680156a99eaca13c7340b21b50",
        ),
        ({"unimodal": ("text=a",)}, 3, None),
    ],
)
def test_a_column_that_came_later_leaves_the_others_as_they_were(later, version, digest, tmp_path):
    """The digests are sha256 of the version before unimodal labels came."""
    import pyarrow.parquet as pq

    one = Manifest("m", "single", ("a",), (Utterance("x", label="a", **later),), tmp_path)
    assert digest in (None, one.hash)
    one.write(tmp_path / "m.parquet")
    schema = pq.read_schema(tmp_path / "m.parquet")
    assert json.loads(schema.metadata[b"mer"])["version"] == version
    assert ("unimodal" in schema.names) == ("unimodal" in later)
    assert Manifest.read(tmp_path / "m.parquet").rows == one.rows


@pytest.mark.parametrize("entry", ["1", "1=", "=test", "1=valid", " 1=test"])
def test_a_fold_that_is_no_name_and_part_is_refused(entry, tmp_path):
    from mer.pipeline.errors import DataError

    with pytest.raises(DataError, match="expected NAME=train"):
        Manifest("m", "single", ("a",), (Utterance("x", folds=(entry,)),), tmp_path)
    with pytest.raises(DataError, match="twice in fold '1'"):
        twice = Utterance("x", folds=("1=test", "1=train"))
        Manifest("m", "single", ("a",), (twice,), tmp_path)
