"""How far one head file goes: `python -m tests.bench scale --utterances 1000000 10000000`.

The index is generated and real (written by the store's own code, read by it); the shards are one
small real one under many names, so that opening, mapping and reading shards is real too and only
the bytes of frames are missing. Every step runs in a process of its own; seconds are of CPU time,
memory is that process's peak above its peak after imports.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mer.pipeline import manifest as manifests
from mer.pipeline.extraction.fingerprint import fingerprint
from mer.pipeline.extraction.options import ExtractOptions
from mer.pipeline.runtime.files import sha256_file
from mer.pipeline.store import FeatureStore, ModalityInfo, ShardWriter
from mer.pipeline.store import arrays as files
from mer.pipeline.store.head import ShardRecord, compose
from mer.pipeline.store.schema import Header, normalise
from mer.pipeline.store.shard import Shard

from tests.bench.machine import save

MODALITIES = {"audio": 8, "text": 8}
LABELS = ("neutral", "joy", "anger", "sadness")
MANIFEST_ROWS = 2_000_000  # a manifest is Python objects: of more rows it is not made here
PER_SHARD = 250  # utterances of MELD's length in 96 MB of 1024 x 50 Hz and 1024 a token, float16


def names(prefix: str, numbers: np.ndarray, digits: int) -> pa.Array:
    """prefix0000000, …: as a corpus names things."""
    return pc.binary_join_element_wise(
        prefix, pc.utf8_lpad(pa.array(numbers).cast(pa.string()), digits, "0"), ""
    )


def table(n: int) -> pa.Table:
    """`n` rows as of a corpus of dialogues of ten: ids of 15 bytes, texts of 40."""
    row = np.arange(n)
    place = np.random.default_rng(0).integers(0, len(LABELS), n)
    dialogue = names("dia", row // 10, 8)
    return normalise(
        pa.table(
            {
                "id": pc.binary_join_element_wise(dialogue, names("utt", row % 10, 1), "_"),
                "split": pa.array(
                    np.array(["train", "train", "train", "dev", "test"])[row // 10 % 5]
                ),
                "dialogue": dialogue,
                "speaker": names("spk", row // 7 % (n // 100 + 1), 6),
                "position": pa.array(row % 10, pa.int32()),
                "label": pa.array(np.array(LABELS)[place]),
                "text": names("what is said in utterance number ", row, 8),
            }
        )
    )


def manifest(folder: Path, n: int) -> dict[str, float]:
    """Reading a manifest of `n` rows, and the key of its transcripts: what every extraction begins
    with.
    """
    path, rows = folder / "manifest.parquet", table(n)
    meta = {
        "format": "mer-manifest",
        "version": manifests.VERSION,
        "dataset": "scale",
        "task": "single",
        "labels": LABELS,
        "language": "en",
        "root": ".",
        "source": {},
    }
    columns = {
        f.name: rows[f.name] if f.name in rows.column_names else pa.nulls(n, f.type)
        for f in manifests.SCHEMA
    }
    pq.write_table(
        pa.table(columns, schema=manifests.SCHEMA).replace_schema_metadata(
            {"mer": json.dumps(meta)}
        ),
        path,
    )
    del rows, columns
    started = time.process_time()
    found = manifests.Manifest.read(path)
    read = time.process_time()
    fingerprint(found, ExtractOptions(text_encoder="builtin:tiny-roberta"))
    return {
        "read_s": read - started,
        "fingerprint_s": time.process_time() - read,
        "file_mb": path.stat().st_size / 1e6,
    }


def write(folder: Path, n: int) -> dict[str, float]:
    """The head of `n` utterances in n / PER_SHARD shards, which are one file under other names."""
    rng, one = np.random.default_rng(0), folder / "feats.shards" / "shard-00000.h5"
    with ShardWriter(one, MODALITIES) as writer:
        for i in range(PER_SHARD):
            writer.add(
                f"u{i}",
                {
                    m: rng.standard_normal((int(rng.integers(5, 60)), d))
                    for m, d in MODALITIES.items()
                },
                duration=3.0,
            )
    shard, count, row = Shard(one), -(-n // PER_SHARD), np.arange(n)
    header = Header(
        "scale", "single", LABELS, "en", {m: ModalityInfo(d) for m, d in MODALITIES.items()}
    )
    columns = {
        "shard": row // PER_SHARD,
        "shard_row": row % PER_SHARD,
        "duration": np.full(n, 3.0),
        "flags": np.zeros(n),
    }
    columns |= {f"n_{m}": np.diff(shard.offsets[m])[row % PER_SHARD] for m in MODALITIES}
    paths = [f"feats.shards/shard-{i:05d}.h5" for i in range(count)]
    for path in paths[1:]:
        os.link(one, folder / path)
    record = ShardRecord(one, shard.bytes, sha256_file(one), shard.identity)
    rows = table(n)
    started = time.process_time()
    attrs, data = compose(header, rows, columns, paths, [record] * count)
    files.write(
        folder / "feats.h5",
        attrs={"/": attrs},
        arrays=data,
        links={f"shards/{i:05d}": p for i, p in enumerate(paths)},
    )
    return {
        "seconds": time.process_time() - started,
        "head_mb": (folder / "feats.h5").stat().st_size / 1e6,
        "shards": count,
    }


def opening(folder: Path, n: int) -> dict[str, float]:
    started = time.process_time()
    FeatureStore(folder / "feats.h5")
    return {"seconds": time.process_time() - started}


def features(folder: Path, n: int) -> dict[str, float]:
    """Random rows from a store that is open: the first visit opens and checks a shard, the second
    finds it mapped.
    """
    store = FeatureStore(folder / "feats.h5")
    shards = np.random.default_rng(1).permutation(len(store.shards))[:500]
    rows = (
        (shards * PER_SHARD + np.random.default_rng(2).integers(0, PER_SHARD, len(shards)))
        .clip(max=n - 1)
        .tolist()
    )
    out = {}
    for visit in ("first", "again"):
        started = time.process_time()
        for row in rows:
            store.features("audio", row)
        out[f"{visit}_us"] = (time.process_time() - started) / len(rows) * 1e6
    return out


def select(folder: Path, n: int) -> dict[str, float]:
    """The rows of a split, and 100,000 random rows of the table."""
    store = FeatureStore(folder / "feats.h5")
    started = time.process_time()
    rows = np.flatnonzero(pc.equal(store.table()["split"], "train").to_numpy())
    filtered = time.process_time()
    store.table().take(np.sort(np.random.default_rng(3).choice(rows, 100_000)))
    return {
        "split_ms": (filtered - started) * 1e3,
        "take_100k_ms": (time.process_time() - filtered) * 1e3,
    }


def train_key(folder: Path, n: int) -> dict[str, float]:
    """What `mer train` computes before anything else: the key of features, labels and splits."""
    from mer.fusion.runs.checkpoint import store_key

    store = FeatureStore(folder / "feats.h5")
    started = time.process_time()
    store_key(store)
    return {"seconds": time.process_time() - started}


CALLS: dict[str, Callable[[Path, int], dict[str, float]]] = {
    "manifest": manifest,
    "write": write,
    "open": opening,
    "features": features,
    "select": select,
    "train-key": train_key,
}
STEPS = tuple(CALLS)


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB


def alone(step: str, folder: Path, n: int) -> dict[str, float]:
    """A step in a process of its own: its figures and its memory."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.bench",
            "scale",
            "--step",
            step,
            "--folder",
            str(folder),
            "--utterances",
            str(n),
        ],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]}
    return json.loads(done.stdout)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench scale", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--utterances", type=int, nargs="+", default=[1_000_000])
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="where to write"
    )
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.step:
        if options.step == "train-key":
            import mer.fusion.runs.checkpoint  # noqa: F401  # torch's own memory is not counted
        before = peak()
        found = CALLS[options.step](options.folder, options.utterances[0])
        print(
            json.dumps(
                {k: round(v, 3) for k, v in found.items()} | {"peak_mib": round(peak() - before)}
            )
        )
        return
    rows = []
    for n in options.utterances:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            for step in STEPS if n <= MANIFEST_ROWS else STEPS[1:]:
                rows.append({"utterances": n, "step": step, **alone(step, Path(folder), n)})
                print("  ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    print(save("scale", rows, command="python -m tests.bench scale " + " ".join(argv)))
