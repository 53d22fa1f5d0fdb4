"""What each family of encoders and each layer setting costs for MELD: core-hours on a CPU in fp32,
and bytes. Random weights of the real sizes: neither depends on their values.

Core-hours are the processor's time for clips and transcripts of MELD's lengths, one thread to an
operation, as an extraction computes them, scaled to the whole corpus; divide by the number of
cores. Bytes are arithmetic.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mer.pipeline.encoders.audio import Audio
from mer.pipeline.encoders.modality import Modality
from mer.pipeline.encoders.text import Text
from mer.pipeline.extraction.options import ExtractOptions

from tests.bench.extract import AUDIO, RATE, TEXT, sentences
from tests.bench.machine import save
from tests.encoders import checkpoints
from tests.extract.test_batching import QUANTILES

UTTERANCES, SECONDS = 13_708, 12.1 * 3600  # of MELD
FRAMES, TOKENS = 2_180_000, 178_000  # of MELD: at 50 Hz, and of roberta's tokenizer
BUDGET_SECONDS = 8  # of a batch, as extraction's on a CPU
WHISPER = {  # width, blocks, heads, mels
    "base": (512, 6, 8, 80),
    "small": (768, 12, 12, 80),
    "large-v3": (1280, 32, 20, 128),
}


@dataclass(frozen=True)
class Size:
    """A family at one of its real sizes: `make` writes a checkpoint with random weights."""

    name: str
    kind: type[Modality]
    make: Callable[[Path], Any]
    settings: Sequence[tuple[str, dict[str, Any]]]
    given: dict[str, Any] = field(default_factory=dict)


def wav2vec2(size: str) -> Callable[[Path], Any]:
    settings = dict(AUDIO[size])
    norm = settings.pop("norm")
    return lambda folder: checkpoints.audio(folder, norm=norm, **settings)


def whisper(size: str) -> Callable[[Path], Any]:
    width, layers, heads, mels = WHISPER[size]
    return lambda folder: checkpoints.whisper(
        folder,
        d_model=width,
        encoder_layers=layers,
        encoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        num_mel_bins=mels,
        max_source_positions=1500,
    )


def wav2vec2_bert(folder: Path) -> Any:
    """facebook/w2v-bert-2.0."""
    return checkpoints.wav2vec2_bert(
        folder,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        conv_depthwise_kernel_size=31,
        left_max_position_embeddings=64,
        right_max_position_embeddings=8,
    )


def roberta(size: str) -> Callable[[Path], Any]:
    hidden, layers, heads, inner = TEXT[size]
    return lambda folder: checkpoints.text(
        folder,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=514,
    )


def layers(name: str, *settings: str, means_off: Sequence[str] = ()) -> list[tuple[str, dict]]:
    """Rows: each setting with layer means, and those of `means_off` without."""
    found = [(f"`{layer}`", {f"{name}_layer": layer}) for layer in settings]
    for layer in means_off:
        given = {f"{name}_layer": layer, "layer_means": False}
        found.append((f"`{layer}`, `--no-layer-means`", given))
    return found


SIZES = [
    Size(
        "wav2vec 2.0 base (HuBERT, WavLM base)",
        Audio,
        wav2vec2("base"),
        layers("audio", "6", means_off=["6"]),
    ),
    Size(
        "wav2vec 2.0 large (the default for English)",
        Audio,
        wav2vec2("large"),
        layers("audio", "12", "last", "stack:6-18:4", means_off=["12", "last"]),
    ),
    Size("Whisper base, `clip`", Audio, whisper("base"), layers("audio", "3"), {"window": "clip"}),
    Size("Whisper base, `full`", Audio, whisper("base"), layers("audio", "3"), {"window": "full"}),
    Size(
        "Whisper small, `clip`", Audio, whisper("small"), layers("audio", "6"), {"window": "clip"}
    ),
    Size(
        "Whisper large-v3, `clip`",
        Audio,
        whisper("large-v3"),
        layers("audio", "16"),
        {"window": "clip"},
    ),
    Size("w2v-BERT 2.0", Audio, wav2vec2_bert, layers("audio", "12")),
    Size("roberta-base", Text, roberta("base"), layers("text", "last", means_off=["last"])),
    Size("roberta-large", Text, roberta("large"), layers("text", "last", "stack:12-24:4")),
]


def meld_clips(count: int) -> list[np.ndarray]:
    """Noise of lengths at evenly spaced quantiles of MELD's, longest first."""
    table = np.array(json.loads(QUANTILES.read_text()))
    random = np.random.default_rng(0)
    at = (np.arange(count, 0, -1) - 0.5) / count
    seconds = np.interp(at, np.linspace(0, 1, len(table)), table)
    return [(random.standard_normal(round(s * RATE)) * 0.1).astype(np.float32) for s in seconds]


def batches(items: list[np.ndarray], budget: int) -> list[list[np.ndarray]]:
    """Neighbours in length together, within the budget of padded length."""
    found: list[list[np.ndarray]] = []
    for item in items:
        if not found or (len(found[-1]) + 1) * len(found[-1][0]) > budget:
            found.append([])
        found[-1].append(item)
    return found


def measure(size: Size, folder: Path, given: dict[str, Any], clips: int) -> tuple[float, int]:
    """(core-seconds for all of MELD, bytes of its features) of one setting."""
    audio = size.kind is Audio
    name = size.kind.name
    options = {f"{name}_encoder": str(folder), **given}
    if "window" in size.given:
        options["audio_window"] = size.given["window"]
    modality = size.kind.of(ExtractOptions(**options))
    point = modality.resolve(str(folder))
    encoder = modality.load(point, device="cpu", precision="fp32")
    if audio:
        items = [encoder.prepare(clip) for clip in meld_clips(clips)]
        whole, steps, budget = SECONDS * RATE, FRAMES, BUDGET_SECONDS * RATE
    else:
        items = sorted(sentences(8 * clips, 100), key=len, reverse=True)
        whole = steps = TOKENS
        budget = 512
    encoder.encode(items[-1:])  # what is slow only once
    started = time.process_time()
    for batch in batches(items, budget):
        encoder.encode(batch)
    spent = time.process_time() - started
    kept = encoder.layer_count * encoder.width
    size_bytes = 2 * steps * encoder.dim + UTTERANCES * (4 * encoder.dim + 2 * kept)
    return spent * whole / sum(map(len, items)), int(size_bytes)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench cost", description=__doc__)
    parser.add_argument("--clips", type=int, default=24, help="clips that are timed")
    parser.add_argument("--only", default="", help="families whose name has this")
    parser.add_argument("--save", action="store_true", help="write tests/bench/results/cost.json")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print("| encoder | layers | core-hours | GB |\n|---|---|---|---|")
    rows = []
    for size in SIZES:
        if given.only not in size.name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "encoder"
            size.make(path)
            for what, options in size.settings:
                seconds, stored = measure(size, path, options, given.clips)
                row = f"{size.name} | {what} | {seconds / 3600:.1f} | {stored / 1e9:.2f}"
                print(f"| {row} |", flush=True)
                figures = {"core_hours": round(seconds / 3600, 2), "gb": round(stored / 1e9, 2)}
                rows.append({"encoder": size.name, "layers": what, **figures})
    if given.save:
        print(save("cost", rows, command="python -m tests.bench cost " + " ".join(arguments)))
