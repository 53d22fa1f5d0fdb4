"""Unimodal labels through foreign files: MMSA's pickles of CH-SIMS, every export and back."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from mer.pipeline.errors import DataError
from mer.pipeline.interchange import mmsa, npydir, npz, parquet
from mer.pipeline.interchange.export import export
from mer.pipeline.interchange.foreign import ImportOptions
from mer.pipeline.interchange.importing import write_store
from mer.pipeline.interchange.joining import join
from mer.pipeline.store import FeatureStore, ShardWriter, build_index

SAID = (["text=-0.4", "audio=0.8"], ["audio=0.0"], [], ["text=1.0"])


def pickled(path: Path, **more) -> Path:
    """Four utterances of one split, with these keys more."""
    part = {
        "id": [f"v$_${i}" for i in range(4)],
        "text": np.ones((4, 2, 3), np.float32),
        "audio": np.ones((4, 2, 5), np.float32),
        "annotations": ["Negative", "Neutral", "Positive", "Neutral"],
        "classification_labels": np.array([0, 1, 2, 1]),
        "regression_labels": np.array([-0.6, 0, 0.8, 0], np.float32),
        **more,
    }
    path.write_bytes(pickle.dumps({"train": part}))
    return path


def imported(path: Path, out: Path, door=mmsa, **options) -> tuple[FeatureStore, list[str]]:
    options = ImportOptions(**options)
    store, report = write_store(door.read(path, options), out, options)
    return store, report.notes


def said(store: FeatureStore) -> list[list[str]]:
    return store.table()["unimodal"].to_pylist()


def test_numbers_of_sims_are_read_gaps_counted_and_what_is_not_there_named(tmp_path):
    words = np.array([-0.4, 0.2, np.nan, 1], np.float32)
    voices = np.array([[0.8], [0], [-1], [0.1]])  # as (N, 1), in float64
    path = pickled(tmp_path / "sims.pkl", regression_labels_T=words, regression_labels_A=voices)
    store, notes = imported(path, tmp_path / "feats.h5")
    assert said(store) == [
        ["text=-0.4", "audio=0.8"],
        ["text=0.2", "audio=0.0"],
        ["audio=-1.0"],
        ["text=1.0", "audio=0.1"],
    ]
    told = "unimodal labels: text = regression_labels_T (of 1 utterance none), audio = regression_"
    assert any(note.startswith(told) for note in notes)
    assert "no unimodal labels of vision" in notes


def test_a_number_of_a_class_is_the_class_that_the_common_labels_call_by_it(tmp_path):
    words = np.array([2, 1, 0, -1])
    path = pickled(tmp_path / "sims.pkl", classification_labels_T=words)
    store, _ = imported(path, tmp_path / "feats.h5", task="single")
    assert store.header.labels == ("Negative", "Neutral", "Positive")
    assert said(store) == [["text=Positive"], ["text=Neutral"], ["text=Negative"], []]


@pytest.mark.parametrize(
    ("key", "values", "task", "told"),
    [
        ("regression_labels_T", np.ones(3), None, "a number for each of 4 utterances"),
        ("regression_labels_T", ["a", "b", "c", "d"], None, "a number for each of 4 utterances"),
        ("regression_labels_V", np.array([0, 1, np.inf, 0]), None, "not finite"),
        ("classification_labels_A", np.array([0, 1, 7, 0]), "single", "_A 7, a class that no"),
    ],
)
def test_what_is_no_label_is_refused(key, values, task, told, tmp_path):
    path = pickled(tmp_path / "sims.pkl", **{key: values})
    with pytest.raises(DataError, match=told) as caught:
        mmsa.read(path, ImportOptions(task=task))
    assert len(str(caught.value).replace(str(path), "sims.pkl")) <= 200


def made(folder: Path, name: str = "feats") -> FeatureStore:
    with ShardWriter(folder / f"{name}.shards/shard-00000.h5", {"text": 3}) as shard:
        for i in range(4):
            shard.add(f"v$_${i}", {"text": np.full((2, 3), i + 1.0)})
    rows = [
        {"id": f"v$_${i}", "split": "train", "targets": [i / 4], "unimodal": SAID[i]}
        for i in range(4)
    ]
    return build_index(
        folder / f"{name}.h5",
        [folder / f"{name}.shards/shard-00000.h5"],
        rows,
        dataset="sims",
        task="regression",
        labels=["sentiment"],
    )


@pytest.mark.parametrize(
    ("kind", "out", "door"),
    [
        ("mmsa", "out.pkl", mmsa),
        ("parquet", "out.parquet", parquet),
        ("npy", "out", npydir),
        ("single", "out.h5", None),
    ],
)
def test_they_leave_and_come_back(kind, out, door, tmp_path):
    store = made(tmp_path)
    export(store, kind, tmp_path / out)
    if door is None:
        back = FeatureStore(tmp_path / out)
    else:
        back, _ = imported(tmp_path / out, tmp_path / "back.h5", door)
    assert said(back) == said(store) == list(SAID)


def test_joined_stores_have_them_and_must_agree(tmp_path):
    first, second = made(tmp_path), made(tmp_path, "other")
    left_out = {"other.h5:text": "text.other"}
    join([first.path, second.path], tmp_path / "all.h5", renamed=left_out)
    assert said(FeatureStore(tmp_path / "all.h5")) == list(SAID)


def test_a_column_of_something_else_is_left_aside(tmp_path):
    np.savez(
        tmp_path / "t.npz",
        id=np.array(["a", "b"]),
        label=np.array(["x", "y"]),
        text=np.ones((2, 3), np.float32),
        unimodal=np.array(["perhaps", "not"]),
        split=np.array(["train", "test"]),
    )
    store, notes = imported(tmp_path / "t.npz", tmp_path / "feats.h5", npz)
    assert "unimodal" not in store.table().column_names
    assert any(note.startswith("unimodal labels left aside: ") for note in notes)
