"""A few seconds of generated speech-like clips with transcripts: enough to send through the whole
extraction.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import av
import numpy as np
import soundfile

from mer.pipeline.extraction.options import ExtractOptions
from mer.pipeline.manifest import Manifest, Utterance

TINY = {"audio_encoder": "builtin:tiny-wav2vec2", "text_encoder": "builtin:tiny-roberta"}


def options(**changes) -> ExtractOptions:
    """Small batches, parts and shards, so that a small corpus has several of each."""
    small = {
        "decoders": 0,
        "budget_seconds": 2.0,
        "budget_tokens": 24,
        "part_seconds": 3.0,
        "part_tokens": 40,
        "budget_pictures": 6,
        "part_pictures": 8,
        "shard_bytes": 60_000,
        "threads": 1,
    }
    return ExtractOptions(**{**TINY, **small, **changes})


def write_clip(path: Path, seconds: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    n = round(seconds * 16_000)
    x = 0.3 * np.sin(np.arange(n) * random.uniform(0.02, 0.1)) + 0.05 * random.standard_normal(n)
    soundfile.write(path, x.astype(np.float32), 16_000)


def write_film(path: Path, seconds: float, seed: int, *, rate: int = 10) -> None:
    """A film of squares that move before a coloured ground, with the tone of `write_clip`."""
    random = np.random.default_rng(seed)
    ground, square = random.integers(0, 255, (2, 3), np.uint8)
    tone = 0.3 * np.sin(np.arange(round(seconds * 16_000)) * random.uniform(0.02, 0.1))
    with av.open(str(path), "w") as container:
        picture = container.add_stream("mpeg4", rate=rate, width=64, height=48, pix_fmt="yuv420p")
        picture.bit_rate = 400_000
        coded = "aac" if path.suffix == ".mp4" else "pcm_s16le"
        sound = container.add_stream(coded, rate=16_000, layout="mono")
        for number in range(max(1, round(seconds * rate))):
            pixels = np.broadcast_to(ground, (48, 64, 3)).copy()
            left = 2 * number % 48
            pixels[10:30, left : left + 16] = square
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
        for begin in range(0, len(tone), 1024):
            samples = np.round(tone[begin : begin + 1024] * 32_767).astype(np.int16)[None]
            block = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            block.sample_rate, block.pts = 16_000, begin
            container.mux(sound.encode(block))
        container.mux(sound.encode(None))


def make(
    root: Path, count: int = 24, *, seed: int = 0, films: bool = False
) -> tuple[Manifest, Path]:
    """(manifest, its file): `count` clips of 0.1 to 1.5 s, every fifth transcript a repeat;
    `films`: with pictures.
    """
    suffix = "mkv" if films else "wav"
    write = write_film if films else write_clip
    root.mkdir(parents=True, exist_ok=True)
    lengths = np.random.default_rng(seed).uniform(0.1, 1.5, count)
    rows = []
    for i, seconds in enumerate(lengths):
        write(root / f"clip{i}.{suffix}", seconds, seed + i)
        text = "again and again" if i % 5 == 0 else f"sentence {i}" + " with more words" * (i % 4)
        rows.append(
            Utterance(
                f"u{i:03}",
                f"clip{i}.{suffix}",
                text,
                ("train", "dev", "test")[i % 3],
                ("a", "b")[i % 2],
                dialogue=f"d{i // 4}",
            )
        )
    manifest = Manifest("toy", "single", ("a", "b"), tuple(rows), root)
    manifest.write(root / "manifest.parquet")
    return manifest, root / "manifest.parquet"


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every shard."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob("shard-*.h5"))
    }
