"""Reconstruction of a sequence, counting real steps only."""

from __future__ import annotations

from torch import Tensor

from mer.fusion.losses.precision import widened


def masked_mse(x: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """sum over real steps of |x - target|^2 / (d * number of real steps), for x, target (B, T, d)
    and mask (B, T). What lies beyond the mask may be anything, NaN included. 0 where no step is
    real.
    """
    # Masked before the square, whose gradient would turn 0 times NaN into NaN.
    error = (widened(x) - widened(target)).where(mask[..., None], 0)
    return error.square().sum() / (x.shape[2] * mask.sum().clamp(min=1))
