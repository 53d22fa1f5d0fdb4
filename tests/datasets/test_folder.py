"""`mer prepare folder`: patterns, label maps, and what is wrong with either in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from mer.cli import main
from mer.pipeline.datasets import prepare
from mer.pipeline.datasets.pattern import Pattern
from mer.pipeline.errors import DataError
from mer.pipeline.manifest import Manifest

from tests.datasets.byname import write_tree
from tests.datasets.trees import write_wav

DATA = os.environ.get("MER_TEST_DATA")


@pytest.mark.parametrize(
    ("pattern", "path", "fields"),
    [
        ("{speaker}_{emotion}", "a/ann_joy.wav", {"speaker": "ann", "emotion": "joy"}),
        ("{speaker}_{emotion}", "ann_joy_1.wav", None),  # a field holds no separator
        ("{speaker}_{emotion:any}", "ann_a_1.wav", {"speaker": "ann", "emotion": "a_1"}),
        ("{speaker}_{emotion}", "ann.b_joy.WAV", {"speaker": "ann.b", "emotion": "joy"}),
        ("{emotion}/{who}-{n}", "x/joy/ann-1.flac", {"emotion": "joy", "who": "ann", "n": "1"}),
        ("{emotion}/{speaker}-{n}", "ann-1.flac", None),  # no folder
        ("{who:2}{n:3}{emotion:1}*", "03a01Wa.wav", {"who": "03", "n": "a01", "emotion": "W"}),
        ("{emotion:letters}{n:digits}", "sa03.wav", {"emotion": "sa", "n": "03"}),
        ("{emotion:letters}{n:digits}", "ß٣.wav", {"emotion": "ß", "n": "٣"}),
        ("{emotion:a|ab}{n:digits}", "ab1.wav", {"emotion": "ab", "n": "1"}),
        ("{a}_{b}.wav", "x_y.mp3", None),  # another ending
        ("{a}_{b}.WAV", "x_y.wav", {"a": "x", "b": "y"}),
        ("{s}/{s}_{e}", "ann/ann_joy.wav", {"s": "ann", "e": "joy"}),
        ("{s}/{s}_{e}", "ann/ben_joy.wav", None),  # a field that is there twice holds one thing
        ("{a} ({b:digits})", "x.[1] (2).wav", {"a": "x.[1]", "b": "2"}),
        ("{a}^{b}", "x^y.wav", {"a": "x", "b": "y"}),
        ("{a}]{b}", "x]y.wav", {"a": "x", "b": "y"}),
    ],
)
def test_what_a_pattern_reads(pattern, path, fields):
    assert Pattern(pattern).match(path) == fields


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("{a}{b}", "nothing between a and b"),
        ("x.wav", "no field"),
        ("{a", "without its other half"),
        ("a}_{b}", "without its other half"),
        ("{A}", "is no field"),
        ("{}", "is no field"),
        ("{a:0}", "a form is"),
        ("{a:999}", "a form is"),
        ("{a:word}", "a form is"),
        ("/{a}", "empty"),
        ("{a}/", "empty"),
        ("{a}" + "x" * 500, "more than 500 characters"),
    ],
)
def test_a_pattern_that_cannot_be_read_says_why(pattern, why):
    with pytest.raises(DataError, match=why) as caught:
        Pattern(pattern)
    assert len(str(caught.value)) <= 300


def run(root: Path, *options: str):
    out = str(root.parent / "m.parquet")
    return CliRunner().invoke(
        main, ["prepare", "folder", "--root", str(root), "--out", out, *options]
    )


@pytest.fixture
def root(tmp_path):
    """Four people say two sentences in three emotions."""
    names = [
        f"{who}/{who}_s{sentence}_{emotion}_hi.wav"
        for who in ("ann", "ben", "cat", "dan")
        for sentence in (1, 2)
        for emotion in ("ANG", "HAP", "NEU")
    ]
    return write_tree(tmp_path / "mine", names)


def test_fields_become_columns_and_tags(root):
    done = run(root, "--pattern", "{speaker}_{sentence}_{emotion}_{level}.wav")
    assert done.exit_code == 0, done.stderr
    manifest = Manifest.read(root.parent / "m.parquet")
    assert manifest.labels == ("ANG", "HAP", "NEU") and len(manifest) == 24
    row = manifest.rows[0]
    assert (row.id, row.speaker, row.tags) == ("ann_s1_ANG_hi", "ann", ("sentence=s1", "level=hi"))
    assert {u.split for u in manifest.rows} == {"train", "dev", "test"}
    for who in ("ann", "ben", "cat", "dan"):
        assert len({u.split for u in manifest.rows if u.speaker == who}) == 1
    assert "text carries no emotion" in done.stdout


def test_a_map_names_classes_and_leaves_out(root):
    options = ("--map", "ANG=anger", "--map", "HAP=joy", "--map", "NEU=", "--labels", "joy,anger")
    done = run(root, "--pattern", "{speaker}_{sentence}_{emotion}_{level}", *options)
    assert done.exit_code == 0, done.stderr
    manifest = Manifest.read(root.parent / "m.parquet")
    assert manifest.labels == ("joy", "anger") and len(manifest) == 16
    assert "left out: label NEU: 8: " in done.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--pattern", "{speaker}_s1_{emotion}_{level}"), "fits 12 of 24 media files below"),
        (("--pattern", "{speaker}-{emotion}"), "fits none of 24 media files"),
        (
            ("--pattern", "{speaker}_{n}_{emotion}_{level}", "--map", "ANG=anger"),
            "--map has no class for HAP (8 files), NEU (8 files)",
        ),
        (
            ("--pattern", "{speaker}_{n}_{emotion}_{level}", "--labels", "ANG,HAP"),
            "--labels has not NEU (8 files)",
        ),
        (
            ("--pattern", "{speaker}_{n}_{word}_{level}", "--map", "ANG=anger"),
            "--map: the pattern has no {label} or {emotion} to map",
        ),
        (("--pattern", "{id:any}_{emotion}_{level}", "--root", "/no/such"), "no such folder"),
        (("--pattern", "{n}_{id}_{emotion}_{level}"), "are both 's1'"),
    ],
)
def test_what_is_wrong_is_one_line_with_counts(root, options, said):
    done = run(root, *options)
    assert done.exit_code == 1 and not done.stdout
    assert said in done.stderr.replace("\n  ", " ") and len(done.stderr.strip()) <= 300


def test_partial_leaves_out_and_counts(root):
    done = run(root, "--pattern", "{speaker}_s1_{emotion}_{level}", "--partial")
    assert done.exit_code == 0, done.stderr
    assert "left out: files that the pattern does not fit: 12: " in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ("prepare", "folder", "--root", "."),
        ("prepare", "folder", "--pattern", "{a}"),
        ("prepare", "meld", "--pattern", "{a}"),
        ("prepare", "meld", "--map", "a=b"),
        ("prepare", "folder", "--root", ".", "--pattern", "{a}", "--map", "x"),
    ],
)
def test_options_that_do_not_go_together_are_usage(words):
    assert CliRunner().invoke(main, list(words)).exit_code == 2


def test_blanks_in_names_are_cut_and_counted(tmp_path):
    root = write_tree(tmp_path / "r", ["a_joy .wav", "b_joy.wav", "c _sad.wav"])
    done = run(root, "--pattern", "{speaker}_{emotion}", "--split", "none")
    assert done.exit_code == 0, done.stderr
    manifest = Manifest.read(tmp_path / "m.parquet")
    assert manifest.labels == ("joy", "sad") and {u.speaker for u in manifest.rows} == set("abc")
    assert "repaired: blanks at an end of label, cut off: 1" in done.stdout


def test_files_of_one_name_and_size_are_not_taken_for_one(tmp_path):
    root = write_tree(tmp_path / "r", ["a/x.wav"])
    write_wav(root / "b" / "x.wav", samples=800, seed=1)
    assert os.path.getsize(root / "a" / "x.wav") == os.path.getsize(root / "b" / "x.wav")
    done = run(root, "--pattern", "{n}")
    assert done.exit_code == 1 and "not the same file" in " ".join(done.stderr.split())
    assert run(root, "--pattern", "{emotion}/{n}", "--split", "none").exit_code == 0


def test_a_map_that_leaves_nothing_says_so(root):
    maps = [part for code in ("ANG", "HAP", "NEU") for part in ("--map", f"{code}=")]
    done = run(root, "--pattern", "{speaker}_{n}_{emotion}_{level}", *maps)
    assert done.exit_code == 1 and "--map leaves none of" in done.stderr


def test_two_speakers_are_too_few_for_a_split(tmp_path):
    root = write_tree(tmp_path / "two", ["a_x.wav", "a_y.wav", "b_x.wav", "b_y.wav"])
    done = run(root, "--pattern", "{speaker}_{emotion}")
    assert done.exit_code == 1 and "--split none leaves it open" in done.stderr


@pytest.mark.skipif(not DATA, reason="MER_TEST_DATA is not set: no real nEMO clips")
def test_nemo_is_the_same_by_its_toml_and_by_a_pattern():
    root = Path(DATA) / "nemo-mini"
    by_toml, _ = prepare("nemo", root)
    pattern = "{speaker}_{emotion}_{sentence}.wav"
    by_pattern, _ = prepare("folder", root, pattern=pattern, split="none")
    both = [
        {u.id: (u.label, u.speaker, u.audio) for u in manifest.rows}
        for manifest in (by_toml, by_pattern)
    ]
    assert both[0] == both[1] and len(both[0]) == 212
    assert {*by_toml.labels} == {*by_pattern.labels}
    assert all(u.text for u in by_toml.rows)


def test_words_lie_beside_the_files(tmp_path):
    for name, words in {"ann_joy": "Oh,\n  yes! ", "ben_joy": " \n", "cat_sad": None}.items():
        write_wav(tmp_path / f"{name}.wav")
        if words is not None:
            (tmp_path / f"{name}.txt").write_text(words)
    pattern = "{speaker}_{emotion}"
    manifest, findings = prepare("folder", tmp_path, pattern=pattern, split="none")
    assert {u.speaker: u.text for u in manifest.rows} == {
        "ann": "Oh, yes!",
        "ben": None,
        "cat": None,
    }
    assert "2 utterances of 3 without a .txt file of words" in findings.warnings
    assert "1 .txt file without a word in it: ben_joy" in findings.warnings


def test_words_of_the_pattern_go_before_those_of_a_file(tmp_path):
    write_wav(tmp_path / "ann_joy_yes.wav")
    (tmp_path / "ann_joy_yes.txt").write_text("no")
    manifest, _ = prepare("folder", tmp_path, pattern="{speaker}_{emotion}_{text}", split="none")
    (row,) = manifest.rows
    assert row.text == "yes" and row.tags == ()


def test_a_pattern_without_a_label_says_so(tmp_path):
    write_wav(tmp_path / "ann_1.wav")
    _, findings = prepare("folder", tmp_path, pattern="{speaker}_{n}", split="none")
    assert any(line.startswith("no {label} or {emotion} in the") for line in findings.warnings)


@pytest.mark.parametrize("name", ["table", "folder", "emobox"])
def test_what_is_ones_own_has_no_page(name):
    done = CliRunner().invoke(main, ["datasets", name])
    assert done.exit_code == 1 and "see `mer prepare --help`" in done.output


def test_turns_have_their_place(tmp_path):
    for name in ("d1_0_joy", "d1_2_sad"):
        write_wav(tmp_path / f"{name}.wav")
    pattern = "{dialogue}_{position}_{emotion}"
    manifest, _ = prepare("folder", tmp_path, pattern=pattern, split="none")
    assert [(u.dialogue, u.position, u.tags) for u in manifest.rows] == [
        ("d1", 0, ()),
        ("d1", 2, ()),
    ]
    write_wav(tmp_path / "d1_02_joy.wav")
    warnings = prepare("folder", tmp_path, pattern=pattern, split="none")[1].warnings
    assert [line for line in warnings if line.startswith("1 row has the position of another row")]
    write_wav(tmp_path / "d1_x_joy.wav")
    with pytest.raises(DataError, match="position 'x' is not the number of a turn"):
        prepare("folder", tmp_path, pattern=pattern, split="none")


def test_files_of_other_endings_are_counted(root):
    """What is left out by the ending of its name is told; so is why nothing is left."""
    (root / "ann" / "ann_s3_ANG_hi.wma").write_bytes(b"sound")
    (root / "ann" / "ann_s3_HAP_hi.WMA").write_bytes(b"sound")
    (root / "ann" / "ann_s1_ANG_hi.txt").write_text("words of a clip")
    (root / "README").write_text("notes")
    done = run(root, "--pattern", "{speaker}_{sentence}_{emotion}_{level}")
    assert done.exit_code == 0 and "mine: 24 utterances" in done.stdout
    told = "3 files left out that are no media by name (2 .wma, 1 without ending)"
    assert f"warning: {told}; to take those that are media, name them in a table" in done.stdout
    for path in root.rglob("*.wav"):
        path.unlink()
    done = run(root, "--pattern", "{speaker}_{sentence}_{emotion}_{level}.wma")
    assert done.exit_code == 1 and f"fits none of 0 media files; {told}" in done.stderr
    assert len(done.stderr) <= 300


def test_files_are_found_however_deep(root):
    deep = root.joinpath(*"abcdefghijkl")
    deep.mkdir(parents=True)
    write_wav(deep / "eve_s1_ANG_hi.wav", 800)
    (deep / "back").symlink_to(root)  # gone through once
    (deep / "itself").symlink_to("itself")
    done = run(root, "--pattern", "{speaker}_{sentence}_{emotion}_{level}")
    assert done.exit_code == 0, done.stderr
    manifest = Manifest.read(root.parent / "m.parquet")
    assert len(manifest) == 25 and "left out" not in done.stdout


def test_of_two_fields_that_may_be_the_label_the_other_becomes_a_tag(tmp_path):
    write_wav(tmp_path / "ann_joy_glad.wav")
    pattern = "{speaker}_{emotion}_{label}"
    manifest, _ = prepare("folder", tmp_path, pattern=pattern, split="none")
    assert [(u.label, u.tags) for u in manifest.rows] == [("glad", ("emotion=joy",))]


def test_a_split_is_by_speaker_where_the_speaker_is_known(tmp_path):
    """One name without a speaker made every file a group of its own, so that speakers were in train
    and in test.
    """
    named = [f"{who}_{number}_joy.wav" for who in "abcdef" for number in range(4)]
    root = write_tree(tmp_path / "some", [*named, " _1_joy.wav", " _2_joy.wav"])
    pattern = "{speaker}_{n}_{emotion}"
    manifest, findings = prepare("folder", root, pattern=pattern)
    parts = {who: {u.split for u in manifest.rows if u.speaker == who} for who in "abcdef"}
    assert all(len(of_one) == 1 for of_one in parts.values())
    assert {u.split for u in manifest.rows} == {"train", "dev", "test"}
    told = [line for line in findings.warnings if "group" in line or "split by" in line]
    assert told == [
        "split by speaker with seed 0 (6 speakers)",
        "2 files without a speaker in their names are groups of their own in the split: "
        "_1_joy.wav, _2_joy.wav",
    ]


def test_a_folder_is_split_as_a_table_of_the_same_rows(tmp_path):
    """By the dialogue where fewer names lack it, with the same seed."""
    names = [f"{dialogue}_{who}_{n}.wav" for n, dialogue in enumerate("ppqqrrss") for who in "ab "]
    root = write_tree(tmp_path / "some", names)
    by_name, _ = prepare("folder", root, pattern="{dialogue}_{speaker}_{n}", seed=3)
    lines = [f"{u.id},{u.audio},{u.speaker or ''},{u.dialogue}" for u in by_name.rows]
    table = root / "rows.csv"
    table.write_text("\n".join(["id,audio,speaker,dialogue", *lines]) + "\n")
    by_table, _ = prepare("table", root, source=table, seed=3)
    assert [u.split for u in by_name.rows] == [u.split for u in by_table.rows]
    assert len({u.split for u in by_name.rows}) == 3
