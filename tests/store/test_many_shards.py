"""A process may hold only so many maps: a store of more shards than that lets go of the ones it
opened first.
"""

from __future__ import annotations

from pathlib import Path

from mer.pipeline.store import reader

from tests.store.build import assert_holds, make_store


def maps(folder: Path) -> int:
    """Shards under `folder` that this process has mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return len({line.split()[-1] for line in lines if str(folder) in line})


def test_more_shards_than_may_be_open(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "OPEN_SHARDS", 2)
    store = make_store(tmp_path, n=24, shards=6)
    assert_holds(store, n=24)
    assert maps(tmp_path) == 2
    # a view outlives its shard's place among the open ones
    kept = store.features("audio", 0, dtype="stored")
    before = kept.copy()
    assert_holds(store, n=24)
    assert (kept == before).all() and maps(tmp_path) <= 3
    store.close()
    del kept
    assert maps(tmp_path) == 0
