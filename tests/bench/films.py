"""Pictures of films through an image encoder, against the loop that the field uses: each picture
decoded, then through transformers' processor and model by itself. Decoding (with scaling) and
encoding are timed apart, too: in pictures a second, and in CPU seconds of all processes and threads
of a side, which a crowded machine changes little. `python -m tests.bench films` prints the rows of
vision alone.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch

from mer.pipeline.encoders.images import _load
from mer.pipeline.encoders.loading import resolve
from mer.pipeline.encoders.modality import Lengths, Rows
from mer.pipeline.encoders.vision import Vision
from mer.pipeline.encoders.vit import ImageEncoder
from mer.pipeline.extraction.parts import Source, run_parts
from mer.pipeline.extraction.plan import Settings, make_parts
from mer.pipeline.manifest import Utterance
from mer.pipeline.media import pictures
from mer.pipeline.media.stages import Flag
from mer.pipeline.media.workers import Decoders

from tests.encoders import pictures as checkpoints
from tests.media import films

FPS = 4.0
SIZE, RATE = "640x360", "24"
SECONDS = (1.2, 2.0, 2.6, 3.2, 4.1, 6.0)  # about the spread of MELD's lengths
SETTINGS = {  # google/vit-base-patch16-224, and small
    "tiny": {},
    "base": {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072, "image_size": 224, "patch_size": 16,
    },
}  # fmt: skip
SQUARES = {"tiny": 32, "base": 224}


def make(folder: Path, count: int) -> list[Path]:
    """`count` films of H.264, 24 frames a second."""
    paths = []
    for number in range(count):
        path = folder / f"film{number:03}.mp4"
        films.plain(path, seconds=SECONDS[number % len(SECONDS)], size=SIZE, rate=RATE)
        paths.append(path)
    return paths


def encoder_of(size: str, folder: Path, precision: str) -> ImageEncoder:
    if not folder.exists():
        checkpoints.checkpoint(folder, "vit", **SETTINGS[size])
        side = SQUARES[size]
        described = (folder / "preprocessor_config.json").read_text()
        (folder / "preprocessor_config.json").write_text(described.replace("32", str(side)))
    checkpoint = resolve("vision", str(folder))
    return ImageEncoder(checkpoint, pool="cls", device="cpu", precision=precision)


def by_hand(path: Path, count: int) -> list[np.ndarray]:
    """The pictures as a loop takes them: every frame is decoded, those at the moments are kept."""
    times = pictures.moments(0.0, count / FPS, FPS, count)
    found: list[np.ndarray] = []
    last = None
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            while len(found) < count and frame.time > times[len(found)] and last is not None:
                found.append(last.to_ndarray(format="rgb24"))
            last = frame
    while len(found) < count and last is not None:
        found.append(last.to_ndarray(format="rgb24"))
    return found


def cpu_seconds() -> float:
    """Of this process, its threads and the children that have ended."""
    told = os.times()
    return told.user + told.system + told.children_user + told.children_system


def race(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """(seconds, CPU seconds) of each side, the best of the rounds; sides take turns."""
    best = dict.fromkeys(sides, (float("inf"), float("inf")))
    for _ in range(rounds):
        for name, work in sides.items():
            started, begun = time.perf_counter(), cpu_seconds()
            work()
            took, used = time.perf_counter() - started, cpu_seconds() - begun
            best[name] = min(best[name][0], took), min(best[name][1], used)
    return best


def row(size: str, precision: str, folder: Path, paths: list[Path], args) -> dict:
    """One line of the table."""
    encoder = encoder_of(size, folder, precision)
    source = str(encoder.checkpoint.folder)
    processor, model = _load(source), encoder.model
    counts = [pictures.probe(path, fps=FPS).count for path in paths]
    budget = Vision.fixed_budget["cpu"]
    asked = Vision(encoder=source, budget=budget, part=1_000_000, fps=FPS, pool_kind="cls")
    rows = Rows(tuple(Utterance(path.stem, path.name) for path in paths), paths[0].parent)
    told = Lengths(tuple(counts), tuple(counts), (Flag(0),) * len(counts))
    items = asked.items(range(len(paths)), rows, told, encoder.checkpoint)
    settings = Settings("bench", {"vision": budget}, 1, 1, {"vision": max(1, sum(counts) // 4)})
    parts = make_parts("vision", 0, items, settings)
    wanted = pictures.Wanted(FPS, finish=encoder.processor)

    def scaled_by_hand() -> list[torch.Tensor]:
        found = []
        for path, count in zip(paths, counts, strict=True):
            for pixels in by_hand(path, count):
                found.append(processor(images=pixels, return_tensors="pt")["pixel_values"])
        return found

    def scaled() -> list[np.ndarray]:
        return [pictures.take(path, wanted, start=None, end=None)[0] for path in paths]

    def encode_by_hand(values: list[torch.Tensor]) -> None:
        with torch.inference_mode():
            for one in values:
                model(pixel_values=one).last_hidden_state[0, 0].numpy()

    def encode(values: list[np.ndarray]) -> None:
        flat = np.concatenate(values)
        for begin in range(0, len(flat), budget):
            encoder.encode([flat[begin : begin + budget]])

    def whole() -> None:
        with (
            tempfile.TemporaryDirectory() as out,
            Decoders(1 if args.threads > 1 else 0) as decoders,
        ):
            read = partial(asked.read, rows=rows, lengths=told, encoder=encoder, decoders=decoders)
            source = {"vision": Source(encoder, read)}
            run_parts(parts, source, Path(out), dtype="float16", threads=args.threads)

    total = sum(counts)
    values, ready = scaled_by_hand(), scaled()
    sides = {
        "loop": lambda: encode_by_hand(scaled_by_hand()),
        "ours": whole,
        "loop_decode": scaled_by_hand,
        "ours_decode": scaled,
        "loop_encode": lambda: encode_by_hand(values),
        "ours_encode": lambda: encode(ready),
    }
    times = race(sides, args.rounds)
    return {
        "encoder": size,
        "modality": "vision",
        "precision": precision,
        "threads": args.threads,
        "items": len(paths),
        "pictures": total,
        **{f"{name}_pictures_per_s": round(total / took, 1) for name, (took, _) in times.items()},
        "ratio": round(times["loop"][0] / times["ours"][0], 2),
        **{f"{name}_cpu_s": round(used, 2) for name, (_, used) in times.items()},
        "cpu_ratio": round(times["loop"][1] / times["ours"][1], 2),
        "decode_cpu_ratio": round(times["loop_decode"][1] / times["ours_decode"][1], 2),
    }


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench films", description=__doc__)
    parser.add_argument("--sizes", default="tiny,base", help="tiny, base")
    parser.add_argument("--films", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name:
        paths = make(Path(name), args.films)
        for size in args.sizes.split(","):
            print(row(size, "fp32", Path(name) / f"v-{size}", paths, args), flush=True)
