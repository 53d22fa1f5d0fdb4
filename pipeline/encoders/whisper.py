"""Waveforms → frames, with the encoder of any Whisper checkpoint (Radford et al. 2022); a
decoder, where there is one, is not loaded.

A frame is 20 ms: `Geometry.frames` gives a clip of n samples ceil(n / 320) of them. Whisper was
trained on windows of 30 s, filled up with silence, and a longer clip is cut (`Audio.items`). There
are two settings; which one was used is part of the recipe:
- `full`: the whole window is computed, as transformers does, and the clip's own frames are kept;
- `clip`: mels and positions are cut to the clip's frames, and nothing but the clip is computed.
The mels are the same in both: those that the checkpoint's feature extractor gives for the padded
window, whose dynamic range (80 dB below the loudest bin) is that of the piece that is encoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mer.pipeline.encoders import lean
from mer.pipeline.encoders.frozen import choose_precision, computing, load_model, pad
from mer.pipeline.encoders.geometry import WINDOW, mel_settings, whisper_geometry
from mer.pipeline.encoders.layers import parse_layers
from mer.pipeline.encoders.loading import Checkpoint
from mer.pipeline.encoders.modality import Kept, Modality, States
from mer.pipeline.encoders.taps import LayerTaps, fetch, spans_of, states_of
from mer.pipeline.runtime.machine import choose_device

MELS_PER_FRAME = 2  # the stride of the second convolution
POWER_FLOOR = 1e-10
RANGE = 8.0  # in log10 of power: what lies deeper below the loudest bin is raised to it
TESTED_ITEMS = 3  # on which `clip` is held against `full`: a window of 30 s is slow on a CPU


def load(checkpoint: Checkpoint, modality: Modality, device: str, precision: str) -> WhisperEncoder:
    """The encoder that a modality of waveforms asks for."""
    return WhisperEncoder(
        checkpoint,
        layer=getattr(modality, "layer", "last"),
        layer_means=getattr(modality, "layer_means", False),
        window=getattr(modality, "window", "") or WINDOW,
        device=device,
        precision=precision,
    )


class MelBatch(NamedTuple):
    """Waveforms padded on the host: samples (B, n), mask (B, n), the frames of each, and those that
    layer means are over; `full`: the whole window is computed.
    """

    samples: Tensor
    mask: Tensor
    counts: list[int]
    spans: list[Kept]
    full: bool


class WhisperEncoder:
    """`encode` turns waveforms (n,) float32 at 16 kHz into ceil(n / 320) frames."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        layer: str = "last",
        layer_means: bool = False,
        window: str = WINDOW,
        device: str = "auto",
        precision: str = "auto",
    ):
        """Raises EncoderError for a checkpoint that is incomplete or not of the family, DataError
        for a wrong option.
        """
        lean.import_transformers()
        from transformers.audio_utils import mel_filter_bank
        from transformers.models.whisper.modeling_whisper import WhisperEncoder as Network

        self.checkpoint = checkpoint
        self.geometry = whisper_geometry(checkpoint)
        self.choice = parse_layers(layer, self.geometry.layers)
        self.width = self.geometry.dim
        self.dim = self.width * self.choice.copies
        self.full = window == "full"
        # an item is computed as long as this, however short it is
        self.window = self.geometry.window if self.full else 0
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        names = {r"^(model\.)?encoder\.": ""}  # with a decoder beside it, or without
        self.model = load_model(checkpoint, self.device, Network, key_mapping=names)
        self._taps = LayerTaps(self.model, self.choice, means=layer_means)
        self.layer_count = self._taps.count
        self.mel = mel_settings(checkpoint)
        filters = mel_filter_bank(
            num_frequency_bins=self.mel.n_fft // 2 + 1,
            num_mel_filters=self.mel.bins,
            min_frequency=0.0,
            max_frequency=8000.0,
            sampling_rate=16_000,
            norm="slaney",
            mel_scale="slaney",
        )
        self._filters = torch.from_numpy(filters.T.astype(np.float32)).to(self.device)
        self._hann = torch.hann_window(self.mel.n_fft, device=self.device)

    def prepare(self, waveform: np.ndarray) -> np.ndarray:
        """The waveform, with zeros up to one frame."""
        short = self.geometry.field - len(waveform)
        return np.pad(waveform, (0, short)) if short > 0 else waveform

    def collate(
        self, waveforms: Sequence[np.ndarray], kept: Sequence[Kept | None] | None = None
    ) -> MelBatch:
        """*Prepared* waveforms of at most a window each as one padded batch on the host."""
        counts = [self.geometry.frames(len(waveform)) for waveform in waveforms]
        # silence enough behind the longest that the window's end is as far as it were 30 s
        samples = max(counts) * self.geometry.hop + 2 * self.mel.n_fft
        samples = min(self.geometry.window, -(-samples // self.geometry.hop) * self.geometry.hop)
        padded, mask = pad(waveforms, 0.0, np.float32, self.device, samples)
        return MelBatch(padded, mask, counts, spans_of(kept, counts), self.full)

    def forward(self, batch: MelBatch, *, precision: str | None = None) -> list[States]:
        """States of each waveform of a collated batch.

        `precision` overrides the encoder's own.
        """
        longest = max(batch.counts)
        self._taps.begin(batch.spans, longest)
        with computing(self.device, precision or self.precision):
            with torch.autocast(self.device.type, enabled=False):
                mels = self._mels(batch)
            x = nn.functional.gelu(self.model.conv1(mels))
            x = nn.functional.gelu(self.model.conv2(x)).transpose(1, 2)
            x = x + self.model.embed_positions.weight[: x.shape[1]]
            mask = None if batch.full else self._attention(batch.counts)
            for block in self.model.layers:
                x = block(x, mask)
            last = self.model.layer_norm(x)[:, :longest]
            fetched = fetch(*self._taps.end(SimpleNamespace(last_hidden_state=last)))
            del x, last
        frames, means = fetched()
        return states_of(frames, means, batch.counts)

    def _mels(self, batch: MelBatch) -> Tensor:
        """Log-mels (B, bins, steps) as the feature extractor gives them for windows filled up with
        silence, cut behind the longest clip unless the window is `full`; zero behind each clip.
        """
        samples = batch.samples.to(self.device, non_blocking=True)
        samples = samples.masked_fill(batch.mask.to(self.device, non_blocking=True) == 0, 0.0)
        spectrum = torch.stft(
            samples, self.mel.n_fft, self.mel.hop, window=self._hann, return_complex=True
        )
        power = (spectrum[..., :-1].abs() ** 2).contiguous()
        mels = (self._filters @ power).clamp(min=POWER_FLOOR).log10()
        top = mels.amax((1, 2), keepdim=True)
        mels = (mels.maximum(top - RANGE) + 4.0) / 4.0
        if batch.full:
            # what silence gives: the floor, or what it is raised to
            silence = (torch.full_like(top, POWER_FLOOR).log10().maximum(top - RANGE) + 4.0) / 4.0
            missing = self.geometry.window // self.mel.hop - mels.shape[-1]
            return torch.cat([mels, silence.expand(-1, self.mel.bins, missing)], dim=-1)
        steps = torch.tensor(batch.counts, device=self.device) * MELS_PER_FRAME
        mels = mels[..., : max(batch.counts) * MELS_PER_FRAME]
        beyond = torch.arange(mels.shape[-1], device=self.device) >= steps[:, None]
        return mels.masked_fill(beyond[:, None, :], 0.0)

    def _attention(self, counts: Sequence[int]) -> Tensor | None:
        """Which frames may be looked at (B, 1, T, T); None: all."""
        longest = max(counts)
        if min(counts) == longest:
            return None
        ends = torch.tensor(counts, device=self.device)[:, None]
        there = torch.arange(longest, device=self.device) < ends
        return there[:, None, None, :].expand(-1, 1, longest, -1)

    def encode(
        self,
        waveforms: Sequence[np.ndarray],
        kept: Sequence[Kept | None] | None = None,
        *,
        precision: str | None = None,
    ) -> list[States]:
        """States of each *prepared* waveform, computed as one batch."""
        return self.forward(self.collate(waveforms, kept), precision=precision)

    def self_test(self, waveforms: Sequence[np.ndarray]) -> dict[str, float]:
        """How far `clip` is from the window that Whisper was trained on, on a few clips: the median
        over frames of the relative L2 distance. (In `full` a few frames of the silence hold numbers
        of hundreds, in `clip` some of the clip's own: sums would tell of these alone.)
        """
        if self.full:
            return {}
        distances = []
        for waveform in waveforms[:: max(1, len(waveforms) // TESTED_ITEMS)][:TESTED_ITEMS]:
            batch = self.collate([waveform])
            found = self.forward(batch)[0].frames
            truth = self.forward(batch._replace(full=True))[0].frames
            norms = np.linalg.norm(truth, axis=1).clip(min=1e-30)
            distances.append(np.linalg.norm(found - truth, axis=1) / norms)
        return {"window_distance": float(np.median(np.concatenate(distances)))}
