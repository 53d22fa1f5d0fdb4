"""In a folder of arrays an id that cannot name a file gets the number of its row, row.0000001. An
id that is called so itself had its arrays replaced by those of the other, and an import of the
folder gave both the same features. Found by reading, not by a report.
"""

from __future__ import annotations

import numpy as np

from mer.pipeline.interchange import npydir
from mer.pipeline.interchange.export import export
from mer.pipeline.store import ShardWriter, build_index

from tests.interchange.doors import imported

IDS = ["row.0000001", "of two words", "ROW.0000003", "of three, now", "row.0000005_", "six, too"]


def test_every_utterance_keeps_its_own_arrays(tmp_path):
    true = [np.full((2, 3), number, np.float32) for number in range(len(IDS))]
    with ShardWriter(tmp_path / "shard.h5", {"audio": 3}) as writer:
        for id, x in zip(IDS, true, strict=True):
            writer.add(id, {"audio": x})
    rows = [{"id": id, "split": "train", "label": "joy"} for id in IDS]
    store = build_index(
        tmp_path / "feats.h5",
        [tmp_path / "shard.h5"],
        rows,
        dataset="mine",
        task="single",
        labels=("joy",),
    )
    export(store, "npy", tmp_path / "folder")
    names = {path.name.lower() for path in (tmp_path / "folder/audio").iterdir()}
    assert len(names) == len(IDS)
    again = imported(npydir, tmp_path / "folder", tmp_path / "again.h5")
    assert again.table()["id"].to_pylist() == IDS
    for row, x in enumerate(true):
        np.testing.assert_array_equal(again.features("audio", row), x)
