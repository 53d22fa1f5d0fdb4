"""Small stores made from arrays alone, for the tests of this room."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from mer.pipeline.store import FeatureStore, ShardWriter, build_index

DIMS = {"audio": 6, "text": 3}


def arrays(n: int, seed: int = 0, dims: dict[str, int] = DIMS) -> list[dict[str, np.ndarray]]:
    """n utterances of 0..9 float16-exact steps a modality, never zero."""
    rng = np.random.default_rng(seed)
    return [
        {
            m: (rng.integers(1, 200, (int(rng.integers(0, 10)), d)) / 8).astype(np.float32)
            for m, d in dims.items()
        }
        for _ in range(n)
    ]


def make_store(
    folder: Path, *, n: int = 12, shards: int = 3, seed: int = 0, name: str = "feats", key: str = ""
) -> FeatureStore:
    """n utterances u0.. over `shards` shards; rows of the head in reverse order of writing."""
    data = arrays(n, seed)
    paths = []
    for i in range(shards):
        paths.append(folder / f"{name}.shards" / f"shard-{i:05d}.h5")
        with ShardWriter(paths[-1], DIMS, key=key) as writer:
            for k in range(i, n, shards):
                writer.add(f"u{k}", data[k], duration=k / 10, flags=k)
    splits, labels = ("train", "dev", "test"), ("joy", "anger")
    table = [
        {"id": f"u{k}", "split": splits[k % 3], "label": labels[k % 2], "text": f"text {k}"}
        for k in range(n)
    ]
    return build_index(
        folder / f"{name}.h5",
        paths,
        table[::-1],
        dataset="demo",
        task="single",
        labels=labels,
        fingerprint=key,
    )


def assert_holds(store: FeatureStore, n: int = 12, seed: int = 0) -> None:
    """Every value of `make_store` with the same arguments is there."""
    data = arrays(n, seed)
    assert store.table()["id"].to_pylist() == [f"u{k}" for k in range(n)][::-1]
    for row in range(n):
        for m in DIMS:
            np.testing.assert_array_equal(store.features(m, row), data[n - 1 - row][m])


def digest(store: FeatureStore, rows: range) -> str:
    h = hashlib.sha256()
    for row in rows:
        for m in store.header.modalities:
            h.update(store.features(m, row, dtype="stored").tobytes())
    return h.hexdigest()


def read_part(job: tuple[FeatureStore, int, int]) -> str:
    """For processes that are spawned: they find a function of this module, not one of a test's."""
    store, start, stop = job
    return digest(store, range(start, stop))
