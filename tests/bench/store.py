"""Random access to stored features against the layouts other tools use: `python -m tests.bench
store`.

A corpus of MELD-like lengths is written once in every layout (same values, float16). Each round
reads a shuffled epoch in batches of 64, every utterance copied out into one packed array, layouts
interleaved so that a busy machine is busy for all. Ratios are of CPU time per epoch (best round);
wall time and medians stand beside them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import h5py
import numpy as np

from mer.pipeline.store import FeatureStore, ShardWriter, build_index

from tests.bench.machine import save

BATCH = 64


def lengths_like_meld(n: int, rng: np.random.Generator) -> np.ndarray:
    """Steps at 49.95 Hz: log-normal around 2.3 s, at most 41 s (the corpus: mean 3.2 s, longest
    kept clip 41 s).
    """
    return np.clip(np.exp(rng.normal(np.log(2.3), 0.75, n)) * 49.95, 3, 2048).astype(np.int64)


def write_layouts(
    folder: Path, lengths: np.ndarray, dim: int, rng: np.random.Generator
) -> dict[str, Callable[[list[int]], np.ndarray]]:
    """Every layout on disk; a function each that reads a batch of rows into a packed array (sum T,
    D) float16.
    """
    n, offsets = len(lengths), np.concatenate([[0], np.cumsum(lengths)])
    data = rng.standard_normal((int(offsets[-1]), dim), dtype=np.float32).astype(np.float16)
    parts = [data[a:b] for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    data.tofile(folder / "raw.bin")
    with h5py.File(folder / "each.h5", "w") as file:
        for i, x in enumerate(parts):
            file.create_dataset(str(i), data=x)
    with h5py.File(folder / "chunked.h5", "w") as file:
        file.create_dataset("x", data=data, chunks=(128, dim))
    shards, size = [], -(-n // 8)
    for i in range(0, n, size):
        shards.append(folder / "feats.shards" / f"shard-{i // size:05d}.h5")
        with ShardWriter(shards[-1], {"audio": dim}) as writer:
            for k in range(i, min(n, i + size)):
                writer.add(str(k), {"audio": parts[k]})
    store = build_index(
        folder / "feats.h5",
        shards,
        [{"id": str(k)} for k in range(n)],
        dataset="bench",
        task="single",
        labels=[],
    )
    raw = np.memmap(folder / "raw.bin", np.float16, "r", shape=data.shape)
    each, chunked = h5py.File(folder / "each.h5", "r"), h5py.File(folder / "chunked.h5", "r")["x"]
    span = [np.s_[a:b] for a, b in zip(offsets[:-1], offsets[1:], strict=True)]

    def into(rows: list[int], read: Callable[[int, np.ndarray], None]) -> np.ndarray:
        out, at = np.empty((int(lengths[rows].sum()), dim), np.float16), 0
        for row in rows:
            read(row, out[at : at + lengths[row]])
            at += lengths[row]
        return out

    def from_raw(row: int, out: np.ndarray) -> None:
        out[:] = raw[span[row]]

    return {
        "raw np.memmap": lambda rows: into(rows, from_raw),
        "store .batch(dtype='stored')": lambda rows: store.batch("audio", rows, dtype="stored")[0],
        "store .features(dtype='stored')": lambda rows: into(
            rows, lambda row, out: np.copyto(out, store.features("audio", row, dtype="stored"))
        ),
        "HDF5 dataset per utterance": lambda rows: into(
            rows, lambda row, out: each[str(row)].read_direct(out)
        ),
        "HDF5 chunked (128 rows)": lambda rows: into(
            rows, lambda row, out: chunked.read_direct(out, span[row])
        ),
    }


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench store", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--utterances", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("/dev/shm"),
        help="where to write; the default keeps the disk out",
    )
    options = parser.parse_args(argv)
    rng = np.random.default_rng(0)
    lengths = lengths_like_meld(options.utterances, rng)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        layouts = write_layouts(Path(folder), lengths, options.dim, rng)
        first = rng.permutation(len(lengths))[:BATCH].tolist()
        expected = layouts["raw np.memmap"](first)
        assert all(np.array_equal(read(first), expected) for read in layouts.values()), (
            "every layout must hold the same values"
        )
        cpu: dict[str, list[float]] = {name: [] for name in layouts}
        wall: dict[str, list[float]] = {name: [] for name in layouts}
        for _ in range(options.rounds):
            order = rng.permutation(len(lengths)).tolist()
            for name, read in layouts.items():
                c, w = time.process_time(), time.perf_counter()
                for i in range(0, len(order), BATCH):
                    read(order[i : i + BATCH])
                cpu[name].append(time.process_time() - c)
                wall[name].append(time.perf_counter() - w)
        start = time.perf_counter()
        FeatureStore(Path(folder) / "feats.h5")
        opening = time.perf_counter() - start
    size = int(lengths.sum()) * options.dim * 2
    raw, each = min(cpu["raw np.memmap"]), min(cpu["HDF5 dataset per utterance"])
    rows = [
        {
            "layout": name,
            "gb_per_cpu_s_best": round(size / min(cpu[name]) / 1e9, 2),
            "gb_per_cpu_s_median": round(size / median(cpu[name]) / 1e9, 2),
            "gb_per_wall_s_best": round(size / min(wall[name]) / 1e9, 2),
            "gb_per_wall_s_median": round(size / median(wall[name]) / 1e9, 2),
            "of_raw_memmap": round(raw / min(cpu[name]), 2),
            "over_dataset_per_utterance": round(each / min(cpu[name]), 2),
            "of_raw_memmap_median_of_rounds": round(
                median(r / t for r, t in zip(cpu["raw np.memmap"], cpu[name], strict=True)), 2
            ),
        }
        for name in layouts
    ]
    rows.append(
        {
            "layout": "corpus",
            "utterances": len(lengths),
            "steps": int(lengths.sum()),
            "dim": options.dim,
            "mb": round(size / 1e6),
            "rounds": options.rounds,
            "batch": BATCH,
            "store_open_ms": round(opening * 1e3, 2),
        }
    )
    for row in rows:
        print("  ".join(f"{key}={value}" for key, value in row.items()))
    print(save("store", rows, command="python -m tests.bench store " + " ".join(argv)))
