"""CMU-MOSI in MMSA's layout and in CMU's: ids with `_` and a leading `-`, capitals, splits by
video.
"""

from __future__ import annotations

from collections import Counter

import pytest

from mer.pipeline.datasets import corpora, prepare
from mer.pipeline.errors import DataError
from mer.pipeline.media import audio as media

from tests.datasets.trees import write_csd, write_folds, write_mmsa, write_wav

ROWS = [
    ("-6rXp3zJ3kc", "10", "ANYHOW IT WAS REALLY GOOD", "2.4", "train"),
    ("-6rXp3zJ3kc", "2", "I", "-0.6", "train"),
    ("atnd_PF-Lbs", "1", "nan", "0.0", "valid"),
    ("2iD-tVS8NPw", "1", "NA", "-3", "test"),
]


def test_mmsas_layout(tmp_path):
    manifest, report = prepare("mosi", write_mmsa(tmp_path / "MOSI", ROWS))
    assert [u.id for u in manifest.rows] == [
        "-6rXp3zJ3kc_10",
        "-6rXp3zJ3kc_2",
        "atnd_PF-Lbs_1",
        "2iD-tVS8NPw_1",
    ]
    assert [u.text for u in manifest.rows] == ["anyhow it was really good", "I", "nan", "na"]
    assert [u.targets for u in manifest.rows] == [(2.4,), (-0.6,), (0.0,), (-3.0,)]
    assert [(u.split, u.dialogue, u.position) for u in manifest.rows][:3] == [
        ("train", "-6rXp3zJ3kc", 0),
        ("train", "-6rXp3zJ3kc", 1),
        ("dev", "atnd_PF-Lbs", 0),
    ]
    assert {what: len(ids) for what, ids in report.repairs.items()} == {
        "upper-case text made lower-case": 2
    } and not report.missing
    assert report.counts["dev"] == {"zero": 1}
    assert media.load(manifest.root / manifest.rows[0].audio).channel == "FC"


def test_binary_counts_zero_as_non_negative(tmp_path):
    manifest, report = prepare("mosi", write_mmsa(tmp_path, ROWS), labels="binary")
    assert [u.label for u in manifest.rows] == [
        "non-negative",
        "negative",
        "non-negative",
        "negative",
    ]
    assert "train negative: 1 found, 552 expected" in report.unexpected


def cmu_tree(root):
    """Segment 1 as a wav, 2 from the whole video, the next video from no media at all; numbers
    follow time, not the file's order.
    """
    videos = {
        "2iD-tVS8NPw": [(5.0, 6.0, -1.0), (1.0, 1.5, 2.0)],
        "c5xsKMxpXnc": [(-0.5, 1.0, 3.0)],
        "stranger": [(0.0, 1.0, 1.0)],
    }
    write_csd(root / "CMU_MOSI_Opinion_Labels.csd", "Opinion Segment Labels", videos)
    (root / "Transcript" / "Segmented").mkdir(parents=True)
    lines = b"1_DELIM_FIRST\n2_DELIM_SECOND _DELIM_ \xff\nno delimiter\n"
    (root / "Transcript" / "Segmented" / "2iD-tVS8NPw.annotprocessed").write_bytes(lines)
    write_wav(root / "Audio" / "WAV_16000" / "Segmented" / "2iD-tVS8NPw_1.wav")
    write_wav(root / "Audio" / "WAV_16000" / "Full" / "2iD-tVS8NPw.wav", 16_000 * 6)
    return root


def test_cmus_layout(tmp_path):
    manifest, report = prepare("mosi", cmu_tree(tmp_path))
    rows = {u.id: u for u in manifest.rows}
    first, second, third = rows["2iD-tVS8NPw_1"], rows["2iD-tVS8NPw_2"], rows["c5xsKMxpXnc_1"]
    assert (first.targets, first.start, first.text) == (
        (2.0,),
        None,
        "first",
    ) and first.audio.endswith("Segmented/2iD-tVS8NPw_1.wav")
    assert (second.targets, second.start, second.end) == (
        (-1.0,),
        5.0,
        6.0,
    ) and second.audio.endswith("Full/2iD-tVS8NPw.wav")
    assert (
        len(media.load(manifest.root / second.audio, start=second.start, end=second.end).waveform)
        == 16_000
    )
    assert third.start == 0.0 and report.missing == ["c5xsKMxpXnc_1"]
    assert {u.split for u in manifest.rows} <= {"train", "dev", "test"}
    assert report.dropped == {"segments of videos in no standard fold": ["stranger_1"]}
    assert len(report.repairs["negative start set to 0"]) == 1
    assert "2 transcript lines are not UTF-8 or have no _DELIM_" in report.warnings
    assert any(w.startswith("1 segment has no transcript: ") for w in report.warnings)


def test_folds_in_the_root_win_over_the_own_list(tmp_path):
    write_folds(
        cmu_tree(tmp_path) / "cmu_mosi_std_folds.py", ["stranger"], ["c5xsKMxpXnc"], ["2iD-tVS8NPw"]
    )
    manifest, _ = prepare("mosi", tmp_path)
    assert {u.dialogue: u.split for u in manifest.rows} == {
        "stranger": "train",
        "c5xsKMxpXnc": "dev",
        "2iD-tVS8NPw": "test",
    }


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("import os; os.system('touch /tmp/ran')", "expected lists named"),
        ("standard_train_fold = __import__('os').listdir('/')", "not the standard folds"),
        ("standard_train_fold = [", "not the standard folds"),
    ],
)
def test_a_folds_file_is_parsed_and_never_run(tmp_path, content, part):
    (cmu_tree(tmp_path) / "std_folds.py").write_text(content)
    with pytest.raises(DataError, match=part):
        prepare("mosi", tmp_path)


@pytest.mark.parametrize(
    ("row", "part"),
    [
        (("../../etc", "passwd", "x", "1", "train"), "cannot be file names"),
        (("a", "1", "x", "good", "train"), "line 2 has label 'good'"),
        (("a", "1", "x", "1", "later"), "line 2 has mode 'later'"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, part):
    write_mmsa(tmp_path / "x", [])
    with (tmp_path / "x" / "label.csv").open("a") as file:
        file.write(f"{row[0]},{row[1]},{row[2]},{row[3]},,,,P,{row[4]}\n")
    with pytest.raises(DataError, match=part):
        prepare("mosi", tmp_path / "x")


def test_a_damaged_label_file_and_an_empty_root(tmp_path):
    with pytest.raises(DataError, match="no label.csv and no CMU_MOSI_Opinion_Labels.csd"):
        prepare("mosi", tmp_path)
    (tmp_path / "CMU_MOSI_Opinion_Labels.csd").write_bytes(b"not HDF5")
    with pytest.raises(DataError, match="not a label file of CMU-MultimodalSDK"):
        prepare("mosi", tmp_path)


def test_the_list_of_videos_is_the_standard_split():
    videos = corpora.corpus("mosi").videos
    assert {split: len(ids) for split, ids in videos.items()} == {
        "train": 52,
        "dev": 10,
        "test": 31,
    }
    assert len({v for ids in videos.values() for v in ids}) == 93


def test_real_labels_have_the_expected_counts(test_data):
    import numpy as np

    data = np.load(test_data / "mosi" / "mosi_utt.npz")
    split_of = {v: s for s, ids in corpora.corpus("mosi").videos.items() for v in ids}
    sign = {-1.0: "negative", 0.0: "zero", 1.0: "positive"}
    counts = Counter(
        (split_of[v], sign[float(np.sign(y))])
        for v, y in zip(data["video_id"], data["label_reg"], strict=True)
    )
    expected = corpora.corpus("mosi").label_set().expected
    assert counts == {(s, label): n for s, c in expected.items() for label, n in c.items()}
