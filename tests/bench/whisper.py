"""Whisper-base's encoder, with `full` and with `clip` windows, against a loop of transformers'
feature extractor and encoder, one clip at a time.

The loop computes the whole window of 30 s, since transformers takes no shorter one: against `clip`
the ratio is what the shorter window saves, at other features (the self-test says how far they are
apart). Weights are random; both sides keep features in float32, ours writes them as well.
`python -m tests.bench extract` prints these rows (`--whisper N`: of N clips; 0: not at all).
"""

from __future__ import annotations

import tempfile
import time
from argparse import Namespace
from functools import partial
from pathlib import Path

import soundfile
import torch

from mer.pipeline.encoders.audio import Audio
from mer.pipeline.encoders.loading import resolve
from mer.pipeline.encoders.modality import Lengths, Rows
from mer.pipeline.encoders.whisper import WhisperEncoder
from mer.pipeline.extraction.options import ExtractOptions
from mer.pipeline.extraction.parts import Source, run_parts
from mer.pipeline.extraction.plan import Settings, make_parts
from mer.pipeline.manifest import Utterance
from mer.pipeline.media.stages import Flag
from mer.pipeline.media.workers import Decoders

from tests.encoders import checkpoints

RATE_HZ = 16_000
BASE = {
    "d_model": 512,
    "encoder_layers": 6,
    "encoder_attention_heads": 8,
    "encoder_ffn_dim": 2048,
    "num_mel_bins": 80,
    "max_source_positions": 1500,
}
WINDOWS = ("full", "clip")


def loop(checkpoint: Path, encoder: WhisperEncoder, paths: list[Path]) -> None:
    """What a script does: a clip is padded to the window, and its frames are cut out."""
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor.from_pretrained(checkpoint)
    kept = []
    with torch.inference_mode():
        for path in paths:
            waveform = soundfile.read(path, dtype="float32")[0]
            mels = extractor(waveform, sampling_rate=RATE_HZ, return_tensors="pt").input_features
            states = encoder.model(mels).last_hidden_state[0]
            kept.append(states[: encoder.geometry.frames(len(waveform))].numpy().copy())


def ours(modality: Audio, encoder: WhisperEncoder, paths: list[Path], args: Namespace) -> None:
    """Read, encoded in batches, written."""
    samples = tuple(soundfile.info(str(path)).frames for path in paths)
    rows = Rows(tuple(Utterance(path.stem, path.name) for path in paths), paths[0].parent)
    told = Lengths(samples, (), (Flag(0),) * len(samples))
    items = modality.items(range(len(paths)), rows, told, encoder.checkpoint)
    budget = round(args.budget_seconds * RATE_HZ)
    lengths = {"audio": max(1, sum(item.length for item in items) // 4)}
    parts = make_parts("audio", 0, items, Settings("bench", {"audio": budget}, 1, 1, lengths))
    decoders = 1 if args.threads > 1 else 0
    with tempfile.TemporaryDirectory() as folder, Decoders(decoders) as opened:
        read = partial(modality.read, rows=rows, lengths=told, encoder=encoder, decoders=opened)
        source = {"audio": Source(encoder, read)}
        run_parts(parts, source, Path(folder), dtype="float32", threads=args.threads)


def rows(folder: Path, paths: list[Path], args: Namespace) -> list[dict]:
    """A row for each window; sides take turns, the best of the rounds counts."""
    checkpoint = folder / "whisper-base"
    checkpoints.whisper(checkpoint, **BASE)
    found = []
    for window in WINDOWS:
        options = ExtractOptions(audio_encoder=str(checkpoint), audio_window=window)
        modality = Audio.of(options)
        encoder = WhisperEncoder(
            resolve("audio", str(checkpoint)), window=window, device="cpu", precision="fp32"
        )
        sides = {
            "loop": partial(loop, checkpoint, encoder, paths),
            "ours": partial(ours, modality, encoder, paths, args),
        }
        wall = dict.fromkeys(sides, float("inf"))
        cpu = dict(wall)
        for _ in range(args.rounds):
            for side, run in sides.items():
                torch.set_num_threads(args.threads)
                started, used = time.perf_counter(), time.process_time()
                run()
                wall[side] = min(wall[side], time.perf_counter() - started)
                cpu[side] = min(cpu[side], time.process_time() - used)
        row = {"encoder": f"whisper base, {window}", "modality": "audio", "items": len(paths)}
        row |= {f"{side}_s": round(took, 3) for side, took in wall.items()}
        row |= {f"{side}_cpu_s": round(took, 3) for side, took in cpu.items()}
        row |= {"ratio": round(wall["loop"] / wall["ours"], 2)}
        found.append(row | {"cpu_ratio": round(cpu["loop"] / cpu["ours"], 2)})
    return found
