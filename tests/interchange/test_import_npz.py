"""Import of npz files: padded, end to end, with other names, odd ones, and bombs."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from mer.pipeline.errors import DataError
from mer.pipeline.interchange import npz
from mer.pipeline.interchange.foreign import ImportOptions
from mer.pipeline.store import FeatureStore

from tests.interchange.doors import arrays_file, imported, mer


def test_npz_of_vectors_padded_and_end_to_end(tmp_path):
    data = arrays_file(tmp_path / "x.npz", label=np.array([1, 0, -1]))
    store = imported(
        npz,
        tmp_path / "x.npz",
        tmp_path / "feats.h5",
        labels=("sad", "happy"),
        frame_rates={"vision": 30.0},
        dataset="mine",
    )
    rows = store.table().to_pylist()
    assert [(r["id"], r["label"], r["split"], r["text"]) for r in rows] == [
        ("a/1", "happy", "train", "one"),
        ("-b", "sad", "dev", None),
        ("c", None, "test", "three"),
    ]
    assert store.lengths("audio").tolist() == [1, 1, 1] and store.lengths("text").tolist() == [
        6,
        0,
        2,
    ]
    assert (
        store.lengths("vision").tolist() == [4, 0, 6]
        and store.header.modalities["vision"].frame_rate == 30.0
    )
    np.testing.assert_array_equal(store.features("vision", 2), data["video"][4:].astype(np.float32))
    np.testing.assert_array_equal(store.features("text", 2), data["text"][2, :2].astype(np.float32))
    assert store.header.modalities["audio"].encoder == "imported" and store.header.dataset == "mine"


def test_what_of_a_file_was_used_is_said(tmp_path):
    """Two splits and two kinds of labels in one file, as in the published utterance-level CMU-MOSI
    features: nothing is left aside without a word.
    """
    arrays_file(
        tmp_path / "x.npz",
        split=None,
        split_a=np.array(["train"] * 3),
        label_reg=np.array([0.5, -1, 2]),
        raw=np.ones((3, 2)),
    )
    features = "audio features = audio, text features = text, vision features = video"
    told = {
        (): f"id = id, label = label, text = transcript, {features}; not used: split_a (3,) <U5, "
        "label_reg (3,) float64, "
        "raw (3, 2) float64",
        ("--task", "regression", "--column", "split=split_a"): (
            f"id = id, targets = label_reg, text = transcript, split = split_a, {features}; not "
            "used: label (3,) int64, raw (3, 2) float64"
        ),
    }
    for i, (options, line) in enumerate(told.items()):
        code, _, err = mer(
            "import", "npz", tmp_path / "x.npz", "--out", tmp_path / f"{i}.h5", *options
        )
        assert code == 0 and err.splitlines()[0] == line


def test_npz_of_targets_side_by_side(tmp_path):
    rows = np.array([[0.5, 2], [-1, 3], [1, 1]])
    arrays_file(tmp_path / "x.npz", label=None, targets=rows)
    store = imported(npz, tmp_path / "x.npz", tmp_path / "f.h5", labels=("valence", "arousal"))
    assert store.header.task == "regression"
    assert store.table()["targets"].to_pylist() == rows.tolist()
    arrays_file(tmp_path / "y.npz", label=None, targets=rows[:, :1])
    store = imported(npz, tmp_path / "y.npz", tmp_path / "g.h5", task="regression")
    assert store.table()["targets"].to_pylist() == [[0.5], [-1], [1]]


def test_npz_with_other_names(tmp_path):
    other = {
        "mfcc": np.ones((3, 13)),
        "utt": np.array([10, 11, 12]),
        "score": np.array([0.5, -1, np.nan]),
    }
    arrays_file(tmp_path / "x.npz", id=None, label=None, split=None, **other)
    with pytest.raises(
        DataError, match="no column that names the utterances; say which with --column id=NAME"
    ):
        npz.read(tmp_path / "x.npz", ImportOptions())
    options = [
        "--column",
        "id=utt",
        "--column",
        "targets=score",
        "--feature",
        "audio=mfcc",
        "--task",
        "regression",
        "--labels",
        "arousal",
    ]
    code, _, err = mer("import", "npz", tmp_path / "x.npz", "--out", tmp_path / "f.h5", *options)
    assert code == 0, err
    store = FeatureStore(tmp_path / "f.h5")
    assert store.table()["id"].to_pylist() == ["10", "11", "12"] and store.table()[
        "targets"
    ].to_pylist() == [[0.5], [-1.0], None]
    assert list(store.header.modalities) == ["audio"] and store.header.labels == ("arousal",)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"label": np.array([0, 1])}, {}, "label has 2 values for 3"),
        (
            {"label": np.array([0.5, 1, 2])},
            {},
            "labels are not whole numbers; import them with --task regression",
        ),
        (
            {"label": np.array([0, 1, 5])},
            {"labels": ("a", "b")},
            "labels go up to 5, --labels names 2",
        ),
        ({"label": np.array([0, 1, 10**5])}, {}, "these are not classes"),
        (
            {"label": np.array(["x", "y", "z"])},
            {"labels": ("x", "y")},
            "label 'z' is not among x, y",
        ),
        ({"split": np.array(["train", "left out", "test"])}, {}, "-b has split 'left out'"),
        ({"audio": np.ones((4, 2))}, {}, r"audio \(4, 2\) and its lengths do not fit 3"),
        ({"text_lengths": np.array([7, 0, 0])}, {}, "text .* and its lengths do not fit"),
        ({"video_offsets": np.array([0, 4, 3, 10])}, {}, "video .* and its lengths do not fit"),
        ({"audio": np.array([["a"], ["b"], ["c"]])}, {}, "audio holds <U1, not numbers"),
        ({"id": np.array(["a", "a", "b"])}, {}, "id 'a' twice"),
        ({}, {"columns": {"id": "nope"}}, "no column 'nope' for id; it has"),
        ({}, {"columns": {"colour": "id"}}, "no such field; fields are id"),
        ({}, {"features": {"audio": "nope"}}, "no features 'nope' for audio; it has"),
        ({}, {"features": {"Audio!": "audio"}}, "cannot name a modality"),
        ({"id": np.array([b"x", None, 1], dtype=object)}, {}, "id.npy holds Python objects"),
    ],
)
def test_odd_npz_is_one_line(tmp_path, changes, options, message):
    arrays_file(tmp_path / "x.npz", **changes)
    with pytest.raises(DataError, match=message) as caught:
        imported(npz, tmp_path / "x.npz", tmp_path / "feats.h5", **options)
    assert "\n" not in str(caught.value) and not (tmp_path / "feats.h5").exists()


def npy(x: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, x)
    return file.getvalue()


def test_npz_bombs_are_refused_before_they_unfold(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "UNPACKED_FREE_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("audio.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(
                member, {"descr": "<f4", "fortran_order": False, "shape": (3, 1_000_000)}
            )
            for _ in range(11):
                member.write(bytes(1 << 20))
            member.write(bytes(12_000_000 - (11 << 20)))
        archive.writestr("id.npy", npy(np.array(["a", "b", "c"])))
    with pytest.raises(
        DataError, match=r"unpacks [0-9,]+ bytes to 12,000,\d+; more than 200 times"
    ):
        npz.read(tmp_path / "x.npz", ImportOptions())
    with zipfile.ZipFile(tmp_path / "y.npz", "w") as archive, archive.open("id.npy", "w") as member:
        np.lib.format.write_array_header_1_0(
            member, {"descr": "<f8", "fortran_order": False, "shape": (10**10,)}
        )
        member.write(b"x" * 8)
    with pytest.raises(
        DataError, match=r"id.npy claims shape \(10000000000,\) of float64 but holds 8 bytes"
    ):
        npz.read(tmp_path / "y.npz", ImportOptions())


def test_offsets_of_a_padded_array_are_no_offsets(tmp_path):
    """They were passed over without a word, and every step counted."""
    arrays_file(tmp_path / "x.npz", text_offsets=np.array([0, 1, 2, 3]))
    with pytest.raises(DataError, match="text_offsets says where .* give it text_lengths instead"):
        imported(npz, tmp_path / "x.npz", tmp_path / "feats.h5")
