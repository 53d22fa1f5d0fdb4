"""Imports as the tests of their formats make them, and what an imported store is held against."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from click.testing import CliRunner

from mer.cli import main
from mer.pipeline.interchange.foreign import ImportOptions
from mer.pipeline.interchange.importing import write_store
from mer.pipeline.store import FeatureStore


def mer(*args) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(a) for a in args])
    return result.exit_code, result.stdout, result.stderr


def imported(door, path: Path, out: Path, **options) -> FeatureStore:
    options = ImportOptions(**options)
    return write_store(door.read(path, options), out, options)[0]


def comparable(store: FeatureStore, *without: str) -> dict[str, dict]:
    """id -> row of the table, without where it is stored."""
    rows = store.table().drop_columns(["shard", "shard_row", *without]).to_pylist()
    return {r["id"]: {k: (v if v == v else None) for k, v in r.items()} for r in rows}


def assert_same(a: FeatureStore, b: FeatureStore, *without: str) -> None:
    assert comparable(a, *without) == comparable(b, *without)
    assert (a.header.task, a.header.labels, a.header.dataset) == (
        b.header.task,
        b.header.labels,
        b.header.dataset,
    )
    there = {id: row for row, id in enumerate(b.table()["id"].to_pylist())}
    for m, info in a.header.modalities.items():
        assert b.header.modalities[m] == info
        for row, id in enumerate(a.table()["id"].to_pylist()):
            np.testing.assert_array_equal(
                a.features(m, row, "stored"), b.features(m, there[id], "stored")
            )


def arrays_file(path: Path, **changes) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    data = {
        "id": np.array(["a/1", "-b", "c"]),
        "label": np.array([1, 0, 1]),
        "split": np.array(["train", "valid", "test"]),
        "transcript": np.array(["one", "", "three"]),
        "audio": rng.normal(size=(3, 4)),
        "text": rng.normal(size=(3, 6, 2)),
        "text_lengths": np.array([6, 0, 2]),
        "video": rng.normal(size=(10, 3)),
        "video_offsets": np.array([0, 4, 4, 10]),
        **changes,
    }
    np.savez(path, **{k: v for k, v in data.items() if v is not None})
    return data
