"""Extraction against the loop that the field uses: one clip at a time through the same encoder,
with all cores on each operation or one, whichever is faster (small operations lose more by sharing
than they gain).

Both sides read the same wav files and use the same weights (random: speed does not depend on them)
in the same process, in turns; the best of the rounds counts, of wall seconds and of processor
seconds (on a busy machine those of the loop with one thread, whose cores do not wait for each
other). The loop has transformers' own network and keeps its features in memory; ours also writes
and fsyncs them. Loading is in neither. Lengths are spread over MELD's quantiles
(tests/extract/meld_quantiles.json), those of transcripts as in `sentences`.

Films: see `films`. Decoding alone: see `decoding`. Whisper: see `whisper`. Real transcripts through
real weights, from start to end, against sentence-transformers: see `transcripts`, whose rows come
last (`--lines 0`: not at all).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch

from mer.pipeline.encoders.audio import Audio
from mer.pipeline.encoders.bert import TextEncoder
from mer.pipeline.encoders.frozen import load_model
from mer.pipeline.encoders.loading import resolve
from mer.pipeline.encoders.modality import Item, Lengths, ReadItem, Rows
from mer.pipeline.encoders.text import Text
from mer.pipeline.encoders.wav2vec2 import AudioEncoder
from mer.pipeline.extraction.options import ExtractOptions
from mer.pipeline.extraction.parts import Source, run_parts
from mer.pipeline.extraction.plan import Settings, make_parts
from mer.pipeline.manifest import Utterance
from mer.pipeline.media.stages import Flag
from mer.pipeline.media.workers import Decoders

from tests.bench import decoding, films, transcripts, whisper
from tests.bench.machine import computes_in_bf16, save
from tests.bench.transcripts import Took
from tests.encoders import checkpoints
from tests.extract.test_batching import QUANTILES

RATE = 16_000
AUDIO = {  # facebook/wav2vec2-base and -large-lv60, and the built-in one
    "base": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "conv_dim": [512] * 7,
        "num_conv_pos_embeddings": 128,
        "num_conv_pos_embedding_groups": 16,
        "norm": "group",
    },
    "large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "conv_dim": [512] * 7,
        "num_conv_pos_embeddings": 128,
        "num_conv_pos_embedding_groups": 16,
        "norm": "layer",
        "conv_bias": True,
    },
}
TEXT = {"base": (768, 12, 12, 3072), "large": (1024, 24, 16, 4096)}


def clips(folder: Path, count: int) -> list[Path]:
    """`count` wav files with lengths at evenly spaced quantiles of MELD's, in a shuffled order."""
    table = np.array(json.loads(QUANTILES.read_text()))
    random = np.random.default_rng(0)
    paths = []
    for i, q in enumerate(random.permutation((np.arange(count) + 0.5) / count)):
        n = round(float(np.interp(q, np.linspace(0, 1, len(table)), table)) * RATE)
        paths.append(folder / f"{i:05}.wav")
        soundfile.write(
            paths[-1], (random.standard_normal(max(n, 400)) * 0.1).astype(np.float32), RATE
        )
    return paths


def sentences(count: int, vocabulary: int) -> list[np.ndarray]:
    """Random tokens between those of beginning and end, 3 to 92 of them, 13 on average, half at
    most 11: as words, marks and both ends are spread over MELD's transcripts, of which a sub-word
    tokenizer makes hardly more.
    """
    random = np.random.default_rng(1)
    lengths = np.clip(3 + random.gamma(1.3, 7.9, count), 3, 92).astype(int)
    return [np.array([0, *random.integers(4, vocabulary, n - 2), 2]) for n in lengths]


def audio_encoder(size: str, folder: Path, precision: str) -> AudioEncoder:
    if size == "tiny":
        return AudioEncoder(
            resolve("audio", "builtin:tiny-wav2vec2"), device="cpu", precision=precision
        )
    if not folder.exists():
        settings = dict(AUDIO[size])
        checkpoints.audio(folder, norm=settings.pop("norm"), **settings)
    return AudioEncoder(resolve("audio", str(folder)), device="cpu", precision=precision)


def text_encoder(size: str, folder: Path, precision: str) -> TextEncoder:
    if size == "tiny":
        return TextEncoder(
            resolve("text", "builtin:tiny-roberta"), device="cpu", precision=precision
        )
    if not folder.exists():
        hidden, layers, heads, inner = TEXT[size]
        checkpoints.text(
            folder,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=inner,
            max_position_embeddings=514,
        )
    return TextEncoder(resolve("text", str(folder)), device="cpu", precision=precision)


def plan(modality: str, lengths: list[int], budget: int) -> list:
    settings = Settings("bench", {modality: budget}, 1, 1, {modality: max(1, sum(lengths) // 4)})
    items = [Item(row, n, end=n if modality == "audio" else 0) for row, n in enumerate(lengths)]
    return make_parts(modality, 0, items, settings)


def audio_sides(encoder: AudioEncoder, paths: list[Path], budget: float, threads: int):
    """(the loop, ours, padded/valid)"""
    lengths = [soundfile.info(str(path)).frames for path in paths]
    parts = plan("audio", lengths, round(budget * RATE))
    rows = Rows(tuple(Utterance(path.stem, path.name) for path in paths), paths[0].parent)
    told = Lengths(tuple(lengths), (), (Flag(0),) * len(lengths))
    plain = load_model(encoder.checkpoint, torch.device("cpu"))

    def loop() -> None:
        kept = []
        with torch.inference_mode():
            for path in paths:
                waveform = encoder.prepare(soundfile.read(path, dtype="float32")[0])
                states = plain(torch.from_numpy(waveform)[None]).last_hidden_state
                kept.append(states[0].numpy())

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder, Decoders(1 if threads > 1 else 0) as decoders:
            read = partial(
                Audio.of(ExtractOptions()).read,
                rows=rows,
                lengths=told,
                encoder=encoder,
                decoders=decoders,
            )
            run_parts(
                parts,
                {"audio": Source(encoder, read)},
                Path(folder),
                dtype="float16",
                threads=threads,
            )

    return loop, ours, waste(parts)


def text_sides(encoder: TextEncoder, count: int, budget: int, threads: int):
    ids = sentences(count, encoder.model.config.vocab_size)
    parts = plan("text", [len(row) for row in ids], budget)
    plain = load_model(encoder.checkpoint, torch.device("cpu"))

    def loop() -> None:
        kept = []
        with torch.inference_mode():
            for row in ids:
                states = plain(input_ids=torch.from_numpy(row)[None]).last_hidden_state
                kept.append(states[0].numpy())

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            run_parts(
                parts,
                {"text": Source(encoder, lambda items: (ReadItem(ids[i.row]) for i in items))},
                Path(folder),
                dtype="float16",
                threads=threads,
            )

    return loop, ours, waste(parts)


def waste(parts: list) -> float:
    batches = [batch for part in parts for batch in part.batches]
    return sum(len(b) * max(i.length for i in b) for b in batches) / sum(
        i.length for b in batches for i in b
    )


def race(loop, ours, rounds: int, threads: int) -> tuple[dict[int, Took], Took]:
    """Best seconds of the loop by threads an operation, and of ours, in turns; the first round
    warms up.
    """
    best: dict = {}
    for _ in range(rounds):
        for side in dict.fromkeys((threads, 1, "ours")):
            torch.set_num_threads(threads if side == "ours" else side)
            started, begun = time.perf_counter(), films.cpu_seconds()
            (ours if side == "ours" else loop)()
            took = Took(time.perf_counter() - started, films.cpu_seconds() - begun)
            best[side] = quicker(best.get(side), took)
    took = best.pop("ours")
    return best, took


def quicker(best: Took | None, took: Took) -> Took:
    """The less of both, of wall and of processor seconds."""
    return took if best is None else Took(min(best.wall, took.wall), min(best.cpu, took.cpu))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench extract", description=__doc__)
    parser.add_argument("--sizes", default="tiny,base", help="tiny, base, large")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--texts", type=int, default=192)
    parser.add_argument("--decoded", type=int, default=32, help="clips that are only decoded")
    parser.add_argument("--films", type=int, default=12)
    parser.add_argument("--whisper", type=int, default=12, help="clips for Whisper-base")
    parser.add_argument("--lines", type=int, help="MELD's, for all-MiniLM-L6-v2 (default: all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--budget-seconds", type=float, default=Audio.fixed_budget["cpu"])
    parser.add_argument("--budget-tokens", type=int, default=Text.fixed_budget["cpu"])
    parser.add_argument(
        "--save", action="store_true", help="write tests/bench/results/extract.json"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    folder = Path(tempfile.mkdtemp())
    rows = []
    try:
        paths = clips(folder, args.clips)
        for size in args.sizes.split(","):
            for modality in ("audio", "text"):
                baseline: dict[int, Took] = {}
                for precision in (
                    ("fp32", "bf16") if size != "tiny" and computes_in_bf16() else ("fp32",)
                ):
                    if modality == "audio":
                        sides = audio_sides(
                            audio_encoder(size, folder / f"a-{size}", precision),
                            paths,
                            args.budget_seconds,
                            args.threads,
                        )
                    else:
                        encoder = text_encoder(size, folder / f"t-{size}", precision)
                        sides = text_sides(encoder, args.texts, args.budget_tokens, args.threads)
                    loop, ours = race(*sides[:2], args.rounds, args.threads)
                    # the loop is fp32 both times
                    baseline = {n: quicker(baseline.get(n), took) for n, took in loop.items()}
                    n, best = min(baseline.items(), key=lambda pair: pair[1].wall)
                    least = min(took.cpu for took in baseline.values())
                    items = args.clips if modality == "audio" else args.texts
                    row = {
                        "encoder": size,
                        "modality": modality,
                        "precision": precision,
                        "threads": args.threads,
                        "items": items,
                        "loop_fp32_s": round(best.wall, 3),
                        "loop_threads": n,
                        "ours_s": round(ours.wall, 3),
                        "ratio": round(best.wall / ours.wall, 2),
                        "loop_fp32_cpu_s": round(least, 3),
                        "ours_cpu_s": round(ours.cpu, 3),
                        "cpu_ratio": round(least / ours.cpu, 2),
                        "padded_valid": round(sides[2], 4),
                    }
                    rows.append(row)
                    print(row, flush=True)
        for row in decoding.rows(folder, paths[: args.decoded], args.rounds):
            rows.append(row)
            print(row, flush=True)
        for row in whisper.rows(folder, paths[: args.whisper], args) if args.whisper else ():
            rows.append(row)
            print(row, flush=True)
        seen = films.make(folder, args.films) if args.films else []
        for size in args.sizes.split(",") if seen else ():
            if size in films.SETTINGS:
                rows.append(films.row(size, "fp32", folder / f"v-{size}", seen, args))
                print(rows[-1], flush=True)
    finally:
        shutil.rmtree(folder)
    for row in transcripts.rows(args.lines, args.rounds) if args.lines != 0 else ():
        rows.append(row)
        print(row, flush=True)
    if args.save:
        print(save("extract", rows, command="python -m tests.bench extract " + " ".join(argv)))
