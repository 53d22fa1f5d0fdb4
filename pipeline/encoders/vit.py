"""Pictures → one vector each, with any image model of transformers that gives a sequence of
tokens or a feature map (ViT, DINOv2, the vision towers of CLIP and SigLIP, ConvNeXt, Swin, …).

A clip is a sequence of pictures, each encoded by itself, so nothing is padded and no result depends
on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from mer.pipeline.encoders.frozen import choose_precision, computing, load_model
from mer.pipeline.encoders.images import scale_of
from mer.pipeline.encoders.layers import LayerChoice, parse_layers
from mer.pipeline.encoders.loading import Checkpoint
from mer.pipeline.encoders.modality import Kept, Modality, States
from mer.pipeline.encoders.taps import LayerTaps, fetch, spans_of
from mer.pipeline.encoders.towers import is_hierarchy, layers_of, tower
from mer.pipeline.errors import DataError, EncoderError
from mer.pipeline.runtime.machine import choose_device, is_out_of_memory
from mer.pipeline.runtime.terminal import first_line

# A picture by which a model's output is learnt.
PROBE = np.arange(64 * 96 * 3, dtype=np.uint32).astype(np.uint8).reshape(64, 96, 3)


def load(checkpoint: Checkpoint, modality: Modality, device: str, precision: str) -> ImageEncoder:
    """The encoder that a modality of pictures asks for."""
    return ImageEncoder(
        checkpoint,
        layer=getattr(modality, "layer", "last"),
        layer_means=getattr(modality, "layer_means", False),
        pool=cast(Any, modality).pool_of(checkpoint),
        device=device,
        precision=precision,
    )


class PictureBatch(NamedTuple):
    """The pictures of several items, one behind the other, in runs of one size: how many each item
    has, and those of them that layer means are over.
    """

    runs: list[Tensor]
    counts: list[int]
    spans: list[Kept]


class FrameTaps(LayerTaps):
    """One vector of each picture, (B, width) fp32, of every layer that is wanted.

    `pool` is "cls" or "mean"; the first `prefix` tokens are of no place in the picture.
    """

    def __init__(
        self, model: nn.Module, choice: LayerChoice, *, means: bool, pool: str, prefix: int
    ) -> None:
        self.pool, self.prefix = pool, prefix
        super().__init__(model, choice, means=means)

    def _see(self, number: int, states: Tensor) -> None:
        state, vector = self._pass, self.vector(states)
        if self.means:
            state.means.append(vector)
        if number not in self.choice.layers:
            return
        if self.choice.kind == "mean" and state.chosen:
            state.chosen[0] = state.chosen[0] + vector
        else:
            state.chosen.append(vector)

    def vector(self, states: Tensor) -> Tensor:
        """(B, T, width) or (B, width, H, W) → (B, width)."""
        if states.ndim == 4:
            return states.float().mean((2, 3))
        if self.pool == "cls":
            return states[:, 0].float()
        return states[:, self.prefix :].float().mean(1)


class ImageEncoder:
    """`encode` turns pictures (n, channels, h, w) float32, as the processor gives them, into steps
    (n, dim) float32.

    `pool` says what of a picture is kept: the class token, the mean of all others, or what the
    model's own pooler gives. Layers other than the last have no pooler, so with it layer means are
    over class tokens where there are any, else over means.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        layer: str = "last",
        layer_means: bool = False,
        pool: str = "mean",
        device: str = "auto",
        precision: str = "auto",
    ):
        """Raises EncoderError for a checkpoint that is incomplete or no image model, DataError for
        an option that does not go with it.
        """
        self.checkpoint = checkpoint
        self.what = f"vision encoder {checkpoint.name}"
        self.choice = parse_layers(layer, layers_of(checkpoint), "--vision-layer")
        self.pool = pool
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        self.processor = scale_of(checkpoint)
        needed = ("pooler.",) if self.pool == "pooler" else ()
        self.model = _tower(load_model(checkpoint, self.device, needed=needed))
        self._learn(layer_means)

    def _learn(self, layer_means: bool) -> None:
        """How many tokens stand before those of places, and the widths, by a picture."""
        pixels = self.processor(PROBE)[None]
        output = self._run(pixels)
        states = output.last_hidden_state
        if states.ndim not in (3, 4):
            raise EncoderError(f"{self.what}: gives neither tokens nor a map; it is not supported")
        prefix = self._prefix(pixels, states) if states.ndim == 3 else 0
        if self.pool == "cls" and not prefix:
            raise DataError(f"--vision-pool cls: {self.what} has no class token; use mean")
        if self.pool == "pooler" and getattr(output, "pooler_output", None) is None:
            raise DataError(f"--vision-pool pooler: {self.what} has no pooler; use mean")
        hierarchy = is_hierarchy(self.checkpoint)
        if hierarchy and self.choice.kind in ("mean", "stack"):
            raise DataError(
                f"--vision-layer {self.choice.text}: the stages of {self.what} are of different "
                "widths; use last or a number"
            )
        kind = "cls" if prefix and self.pool != "mean" else "mean"
        means = layer_means and not hierarchy
        self.taps = FrameTaps(self.model, self.choice, means=means, pool=kind, prefix=prefix)
        self.layer_count = self.taps.count
        found, again = (self.encode([pixels])[0].frames for _ in range(2))
        if not np.allclose(found, again, rtol=1e-2, atol=1e-3):  # some GPUs round by chance
            raise EncoderError(
                f"{self.what}: gives another result every time (it masks or drops at random); it "
                "is not usable"
            )
        self.dim = found.shape[1]
        self.width = self.dim // self.choice.copies

    def _prefix(self, pixels: np.ndarray, states: Tensor) -> int:
        """Class, distillation and register tokens: what there is besides the patches."""
        size = tower(self.checkpoint).get("patch_size")
        if isinstance(size, list) and len(set(size)) == 1:
            size = size[0]
        if not isinstance(size, int) or size < 1:
            return 0
        patches = (pixels.shape[2] // size) * (pixels.shape[3] // size)
        return max(0, states.shape[1] - patches)

    def _run(self, pixels: np.ndarray) -> Any:
        """Raises EncoderError for a model that does not take what its processor gives."""
        try:
            with computing(self.device, "fp32"):
                output = self.model(pixel_values=torch.from_numpy(pixels).to(self.device))
        except (TypeError, ValueError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            reason = first_line(error)
            raise EncoderError(
                f"{self.what}: does not take what its image processor gives ({reason})"
            ) from None
        if getattr(output, "last_hidden_state", None) is None:
            raise EncoderError(f"{self.what}: gives no hidden states; it is not supported")
        return output

    def collate(
        self, items: Sequence[np.ndarray], kept: Sequence[Kept | None] | None = None
    ) -> PictureBatch:
        """The pictures of all items on the host, where the device can fetch them by itself."""
        runs = []
        for _, group in groupby(items, key=lambda pictures: pictures.shape[1:]):
            run = torch.from_numpy(np.concatenate(list(group)))
            runs.append(run.pin_memory() if self.device.type == "cuda" else run)
        counts = [len(pictures) for pictures in items]
        return PictureBatch(runs, counts, spans_of(kept, counts))

    def forward(self, batch: PictureBatch, *, precision: str | None = None) -> list[States]:
        """States of each item of a collated batch.

        `precision` overrides the encoder's own.
        """
        frames: list[Tensor] = []
        means: list[Tensor] = []
        with computing(self.device, precision or self.precision):
            for run in batch.runs:
                self.taps.begin(())
                output = self.model(
                    pixel_values=run.to(self.device, non_blocking=True), **self.taps.arguments
                )
                found, of_layers = self.taps.end(output)
                if self.pool == "pooler" and self.choice.kind == "last":
                    found = output.pooler_output.flatten(1).float()
                frames.append(found)
                if of_layers is not None:
                    means.append(of_layers)
                del output
            fetched = fetch(torch.cat(frames), torch.cat(means) if means else None)
        steps, of_steps = fetched()
        ends = np.cumsum(batch.counts)
        states = []
        for end, count, (first, length) in zip(ends, batch.counts, batch.spans, strict=True):
            begin = end - count
            mean = None
            if of_steps is not None:
                chosen = of_steps[begin + first : begin + first + length]
                mean = chosen.mean(0, dtype=np.float32)
            states.append(States(steps[begin:end], mean))
        return states

    def encode(
        self,
        items: Sequence[np.ndarray],
        kept: Sequence[Kept | None] | None = None,
        *,
        precision: str | None = None,
    ) -> list[States]:
        """States of each item, computed as one batch."""
        return self.forward(self.collate(items, kept), precision=precision)


def _tower(model: Any) -> nn.Module:
    """The part that sees, of a model that reads, too."""
    return getattr(model, "vision_model", model)
