"""MELD: every quirk of the release, on small trees of its shape and, where they are, on the real
rows.
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from mer.pipeline.datasets import prepare
from mer.pipeline.datasets.textfiles import read_csv, repair
from mer.pipeline.errors import DataError
from mer.pipeline.media import audio as media
from mer.pipeline.media.audio import MediaError

from tests.datasets.trees import write_clip, write_meld_csv, write_wav

ROWS = {
    "train": [
        (
            "You\u2019re kidding\u2026",
            "Joey",
            "surprise",
            "positive",
            0,
            3,
            "0:09:58,507",
            "0:09:59,100",
        ),
        ("nan", "Richard\u2019s Date", "neutral", "neutral", 0, 5),
        ("!", "Ross", "anger", "negative", 2, 0),  # dialogue 1 is missing, as 60 are in the release
        ("Same words here again", "Ross", "fear", "negative", 2, 1, "00:01:00,000", "00:01:01,000"),
        ("Same words here again", "Ross", "joy", "positive", 3, 0, "00:01:00,000", "00:01:01,000"),
        ("Broken clip", "Ross", "sadness", "negative", 125, 3),  # known: cannot be decoded
    ],
    "dev": [
        ("Okay.", "Joey", "neutral", "neutral", 0, 3),
        ("Not in the release", "Ross", "joy", "positive", 110, 7),  # known: missing
    ],
    "test": [
        ("Same words here again", "Gunther", "disgust", "negative", 0, 3),
        ("Five minutes", "Joey", "joy", "positive", 38, 4),  # known: wrongly cut
        ("Zero time", "Joey", "joy", "positive", 155, 3, "00:02:00,000", "00:02:00,000"),
        ("Gone", "Joey", "joy", "positive", 200, 1),  # missing, and nobody knows
        ("Not media", "Joey", "joy", "positive", 201, 0),
    ],
}
LAYOUTS = {
    "as unpacked by EmoBox": (
        {
            "train": "train/train_splits",
            "dev": "dev/dev_splits_complete",
            "test": "test/output_repeated_splits_test",
        },
        {
            "train": "train/train_sent_emo.csv",
            "dev": "dev_sent_emo.csv",
            "test": "test_sent_emo.csv",
        },
    ),
    "flat": (
        {
            "train": "train_splits",
            "dev": "dev_splits_complete",
            "test": "output_repeated_splits_test",
        },
        {s: f"{s}_sent_emo.csv" for s in ROWS},
    ),
    "renamed": (
        {"train": "train", "dev": "dev", "test": "test"},
        {s: f"{s}/{s}_sent_emo.csv" for s in ROWS},
    ),
    "below MELD.Raw": (
        {
            "train": "MELD.Raw/train/train_splits",
            "dev": "MELD.Raw/dev_splits_complete",
            "test": "MELD.Raw/output_repeated_splits_test",
        },
        {s: f"data/{s}_sent_emo.csv" for s in ROWS},
    ),
}


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")


def build(root: Path, clip: Path, layout: str = "flat", *, old: bool = False) -> Path:
    folders, tables = LAYOUTS[layout]
    for split, rows in ROWS.items():
        if old:
            rows = [
                tuple(
                    v.encode("cp1252").decode("latin-1") if isinstance(v, str) else v for v in row
                )
                for row in rows
            ]
        write_meld_csv(root / tables[split], rows)
        folder = root / folders[split]
        folder.mkdir(parents=True, exist_ok=True)
        for *_, dialogue, utterance in (row[:6] for row in rows):
            if (split, dialogue) not in (("dev", 110), ("test", 200)):
                shutil.copy(clip, folder / f"dia{dialogue}_utt{utterance}.mp4")
    train, dev, test = (root / folders[s] for s in ("train", "dev", "test"))
    (train / "dia125_utt3.mp4").write_bytes(b"\x00\x01garbage" * 50)
    (test / "dia201_utt0.mp4").write_text("moved to another server\n" * 10)
    (train / "._dia0_utt3.mp4").write_bytes(bytes.fromhex("00051607"))
    for orphan in (dev / "dia49_utt4.mp4", test / "final_videos_testdia93_utt5.mp4"):
        shutil.copy(clip, orphan)
    return root


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_utterances(tmp_path, clip, layout):
    manifest, report = prepare("meld", build(tmp_path, clip, layout))
    assert [u.id for u in manifest.rows] == [
        f"{s}/dia{r[4]}_utt{r[5]}" for s, rows in ROWS.items() for r in rows
    ]
    assert [(u.text, u.speaker, u.label) for u in manifest.rows] == [
        r[:3] for rows in ROWS.values() for r in rows
    ]
    exists = {u.id: (tmp_path / u.audio).is_file() for u in manifest.rows}
    assert [i for i, there in exists.items() if not there] == [
        "dev/dia110_utt7",
        "test/dia200_utt1",
    ]
    assert report.missing == ["test/dia200_utt1"] and report.unreadable == {
        "test/dia201_utt0": "a text file"
    }
    assert list(report.known_bad) == ["train/dia125_utt3", "dev/dia110_utt7", "test/dia38_utt4"]
    assert sorted(Path(p).name for p in report.orphans) == [
        "dia49_utt4.mp4",
        "final_videos_testdia93_utt5.mp4",
    ]
    assert {u.id for u in manifest.rows if u.known_bad} == set(report.known_bad)


def test_both_revisions_give_the_same_manifest_and_the_repairs_are_counted(tmp_path, clip):
    new, _ = prepare("meld", build(tmp_path / "new", clip))
    old, report = prepare("meld", build(tmp_path / "old", clip, old=True))
    assert old.hash == new.hash
    # U+0085 among them, at which splitlines() would break
    assert report.repairs == {
        "old-encoding characters in text or speaker": ["train/dia0_utt3", "train/dia0_utt5"]
    }


def test_repair_leaves_what_cp1252_does_not_define_and_everything_else():
    assert repair("It\x92s\x85\xa0ok \x81") == "It\u2019s\u2026 ok \x81"
    assert repair("naïve “quotes” 😀 中文") == "naïve “quotes” 😀 中文"


def test_place_in_dialogue_speaker_and_no_times(tmp_path, clip):
    manifest, _ = prepare("meld", build(tmp_path, clip))
    rows = {u.id: u for u in manifest.rows}
    assert [rows[f"train/dia0_utt{n}"].position for n in (3, 5)] == [0, 1]
    assert rows["train/dia0_utt3"].dialogue == "train/dia0" != rows["test/dia0_utt3"].dialogue
    assert all((u.start, u.end) == (None, None) for u in manifest.rows)


def test_overlaps_and_repeated_rows_are_said(tmp_path, clip):
    _, report = prepare("meld", build(tmp_path, clip))
    assert report.overlaps["train/test"] == {"texts": 1, "long_texts": 1, "speakers": 1}
    text = "\n".join(report.lines())
    assert (
        "1 train row repeats another row's line and times, 1 of them with another label: train/dia"
        in text
    )
    assert "1 hidden file " in text and "counts: " in text and "differ from the expected" in text


def test_sentiment(tmp_path, clip):
    manifest, report = prepare("meld", build(tmp_path, clip), labels="sentiment")
    assert manifest.labels == ("neutral", "positive", "negative")
    assert report.counts["train"] == {"neutral": 1, "positive": 2, "negative": 3}


def test_the_clips_read_as_their_rows_say(tmp_path, clip):
    manifest, _ = prepare("meld", build(tmp_path, clip))
    # five minutes in a corpus of three seconds
    long = tmp_path / "output_repeated_splits_test" / "dia38_utt4.mp4"
    write_wav(long.with_suffix(".wav"), 305 * 8_000, 8_000).rename(long)
    assert media.probe(long).seconds == pytest.approx(305)
    outcome = Counter()
    for u in manifest.rows:
        try:
            assert media.load(manifest.root / u.audio).channel == "FC"  # mono counts as its centre
            outcome["read"] += 1
        except MediaError:
            outcome["known-bad" if u.known_bad else "failed"] += 1
    assert outcome == {"read": 9, "known-bad": 2, "failed": 2}


def test_a_missing_root_says_where_it_looked_and_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MER_DATA", str(tmp_path))
    with pytest.raises(DataError, match=rf"no folder {tmp_path}/meld .*MELD.Raw.tar.gz"):
        prepare("meld")
    (tmp_path / "meld").mkdir()
    with pytest.raises(DataError, match="no \\*_sent_emo.csv .*MELD.Raw.tar.gz"):
        prepare("meld")


def test_one_split_alone_is_usable_and_the_rest_is_missed(tmp_path):
    write_meld_csv(tmp_path / "dev_sent_emo.csv", ROWS["dev"])
    manifest, report = prepare("meld", tmp_path)
    assert {u.split for u in manifest.rows} == {"dev"}
    assert [w.split(":")[0] for w in report.warnings if "not found" in w] == [
        "train_sent_emo.csv not found",
        "test_sent_emo.csv not found",
    ]


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"Utterance,Speaker\r\nhi,Joey\r\n", "no column Season, Episode"),
        (b"", "empty file"),
        ("caf\u00e9".encode("latin-1"), "not UTF-8 .byte 0xe9 at 3"),
        ("Utterance,Speaker".encode("utf-16"), "not UTF-8"),
    ],
)
def test_a_damaged_csv_is_one_line(tmp_path, content, part):
    (tmp_path / "dev_sent_emo.csv").write_bytes(content)
    with pytest.raises(DataError, match=part):
        prepare("meld", tmp_path)


@pytest.mark.parametrize(
    ("row", "part"),
    [
        (("a", "b", "bliss", "positive", 0, 0), "dia0_utt0 has Emotion 'bliss'"),
        (("a", "b", "joy", "positive", "x", 0), "line 2 has dialogue 'x'"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, row, part):
    write_meld_csv(tmp_path / "dev_sent_emo.csv", [row])
    with pytest.raises(DataError, match=part):
        prepare("meld", tmp_path)


def test_a_row_that_is_there_twice_is_an_error(tmp_path):
    write_meld_csv(tmp_path / "dev_sent_emo.csv", [ROWS["dev"][0]] * 2)
    with pytest.raises(DataError, match="duplicate id 'dev/dia0_utt3'"):
        prepare("meld", tmp_path)


def test_the_real_rows_have_the_expected_counts_and_both_revisions_agree(test_data, tmp_path):
    hashes = set()
    for folder in (test_data / "meld", test_data / "meld" / "old_revision"):
        root = tmp_path / folder.name
        root.mkdir()
        for split in ROWS:
            shutil.copy(folder / f"{split}_sent_emo.csv", root)
        manifest, report = prepare("meld", root)
        assert report.unexpected == [] and len(manifest) == 13_708
        assert len(report.missing) == 13_708 - 4 and len(report.known_bad) == 4
        hashes.add(manifest.hash)
        sentiment, again = prepare("meld", root, labels="sentiment")
        assert again.unexpected == []
        train = {u.dialogue for u in manifest.rows if u.split == "train"}
        assert len(train) == 1038
    assert len(hashes) == 1


def test_real_rows_with_made_clips_go_through(test_data, tmp_path, clip):
    """A slice of the real rows, in the shape of the release, with a clip for each."""
    root = tmp_path
    for split, folder in LAYOUTS["flat"][0].items():
        lines = (
            (test_data / "meld" / "old_revision" / f"{split}_sent_emo.csv")
            .read_bytes()
            .split(b"\n")
        )
        (root / f"{split}_sent_emo.csv").write_bytes(b"\n".join(lines[:13]) + b"\n")
        (root / folder).mkdir()
        for row in read_csv(root / f"{split}_sent_emo.csv", ["Dialogue_ID", "Utterance_ID"]):
            shutil.copy(
                clip, root / folder / f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}.mp4"
            )
    manifest, report = prepare("meld", root)
    assert (
        len(manifest) == 36 and not report.missing and not report.orphans and not report.unreadable
    )
