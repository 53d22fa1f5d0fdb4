"""Small stores made from arrays alone, for the tests of this room."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from mer.pipeline.store import FeatureStore, ShardWriter, build_index

DIMS = {"audio": 6, "text": 3}
LAYERS = 4  # layer means of each modality, in a store that has them


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


def layer_means(n: int, seed: int = 0) -> list[dict[str, np.ndarray | None]]:
    """(LAYERS, width) float16-exact values for each modality of `arrays(n, seed)` that is there."""
    rng = np.random.default_rng([seed, 1])
    out = []
    for frames in arrays(n, seed):
        means = {m: (rng.integers(1, 200, (LAYERS, d)) / 8) for m, d in DIMS.items()}
        out.append({m: x.astype(np.float32) if len(frames[m]) else None for m, x in means.items()})
    return out


def make_store(
    folder: Path,
    *,
    n: int = 12,
    shards: int = 3,
    seed: int = 0,
    name: str = "feats",
    key: str = "",
    layers: bool = False,
    **more,
) -> FeatureStore:
    """n utterances u0.. over `shards` shards; rows of the head in reverse order of writing. `more`
    is for its header.
    """
    data, means = arrays(n, seed), layer_means(n, seed)
    counts = dict.fromkeys(DIMS, LAYERS) if layers else {}
    paths = []
    for i in range(shards):
        paths.append(folder / f"{name}.shards" / f"shard-{i:05d}.h5")
        with ShardWriter(paths[-1], DIMS, key=key, layers=counts) as writer:
            for k in range(i, n, shards):
                given = means[k] if layers else {}
                writer.add(f"u{k}", data[k], duration=k / 10, flags=k, layer_means=given)
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
        **more,
    )


def assert_holds(store: FeatureStore, n: int = 12, seed: int = 0) -> None:
    """Every value of `make_store` with the same arguments is there."""
    data = arrays(n, seed)
    assert store.table()["id"].to_pylist() == [f"u{k}" for k in range(n)][::-1]
    for row in range(n):
        for m in DIMS:
            np.testing.assert_array_equal(store.features(m, row), data[n - 1 - row][m])
    for m in DIMS:
        if store.header.modalities[m].layers:
            np.testing.assert_array_equal(store.layer_means(m), expected_means(m, n, seed))


def expected_means(modality: str, n: int = 12, seed: int = 0) -> np.ndarray:
    """(n, LAYERS, width): the layer means of `make_store(layers=True)`, row by row of the head."""
    absent = np.zeros((LAYERS, DIMS[modality]), np.float32)
    means = [given[modality] for given in layer_means(n, seed)][::-1]
    return np.stack([absent if x is None else x for x in means])


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
