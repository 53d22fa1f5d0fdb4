"""Import of Parquet files of another hand, and of odd ones."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mer.pipeline.errors import DataError
from mer.pipeline.interchange import parquet
from mer.pipeline.store import FeatureStore

from tests.interchange.doors import imported, mer


def test_parquet_of_another_hand(tmp_path):
    table = pa.table(
        {
            "filename": ["a", "b", "c"],
            "emotion": ["joy", None, "fear"],
            "partition": ["train", "validation", "test"],
            "speech": pa.array([[1.0, 2.0], None, [5.0, 6.0]]),
            "visual": pa.array([[[1, 2, 3], [4, 5, 6]], [], [[7, 8, 9]]]),
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    code, _, err = mer("import", "parquet", tmp_path / "x.parquet", "--out", tmp_path / "f.h5")
    assert (
        code == 0
        and "audio: absent in 1 utterance\n" in err
        and "3 utterances (train 1, dev 1, test 1); single task: fear, joy" in err
    )
    store = FeatureStore(tmp_path / "f.h5")
    assert store.lengths("audio").tolist() == [1, 0, 1] and store.lengths("vision").tolist() == [
        2,
        0,
        1,
    ]
    assert store.features("vision", 0).tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"id": ["a"], "audio": [[[1.0, 2.0], [3.0]]]},
            "audio has steps of unequal width; expected 2",
        ),
        (
            {"id": ["a", "b"], "audio": [[1.0, 2.0], [3.0]]},
            r"b: audio has shape \(1,\), expected \(T, 2\)",
        ),
        (
            {"id": ["a"], "audio": pa.array([[]], pa.list_(pa.float32()))},
            "audio is empty in every row",
        ),
        ({"id": ["a"], "audio": ["x"]}, "no features found"),
        ({"id": [None], "audio": [[1.0]]}, "empty id"),
        ({"audio": [[1.0]]}, "no column that names the utterances"),
    ],
)
def test_odd_parquet_is_one_line(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=message):
        imported(parquet, tmp_path / "x.parquet", tmp_path / "feats.h5")
    assert not (tmp_path / "feats.h5").exists()
