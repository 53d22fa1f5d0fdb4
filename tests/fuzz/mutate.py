"""Reads mutated files until its time is up: `python -m tests.fuzz.mutate READER FOLDER SECONDS
SEED`.

An input is in FOLDER before it is read, so that one which kills the process is still there. Ends
with 1 and one line for the first input that is neither read nor refused by a MerError; a hang is
ended by SIGALRM; more memory than MEMORY above what the process has after it read the sound file is
refused by the system and shows as a MemoryError.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from mer.pipeline.datasets import table
from mer.pipeline.errors import MerError
from mer.pipeline.interchange import mmsa, npz, parquet
from mer.pipeline.interchange.export import export
from mer.pipeline.interchange.foreign import ImportOptions
from mer.pipeline.interchange.importing import write_store
from mer.pipeline.manifest import Manifest
from mer.pipeline.media import audio as media
from mer.pipeline.store import FeatureStore

from tests.extract import corpus
from tests.media.clips import tone, write_aac
from tests.store.build import assert_holds, make_store

MEMORY = 1 << 30  # bytes of address space
HANG = 60  # seconds for one input of a few kB
NASTY = [
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    1 << 40,
    (1 << 63) - 1,
    (1 << 64) - 1,
]


def mutate(raw: bytes, rng: np.random.Generator) -> bytes:
    """One to four small accidents, half of them near the beginning or the end, where formats keep
    their sizes.
    """
    out = bytearray(raw)
    for _ in range(rng.integers(1, 5)):
        if not out:
            break
        place = rng.integers(len(out))
        near = int(rng.integers(4))
        if near == 0:
            place = rng.integers(min(len(out), 512))
        elif near == 1:
            place = len(out) - 1 - rng.integers(min(len(out), 512))
        at = int(place)
        match rng.integers(7):
            case 0:
                out[at] ^= 1 << int(rng.integers(8))
            case 1:
                out[at] = int(rng.integers(256))
            case 2:
                width = int(rng.choice([2, 4, 8]))
                value = NASTY[rng.integers(len(NASTY))] & ((1 << 8 * width) - 1)
                out[at : at + width] = value.to_bytes(width, "little" if rng.integers(2) else "big")
            case 3:
                del out[at:]
            case 4:
                del out[at : at + int(rng.integers(1, 64))]
            case 5:
                out[at:at] = rng.bytes(int(rng.integers(1, 64)))
            case 6:
                other = int(rng.integers(len(out)))
                out[at : at + 32] = out[other : other + 32]
    return bytes(out)


def make_csv(folder: Path) -> Path:
    """Quotes, line breaks in a field, another alphabet."""
    path = folder / "table.csv"
    lines = [
        f'u{i},"说 {i}, he said '
        f'""no""\n",{("joy", "anger")[i % 2]},{("train", "dev", "test")[i % 3]},d{i // 2}'
        for i in range(12)
    ]
    path.write_text("\n".join(["id,text,label,split,dialogue", *lines]) + "\n", encoding="utf-8")
    return path


def make_table(folder: Path) -> Path:
    ids, splits = [f"u{i}" for i in range(12)], ["train", "dev", "test"] * 4
    columns = {"id": ids, "text": ["said"] * 12, "label": ["joy", "anger"] * 6, "split": splits}
    pq.write_table(pa.table(columns), folder / "table.parquet")
    return folder / "table.parquet"


def make_npz(folder: Path) -> Path:
    np.savez(
        folder / "f.npz",
        id=np.array(["a", "b", "c"]),
        label=np.array(["x", "y", "x"]),
        audio=np.ones((3, 4), np.float32),
    )
    return folder / "f.npz"


# not at 16 kHz: what resampling imports is there before the limit
def make_wav(folder: Path) -> Path:
    soundfile.write(folder / "clip.wav", tone(2000, rate=8_000), 8_000)
    return folder / "clip.wav"


def make_flac(folder: Path) -> Path:
    soundfile.write(folder / "clip.flac", tone(2000, rate=8_000), 8_000)
    return folder / "clip.flac"


def exported(form: str, name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        export(make_store(folder), form, folder / name)
        return folder / name

    return make


def read_store(path: Path) -> None:
    """A store that verifies holds exactly what was written, whatever was done to its files."""
    head = path if path.name == "feats.h5" else path.parent.parent / "feats.h5"
    with FeatureStore(head) as store:
        store.verify()
        assert_holds(store)


def read_clip(path: Path) -> None:
    clip, info = media.load(path), media.probe(path)
    assert len(clip.waveform) == info.samples and np.isfinite(clip.waveform).all()


def imported(door) -> Callable[[Path], object]:
    def read(path: Path) -> None:
        options = ImportOptions()
        write_store(door.read(path, options), path.parent / "out" / "feats.h5", options, force=True)

    return read


# Reader → (makes the sound file, reads it).
READERS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], object]]] = {
    "head": (lambda folder: make_store(folder).path, read_store),
    "shard": (lambda folder: make_store(folder).shards[1].path, read_store),
    "manifest": (lambda folder: corpus.make(folder, 4)[1], Manifest.read),
    "csv": (make_csv, table.prepare),
    "table": (make_table, table.prepare),
    "wav": (make_wav, read_clip),
    "flac": (make_flac, read_clip),
    "mp4": (
        lambda folder: write_aac(folder / "clip.mp4", tone(8000)[None], layout="mono"),
        read_clip,
    ),
    "npz": (make_npz, imported(npz)),
    "parquet": (exported("parquet", "f.parquet"), imported(parquet)),
    "mmsa": (exported("mmsa", "f.pkl"), imported(mmsa)),
}


def main(reader: str, folder: Path, seconds: float, seed: int) -> int:
    make, read = READERS[reader]
    path = make(folder)
    raw = path.read_bytes()
    read(path)  # the sound file is read, or all the rest proves nothing
    held = int(re.search(r"VmSize:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY,) * 2)
    counts = {"read": 0, "refused": 0}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        path.write_bytes(mutate(raw, np.random.default_rng(seed)))
        signal.alarm(HANG)
        try:
            read(path)
            counts["read"] += 1
        except MerError as error:
            counts["refused"] += 1
            if len(" ".join(str(error).split())) > 1000:  # the command line prints it so
                print(f"seed {seed}: not one line: {error!r}")
                return 1
        except BaseException as error:  # whatever it is, it is the finding
            print(f"seed {seed}: {type(error).__name__}: {error} ({path})")
            return 1
        finally:
            signal.alarm(0)
        seed += 1
    print(json.dumps(counts))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])))
