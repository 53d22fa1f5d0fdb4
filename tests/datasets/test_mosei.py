"""CMU-MOSEI: whole media cut by times, negative starts, transcripts that are not UTF-8, several
emotions or none.
"""

from __future__ import annotations

import pytest

from mer.pipeline.datasets import prepare
from mer.pipeline.errors import DataError
from mer.pipeline.media import audio as media

from tests.datasets.trees import write_csd, write_folds, write_mmsa, write_wav

VIDEOS = {
    "-3g5yACwYnA": [(-0.2, 1.0, 1.0, 0, 0, 0, 0, 0, 0), (1.0, 2.0, -2.0, 0, 0.66, 1, 0, 0, 0)],
    "a_b__c": [(0.0, 1.0, 0.0, 0.33, 0, 0, 0, 0, 0)],
    "zk2jTlAtvSU": [(0.5, 1.5, 3.0, 2, 0, 0, 1, 0, 0), (2.0, 2.5, float("nan"), 0, 0, 0, 0, 0, 0)],
    "unused": [(0.0, 1.0, 1.0, 1, 1, 1, 1, 1, 1)],
}


@pytest.fixture
def root(tmp_path):
    write_csd(tmp_path / "CMU_MOSEI_Labels.csd", "All Labels", VIDEOS)
    write_folds(tmp_path / "cmu_mosei_std_folds.py", ["-3g5yACwYnA"], ["a_b__c"], ["zk2jTlAtvSU"])
    folder = tmp_path / "Raw" / "Transcript" / "Segmented" / "Combined"
    folder.mkdir(parents=True)
    (folder / "-3g5yACwYnA.txt").write_bytes(
        b"-3g5yACwYnA___4___1.0___2.0___then ___ this \xff\n-3g5yACwYnA___3___-0.2___1.0___first "
        b"this\n-3g5yACwYnA___9\n"
    )
    (folder / "zk2jTlAtvSU.txt").write_text("zk2jTlAtvSU___0___0.5___1.5___\n")
    (folder / "._zk2jTlAtvSU.txt").write_bytes(bytes.fromhex("00051607"))
    for video in ("-3g5yACwYnA", "a_b__c"):
        write_wav(tmp_path / "Raw" / "Audio" / "Full" / "WAV_16000" / f"{video}.wav", 32_000)
    return tmp_path


def test_sentiment_from_cmus_layout(root):
    manifest, report = prepare("mosei", root)
    assert [u.id for u in manifest.rows] == [
        "-3g5yACwYnA_3",
        "-3g5yACwYnA_4",
        "a_b__c_at0",
        "zk2jTlAtvSU_0",
    ]
    assert [u.targets for u in manifest.rows] == [(1.0,), (-2.0,), (0.0,), (3.0,)]
    assert [u.text for u in manifest.rows] == ["first this", "then ___ this \ufffd", None, None]
    assert [u.split for u in manifest.rows] == ["train", "train", "dev", "test"]
    assert (manifest.rows[0].start, manifest.rows[0].end) == (0.0, 1.0)
    lost = "transcripts with bytes that are not UTF-8, each replaced by U+FFFD"
    assert report.repairs == {
        lost: ["-3g5yACwYnA.txt"],
        "negative start set to 0": ["-3g5yACwYnA_3"],
    }
    assert {what: len(ids) for what, ids in report.dropped.items()} == {
        "segments of videos in no standard fold": 1, "a label that is not a number": 1,
    }  # fmt: skip
    assert report.missing == ["zk2jTlAtvSU_0"]
    assert [w.split(" ", 2)[:2] for w in report.warnings] == [
        ["1", "transcript"],
        ["2", "segments"],
    ]
    clips = [
        media.load(manifest.root / u.audio, start=u.start, end=u.end) for u in manifest.rows[:3]
    ]
    assert [len(c.waveform) for c in clips] == [16_000] * 3


def test_emotions_are_several_or_none(root):
    manifest, report = prepare("mosei", root, labels="emotion")
    assert manifest.labels == ("happy", "sad", "anger", "surprise", "disgust", "fear")
    assert [u.targets for u in manifest.rows] == [
        (0, 0, 0, 0, 0, 0),
        (0, 1, 1, 0, 0, 0),
        (1, 0, 0, 0, 0, 0),
        (1, 0, 0, 1, 0, 0),
    ]
    assert report.counts["train"] == {"sad": 1, "anger": 1, "(none)": 1}


def test_without_folds_the_split_is_open_and_it_is_said(root):
    (root / "cmu_mosei_std_folds.py").unlink()
    manifest, report = prepare("mosei", root)
    assert {u.split for u in manifest.rows} == {""} and len(manifest) == 5
    assert any("no cmu_mosei_std_folds.py found: no split" in w for w in report.warnings)


def test_mmsas_layout_has_sentiment_only(tmp_path):
    write_mmsa(
        tmp_path / "MOSEI",
        [("a", "0", "Hello There", "1.5", "train"), ("b", "7", "No.", "0", "test")],
    )
    manifest, report = prepare("mosei", tmp_path, labels="binary")
    assert [(u.id, u.label, u.split) for u in manifest.rows] == [
        ("a_0", "non-negative", "train"),
        ("b_7", "non-negative", "test"),
    ]
    assert manifest.rows[0].text == "Hello There" and not report.missing
    with pytest.raises(DataError, match="emotions need CMU_MOSEI_Labels.csd"):
        prepare("mosei", tmp_path, labels="emotion")


def test_an_empty_root_and_a_wrong_label_file(tmp_path):
    with pytest.raises(DataError, match="no CMU_MOSEI_Labels.csd and no label.csv"):
        prepare("mosei", tmp_path)
    write_csd(tmp_path / "CMU_MOSEI_Labels.csd", "All Labels", {"a": [(0.0, 1.0, 1.0)]})
    with pytest.raises(DataError, match="a has intervals"):
        prepare("mosei", tmp_path)
