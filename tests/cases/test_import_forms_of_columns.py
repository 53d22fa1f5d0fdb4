"""Labels as a column of one, one-hot rows, features as objects or by number, padding of NaN, zeros
in Parquet and folders: read, or told. Siblings of thuiar/Self-MM#8,
LeonCrashCode/AttentionTargetSentiment#4 and yaohungt/Multimodal-Transformer#3.
"""

from __future__ import annotations

import math
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mer.pipeline.errors import DataError
from mer.pipeline.interchange import npz
from mer.pipeline.interchange.foreign import ImportOptions
from mer.pipeline.interchange.importing import write_store

from tests.cases.imports import LENGTHS, imported, mer, split_of

IDS = ["a", "b", "c", "d"]
LABELS = ["joy", "anger", "joy", "fear"]


def arrays(tmp_path, **changes):
    content = {"id": IDS, "label": LABELS, "audio": np.ones((4, 2), np.float32)} | changes
    np.savez(tmp_path / "x.npz", **content)
    return tmp_path / "x.npz"


@pytest.mark.parametrize("field", ["id", "label", "split", "speaker"])
def test_a_column_of_one(tmp_path, field):
    given = {"split": ["train", "dev", "test", "train"], "speaker": ["s", "t", "u", "v"]}
    given |= {"id": IDS, "label": LABELS}
    column = np.array(given[field]).reshape(4, 1)
    found = npz.read(arrays(tmp_path, **given | {field: column}), ImportOptions())
    assert [row[field] for row in found.rows] == given[field]


def test_features_of_one_number_stay_features(tmp_path):
    path = arrays(tmp_path, audio=np.arange(4.0).reshape(4, 1), text=np.ones((4, 1)))
    assert npz.read(path, ImportOptions()).dims == {"audio": 1, "text": 1}


def test_one_hot_rows_are_refused_for_a_class_and_taken_for_several(tmp_path):
    path = arrays(tmp_path, label=np.eye(4))
    with pytest.raises(DataError, match=r"label is \(4, 4\) .*argmax.*--column targets=label"):
        npz.read(path, ImportOptions())
    options = {"task": "multi", "columns": {"targets": "label"}}
    assert imported("npz", path, tmp_path / "f.h5", **options).header.task == "multi"


def test_a_number_far_from_the_classes_is_in_the_remedy(tmp_path):
    with pytest.raises(DataError, match="--unlabelled=-99 if -99 means none"):
        npz.read(arrays(tmp_path, label=[0, 1, 2, -99]), ImportOptions())
    found = npz.read(arrays(tmp_path, label=[0, 1, 2, -99]), ImportOptions(unlabelled="-99"))
    assert [row["label"] for row in found.rows] == ["0", "1", "2", None]


FORMS = {
    "objects": lambda x: x.astype(object),
    "dict by number": lambda x: dict(enumerate(x)),
    "a NaN where there is none": lambda x: [math.nan, *x[1:]],
}


@pytest.mark.parametrize("form", FORMS)
def test_features_in_other_forms(tmp_path, form):
    content = {}
    for split in ("train", "valid", "test"):
        part = split_of(split)
        content[split] = part | {"audio": FORMS[form](part["audio"])}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol=4))
    store = imported("mmsa", tmp_path / "x.pkl", tmp_path / "f.h5")
    true = split_of("train")["audio"]
    missing = form.startswith("a NaN")
    np.testing.assert_array_equal(store.features("audio", 1), true[1])
    assert store.lengths("audio")[0] == (0 if missing else 6)


@pytest.mark.parametrize("lengths", [True, False])
@pytest.mark.parametrize("front", [True, False])
def test_padding_of_nan(tmp_path, front, lengths):
    content, true = {}, {}
    for split in ("train", "valid", "test"):
        part = split_of(split, front=front, pad=not front)
        true[split] = [one[one.any(axis=1)] for one in part["audio"]]
        part["audio"] = np.where(part["audio"] == 0, np.nan, part["audio"])
        content[split] = part | ({"audio_lengths": LENGTHS} if lengths else {})
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol=4))
    store = imported("mmsa", tmp_path / "x.pkl", tmp_path / "f.h5")
    for i, expected in enumerate(true["train"]):
        np.testing.assert_array_equal(store.features("audio", i), expected)


@pytest.mark.parametrize("front", [True, False])
@pytest.mark.parametrize("kind", ["parquet", "npy-dir"])
def test_zeros_at_an_end_are_counted(tmp_path, kind, front):
    """They may be padding, and have no lengths to hold them against."""
    x = split_of("train", front=front, pad=not front)["audio"]
    path = tmp_path / "x"
    if kind == "parquet":
        pq.write_table(pa.table({"id": IDS, "label": LABELS, "audio": x.tolist()}), path)
    else:
        (path / "audio").mkdir(parents=True)
        rows = [f"{id},{label}\n" for id, label in zip(IDS, LABELS, strict=True)]
        (path / "index.csv").write_text("id,label\n" + "".join(rows))
        for id, one in zip(IDS, x, strict=True):
            np.save(path / "audio" / f"{id}.npy", one)
    code, out, said = mer("import", kind, path, "--out", tmp_path / "f.h5")
    told = "3 utterances begin and 0 end" if front else "0 utterances begin and 3 end"
    assert code == 0 and f"audio: {told} with steps that are all zero; kept" in out + said


def test_what_a_reader_has_told_is_not_told_again(tmp_path):
    x = split_of("train", pad=True)["audio"]
    options = ImportOptions()
    found = npz.read(arrays(tmp_path, audio=x), options)
    report = write_store(found, tmp_path / "f.h5", options)[1]
    assert sum("steps that are all zero" in note for note in report.notes) == 1
