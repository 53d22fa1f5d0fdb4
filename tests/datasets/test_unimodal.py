"""Unimodal labels: what the words, the voice or the face of an utterance says by itself, from
CH-SIMS's label.csv and from columns of one's own table.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from mer.cli import main
from mer.pipeline.datasets import prepare
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Manifest, Utterance

from tests.datasets.byname import TREES, write_tree
from tests.datasets.trees import write_wav


def write_table(folder: Path, rows: list[tuple], columns: str = "label label_T label_A") -> Path:
    """A row of three speakers in turn for each of `rows`."""
    sound = write_wav(folder / "u.wav").name
    with open(folder / "t.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "audio", "speaker", *columns.split()])
        for number, cells in enumerate(rows):
            writer.writerow([f"u{number}", sound, f"s{number % 3}", *cells])
    return folder / "t.csv"


def run(table: Path, *options: str):
    out = str(table.parent / "m.parquet")
    words = ["prepare", "table", "--from", str(table), "--out", out, *options]
    return CliRunner().invoke(main, words)


NUMBERS = [(0.4, -0.4, 1), (0, 0.2, ""), (-1, 0, 0.6), (0.2, 1, -1), ("", 0.1, 0.1), (0.6, 0, 0)]
CLASSES = [("a", "b", "a"), ("b", "b", ""), ("a", "a", "b")] * 2
BOTH = ("--unimodal", "text=label_T,audio=label_A")


def test_ch_sims_says_what_each_modality_says_whatever_is_learnt(tmp_path):
    tree = TREES["ch_sims"][0]
    root = write_tree(tmp_path, tree.files, tree.tables)
    for labels in ("sentiment", "vision"):
        manifest, found = prepare("ch_sims", root, labels=labels)
        assert [u.unimodal for u in manifest.rows] == [
            ("text=-0.8", "audio=-0.8", "vision=-1.0"),
            ("text=0.2", "audio=0.0", "vision=0.0"),
            ("text=0.6", "audio=0.2", "vision=1.0"),
        ]
        assert "unimodal labels: text 3, audio 3, vision 3" in found.lines()


def test_gaps_bad_cells_and_absent_columns_of_ch_sims_are_said(tmp_path):
    tree = TREES["ch_sims"][0]
    root = write_tree(tmp_path, tree.files, tree.tables)
    whole = tree.tables["label.csv"]

    def with_first_row(cells: str) -> None:
        (root / "label.csv").write_text(whole.replace(",-1.0,-0.8,-0.8,-1.0,", cells, 1))

    with_first_row(",-1.0,,-0.8,-1.0,")
    manifest, found = prepare("ch_sims", root)
    assert manifest.rows[0].unimodal == ("audio=-0.8", "vision=-1.0")
    assert "unimodal labels: audio 3, vision 3, text 2 (1 labelled row without)" in found.lines()
    for cell, told in (("5", "label_T 5, expected a number from -1 to 1"), ("x", "label_T 'x'")):
        with_first_row(f",-1.0,{cell},-0.8,-1.0,")
        with pytest.raises(DataError, match=f"label.csv: line 2 has {told}"):
            prepare("ch_sims", root)
    (root / "label.csv").write_text(whole.replace("label_V", "other"))
    manifest, found = prepare("ch_sims", root)
    assert manifest.rows[0].unimodal == ("text=-0.8", "audio=-0.8")
    assert "no column label_V: no such unimodal labels" in found.warnings


def test_columns_of_a_table_are_numbers_or_classes_as_the_label_is(tmp_path):
    table = write_table(tmp_path, NUMBERS)
    done = run(table, *BOTH, "--task", "regression")
    assert done.exit_code == 0, done.stderr
    assert "unimodal labels: text 6, audio 5 (1 labelled row without)" in done.stdout
    manifest = Manifest.read(tmp_path / "m.parquet")
    assert manifest.rows[0].unimodal == ("text=-0.4", "audio=1.0")
    assert manifest.rows[1].unimodal == ("text=0.2",)
    run(write_table(tmp_path, CLASSES), *BOTH)
    rows = Manifest.read(tmp_path / "m.parquet").rows
    assert [u.unimodal for u in rows[:2]] == [("text=b", "audio=a"), ("text=b",)]


@pytest.mark.parametrize(
    ("rows", "options", "told"),
    [
        (CLASSES, ("--unimodal", "text"), "expected MODALITY=COLUMN"),
        (CLASSES, ("--unimodal", "Text=label_T"), "no modality Text (did you mean 'text'?)"),
        (CLASSES, ("--unimodal", "face=label_T"), "no modality face; there are text, audio, vis"),
        (CLASSES, ("--unimodal", "text=label_T", "--unimodal", "text=label_A"), "there twice"),
        (CLASSES, ("--unimodal", "text=label_T,text=label_A"), "there twice"),
        (CLASSES, ("--unimodal", "text=label_T,audio=label_T"), "there twice"),
        (
            CLASSES,
            ("--unimodal", "text=label_X"),
            "no column 'label_X' (for unimodal) (did you",
        ),
        ([*CLASSES, ("a", "c", "a")], BOTH, "line 8 has label_T 'c', which is not among the label"),
        ([*NUMBERS, (1, "glad", 1)], (*BOTH, "--task", "regression"), "line 8 has label_T 'glad'"),
        (CLASSES, (*BOTH, "--task", "multi"), "here it has several labels"),
        ([("", "a", "b")] * 3, BOTH, "--unimodal stands beside a common label"),
    ],
)
def test_what_cannot_be_is_one_line(rows, options, told, tmp_path):
    done = run(write_table(tmp_path, rows), *options)
    assert done.exit_code == 1 and told in done.stderr
    assert len(done.stderr.splitlines()) == 1 and len(done.stderr) <= 300


def test_columns_are_named_in_one_option_or_in_several_commas_and_all(tmp_path):
    table = write_table(tmp_path, CLASSES, "label label_T what,A")
    for words in (("text=label_T,audio=what,A",), ("text=label_T", "audio=what,A")):
        done = run(table, *(word for pair in words for word in ("--unimodal", pair)))
        assert done.exit_code == 0, done.stderr
        assert Manifest.read(tmp_path / "m.parquet").rows[0].unimodal == ("text=b", "audio=a")


def test_whole_numbers_with_decimals_are_the_classes_of_these_numbers(tmp_path):
    done = run(write_table(tmp_path, [(1, "1.0", 0), (0, "", 1), (1, "0.0", 1)]), *BOTH)
    assert done.exit_code == 0, done.stderr
    rows = Manifest.read(tmp_path / "m.parquet").rows
    assert [u.unimodal for u in rows] == [
        ("text=1", "audio=0"),
        ("audio=1",),
        ("text=0", "audio=1"),
    ]
    done = run(write_table(tmp_path, [(1, "1.5", 0), (0, "", 1)]), *BOTH)
    assert done.exit_code == 1 and "has label_T '1.5', which is not among the labels" in done.stderr


def test_a_column_without_a_label_is_told(tmp_path):
    done = run(write_table(tmp_path, [(label, said, "") for label, said, _ in CLASSES]), *BOTH)
    assert done.exit_code == 0, done.stderr
    assert "all cells of label_A are empty: no unimodal labels of audio" in done.stdout


def test_targets_given_one_by_one_are_all_of_them(tmp_path):
    table = write_table(tmp_path, NUMBERS)
    done = run(table, "--targets", "label_T", "--targets", "label_A")
    assert done.exit_code == 0, done.stderr
    assert Manifest.read(tmp_path / "m.parquet").labels == ("label_T", "label_A")


def test_several_targets_have_none(tmp_path):
    table = write_table(tmp_path, NUMBERS)
    done = run(table, "--targets", "label,label_A", "--unimodal", "text=label_T")
    assert done.exit_code == 1 and "here it has 2 targets" in done.stderr


def test_constant_labels_and_those_of_another_scale_are_warned_of(tmp_path):
    rows = [(label, 0.5, 70 * row) for row, (label, *_) in enumerate(NUMBERS)]
    done = run(write_table(tmp_path, rows), *BOTH, "--task", "regression")
    assert "all unimodal labels of text are the same: there is nothing to learn" in done.stdout
    told = "unimodal labels of audio go from 0 to 350, the common ones from -1 to 0.6: are they on"
    assert told in done.stdout


def test_a_manifest_without_them_is_as_it_was(tmp_path):
    rows = (Utterance("a", text="x", label="no"), Utterance("b", text="y", label="yes"))
    plain = Manifest("mine", "single", ("no", "yes"), rows, tmp_path)
    plain.write(tmp_path / "plain.parquet")
    assert "unimodal" not in pq.read_schema(tmp_path / "plain.parquet").names
    assert b'"version": 1' in pq.read_schema(tmp_path / "plain.parquet").metadata[b"mer"]
    said = (Utterance("a", text="x", label="no", unimodal=("text=yes",)), rows[1])
    other = Manifest("mine", "single", ("no", "yes"), said, tmp_path)
    other.write(tmp_path / "other.parquet")
    assert b'"version": 3' in pq.read_schema(tmp_path / "other.parquet").metadata[b"mer"]
    assert Manifest.read(tmp_path / "other.parquet").rows[0].unimodal == ("text=yes",)
    # its hash by the code of before
    before = "45b4a82feec7bb68bafbc08fe2049ab7f0dedc761fd9b2b1a16c556919f128c9"
    assert plain.hash == before != other.hash


@pytest.mark.parametrize(
    ("task", "entries", "told"),
    [
        ("single", ("text=perhaps",), "unknown unimodal label 'perhaps' of text; known: no, yes"),
        ("single", ("text",), "expected MODALITY=LABEL"),
        ("single", ("text=no", "text=yes"), "two unimodal labels of text"),
        ("regression", ("text=nan",), "'nan' of text, expected a number"),
        ("multi", ("text=1",), "here it has several labels"),
    ],
)
def test_a_manifest_that_promises_what_cannot_be_is_refused(task, entries, told, tmp_path):
    labels = ("no", "yes") if task != "regression" else ("how",)
    with pytest.raises(DataError, match=told):
        Manifest("mine", task, labels, (Utterance("a", text="x", unimodal=entries),), tmp_path)
