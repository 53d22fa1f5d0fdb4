"""Encoders of random weights and both sides of their race, for `tests.bench.gpu`: ours, as
`mer extract` runs them, and a loop of transformers in fp16, a clip at a time.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mer.pipeline.encoders.modality import Item, ReadItem
from mer.pipeline.extraction.parts import Source, run_parts
from mer.pipeline.extraction.plan import Settings, make_parts

from tests.encoders import checkpoints

NAMES = {"audio": "wav2vec2-large, random weights", "text": "roberta-large, random weights"}
LARGE_AUDIO = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "conv_dim": [512] * 7,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
    "conv_bias": True,
    "norm": "layer",
}
LARGE_TEXT = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "max_position_embeddings": 514,
}
# padded samples or tokens of a batch, by type of device: the extraction's own fixed figures
BUDGETS = {"audio": {"cpu": 8 * 16_000, "cuda": 320 * 16_000}, "text": {"cpu": 512, "cuda": 16_384}}
NOISE = 2**20  # samples that all waveforms are cut from
THREADS = 2  # batches that are computed side by side


def checkpoint(modality: str, folder: Path, tiny: bool) -> Path:
    """A checkpoint of random weights; `tiny`: of the size of those in the tests."""
    if modality == "audio":
        return checkpoints.audio(folder, **({} if tiny else LARGE_AUDIO))
    return checkpoints.text(folder, **({} if tiny else LARGE_TEXT))


class Sides:
    """`ours` and `loop`: the seconds that items of these lengths take."""

    def __init__(self, modality: str, encoder, checkpoint: Path, folder: Path):
        from transformers import AutoModel

        self.modality, self.encoder, self.folder = modality, encoder, folder
        large = encoder.width == LARGE_TEXT["hidden_size"]
        self.name, self.device = NAMES[modality] if large else "dry run", encoder.device
        self.noise = np.random.default_rng(0).standard_normal(NOISE).astype(np.float32) * 0.1
        self.words = encoder.model.config.vocab_size if modality == "text" else 0
        half = torch.float16 if self.device.type == "cuda" else torch.float32
        plain = AutoModel.from_pretrained(checkpoint, dtype=half, local_files_only=True)
        self.plain = plain.eval().to(self.device)

    def item(self, length: int, number: int) -> np.ndarray:
        """A waveform as it is decoded, or the tokens of a transcript."""
        if self.modality == "text":
            random = np.random.default_rng(number)
            return np.array([0, *random.integers(4, self.words, length - 2), 2])
        begin = 7919 * number % max(1, NOISE - length)
        cut = self.noise[begin : begin + length]
        return self.encoder.prepare(np.resize(cut, length))

    def ours(self, lengths: np.ndarray) -> float:
        budget = BUDGETS[self.modality][self.device.type]
        sizes = [int(n) for n in lengths]
        settings = Settings(
            "bench", {self.modality: budget}, 1, 1, {self.modality: max(1, sum(sizes) // 4)}
        )
        end = self.modality == "audio"
        items = [Item(row, n, end=n if end else 0) for row, n in enumerate(sizes)]
        parts = make_parts(self.modality, 0, items, settings)
        begun = time.perf_counter()
        self.folder.mkdir(exist_ok=True)
        source = Source(
            self.encoder, lambda items: (ReadItem(self.item(i.length, i.row)) for i in items)
        )
        run_parts(parts, {self.modality: source}, self.folder, dtype="float16", threads=THREADS)
        shutil.rmtree(self.folder)
        self.synchronise()
        return time.perf_counter() - begun

    def loop(self, lengths: np.ndarray) -> float:
        """What anybody would write: a clip, the model, its features on the host."""
        begun, kept = time.perf_counter(), []
        with torch.inference_mode():
            for number, length in enumerate(lengths):
                x = torch.from_numpy(self.item(int(length), number))[None].to(self.device)
                kept.append(self.states(x)[0].float().cpu().numpy())
        self.synchronise()
        return time.perf_counter() - begun

    def states(self, x: Tensor) -> Tensor:
        if self.modality == "text":
            return self.plain(input_ids=x).last_hidden_state
        return self.plain(x.to(self.plain.dtype)).last_hidden_state

    def busy_share(self, lengths: np.ndarray) -> float | str:
        """The share of the time in which the device computes or copies, by PyTorch's profiler."""
        if self.device.type != "cuda":
            return "not a GPU"
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            seconds = self.ours(lengths)
        spans = sorted(
            (event.time_range.start, event.time_range.end)
            for event in profile.events()
            if event.device_type == torch.autograd.DeviceType.CUDA
        )
        return round(covered(spans) / 1e6 / seconds, 3)

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def covered(spans: list[tuple[float, float]]) -> float:
    """The length of the union of spans that are sorted by their beginning."""
    total, until = 0.0, float("-inf")
    for begin, end in spans:
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total
