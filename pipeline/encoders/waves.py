"""The convolutions that wav2vec2's family begins with, on a CPU.

They are computed with channels innermost, where a window of a convolution is a row of numbers that
lie side by side, and the convolution a matrix product (`packed.PackedLinear`); clip by clip over
the clip's own samples, and a few frames at a time, so that what passes between two layers stays in
the processor's cache. What they give does not depend on the batch, not even by rounding.

A first layer with GroupNorm needs the mean and variance of each of its channels over the whole
clip. Both follow from the mean and the products of the ten samples in a window, which cost little,
so that the layer need not be computed before they are known: the norm becomes part of its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from mer.pipeline.encoders.packed import LEAST_WIDTH, PackedLinear, can_pack, is_gelu, linear

FRAMES_AT_A_TIME = 64  # 8 MB between wav2vec2's first two layers


class Lengths(Protocol):
    """Steps of each clip of this thread's next batch after the first layer; None: no padding."""

    lengths: list[int] | None


def quicker(extractor: Any, state: Lengths, device: torch.device, precision: str) -> nn.Module:
    """`extractor` as `Waves`, or as it is where it has other layers than they know, or this machine
    has not the operators.
    """
    layers = list(getattr(extractor, "conv_layers", ()))
    if not layers or not can_pack(device, precision):
        return extractor
    known = all(_is_known(layer, first=number == 0) for number, layer in enumerate(layers))
    return Waves(layers, state, precision) if known else extractor


def _is_known(layer: Any, *, first: bool) -> bool:
    """Whether a layer is a plain convolution, then a norm over channels or, in the first one, over
    time, or none, then the exact GELU.
    """
    conv, norm = getattr(layer, "conv", None), getattr(layer, "layer_norm", None)
    if type(conv) is not nn.Conv1d or not is_gelu(getattr(layer, "activation", None)):
        return False
    plain = conv.padding == (0,) and conv.dilation == (1,) and conv.groups == 1
    if not plain or conv.out_channels < LEAST_WIDTH or first != (conv.in_channels == 1):
        return False
    if isinstance(norm, nn.GroupNorm):
        over_time = norm.num_groups == norm.num_channels == conv.out_channels
        return first and over_time and norm.affine
    return norm is None or type(norm) is nn.LayerNorm


class _Layer(nn.Module):
    """A convolution over (T, channels), its norm over channels if it has one, and its GELU."""

    def __init__(self, layer: Any, precision: str) -> None:
        super().__init__()
        conv = layer.conv
        self.kernel, self.stride = conv.kernel_size[0], conv.stride[0]
        self.width = conv.in_channels
        norm = getattr(layer, "layer_norm", None)
        self.norm = norm if isinstance(norm, nn.LayerNorm) else None
        # (out, in, kernel) → (out, kernel · in): as the numbers of a window lie
        weight = conv.weight.detach().permute(0, 2, 1).flatten(1).contiguous()
        activation = "none" if self.norm is not None else "gelu"
        self.product = PackedLinear(weight, conv.bias, precision, activation)

    def forward(self, seen: Tensor) -> Tensor:
        """The layer's output for windows (T, kernel · in)."""
        y = self.product(seen)
        if self.norm is None:
            return y
        return functional.gelu(self.norm(y))


class _First(nn.Module):
    """The first layer, if it has a norm over the steps of a clip, and its GELU."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.kernel, self.stride = layer.conv.kernel_size[0], layer.conv.stride[0]
        self.weight, self.norm = layer.conv.weight[:, 0].detach(), layer.layer_norm

    def of(self, seen: Tensor) -> Callable[[Tensor], Tensor]:
        """The layer with the norm of one clip. `seen` (T, kernel) are all windows of the clip, over
        which its mean and variance are taken; the returned layer is then called on some of them.
        """
        # in float64, since variances are differences of products
        mean = seen.mean(0, dtype=torch.float64)
        centred = seen.double() - mean
        weight = self.weight.double()
        variance = (weight @ (centred.T @ centred / len(seen)) * weight).sum(1)
        weight *= (self.norm.weight / (variance.clamp(min=0) + self.norm.eps).sqrt())[:, None]
        shift, scaled = mean.float(), weight.float()
        # a bias of the convolution would be in the mean, too
        bias = (self.norm.bias - weight @ (mean - shift)).float()

        def forward(x: Tensor) -> Tensor:
            return linear(x - shift, scaled, bias, "gelu")

        return forward


class Waves(nn.Module):
    """Waveforms (B, n) → (B, channels, T), zeros beyond each clip's own frames."""

    def __init__(self, layers: Sequence[Any], state: Lengths, precision: str) -> None:
        super().__init__()
        self.state = state
        normed = isinstance(getattr(layers[0], "layer_norm", None), nn.GroupNorm)
        # a hundredth of the work; it sees the samples as they are, also in half precision
        self.first = _First(layers[0]) if normed else _Layer(layers[0], "fp32")
        self.behind = tuple(_Layer(layer, precision) for layer in layers[1:])
        self.others = nn.ModuleList(self.behind)
        self.width = layers[-1].conv.out_channels

    def forward(self, samples: Tensor) -> Tensor:
        first, half = self.first, torch.is_autocast_enabled("cpu")
        seen = windows(samples, first.kernel, first.stride)
        counts = self.state.lengths or [seen.shape[1]] * len(samples)
        frames = torch.zeros(
            (len(samples), self._frames(seen.shape[1]), self.width),
            dtype=torch.get_autocast_dtype("cpu") if half else torch.float32,
        )
        for clip, count, out in zip(seen, counts, frames, strict=True):
            self._clip(clip[:count], out)
        return frames.transpose(1, 2)

    def _frames(self, steps: int) -> int:
        """Frames that `steps` after the first layer give."""
        for layer in self.behind:
            steps = (steps - layer.kernel) // layer.stride + 1
        return steps

    def _clip(self, seen: Tensor, out: Tensor) -> None:
        """Write the frames of a clip; `seen` are the windows that its first layer sees."""
        enter = self.first.of(seen) if isinstance(self.first, _First) else self.first
        frames = self._frames(len(seen))
        for begin in range(0, frames, FRAMES_AT_A_TIME):
            end = min(begin + FRAMES_AT_A_TIME, frames)
            first, last = begin, end  # steps after the first layer that these frames come from
            for layer in reversed(self.behind):
                first, last = first * layer.stride, (last - 1) * layer.stride + layer.kernel
            with torch.autocast("cpu", enabled=False):
                x = enter(seen[first:last])
            for layer in self.behind:
                x = layer(
                    windows(x.flatten(), layer.kernel * layer.width, layer.stride * layer.width)
                )
            out[begin:end] = x


def windows(x: Tensor, kernel: int, stride: int) -> Tensor:
    """(…, n) → (…, T, kernel): what a convolution sees at each step. Nothing is copied."""
    return x.unfold(-1, kernel, stride)
