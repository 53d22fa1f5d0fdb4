"""Waveforms → frames, with any checkpoint of the wav2vec2 family (wav2vec 2.0, HuBERT, WavLM,
data2vec-audio, …).

Features do not depend on the batch they were computed in. Three things make that so (Baevski et al.
2020 trained with padding and batch
statistics; huggingface/transformers#21534 tells what batching otherwise does to the features):
- each waveform is normalised over its own samples before padding, if the checkpoint's processor
  asks for it;
- a first layer with GroupNorm takes its statistics from each utterance's own samples
  (`OwnSampleGroupNorm`);
- the attention mask is always given, and every output is cut to its true number of frames.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from mer.pipeline.encoders.frozen import (
    choose_precision,
    computing,
    load_model,
    pad,
    to_host,
)
from mer.pipeline.encoders.geometry import Geometry, parse_layer
from mer.pipeline.encoders.loading import Checkpoint
from mer.pipeline.encoders.modality import Modality
from mer.pipeline.errors import EncoderError
from mer.pipeline.runtime.machine import choose_device


def load(checkpoint: Checkpoint, modality: Modality, device: str, precision: str) -> AudioEncoder:
    """The encoder that a modality of waveforms asks for; its `layer` says which states are kept."""
    layer = getattr(modality, "layer", "last")
    return AudioEncoder(checkpoint, layer=layer, device=device, precision=precision)


class PerBatch(threading.local):
    """What a forward pass leaves for its own thread: true lengths after the first convolution, and
    the hidden states collected.
    """

    lengths: list[int] | None = None

    def __init__(self):
        self.taps: list[Tensor] = []


class OwnSampleGroupNorm(nn.Module):
    """`norm` over each row's own steps.

    `state.lengths` (B,) counts the valid steps of this thread's next batch; None: no padding.
    """

    def __init__(self, norm: nn.GroupNorm, state: PerBatch):
        super().__init__()
        self.norm, self.state = norm, state

    def forward(self, x: Tensor) -> Tensor:  # (B, C, T)
        if self.state.lengths is None:
            return self.norm(x)
        out = torch.zeros_like(x)
        for row, length in enumerate(self.state.lengths):
            out[row : row + 1, :, :length] = self.norm(x[row : row + 1, :, :length].contiguous())
        return out


class AudioEncoder:
    """`encode` turns waveforms (n,) float32 at 16 kHz into frames (T, dim) float32; T follows from
    n by `geometry`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        layer: str = "last",
        device: str = "auto",
        precision: str = "auto",
    ):
        """Raises EncoderError for a checkpoint that is incomplete or not of the family, DataError
        for a wrong option.
        """
        self.checkpoint = checkpoint
        self.geometry = Geometry.of(checkpoint)
        self.dim = self.geometry.dim
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        self.layers = parse_layer(layer, self.geometry.layers)
        # the family's processor defaults to True
        self.normalised = bool(checkpoint.processor.get("do_normalize", True))
        self.model = cast(Any, load_model(checkpoint, self.device))
        self._state = PerBatch()
        first = self.model.feature_extractor.conv_layers[0]
        if isinstance(getattr(first, "layer_norm", None), nn.GroupNorm):
            first.layer_norm = OwnSampleGroupNorm(first.layer_norm, self._state)
        if self.layers:
            self._tap()

    def _tap(self) -> None:
        """Collect the chosen hidden states as they are computed; blocks above the highest are
        dropped.
        """
        try:
            blocks = self.model.encoder.layers
        except AttributeError:
            raise EncoderError(
                f"audio encoder {self.checkpoint.name}: its layers cannot be told apart; use "
                "--audio-layer last"
            ) from None
        if self.layers[0] == 0:
            blocks[0].register_forward_pre_hook(
                lambda block, args: self._state.taps.append(args[0])
            )
        for number in self.layers:
            if number:
                blocks[number - 1].register_forward_hook(self._collect)
        del blocks[max(1, self.layers[-1]) :]

    def _collect(self, block: nn.Module, args: tuple, output: Tensor | tuple) -> None:
        self._state.taps.append(output[0] if isinstance(output, tuple) else output)

    def prepare(self, waveform: np.ndarray) -> np.ndarray:
        """The processor's normalisation over the clip's own samples, and zeros up to one receptive
        field for a shorter clip.
        """
        if self.normalised:
            waveform = ((waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7)).astype(
                np.float32
            )
        short = self.geometry.field - len(waveform)
        return np.pad(waveform, (0, short)) if short > 0 else waveform

    def collate(self, waveforms: Sequence[np.ndarray]) -> tuple[Tensor, Tensor, list[int]]:
        """*Prepared* waveforms as one padded batch on the host: samples (B, n), mask (B, n),
        lengths.
        """
        return *pad(waveforms, 0.0, np.float32, self.device), [
            len(waveform) for waveform in waveforms
        ]

    def forward(
        self, batch: tuple[Tensor, Tensor, list[int]], *, precision: str | None = None
    ) -> list[np.ndarray]:
        """Frames (T_i, dim) float32 of each waveform of a collated batch.

        `precision` overrides the encoder's own.
        """
        samples, mask, lengths = batch
        self._state.taps.clear()
        self._state.lengths = [self.geometry.first(n) for n in lengths]
        with computing(self.device, precision or self.precision):
            output = self.model(
                samples.to(self.device, non_blocking=True),
                attention_mask=mask.to(self.device, non_blocking=True),
            )
            states = self._tapped() if self.layers else output.last_hidden_state.float()
            fetched = to_host(states)
            del output, states
        frames = fetched()
        counts = [self.geometry.frames(n) for n in lengths]
        if frames.shape[1] < max(counts) or frames.shape[2] != self.dim:
            raise EncoderError(
                f"audio encoder {self.checkpoint.name}: gave {frames.shape[1]} frames of width "
                f"{frames.shape[2]} where its configuration "
                f"says {max(counts)} of {self.dim}; this architecture is not supported"
            )
        return [row[:count] for row, count in zip(frames, counts, strict=True)]

    def _tapped(self) -> Tensor:
        """The chosen hidden states, averaged where there are several."""
        taps = self._state.taps
        mean = taps[0].float()
        if len(taps) > 1:
            mean = torch.stack([tap.float() for tap in taps]).mean(0)
        taps.clear()
        return mean

    def encode(
        self, waveforms: Sequence[np.ndarray], *, precision: str | None = None
    ) -> list[np.ndarray]:
        """Frames (T_i, dim) float32 of each *prepared* waveform, computed as one batch."""
        return self.forward(self.collate(waveforms), precision=precision)
