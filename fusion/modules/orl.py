"""Optimised representation learning (ORL) of DRKF: adapter, residual autoencoder, projection,
temperature (docs/papers/drkf.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mer.fusion.modules.dropout import LockedDropout
from mer.fusion.modules.pooling import Standardise, zero_padding


class Adapter(nn.Module):
    """H = LN(Linear(X)): X (B, T, D) of a frozen encoder to H (B, T, d), zero beyond the mask (B,
    T).

    With frozen encoders this is the only place where ORL can reach what the fusion encoder sees.
    """

    def __init__(self, width: int, d: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.standardise = Standardise(width)
        self.linear = nn.Linear(width, d)
        self.norm = nn.LayerNorm(d)
        self.dropout = LockedDropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.standardise(zero_padding(x, mask).to(self.linear.weight.dtype))
        return zero_padding(self.norm(self.linear(self.dropout(x))), mask)


def adapters(widths: Mapping[str, int], d: int, *, dropout: float) -> nn.ModuleDict:
    """An adapter to d numbers for each modality, by the width of its features."""
    return nn.ModuleDict({m: Adapter(width, d, dropout=dropout) for m, width in widths.items()})


def adapt(
    layers: nn.ModuleDict, x: Mapping[str, Tensor], mask: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """H_m (B, T_m, d) of the modalities that have a mask."""
    return {m: layers[m](x[m], mask[m]) for m in mask}


def adapter_of(adapters: nn.ModuleDict, modality: str) -> Adapter:
    """The adapter of one modality."""
    return cast(Adapter, adapters[modality])


class ResidualAutoencoder(nn.Module):
    """G = A(H): K autoencoders in a cascade (Zhao et al. 2021, MMIN). Block k reads the input plus
    the outputs of all blocks before it; a two-layer transition reads the input plus the outputs of
    all blocks. Works on the last axis.

    `layers` are the widths of a block's encoder, the last one its code; the decoder mirrors them.
    """

    def __init__(self, d: int, layers: tuple[int, ...], blocks: int) -> None:
        super().__init__()
        widths = (d, *layers)
        self.encoders = nn.ModuleList(
            chain(widths, lambda: nn.LeakyReLU(0.01)) for _ in range(blocks)
        )
        self.decoders = nn.ModuleList(chain(widths[::-1], nn.ReLU) for _ in range(blocks))
        self.transition = chain((d, d, d), nn.ReLU)

    def forward(self, x: Tensor, *, active: int | None = None) -> tuple[Tensor, Tensor]:
        """(G (..., d), codes (..., sum of the active blocks' code widths)) through the first
        `active` blocks (None: all).
        """
        codes = []
        for encode, decode in list(zip(self.encoders, self.decoders, strict=True))[:active]:
            codes.append(encode(x))
            x = x + decode(codes[-1])
        return self.transition(x), torch.cat(codes, -1)


def chain(widths: tuple[int, ...], activation) -> nn.Sequential:
    """Linear layers of these widths with `activation` between them, none after the last."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1])


class _Twice(torch.autograd.Function):
    """`apply(call, h, *parameters)` -> two outputs of the same values, see `twice`."""

    @staticmethod
    def forward(ctx: Any, call, h, *parameters):
        with torch.enable_grad():
            inner = h.detach().requires_grad_()
            outer = call(inner)
        ctx.set_materialize_grads(False)
        ctx.graph = inner, outer, parameters
        return outer.detach(), outer.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, through, stopped):
        inner, outer, parameters = ctx.graph
        both = [g for g in (through, stopped) if g is not None]
        if not both:
            return None, None, *(None for _ in parameters)
        to_h = None
        if through is not None:
            (to_h,) = torch.autograd.grad(outer, inner, through, retain_graph=True)
        to_parameters = torch.autograd.grad(
            outer, parameters, sum(both), retain_graph=True, allow_unused=True
        )
        return None, to_h, *to_parameters


def twice(call: Callable[[Tensor], Tensor], h: Tensor, layers: nn.Module) -> tuple[Tensor, Tensor]:
    """`call(h)` and `call(h.detach())`, computed once.

    The parameters get the gradients of both, h that of the first alone. Beside the forward pass
    this saves the second product of each layer's backward pass, that for the parameters.

    Args:
        call: What is computed by `layers`.
        h: It needs a gradient.
        layers: All parameters that `call` has.

    Returns:
        The same numbers twice; what `call` draws at random is drawn once.
    """
    parameters = [p for p in layers.parameters() if p.requires_grad]
    if not torch.is_grad_enabled() or not h.requires_grad:
        found = call(h)
        return found, found
    return _Twice.apply(call, h, *parameters)


class Temperature(nn.Module):
    """tau = low + (high - low) sigmoid(theta), learned; `initial` is its first value.

    The published form is low 0, high 1.
    """

    def __init__(self, initial: float, *, low: float, high: float) -> None:
        super().__init__()
        if not low < initial < high:
            raise ValueError(f"temperature {initial} must lie between {low} and {high}")
        self.low, self.high = low, high
        share = (initial - low) / (high - low)
        self.theta = nn.Parameter(torch.tensor(math.log(share / (1 - share))))

    def forward(self) -> Tensor:
        return self.low + (self.high - self.low) * self.theta.sigmoid()


def active_blocks(progress: float, share: float, blocks: int) -> int:
    """How many of `blocks` are in use when the number grows from 1 to all of them in equal steps
    over the first `share` of training.

    >>> [active_blocks(p, 0.5, 4) for p in (0.0, 0.2, 0.3, 0.5, 1.0)]
    [1, 2, 3, 4, 4]
    """
    return blocks if progress >= share else min(blocks, 1 + int(progress / share * blocks))


def ramp(progress: float, share: float) -> float:
    """Grows linearly from 0 to 1 over the first `share` of training, then stays 1."""
    return 1.0 if progress >= share else progress / share
