"""Anyone's table: read as text, split by group, and one clear line for what cannot be used."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from mer.cli import main
from mer.pipeline.datasets import prepare, table
from mer.pipeline.datasets.groupsplit import SHARES, split_groups
from mer.pipeline.errors import DataError

from tests.datasets.trees import write_wav

ROWS = [
    {"id": "a", "text": "nan", "label": "NA", "speaker": "s1", "split": "train"},
    {
        "id": "b",
        "text": '=HYPERLINK("x"), "quoted"\nand a new line',
        "label": "joy",
        "speaker": "s2",
        "split": "valid",
    },
    {"id": "c", "text": "مرحبا 😀 \u202eabc", "label": "joy", "speaker": "s3", "split": "Test"},
    {"id": "007", "text": "007", "label": "NA", "speaker": "s3", "split": "train"},
]


def write(folder, suffix: str, rows=ROWS, name="t"):
    path = folder / f"{name}.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    else:
        import csv

        with path.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="," if suffix == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_every_format_gives_the_same_rows_with_text_untouched(tmp_path, suffix):
    manifest, _ = prepare("table", source=write(tmp_path, suffix))
    assert [(u.id, u.text, u.label, u.speaker) for u in manifest.rows] == [
        (r["id"], r["text"], r["label"], r["speaker"]) for r in ROWS
    ]
    assert [u.split for u in manifest.rows] == ["train", "dev", "test", "train"]
    assert manifest.labels == ("NA", "joy") and manifest.dataset == "t"


def test_crlf_and_an_empty_cell(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"id,text,label,split\r\n1,,x,train\r\n2,hi,,dev\r\n")
    manifest, report = prepare("table", source=tmp_path / "t.csv")
    assert [(u.text, u.label) for u in manifest.rows] == [(None, "x"), ("hi", None)]
    assert "1 row has no label, the first on line 3" in report.warnings and report.counts[
        "dev"
    ] == {"(none)": 1}


def test_a_quote_that_is_not_closed_swallows_rows_and_that_is_said(tmp_path):
    (tmp_path / "t.csv").write_bytes(
        b'id,text,split\n1,x,train\n2,"never closed,train\n3,y,train\n4,z",dev\n'
    )
    manifest, report = prepare("table", source=tmp_path / "t.csv")
    assert len(manifest) == 2
    assert (
        "1 cell of text with a line break, the first on line 3: if that is not meant, a quote is "
        "not closed" in report.warnings
    )


def test_columns_are_mapped_and_labels_ordered(tmp_path):
    path = write(
        tmp_path,
        "csv",
        [{"n": "1", "utt": "x", "emo": "sad"}, {"n": "2", "utt": "y", "emo": "glad"}],
    )
    manifest, _ = prepare(
        "table",
        source=path,
        columns={"id": "n", "text": "utt", "label": "emo"},
        labels="sad,glad",
        split="none",
    )
    assert manifest.labels == ("sad", "glad") and [u.split for u in manifest.rows] == ["", ""]


def test_lhotse_like_json_lines(tmp_path):
    row = {
        "id": "u1",
        "recording_id": "r1",
        "start": 1.5,
        "duration": 2.0,
        "channel": 0,
        "text": "hi",
        "custom": {"emotion": "joy"},
    }
    path = write(tmp_path, "jsonl", [row, row | {"id": "u2", "custom": {"emotion": "fear"}}])
    write_wav(tmp_path / "r1.wav")
    manifest, report = prepare(
        "table",
        source=path,
        columns={"audio": "recording_id", "label": "custom.emotion"},
        split="none",
    )
    first = manifest.rows[0]
    assert (first.audio, first.start, first.end, first.label) == (
        "r1.wav",
        1.5,
        3.5,
        "joy",
    ) and not report.missing


def test_multi_label_and_regression(tmp_path):
    path = write(
        tmp_path,
        "csv",
        [{"id": "1", "text": "x", "label": "sad, anger"}, {"id": "2", "text": "y", "label": "joy"}],
    )
    manifest, _ = prepare("table", source=path, task="multi", split="none")
    assert manifest.labels == ("anger", "joy", "sad") and [u.targets for u in manifest.rows] == [
        (1.0, 0.0, 1.0),
        (0.0, 1.0, 0.0),
    ]
    path = write(
        tmp_path,
        "csv",
        [{"id": "1", "text": "x", "score": "-1.5"}, {"id": "2", "text": "y", "score": "3"}],
    )
    manifest, _ = prepare(
        "table", source=path, task="regression", columns={"label": "score"}, split="none"
    )
    assert manifest.labels == ("score",) and [u.targets for u in manifest.rows] == [(-1.5,), (3.0,)]


# --- audio


def audio_table(tmp_path, *values, **options):
    path = write(
        tmp_path, "csv", [{"id": str(i), "audio": v, "label": "x"} for i, v in enumerate(values)]
    )
    (tmp_path / "wavs").mkdir(exist_ok=True)
    return prepare("table", tmp_path / "wavs", source=path, split="none", **options)


def test_audio_is_found_with_and_without_its_extension(tmp_path):
    for name in ("a.wav", "sub/b.wav", "c.d.wav"):
        write_wav(tmp_path / "wavs" / name)
    manifest, report = audio_table(
        tmp_path, "a", "sub/b", "./sub/../a.wav", "c.d", str(tmp_path / "wavs" / "a.wav"), "gone"
    )
    assert [u.audio for u in manifest.rows] == [
        "a.wav",
        "sub/b.wav",
        "a.wav",
        "c.d.wav",
        "a.wav",
        "gone",
    ]
    assert report.missing == ["5"]


def test_two_files_for_one_name_are_an_error(tmp_path):
    write_wav(tmp_path / "wavs" / "a.wav")
    write_wav(tmp_path / "wavs" / "a.flac")
    with pytest.raises(
        DataError, match=r"line 2 has audio 'a', which may be a.flac or a.wav; give the extension"
    ):
        audio_table(tmp_path, "a")
    assert audio_table(tmp_path, "a.wav")[0].rows[0].audio == "a.wav"


@pytest.mark.parametrize(
    "value", ["../t.csv", "/etc/passwd", "a/../../t.csv", "..", ".", "wavs/../..", "../wavs2/x.wav"]
)
def test_audio_outside_its_folder_is_refused(tmp_path, value):
    (tmp_path / "wavs2").mkdir()
    with pytest.raises(DataError, match="line 2 has audio .* not a file within"):
        audio_table(tmp_path, value)


# --- splits


def test_without_a_split_no_group_is_in_two_and_it_is_said(tmp_path):
    rows = [
        {"id": str(i), "text": "x", "label": "ab"[i % 2], "speaker": f"s{i % 9}"} for i in range(90)
    ]
    path = write(tmp_path, "csv", rows)
    manifest, report = prepare("table", source=path)
    assert {(u.speaker, u.split) for u in manifest.rows} == {
        (u.speaker, u.split) for u in prepare("table", source=path)[0].rows
    }
    assert len({(u.speaker, u.split) for u in manifest.rows}) == 9
    assert report.warnings == [
        "no audio column (--column audio=NAME): the utterances have no audio",
        "no split column: split by speaker with seed 0 (9 speakers)",
    ]
    assert report.overlaps["train/test"]["speakers"] == 0
    assert prepare("table", source=path, seed=1)[0].hash != manifest.hash


def test_dialogue_comes_before_speaker_and_too_few_groups_are_an_error(tmp_path):
    rows = [
        {"id": str(i), "text": "x", "label": "a", "speaker": "s", "dialogue": f"d{i % 3}"}
        for i in range(9)
    ]
    _, report = prepare("table", source=write(tmp_path, "csv", rows))
    assert any("split by dialogue" in w for w in report.warnings)
    rows = [{k: v for k, v in r.items() if k != "dialogue"} for r in rows]
    with pytest.raises(DataError, match="only 1 speakers, too few .*--split none"):
        prepare("table", source=write(tmp_path, "csv", rows))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=3, max_size=120), st.integers(0, 5))
def test_split_groups_keeps_groups_whole_and_no_split_empty(groups, seed):
    groups = [str(g) for g in groups]
    splits = split_groups(groups, seed)
    assert len({*zip(groups, splits, strict=True)}) == len(set(groups))
    assert len(set(splits)) == min(3, len(set(groups))) and set(splits) <= set(SHARES)


def test_large_tables_come_close_to_the_shares():
    splits = split_groups((str(i) for i in range(1000)), 0)
    assert [splits.count(s) for s in SHARES] == [700, 150, 150]


# --- bad input


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "empty file"),
        (b"id,text\n", "no rows"),
        (b"id,label\n1,x\n", "neither audio nor text"),
        (b"id,text,label\n1,x\n", "Expected 3 columns, got 2"),
        (b"id,text,text\n1,x,y\n", "column 'text' is there twice"),
        (b"id,text\n1,x\n1,y\n", "id '1' is there 2 times, first on line 2 and line 3"),
        (b"id,text\n1,x\n,y\n", "line 3 has an empty id"),
        (b"id,text,split\n1,x,eval2\n", "line 2 has split 'eval2'"),
        (b"id,text,start\n1,x,soon\n", "line 2 has start 'soon', expected a number"),
        (b"id,text,start,end\n1,x,3,2\n", "line 2 ends at 2 s, not after its start at 3 s"),
        ("id,text\n1,caf\u00e9\n".encode("latin-1"), "invalid UTF8|not UTF-8"),
        ("id,t\u00e9xt\n1,x\n".encode("latin-1"), "not UTF-8 .byte 0xe9"),
        ("id,text\n1,x\n".encode("utf-16"), "not UTF-8"),
    ],
)
def test_a_bad_csv_is_one_line(tmp_path, content, part):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=part) as error:
        prepare("table", source=tmp_path / "t.csv")
    assert "t.csv" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("[1]\n", "line 1 is not a JSON object"),
        ('{"id": "1", "text": "x"}\n{oops\n', "line 2 is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("", "no rows"),
    ],
)
def test_bad_json_lines_are_one_line(tmp_path, content, part):
    (tmp_path / "t.jsonl").write_text(content)
    with pytest.raises(DataError, match=part):
        prepare("table", source=tmp_path / "t.jsonl")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b'id,text,split\n1,"two\nlines",train\n\n2,x,foo\n', "line 5 has split 'foo'"),
        (b'id,text,split\r\n1,"two\r\nlines",train\r\n2,x,foo\r\n', "line 4 has split 'foo'"),
        (b'id,text,split\n1,"two\nlines",train\n\n2,x\n', "line 5: Expected 3 columns, got 2"),
        (b"\n\nid,text,split\n1,x,foo\n", "line 4 has split 'foo'"),
    ],
)
def test_lines_are_those_an_editor_shows(tmp_path, content, part):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=part):
        prepare("table", source=tmp_path / "t.csv")


def test_every_format_says_where_in_its_own_way(tmp_path):
    rows = [{"id": "a", "text": "x\ny", "split": "train"}, {"id": "b", "text": "x", "split": "foo"}]
    for suffix, place in (
        ("csv", "line 4"),
        ("tsv", "line 4"),
        ("jsonl", "line 2"),
        ("parquet", "row 2"),
    ):
        with pytest.raises(DataError, match=rf"t.{suffix}: {place} has split 'foo'"):
            prepare("table", source=write(tmp_path, suffix, rows))
    (tmp_path / "gap.jsonl").write_text(
        '{"id": "a", "text": "x"}\n\n{"id": "b", "text": "x", "split": "foo"}\n'
    )
    with pytest.raises(DataError, match="gap.jsonl: line 3 has split 'foo'"):
        prepare("table", source=tmp_path / "gap.jsonl")


def test_other_bad_input(tmp_path):
    path = write(tmp_path, "csv")
    for options, part in (
        (
            {"columns": {"audio": "wav"}},
            r"no column 'wav' \(for audio\); found id, text, label, speaker, split",
        ),
        ({"columns": {"sound": "wav"}}, "no such field"),
        ({"labels": "joy"}, "line 2 has label 'NA', which is not among --labels joy"),
        ({"labels": "joy,joy"}, "empty or there twice"),
        ({"task": "regression"}, "line 2 has label 'NA', expected a number"),
        ({"length": 3}, "length"),
    ):
        with pytest.raises((DataError, TypeError), match=part):
            prepare("table", source=path, **options)
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 not really")
    for name, part in (
        ("t.xlsx", "must end in .csv"),
        ("t.parquet", "not a readable Parquet"),
        ("no.csv", "no such file"),
    ):
        with pytest.raises(DataError, match=part):
            prepare("table", source=tmp_path / name)
    with pytest.raises(DataError, match="no such folder"):
        prepare(
            "table",
            tmp_path / "nowhere",
            source=write(tmp_path, "csv", [{"id": "1", "audio": "a"}]),
        )


def test_nemo_goes_through(test_data):
    folder = test_data / "nemo-mini"
    columns = {
        "id": "file_id",
        "audio": "file_id",
        "text": "raw_text",
        "label": "emotion",
        "speaker": "speaker_id",
    }
    manifest, report = prepare(
        "table",
        folder / "samples",
        source=folder / "data.tsv",
        columns=columns,
        language="pl",
        name="nemo",
    )
    assert (
        len(manifest) == 212
        and len(manifest.labels) == 6
        and not report.missing
        and not report.unreadable
    )
    assert (
        report.overlaps["train/test"]["speakers"] == 0
        and report.overlaps["train/test"]["texts"] > 0
    )


@pytest.mark.slow
def test_a_million_rows(tmp_path):
    path = tmp_path / "big.csv"
    with path.open("w") as file:
        file.write("id,audio,text,label,speaker\n")
        file.writelines(
            f"u{i},a/u{i}.wav,some words number {i},{'ab'[i % 2]},s{i % 100}\n"
            for i in range(10**6)
        )
    manifest, report = prepare("table", source=path)
    assert len(manifest) == len(report.missing) == 10**6
    manifest.write(tmp_path / "big.parquet")


def test_a_table_whose_columns_have_other_names_is_not_called_empty(tmp_path):
    (tmp_path / "t.csv").write_text("file_id,transcript\na,hello\n")
    with pytest.raises(
        DataError,
        match="t.csv: no column is called id, audio, .*; name yours with --column FIELD=NAME",
    ):
        prepare("table", source=tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (("2.06", "-1.49", "0.3", "-0.11"), "4 of 4 different labels are numbers (2.06, -1.49 and"),
        (("-1", "0", "1", "calm"), "3 of 4 different labels are numbers (-1, 0 and 1 more)"),
        (
            ("joy;surprise", "anger", "joy", "anger"),
            "labels such as 'joy;surprise' are taken whole",
        ),
        (("0", "1", "2", "3"), None),  # classes that are numbered
        (("so-so", "good", "bad", "v1.2"), None),
    ],
)
def test_labels_of_another_task_are_asked_about(tmp_path, labels, says):
    lines = [f"{number}.wav,word {number},{label}" for number, label in enumerate(labels)]
    (tmp_path / "t.csv").write_text("\n".join(["audio,text,label", *lines]) + "\n")
    _, report = table.prepare(tmp_path / "t.csv", split="none")
    asked = [line for line in report.warnings if "--task" in line]
    assert len(asked) == (says is not None)
    assert says is None or asked[0].startswith(says)


def test_numbers_among_names_of_classes_are_told(tmp_path):
    def warned(*labels: str) -> list[str]:
        lines = [f"{number}.wav,word {number},{label}" for number, label in enumerate(labels)]
        (tmp_path / "t.csv").write_text("\n".join(["audio,text,label", *lines]) + "\n")
        _, report = table.prepare(tmp_path / "t.csv", split="none")
        return [line for line in report.warnings if "number" in line]

    assert warned("1", "calm", "sad", "calm") == [
        "of the labels 1 is a number (1), others are not (calm, sad): all are taken as names of "
        "classes; is another column meant? then --column label=NAME"
    ]
    assert not warned("0", "1", "2") and not warned("calm", "sad", "v1.2")


def test_a_row_with_two_labels_is_one_utterance(tmp_path):
    rows = ("a.wav,hi,joy;surprise", "b.wav,ho,joy", "c.wav,no,")
    (tmp_path / "t.csv").write_text("\n".join(["audio,text,label", *rows]) + "\n")
    asked = ["prepare", "table", "--from", str(tmp_path / "t.csv"), "--task", "multi"]
    done = CliRunner().invoke(
        main, [*asked, "--split", "none", "--out", str(tmp_path / "m.parquet")]
    )
    assert done.exit_code == 0, done.output
    assert "t: 3 utterances" in done.output


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_positions_are_read_where_their_column_is_named(tmp_path, suffix):
    turns = ("0", "2", " 10 ", "3.0")
    rows = [{**row, "turn": turn} for row, turn in zip(ROWS, turns, strict=True)]
    path = write(tmp_path, suffix, rows)
    found = prepare("table", source=path, columns={"position": "turn"})[0].rows
    assert [u.position for u in found] == [0, 2, 10, 3]
    assert {u.position for u in prepare("table", source=path)[0].rows} == {None}
    # tables use the word for much else
    odd = [{**row, "position": "left wing"} for row in ROWS]
    path = write(tmp_path, suffix, odd, name="odd")
    assert {u.position for u in prepare("table", source=path)[0].rows} == {None}
    with pytest.raises(DataError, match="position 'left wing', expected the number of a turn"):
        prepare("table", source=path, columns={"position": "position"})


@pytest.mark.parametrize("turn", ["-1", "1.5", "1e3", "²", "1_0", "9" * 12, "inf"])
def test_a_position_that_is_no_number_of_a_turn(tmp_path, turn):
    rows = [{**row, "turn": turn} for row in ROWS]
    with pytest.raises(DataError, match="expected the number of a turn") as error:
        prepare("table", source=write(tmp_path, "csv", rows), columns={"position": "turn"})
    assert len(str(error.value).removeprefix(str(tmp_path))) < 300


def test_an_empty_position_is_none(tmp_path):
    rows = [{**row, "turn": ""} for row in ROWS]
    path = write(tmp_path, "csv", rows)
    found = prepare("table", source=path, columns={"position": "turn"})[0].rows
    assert {u.position for u in found} == {None}


def test_turns_without_a_place_or_at_one_place_are_told_before_anything_is_extracted(tmp_path):
    """By hand, of four rows of two dialogues in two splits."""
    places = [("d", "0", "train"), ("d", "", "train"), ("d", "0", "train"), ("d", "0", "test")]
    rows = []
    for row, (dialogue, turn, split) in zip(ROWS, places, strict=True):
        rows.append({**row, "dialogue": dialogue, "turn": turn, "split": split})
    path = write(tmp_path, "csv", rows)
    said = prepare("table", source=path, columns={"position": "turn"})[1].warnings
    ids = [row["id"] for row in ROWS]
    assert (
        f"1 row of a dialogue has no position, which data.context needs (first: {ids[1]})" in said
    )
    (twice,) = [line for line in said if "position of another" in line]
    assert twice.startswith("1 row has") and twice.endswith(f"(first: {ids[0]} and {ids[2]})")
    said = prepare("table", source=path)[1].warnings
    assert not [line for line in said if "position" in line], "nobody has numbered them"
