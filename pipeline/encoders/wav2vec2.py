"""Waveforms → frames, with any checkpoint of the wav2vec2 family (wav2vec 2.0, HuBERT, WavLM,
data2vec-audio, …).

Features do not depend on the batch they were computed in. Three things make that so (Baevski et al.
2020 trained with padding and batch
statistics; huggingface/transformers#21534 tells what batching otherwise does to the features):
- each waveform is normalised over its own samples before padding, if the checkpoint's processor
  asks for it;
- a first layer with GroupNorm takes its statistics from each utterance's own samples
  (`OwnSampleGroupNorm`);
- positional convolutions one after another (data2vec) or behind a batch norm (some HuBERT), and the
  convolutions between attention and feed-forward layers (Conformer), see zeros beyond each
  utterance's own frames, before every one of them;
- the attention mask is always given, and every output is cut to its true number of frames.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mer.pipeline.encoders.frozen import (
    choose_precision,
    computing,
    load_model,
    pad,
)
from mer.pipeline.encoders.geometry import Geometry
from mer.pipeline.encoders.layers import parse_layers
from mer.pipeline.encoders.loading import Checkpoint
from mer.pipeline.encoders.modality import Kept, Modality, States
from mer.pipeline.encoders.packed import pack
from mer.pipeline.encoders.taps import LayerTaps, fetch, spans_of, states_of
from mer.pipeline.encoders.waves import quicker
from mer.pipeline.errors import EncoderError
from mer.pipeline.runtime.machine import choose_device


def load(checkpoint: Checkpoint, modality: Modality, device: str, precision: str) -> AudioEncoder:
    """The encoder that a modality of waveforms asks for; its `layer` says which states are kept."""
    return AudioEncoder(
        checkpoint,
        layer=getattr(modality, "layer", "last"),
        layer_means=getattr(modality, "layer_means", False),
        device=device,
        precision=precision,
    )


class WaveBatch(NamedTuple):
    """Waveforms padded on the host: samples (B, n), mask (B, n), true lengths, and the frames that
    layer means are over.
    """

    samples: Tensor
    mask: Tensor
    lengths: list[int]
    spans: list[Kept]


class PerBatch(threading.local):
    """What a forward pass leaves for its own thread: true lengths after the first convolution, and
    true frames.
    """

    lengths: list[int] | None = None
    frames: list[int] | None = None


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


class OneAtATime(nn.Module):
    """`module` for one thread at a time: Conformer's tables of positions are made for the batch
    before, or anew.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module, self._lock = module, threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        with self._lock:
            return self.module(x)


class AudioEncoder:
    """`encode` turns waveforms (n,) float32 at 16 kHz into frames (T, dim) float32; T follows from
    n by `geometry`.
    """

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
        self.checkpoint = checkpoint
        self.geometry = Geometry.of(checkpoint)
        self.choice = parse_layers(layer, self.geometry.layers)
        self.width = self.geometry.dim
        self.dim = self.width * self.choice.copies
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        # of attention inside transformers' WavLM, where nobody can do anything about it
        warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask", UserWarning)
        # the family's processor defaults to True
        self.normalised = bool(checkpoint.processor.get("do_normalize", True))
        self.model = load_model(checkpoint, self.device)
        self._state = PerBatch()
        extractor = self.model.feature_extractor
        self.model.feature_extractor = quicker(extractor, self._state, self.device, self.precision)
        pack(self.model, self.device, self.precision)
        first = extractor.conv_layers[0]
        if isinstance(getattr(first, "layer_norm", None), nn.GroupNorm):
            first.layer_norm = OwnSampleGroupNorm(first.layer_norm, self._state)
        for convolution in self._convolutions():
            convolution.register_forward_pre_hook(self._silence)
        if getattr(self.model.encoder, "embed_positions", None) is not None:
            self.model.encoder.embed_positions = OneAtATime(self.model.encoder.embed_positions)
        self._taps = LayerTaps(self.model, self.choice, means=layer_means)
        self.layer_count = self._taps.count

    def _convolutions(self) -> list[nn.Module]:
        """The convolutions whose inputs beyond a clip are no longer zero, as earlier layers have
        changed the padding.
        """
        positions: Any = getattr(self.model.encoder, "pos_conv_embed", None)
        found = list(getattr(positions, "layers", ()))
        if getattr(positions, "batch_norm", None) is not None:
            found.append(positions.conv)
        within = (getattr(block, "conv_module", None) for block in self.model.encoder.layers)
        return [*found, *(module.depthwise_conv for module in within if module is not None)]

    def _silence(self, convolution: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        """Zeros beyond each row's own frames of what enters a convolution over them (B, C, T)."""
        frames = self._state.frames
        if frames is None or min(frames) == args[0].shape[-1]:
            return args
        ends = torch.tensor(frames, device=args[0].device)[:, None]
        beyond = torch.arange(args[0].shape[-1], device=args[0].device) >= ends
        return (args[0].masked_fill(beyond[:, None, :], 0.0),)

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

    def collate(
        self, waveforms: Sequence[np.ndarray], kept: Sequence[Kept | None] | None = None
    ) -> WaveBatch:
        """*Prepared* waveforms as one padded batch on the host."""
        samples, mask = pad(waveforms, 0.0, np.float32, self.device)
        lengths = [len(waveform) for waveform in waveforms]
        counts = [self.geometry.frames(n) for n in lengths]
        return WaveBatch(samples, mask, lengths, spans_of(kept, counts))

    def forward(self, batch: WaveBatch, *, precision: str | None = None) -> list[States]:
        """States of each waveform of a collated batch.

        `precision` overrides the encoder's own.
        """
        self._taps.begin(batch.spans)
        counts = [self.geometry.frames(n) for n in batch.lengths]
        self._state.lengths = [self.geometry.first(n) for n in batch.lengths]
        self._state.frames = counts
        with computing(self.device, precision or self.precision):
            output = self.model(
                batch.samples.to(self.device, non_blocking=True),
                attention_mask=batch.mask.to(self.device, non_blocking=True),
                **self._taps.arguments,
            )
            fetched = fetch(*self._taps.end(output))
            del output
        frames, means = fetched()
        if frames.shape[1] < max(counts) or frames.shape[2] != self.dim:
            raise EncoderError(
                f"audio encoder {self.checkpoint.name}: gave {frames.shape[1]} frames of width "
                f"{frames.shape[2]} where its configuration "
                f"says {max(counts)} of {self.dim}; this architecture is not supported"
            )
        return states_of(frames, means, counts)

    def encode(
        self,
        waveforms: Sequence[np.ndarray],
        kept: Sequence[Kept | None] | None = None,
        *,
        precision: str | None = None,
    ) -> list[States]:
        """States of each *prepared* waveform, computed as one batch."""
        return self.forward(self.collate(waveforms, kept), precision=precision)
