"""Waveforms → frames, with a wav2vec2-BERT checkpoint (`Wav2Vec2BertModel`; Barrault et al.
2023).

Its input are log-mels as SeamlessM4T's feature extractor gives them: Kaldi's filter bank, each mel
normalised over the clip (a longer clip's pieces are normalised one by one), two windows of 10 ms
side by side. A window that is left over gives no frame.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mer.pipeline.encoders.frozen import choose_precision, computing, load_model, pad
from mer.pipeline.encoders.geometry import wav2vec2_bert_geometry
from mer.pipeline.encoders.layers import parse_layers
from mer.pipeline.encoders.loading import Checkpoint
from mer.pipeline.encoders.modality import Kept, Modality, States
from mer.pipeline.encoders.taps import LayerTaps, fetch, spans_of, states_of
from mer.pipeline.runtime.machine import choose_device

FIELD, HOP, FFT = 400, 160, 512  # samples
SCALE = 2**15  # Kaldi's samples are 16-bit integers
PREEMPHASIS = 0.97
POWER_FLOOR = 1.192092955078125e-07
STRIDE = 2  # windows side by side in a frame


def load(checkpoint: Checkpoint, modality: Modality, device: str, precision: str) -> MelEncoder:
    """The encoder that a modality of waveforms asks for."""
    return MelEncoder(
        checkpoint,
        layer=getattr(modality, "layer", "last"),
        layer_means=getattr(modality, "layer_means", False),
        device=device,
        precision=precision,
    )


class StackedBatch(NamedTuple):
    """Stacked mels padded on the host: (B, T, 160), mask (B, T), the frames of each, and those that
    layer means are over.
    """

    mels: Tensor
    mask: Tensor
    counts: list[int]
    spans: list[Kept]


class MelEncoder:
    """`encode` turns waveforms (n,) float32 at 16 kHz into frames of 20 ms."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        layer: str = "last",
        layer_means: bool = False,
        device: str = "auto",
        precision: str = "auto",
    ):
        """Raises EncoderError for a checkpoint that is incomplete or not of the family, DataError
        for a wrong option.
        """
        from transformers.audio_utils import mel_filter_bank, window_function

        self.checkpoint = checkpoint
        self.geometry = wav2vec2_bert_geometry(checkpoint)
        self.choice = parse_layers(layer, self.geometry.layers)
        self.width = self.geometry.dim
        self.dim = self.width * self.choice.copies
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        self.model = load_model(checkpoint, self.device)
        self._taps = LayerTaps(self.model, self.choice, means=layer_means)
        self.layer_count = self._taps.count
        # tables of positions grow with the input and are shared by all threads
        growing = self.model.encoder.embed_positions is not None
        self._one_at_a_time: contextlib.AbstractContextManager = (
            threading.Lock() if growing else contextlib.nullcontext()
        )
        filters = mel_filter_bank(
            num_frequency_bins=FFT // 2 + 1,
            num_mel_filters=int(checkpoint.processor.get("num_mel_bins", 80)),
            min_frequency=20,
            max_frequency=8000,
            sampling_rate=16_000,
            norm=None,
            mel_scale="kaldi",
            triangularize_in_mel_space=True,
        )
        self._filters = torch.from_numpy(filters)
        self._window = torch.from_numpy(window_function(FIELD, "povey", periodic=False))

    def prepare(self, waveform: np.ndarray) -> np.ndarray:
        """The waveform, with zeros up to the two windows of a frame."""
        short = self.geometry.field - len(waveform)
        return np.pad(waveform, (0, short)) if short > 0 else waveform

    def _mels(self, waveform: np.ndarray) -> np.ndarray:
        """(T, 160) float32, computed in float64 as the feature extractor does."""
        windows = torch.from_numpy(waveform).double().unfold(0, FIELD, HOP) * SCALE
        windows = windows - windows.mean(1, keepdim=True)
        emphasised = windows.clone()
        emphasised[:, 1:] -= PREEMPHASIS * windows[:, :-1]
        emphasised[:, 0] *= 1 - PREEMPHASIS
        spectrum = torch.fft.rfft(emphasised * self._window, FFT).to(torch.complex64)
        power = spectrum.real.double() ** 2 + spectrum.imag.double() ** 2
        mels = (power @ self._filters).clamp(min=POWER_FLOOR).log().float()
        mels = (mels - mels.mean(0)) / (mels.var(0) + 1e-7).sqrt()
        count = len(mels) // STRIDE
        return mels[: count * STRIDE].reshape(count, -1).numpy()

    def collate(
        self, waveforms: Sequence[np.ndarray], kept: Sequence[Kept | None] | None = None
    ) -> StackedBatch:
        """*Prepared* waveforms as one padded batch of mels on the host."""
        mels = [self._mels(waveform) for waveform in waveforms]
        padded, mask = pad(mels, 0.0, np.float32, self.device)
        counts = [len(x) for x in mels]
        return StackedBatch(padded, mask, counts, spans_of(kept, counts))

    def forward(self, batch: StackedBatch, *, precision: str | None = None) -> list[States]:
        """States of each waveform of a collated batch.

        `precision` overrides the encoder's own.
        """
        self._taps.begin(batch.spans)
        with self._one_at_a_time, computing(self.device, precision or self.precision):
            output = self.model(
                batch.mels.to(self.device, non_blocking=True),
                attention_mask=batch.mask.to(self.device, non_blocking=True),
                **self._taps.arguments,
            )
            fetched = fetch(*self._taps.end(output))
            del output
        frames, means = fetched()
        return states_of(frames, means, batch.counts)

    def encode(
        self,
        waveforms: Sequence[np.ndarray],
        kept: Sequence[Kept | None] | None = None,
        *,
        precision: str | None = None,
    ) -> list[States]:
        """States of each *prepared* waveform, computed as one batch."""
        return self.forward(self.collate(waveforms, kept), precision=precision)
