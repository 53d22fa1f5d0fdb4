"""Dropout (Srivastava et al. 2014), and the kind with one mask for all steps of a sequence (Gal &
Ghahramani 2016).

On a CPU PyTorch draws a Bernoulli number for each element, one after the other, which was a third
of a training step of the smaller models. Here an element takes 16 random bits: a quarter of a draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

LEVELS = 1 << 16  # of the 16 random bits that decide on an element
PER_DRAW = 4  # elements of a 64-bit draw


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """Zeroes each element with probability `p` and scales the rest, so that the mean stays.

    Args:
        x: Of any shape.
        p: In [0, 1], on a CPU rounded to a multiple of 2^-16; of 1 all is zero.
        training: Otherwise `x` is returned as it is.

    Returns:
        The shape and dtype of `x`.
    """
    if not training or p == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    return x * keep_mask(x.shape, p, x)


def plus_dropout(x: Tensor, y: Tensor, p: float, training: bool = True) -> Tensor:
    """x + dropout(y), of tensors of one shape, in one pass."""
    if not training or p == 0 or y.device.type != "cpu" or x.dtype != y.dtype:
        return x + dropout(y, p, training)
    return torch.addcmul(x, y, keep_mask(y.shape, p, y))


class _ReluDropout(torch.autograd.Function):
    """`apply(x, p)`, see `relu_dropout`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        y = x.relu().mul_(keep_mask(x.shape, p, x))
        ctx.save_for_backward(y)
        ctx.scale = kept_scale(p)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grad, y, 0).mul_(ctx.scale), None


def relu_dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """dropout(relu(x)). On a CPU nothing but the result is kept for the gradient: it passes where
    that is positive.
    """
    if not training or p == 0 or x.device.type != "cpu":
        return dropout(F.relu(x), p, training)
    return _ReluDropout.apply(x, p)


def keep_mask(shape: Sequence[int], p: float, like: Tensor) -> Tensor:
    """A mask of `shape` in dtype and place of `like`: 0 with probability `p`, else the reciprocal
    of the probability to be kept.
    """
    if p >= 1:  # 16 bits have no such probability, and its reciprocal is none
        return like.new_zeros(shape)
    if like.device.type != "cpu":
        return like.new_empty(shape).bernoulli_(1 - p).div_(1 - p)
    # compared in place: making numbers of truth values takes longer than drawing them
    kept = random_levels(shape).ge_(first_kept(p))
    return kept.to(like.dtype).mul_(kept_scale(p))


def random_levels(shape: Sequence[int]) -> Tensor:
    """16 random bits for each element, as int16."""
    elements = torch.Size(shape).numel()
    draws = torch.empty(-(-elements // PER_DRAW), dtype=torch.int64).random_(-(2**63), None)
    return draws.view(torch.int16)[:elements].view(shape)


def first_kept(p: float) -> int:
    """The first of `random_levels` with which an element is kept."""
    return min(round(p * LEVELS), LEVELS - 1) - LEVELS // 2


def kept_scale(p: float) -> float:
    """The reciprocal of the probability to be kept, on a CPU."""
    return LEVELS / (LEVELS // 2 - first_kept(p))


class Dropout(nn.Module):
    """`dropout` as a layer: what `nn.Dropout` does, in less time on a CPU."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class LockedDropout(Dropout):
    """Zeroes channels of x (B, T, D) for a whole sequence and scales the rest by 1 / (1 - p).

    Redundant neighbouring steps cannot give a dropped channel away, and B D numbers are drawn
    instead of B T D.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return x * keep_mask((len(x), 1, x.shape[2]), self.p, x)
